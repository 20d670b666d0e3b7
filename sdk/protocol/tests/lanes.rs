//! A lane between a sender and a receiver: whatever is refused, lost or cut off, each record ends up in the log once, in order, or is failed.

use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*};
use weir_protocol::{
    AckCode, AckItem, Code, Credit, LaneReady, NackItem, ProtocolError,
    fetch::{CreditBalance, CreditReturn},
    lane::{Arrival, LaneError, LaneReceiver, LaneSender},
};

const IN_FLIGHT: u16 = 4;
const WINDOW: u32 = 1000;

fn ready(next_sequence: u64) -> LaneReady {
    LaneReady { lane: 3, partitions: 1, next_sequence, credit_bytes: WINDOW }
}

fn sender(next_sequence: u64) -> LaneSender<u32> {
    LaneSender::new(&ready(next_sequence), IN_FLIGHT)
}

fn ack(base_sequence: u64, record_count: u32, base_offset: i64) -> AckItem {
    AckItem {
        lane: 3,
        partition: 0,
        base_sequence,
        record_count,
        stored_count: record_count,
        base_offset,
        code: AckCode::Durable,
        credit_bytes: WINDOW,
    }
}

fn nack(base_sequence: u64, expected_sequence: u64, code: Code) -> NackItem {
    NackItem { lane: 3, partition: 0, base_sequence, expected_sequence, code, message: String::new() }
}

fn sent(lane: &mut LaneSender<u32>) -> Vec<(u64, u32)> {
    std::iter::from_fn(|| lane.poll_send().map(|batch| (batch.base_sequence, batch.payload))).collect()
}

#[test]
fn limits_hold_batches_back() {
    let mut lane = sender(0);
    for payload in 0..6 {
        lane.push(0, 10, 100, payload);
    }
    assert_eq!(sent(&mut lane).len(), IN_FLIGHT as usize);
    lane.on_ack(&AckItem { credit_bytes: 150, ..ack(0, 10, 0) }, |_, _| {}).unwrap();
    assert_eq!(sent(&mut lane), [], "a smaller window, and 300 bytes are on the way");
    lane.on_ack(&AckItem { credit_bytes: 0, ..ack(10, 30, 10) }, |_, _| {}).unwrap();
    assert_eq!(sent(&mut lane), [], "nothing on the way, but no window");
    lane.on_ack(&AckItem { credit_bytes: 1, ..ack(40, 0, -1) }, |_, _| {}).unwrap();
    assert_eq!(sent(&mut lane), [(40, 4)], "one batch goes into any window");
}

#[test]
fn an_ack_covers_what_came_before() {
    let mut lane = sender(100);
    lane.push(0, 10, 1, 1);
    lane.push(0, 10, 1, 2);
    assert_eq!(sent(&mut lane), [(100, 1), (110, 2)]);
    let mut done = Vec::new();
    lane.on_ack(&ack(110, 10, 55), |batch, durable| done.push((batch.payload, durable.base_offset, durable.stored_count)))
        .unwrap();
    assert_eq!(done, [(1, -1, None), (2, 55, Some(10))]);
    assert_eq!((lane.durable_sequence(), lane.is_empty()), (120, true));
}

#[test]
fn an_ack_of_what_was_not_sent_is_an_error() {
    let mut lane = sender(0);
    lane.push(0, 10, 1, 1);
    assert!(lane.on_ack(&ack(0, 10, 0), |_, _| panic!("not sent")).is_err());
    assert_eq!(sent(&mut lane).len(), 1);
    assert!(lane.on_ack(&ack(0, 11, 0), |_, _| {}).is_err());
    assert!(sender(0).on_nack(nack(0, 0, Code::Quota)).is_err());
}

#[test]
fn after_a_refusal_the_rest_gets_new_sequences_once_all_are_answered() {
    let mut lane = sender(0);
    for payload in 0..3 {
        lane.push(0, 10, 1, payload);
    }
    sent(&mut lane);
    lane.on_nack(nack(0, 0, Code::RejectedByPipeline)).unwrap();
    lane.on_nack(nack(10, 0, Code::SequenceGap)).unwrap();
    assert_eq!(sent(&mut lane), []);
    assert!(lane.poll_refusals().unwrap().is_none(), "one answer is still due");
    lane.on_nack(nack(20, 0, Code::SequenceGap)).unwrap();
    let refusals = lane.poll_refusals().unwrap().unwrap();
    assert_eq!(
        refusals.failed.iter().map(|(batch, nack)| (batch.payload, nack.code)).collect::<Vec<_>>(),
        [(0, Code::RejectedByPipeline)]
    );
    assert!(refusals.pause.is_none());
    assert_eq!(sent(&mut lane), [(0, 1), (10, 2)]);
}

