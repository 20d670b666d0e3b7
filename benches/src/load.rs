//! What is sent: how much, how fast, from how many, and the bytes themselves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weir_batch::{BatchBuilder, Codec};
use weir_protocol::ack::ACK_ITEM_BYTES;
use weir_protocol::frame::FRAME_HEADER_BYTES;
use weir_protocol::lane::BATCH_PREFIX_BYTES;

use crate::BenchError;

/// The shape of a run.
#[derive(Debug, Clone)]
pub struct Load {
    /// The topic; it must exist.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    /// Ends after so many records, or
    pub records: Option<u64>,
    /// after so long.
    pub seconds: Duration,
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// Records of a batch.
    pub batch_records: u32,
    /// QUIC connections.
    pub connections: u32,
    /// Producers (lanes) or consumers a connection.
    pub producers: u32,
    /// Un-acknowledged batches a producer; the node may allow fewer.
    pub in_flight: u16,
    /// Records a second over all producers, at fixed times; none: as fast as acknowledgements allow.
    pub rate: Option<u64>,
    /// Whether batches are compressed.
    pub zstd: bool,
}

impl Load {
    /// Bytes of an ACK of one batch as the node sends it.
    pub const ANSWER_BYTES: u32 = (FRAME_HEADER_BYTES + 4 + ACK_ITEM_BYTES) as u32;

    /// Bytes of a batch as a producer sends it, with what frames it.
    pub fn request_bytes(&self) -> Result<u32, BenchError> {
        Ok((BATCH_PREFIX_BYTES + Payload::build(self, 0)?.batch_bytes()) as u32)
    }

    /// One record on its way, then its answer: bound by the number of messages, not of bytes.
    pub fn is_one_by_one(&self) -> bool {
        self.batch_records == 1 && self.in_flight == 1 && self.rate.is_none()
    }

    /// Producers of all connections.
    pub fn lanes(&self) -> u32 {
        self.connections * self.producers
    }
}

/// Batches built before the clock starts, so that the client's CPU is spent on the protocol.
#[derive(Debug, Clone)]
pub struct Payload {
    batches: Vec<bytes::Bytes>,
    records: u32,
    newest_ms: i64,
    next: usize,
}

/// Different batches a producer cycles through: enough that no cache along the way sees one twice in a row.
const DISTINCT: u64 = 8;

impl Payload {
    /// Batches of a load; `seed` makes those of each producer different.
    pub fn build(load: &Load, seed: u64) -> Result<Payload, BenchError> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let codec = if load.zstd { Codec::Zstd(1) } else { Codec::None };
        let mut batches = Vec::new();
        for _ in 0..DISTINCT {
            let mut builder = BatchBuilder::new(codec);
            for record in 0..load.batch_records {
                let value = value(&mut rng, load.record_bytes);
                builder.push(now + i64::from(record / 1000), None, Some(&value), &[]);
            }
            batches.push(bytes::Bytes::from(builder.finish()?));
        }
        let newest_ms = now + i64::from(load.batch_records.saturating_sub(1) / 1000);
        Ok(Payload { batches, records: load.batch_records, newest_ms, next: 0 })
    }

    /// The next batch and its records. Reference-counted: no copy.
    pub fn next_batch(&mut self) -> (bytes::Bytes, u32) {
        self.next = (self.next + 1) % self.batches.len();
        (self.batches[self.next].clone(), self.records)
    }

    /// Timestamp of the newest record of each batch.
    pub fn newest_ms(&self) -> i64 {
        self.newest_ms
    }

    /// Mean bytes of a batch as sent.
    pub fn batch_bytes(&self) -> usize {
        self.batches.iter().map(bytes::Bytes::len).sum::<usize>() / self.batches.len()
    }
}

/// Half text that repeats, half hexadecimal noise: about as compressible as sensor JSON.
pub(crate) fn value(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    const TEXT: &[u8] = br#"{"model":"Toyota","type":"TPMS","status":128,"pressure_kPa":221.3,"temperature_C":24.0,"id":""#;
    let mut value = Vec::with_capacity(bytes);
    value.extend(TEXT.iter().take(bytes / 2));
    while value.len() < bytes {
        value.push(b"0123456789abcdef"[rng.usize(..16)]);
    }
    value
}
