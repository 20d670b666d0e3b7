//! What a catch-up read fetches before it is needed: a partition's blocks in the segments behind the one that is being read.
//!
//! A thin partition has little in each segment, so its way through them is a chain of small reads. Here the reads of several
//! segments are under way at once, in no order, and are taken in order. Futures are polled by the read they belong to; when that
//! ends, what they still wait for is dropped.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::Block;

/// Segments read from at once: as many requests as the reader has at the disk.
pub(super) const SEGMENTS_AHEAD: usize = 8;
/// Blocks fetched of one of them before its turn: with all segments this bounds the memory of a read, 2 MiB of raw bytes and
/// what they are stored in.
pub(super) const BLOCKS_AHEAD: usize = 4;
/// Reads that may look ahead at the same time; the others go one by one.
const READS_MAX: usize = 4;

/// The blocks of a segment that could be had, with their ordinals.
pub(super) type Fetched = Vec<(u32, Arc<Block>)>;
type Fetch<'a> = Pin<Box<dyn Future<Output = Fetched> + Send + 'a>>;

/// Counts the reads that look ahead.
#[derive(Debug, Default)]
pub(super) struct Seats(AtomicUsize);

/// One read's share.
pub(super) struct Ahead<'a> {
    seats: &'a Seats,
    seated: bool,
    /// Segments whose blocks were asked for.
    begun: Vec<u32>,
    under_way: Vec<(u32, Fetch<'a>)>,
    blocks: HashMap<(u32, u32), Arc<Block>>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(seats: &'a Seats) -> Ahead<'a> {
        let seated = seats.0.fetch_add(1, Ordering::Relaxed) < READS_MAX;
        Ahead { seats, seated, begun: Vec::new(), under_way: Vec::new(), blocks: HashMap::new() }
    }

    /// Whether it may begin anything.
    pub(super) fn may(&self) -> bool {
        self.seated
    }

    pub(super) fn has_begun(&self, segment: u32) -> bool {
        self.begun.contains(&segment)
    }

    pub(super) fn begin(&mut self, segment: u32, fetch: impl Future<Output = Fetched> + Send + 'a) {
        self.begun.push(segment);
        self.under_way.push((segment, Box::pin(fetch)));
    }

    /// Waits until the segment is there, if it was begun; the others go on meanwhile.
    pub(super) async fn ready(&mut self, segment: u32) {
        let Ahead { under_way, blocks, .. } = self;
        poll_fn(|context| {
            under_way.retain_mut(|(number, fetch)| match fetch.as_mut().poll(context) {
                Poll::Ready(fetched) => {
                    blocks.extend(fetched.into_iter().map(|(block, data)| ((*number, block), data)));
                    false
                }
                Poll::Pending => true,
            });
            if under_way.iter().any(|(number, _)| *number == segment) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    pub(super) fn take(&mut self, segment: u32, block: u32) -> Option<Arc<Block>> {
        self.blocks.remove(&(segment, block))
    }

    /// What was fetched and not wanted.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = ((u32, u32), Arc<Block>)> + '_ {
        self.blocks.drain()
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.seats.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::cold::tests::{Plan, block_of, entries, head, open, write};

    fn block() -> Arc<Block> {
        let plan = Plan { partition_step: 1, hole: 0, batches: vec![(1, 100)], compressible: true };
        let (file, _) = write(head(), &entries(&[plan]));
        let (_, _, index) = open(&file).unwrap();
        Arc::new(block_of(&file, &index, 0).unwrap())
    }

    #[test]
    fn a_read_waits_for_its_segment_and_keeps_what_came_before_it() {
        let (first, second) = (oneshot::channel::<Arc<Block>>(), oneshot::channel::<Arc<Block>>());
        let (done, order) = mpsc::channel();
        let seats = Arc::new(Seats::default());
        crate::task::run(async move {
            let mut ahead = Ahead::new(&seats);
            assert!(ahead.may() && !ahead.has_begun(7));
            ahead.begin(7, async move { first.1.await.map_or_else(|_| Vec::new(), |block| vec![(3, block)]) });
            ahead.begin(8, async move { second.1.await.map_or_else(|_| Vec::new(), |block| vec![(0, block)]) });
            ahead.ready(7).await;
            done.send((ahead.take(7, 3).is_some(), ahead.take(7, 3).is_some())).unwrap();
            ahead.ready(8).await;
            done.send((ahead.take(8, 0).is_some(), ahead.has_begun(8))).unwrap();
        });
        assert!(second.0.send(block()).is_ok());
        assert!(order.try_recv().is_err(), "the first one is not there yet");
        assert!(first.0.send(block()).is_ok());
        assert_eq!(order.try_recv(), Ok((true, false)));
        assert_eq!(order.try_recv(), Ok((true, true)));
    }

    #[test]
    fn only_so_many_reads_look_ahead() {
        let seats = Seats::default();
        let all: Vec<Ahead<'_>> = (0..=READS_MAX).map(|_| Ahead::new(&seats)).collect();
        assert_eq!(all.iter().filter(|ahead| ahead.may()).count(), READS_MAX);
        drop(all);
        assert!(Ahead::new(&seats).may());
    }
}
