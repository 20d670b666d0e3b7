//! The profiles: each drives a node through the client library (storage: the log itself) and fills a
//! [`Report`](crate::Report).

mod consume;
mod latency;
mod publish;
mod storage;

pub use consume::consume;
pub use latency::latency;
pub use publish::publish;
pub use storage::storage;
