//! The profiles: each drives a node through the client library, or one part of a node alone, and fills a
//! [`Report`](crate::Report).

mod consume;
mod latency;
mod pipeline;
mod publish;

pub use consume::consume;
pub use latency::latency;
pub use pipeline::{BYTE_FILTER, PluginUse, pipeline};
pub use publish::publish;
