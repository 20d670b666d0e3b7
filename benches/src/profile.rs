//! The profiles: each drives a node through the client library and fills a [`Report`](crate::Report).

mod consume;
mod latency;
mod publish;

pub use consume::consume;
pub use latency::latency;
pub use publish::publish;

use hdrhistogram::Histogram;

/// From a microsecond to ten minutes, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid")
}
