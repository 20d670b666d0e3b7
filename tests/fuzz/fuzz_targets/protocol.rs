//! The wire: a stream of bytes, cut anywhere, decoded as every message a peer may send.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weir_protocol::{
    Acks, Batch, Credit, Data, End, ErrorNotice, Frame, FrameDecoder, GoAway, Hello, Kind, LaneOpen, LaneReady, Message, Nacks,
    Publish, RequestFrame, ResponseFrame, Subscribe, Welcome,
};

fuzz_target!(|data: &[u8]| {
    let Some((&cut, data)) = data.split_first() else { return };
    let mut decoder = FrameDecoder::new(64 << 10);
    for chunk in data.chunks(usize::from(cut).max(1)) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => decode(frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

/// What decodes must encode again, and decode to the same.
fn round<M: Message + PartialEq + std::fmt::Debug>(frame: Frame) {
    if let Ok(message) = M::decode(frame.body) {
        let again = message.to_frame(1 << 20).expect("what was decoded can be encoded");
        assert_eq!(M::decode(again.slice(8..)).expect("what was encoded can be decoded"), message);
    }
}

fn decode(frame: Frame) {
    match frame.kind {
        Kind::Hello => round::<Hello>(frame),
        Kind::Welcome => round::<Welcome>(frame),
        Kind::LaneOpen => round::<LaneOpen>(frame),
        Kind::LaneReady => round::<LaneReady>(frame),
        Kind::Batch => round::<Batch>(frame),
        Kind::Ack => round::<Acks>(frame),
        Kind::Nack => round::<Nacks>(frame),
        Kind::Publish => round::<Publish>(frame),
        Kind::Subscribe => round::<Subscribe>(frame),
        Kind::Data => round::<Data>(frame),
        Kind::Credit => round::<Credit>(frame),
        Kind::End => round::<End>(frame),
        Kind::Error => round::<ErrorNotice>(frame),
        Kind::GoAway => round::<GoAway>(frame),
        Kind::Request => round::<RequestFrame>(frame),
        Kind::Response => drop(ResponseFrame::decode(frame)),
    }
}