#[test]
fn a_lost_connection_keeps_sequences_and_drops_what_is_durable() {
    let mut lane = sender(0);
    for payload in 0..3 {
        lane.push(0, 10, 1, payload);
    }
    sent(&mut lane);
    lane.on_disconnected();
    assert_eq!(sent(&mut lane), []);
    let mut done = Vec::new();
    lane.on_ready(&ready(10), IN_FLIGHT, |batch, durable| done.push((batch.payload, durable.base_offset))).unwrap();
    assert_eq!(done, [(0, -1)]);
    assert_eq!(sent(&mut lane), [(10, 1), (20, 2)]);
}

#[test]
fn a_server_that_disagrees_about_the_sequence_is_an_error() {
    let mut lane = sender(50);
    lane.push(0, 10, 1, 0);
    lane.on_disconnected();
    assert_eq!(lane.on_ready(&ready(49), 1, |_, _| {}), Err(LaneError::Rewound { durable: 50, server: 49 }));
    assert_eq!(lane.on_ready(&ready(61), 1, |_, _| {}), Err(LaneError::Ahead { sent: 60, server: 61 }));
    assert_eq!(lane.on_ready(&ready(55), 1, |_, _| {}), Err(LaneError::InsideBatch { base: 50, server: 55 }));
}

#[test]
fn a_fenced_lane_gives_everything_back() {
    let mut lane = sender(0);
    lane.push(0, 10, 1, 0);
    lane.push(0, 10, 1, 1);
    sent(&mut lane);
    lane.on_nack(nack(0, 0, Code::Fenced)).unwrap();
    lane.on_nack(nack(10, 0, Code::Fenced)).unwrap();
    assert_eq!(lane.poll_refusals().unwrap().unwrap().lane.unwrap().code, Code::Fenced);
    assert_eq!(lane.take_all().len(), 2);
}

#[test]
fn a_receiver_knows_next_duplicate_and_gap() {
    let mut lane = LaneReceiver::new(3, 10, 2, 100);
    assert_eq!(lane.on_batch(11, 1, 10), Ok(Arrival::Gap { expected: 10 }));
    assert_eq!(lane.on_batch(10, 5, 10), Ok(Arrival::Next));
    assert_eq!(lane.on_batch(10, 5, 10), Ok(Arrival::Duplicate));
    let over = ProtocolError::OverLimit { lane: 3, what: "batches", used: 3, max: 2 };
    assert_eq!(lane.on_batch(15, 5, 10), Err(over));
    lane.on_durable(10);
    let over = ProtocolError::OverLimit { lane: 3, what: "bytes", used: 101, max: 100 };
    assert_eq!(lane.on_batch(15, 5, 91), Err(over));
    lane.on_refused(10, 10);
    assert_eq!(lane.on_batch(15, 5, 10_000), Ok(Arrival::Gap { expected: 10 }));
    assert!(lane.on_batch(0, 0, 1).is_err() && lane.on_batch(u64::MAX, 1, 1).is_err());
}

#[test]
fn credit_may_be_overdrawn_once_and_comes_back_as_it_is_consumed() {
    let (mut server, mut client) = (CreditBalance::new(100), CreditReturn::new(100));
    server.on_sent(90);
    assert!(server.may_send());
    server.on_sent(60);
    assert_eq!((server.may_send(), server.available()), (false, 0));
    assert_eq!(client.on_consumed(20), None);
    let credit = client.on_consumed(40).unwrap();
    server.on_credit(credit);
    assert_eq!((credit.bytes, server.available()), (60, 10));
    server.on_credit(Credit { bytes: u32::MAX });
    assert_eq!(server.available(), 1 << 30);
}

/// What may happen next in the world below.
#[derive(Debug, Clone, Copy)]
enum Event {
    Push { record_count: u32, poison: bool },
    Send,
    Receive,
    Commit { full: bool },
    Answer,
    Cut,
    Connect,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1u32..5, prop::bool::weighted(0.15)).prop_map(|(record_count, poison)| Event::Push { record_count, poison }),
        4 => Just(Event::Send),
        4 => Just(Event::Receive),
        4 => prop::bool::weighted(0.1).prop_map(|full| Event::Commit { full }),
        4 => Just(Event::Answer),
        1 => Just(Event::Cut),
        2 => Just(Event::Connect),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    base: u64,
    count: u32,
    id: u32,
}

#[derive(Debug)]
enum Reply {
    Ack(AckItem),
    Nack(NackItem),
}

/// One client, one server whose log refuses poison for good and anything when it is full; the wire forgets when it is cut.
struct World {
    lane: LaneSender<(u32, bool)>,
    connected: bool,
    wire: VecDeque<(Sent, bool)>,
    replies: VecDeque<Reply>,
    receiver: LaneReceiver,
    queue: VecDeque<(Sent, bool)>,
    log: Vec<Sent>,
    pushed: u32,
    acked: Vec<u32>,
    failed: Vec<u32>,
}

