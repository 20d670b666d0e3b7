//! The profiles: each drives a node through the client library, or one part of a node alone, and fills a
//! [`Report`](crate::Report).

mod amplification;
mod cold;
mod consume;
mod lanes;
mod mirror;
mod pace;
mod pipeline;
mod publish;
mod standby;
mod storage;
mod streams;
mod tally;

pub use amplification::{Feed, amplification};
pub use cold::cold;
pub use consume::{fill_topic, read_topic, tail};
pub use mirror::{is_one_device, mirror};
pub use pace::latency;
pub use pipeline::{BYTE_FILTER, PluginUse, pipeline};
pub use publish::publish;
pub use standby::{Standby, address_changes};
pub use storage::storage;
pub use streams::Streams;
