//! The profiles: each drives a node through the client library and fills a [`Report`](crate::Report).

mod consume;
mod latency;
mod publish;

pub use consume::consume;
pub use latency::latency;
pub use publish::publish;