impl World {
    fn new() -> World {
        World {
            lane: LaneSender::new(&ready(0), IN_FLIGHT),
            connected: true,
            wire: VecDeque::new(),
            replies: VecDeque::new(),
            receiver: LaneReceiver::new(3, 0, IN_FLIGHT, WINDOW),
            queue: VecDeque::new(),
            log: Vec::new(),
            pushed: 0,
            acked: Vec::new(),
            failed: Vec::new(),
        }
    }

    fn log_next(&self) -> u64 {
        self.log.last().map_or(0, |last| last.base + last.count as u64)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Push { record_count, poison } => {
                self.lane.push(0, record_count, 100, (self.pushed, poison));
                self.pushed += 1;
            }
            Event::Send => {
                if let Some(batch) = self.lane.poll_send() {
                    let sent = Sent { base: batch.base_sequence, count: batch.record_count, id: batch.payload.0 };
                    self.wire.push_back((sent, batch.payload.1));
                }
            }
            Event::Receive => self.receive(),
            Event::Commit { full } => self.commit(full),
            Event::Answer => self.answer(),
            Event::Cut if self.connected => {
                self.connected = false;
                self.wire.clear();
                self.replies.clear();
                self.lane.on_disconnected();
            }
            Event::Connect if !self.connected => self.connect(),
            Event::Cut | Event::Connect => {}
        }
    }

    fn receive(&mut self) {
        let Some((sent, poison)) = self.wire.pop_front() else { return };
        match self.receiver.on_batch(sent.base, sent.count, 100).expect("the sender keeps the limits") {
            Arrival::Next | Arrival::Duplicate => self.queue.push_back((sent, poison)),
            Arrival::Gap { expected } => self.replies.push_back(Reply::Nack(nack(sent.base, expected, Code::SequenceGap))),
        }
    }

    fn commit(&mut self, full: bool) {
        let Some((sent, poison)) = self.queue.pop_front() else { return };
        let next = self.log_next();
        let refused = match () {
            () if sent.base > next => Some(Code::SequenceGap),
            () if sent.base < next => None,
            () if poison => Some(Code::RejectedByPipeline),
            () if full => Some(Code::StorageFull),
            () => None,
        };
        let reply = match refused {
            Some(code) => {
                self.receiver.on_refused(sent.base, 100);
                Reply::Nack(nack(sent.base, next, code))
            }
            None => {
                if sent.base == next {
                    self.log.push(sent);
                }
                self.receiver.on_durable(100);
                Reply::Ack(ack(sent.base, sent.count, sent.base as i64))
            }
        };
        if self.connected {
            self.replies.push_back(reply);
        }
    }

    fn answer(&mut self) {
        let acked = &mut self.acked;
        match self.replies.pop_front() {
            Some(Reply::Ack(item)) => {
                self.lane.on_ack(&item, |batch, _| acked.push(batch.payload.0)).expect("an ack of what was sent")
            }
            Some(Reply::Nack(item)) => self.lane.on_nack(item).expect("a nack of what was sent"),
            None => return,
        }
        if let Some(refusals) = self.lane.poll_refusals().expect("one numbering") {
            self.failed.extend(refusals.failed.iter().map(|(batch, _)| batch.payload.0));
        }
    }

    /// LANE_OPEN is answered once nothing of the old connection is under way.
    fn connect(&mut self) {
        while !self.queue.is_empty() {
            self.commit(false);
        }
        let acked = &mut self.acked;
        let next = self.log.last().map_or(0, |last| last.base + last.count as u64);
        self.lane.on_ready(&ready(next), IN_FLIGHT, |batch, _| acked.push(batch.payload.0)).expect("one numbering");
        self.receiver = LaneReceiver::new(3, next, IN_FLIGHT, WINDOW);
        self.connected = true;
    }

    fn settle(&mut self) {
        self.step(Event::Connect);
        while !self.lane.is_empty() {
            for event in [Event::Send, Event::Receive, Event::Commit { full: false }, Event::Answer] {
                self.step(event);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn each_record_is_stored_once_and_in_order(events in vec(event(), 1..150)) {
        let mut world = World::new();
        events.into_iter().for_each(|event| world.step(event));
        world.settle();
        let stored: Vec<u32> = world.log.iter().map(|sent| sent.id).collect();
        prop_assert!(stored.is_sorted_by(|a, b| a < b), "stored {:?}", stored);
        prop_assert_eq!(&stored, &world.acked, "acknowledged is what is stored, in order");
        let mut seen = [stored, world.failed].concat();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..world.pushed).collect::<Vec<_>>(), "each is stored or failed");
    }
}
