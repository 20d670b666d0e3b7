//! The Rust client of Weir: produce, consume and administer over QUIC with client certificates.
//!
//! A record's way: [`Producer::send`] encodes it into the record batch of its partition ([`producer`]), the producer's task writes ripe batches to
//! its lane's stream, the connection's control reader ([`session`](crate::Client)) hands acks back to the lane, and each record's [`Delivery`] resolves. A
//! [`Consumer`] reads stored batches as they are and slices records out of them. Connections come and go below both; sequences and
//! offsets make that invisible. The rules live in `weir-protocol`; here are sockets, clocks and tasks.
//!
//! Cost of a record sent: one lock, one copy into the batch, one reference count; none of a task, a channel or an allocation of its own.
//! Cost of a batch: one allocation for its bytes, one for its completion, a share of one write and of one ack frame.
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod config;
mod consumer;
mod error;
pub mod producer;
mod publish;
mod records;
mod session;
mod tls;

pub use admin::Admin;
pub use client::{Client, Sockets};
pub use config::{ClientConfig, ConsumerConfig, Partitioner, ProducerConfig, Start, TransportProfile};
pub use consumer::{Consumer, FetchedBatches};
pub use error::{CertificateProblem, ClientError};
pub use producer::{Ack, Delivery, Producer, Record};
pub use publish::{ProducerTicket, PublishOutcome};
pub use records::ConsumerRecord;
pub use weir_batch::{BatchBuilder, Codec};
pub use weir_protocol::{
    Code, WhoseTurn,
    admin::{FoundOffset, GroupOffset, PartitionRange, TopicDescription},
};
