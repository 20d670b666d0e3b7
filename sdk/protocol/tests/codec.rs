//! Every message survives a round trip through any cutting of the stream; cut short, flipped or invented bytes are an error, never a panic.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use weir_protocol::{
    ack::{encode_acks, encode_nacks},
    admin::{AnswerParts, FoundOffset, GroupOffset, PartitionRange, Refusal, TopicDescription, encode_response},
    fetch::put_data_prefix,
    lane::put_batch_prefix,
    *,
};

const MAX: u32 = FRAME_BYTES_MAX_DEFAULT;

/// A message of any kind.
#[derive(Debug, Clone, PartialEq)]
enum Any {
    Hello(Hello),
    Welcome(Welcome),
    LaneOpen(LaneOpen),
    LaneReady(LaneReady),
    Batch(Batch),
    Acks(Acks),
    Nacks(Nacks),
    Publish(Publish),
    Subscribe(Subscribe),
    Data(Data),
    Credit(Credit),
    End(End),
    Request(RequestFrame),
    Error(ErrorNotice),
    GoAway(GoAway),
}

macro_rules! each {
    ($($variant:ident: $type:ty;)*) => {
        fn encode(any: &Any) -> Bytes {
            match any { $(Any::$variant(message) => message.to_frame(MAX).unwrap(),)* }
        }

        fn decode(frame: Frame) -> Result<Any, ProtocolError> {
            $(if frame.kind == <$type as Message>::KIND { return <$type as Message>::decode(frame.body).map(Any::$variant); })*
            panic!("{} is no message of this test", frame.kind)
        }
    };
}

each! {
    Hello: Hello; Welcome: Welcome; LaneOpen: LaneOpen; LaneReady: LaneReady; Batch: Batch; Acks: Acks; Nacks: Nacks; Publish: Publish;
    Subscribe: Subscribe; Data: Data; Credit: Credit; End: End; Request: RequestFrame; Error: ErrorNotice; GoAway: GoAway;
}

fn text() -> impl Strategy<Value = String> {
    "[a-zäß字]{0,20}"
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn refusal_code() -> impl Strategy<Value = Code> {
    (1u16..40).prop_map(Code::from_number)
}

fn ack_item() -> impl Strategy<Value = AckItem> {
    (any::<[u32; 5]>(), 0..u64::MAX / 2, -1i64.., any::<bool>()).prop_map(
        |([lane, partition, record_count, stored_count, credit_bytes], base_sequence, base_offset, duplicate)| {
            let code = if duplicate { AckCode::Duplicate } else { AckCode::Durable };
            AckItem { lane, partition, base_sequence, record_count, stored_count, base_offset, code, credit_bytes }
        },
    )
}

fn nack_item() -> impl Strategy<Value = NackItem> {
    (any::<[u32; 2]>(), any::<[u64; 2]>(), refusal_code(), text()).prop_map(
        |([lane, partition], [base_sequence, expected_sequence], code, message)| NackItem {
            lane,
            partition,
            base_sequence,
            expected_sequence,
            code,
            message,
        },
    )
}

fn welcome() -> impl Strategy<Value = Welcome> {
    (any::<[u8; 16]>(), text(), text(), -1i64.., 0i16.., FRAME_BYTES_MAX_FLOOR..u32::MAX, any::<u16>(), 1u16.., any::<i64>())
        .prop_map(
            |(
                node_id,
                server,
                principal,
                producer_id,
                producer_epoch,
                frame_bytes_max,
                lanes_max,
                batches_in_flight_max,
                now_ms,
            )| Welcome {
                version: VERSION,
                node_id,
                server,
                principal,
                producer_id,
                producer_epoch,
                frame_bytes_max,
                batch_bytes_max: frame_bytes_max - FRAME_OVERHEAD_BYTES_MAX,
                lanes_max,
                batches_in_flight_max,
                now_ms,
            },
        )
}

fn group_offset() -> impl Strategy<Value = GroupOffset> {
    (text(), any::<u32>(), any::<i64>(), text()).prop_map(|(topic, partition, offset, metadata)| GroupOffset {
        topic,
        partition,
        offset,
        metadata,
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (text(), any::<u32>(), vec((text(), text()), 0..3)).prop_map(|(topic, partitions, settings)| Request::CreateTopic {
            topic,
            partitions,
            settings
        }),
        text().prop_map(|topic| Request::DeleteTopic { topic }),
        Just(Request::ListTopics),
        text().prop_map(|topic| Request::DescribeTopic { topic }),
        (text(), vec(any::<(u32, i64)>(), 0..5)).prop_map(|(topic, partitions)| Request::ListOffsets { topic, partitions }),
        (text(), vec(group_offset(), 0..5)).prop_map(|(group, offsets)| Request::CommitOffsets { group, offsets }),
        (text(), vec((text(), any::<u32>()), 0..5))
            .prop_map(|(group, partitions)| Request::CommittedOffsets { group, partitions }),
        Just(Request::ListGroups),
        text().prop_map(|group| Request::DeleteGroup { group }),
        blob().prop_map(|component| Request::PutPlugin { component }),
        Just(Request::ListPlugins),
        (text(), text()).prop_map(|(name, version)| Request::DeletePlugin { name, version }),
        (text(), text()).prop_map(|(topic, pipeline)| Request::AttachPipeline { topic, pipeline }),
        text().prop_map(|topic| Request::DetachPipeline { topic }),
        Just(Request::ListPipelines),
        Just(Request::Status),
        Just(Request::BackupStatus),
        Just(Request::StopBackup),
        (text(), any::<u32>()).prop_map(|(dir, keep)| Request::StartBackup { dir, keep }),
        (any::<u32>(), any::<bool>(), blob()).prop_map(|(upload, last, part)| Request::PutPluginPart { upload, last, part }),
        (text(), vec((text(), text()), 0..3)).prop_map(|(topic, settings)| Request::SetTopic { topic, settings }),
        Just(Request::ListDisks),
        text().prop_map(|dir| Request::AddDisk { dir }),
        any::<(u8, bool)>().prop_map(|(number, drain)| Request::DrainDisk { number, drain }),
        (any::<(u8, bool)>(), text()).prop_map(|((number, force), dir)| Request::ReplaceDisk { number, force, dir }),
        any::<(u8, bool)>().prop_map(|(number, force)| Request::RemoveDisk { number, force }),
    ]
}

fn answer() -> impl Strategy<Value = (Operation, Answer)> {
    let ranges = vec(any::<(u32, i64, i64)>(), 0..5).prop_map(|ranges| {
        let range = |(partition, start_offset, high_watermark)| PartitionRange { partition, start_offset, high_watermark };
        ranges.into_iter().map(range).collect()
    });
    prop_oneof![
        Just((Operation::DeleteTopic, Answer::Done)),
        Just((Operation::PutPluginPart, Answer::Done)),
        any::<u32>().prop_map(|partitions| (Operation::CreateTopic, Answer::TopicCreated { partitions })),
        vec((text(), any::<u32>()), 0..5).prop_map(|topics| (Operation::ListTopics, Answer::Topics(topics))),
        (text(), vec((text(), text()), 0..3), text(), ranges).prop_map(|(topic, settings, pipeline, partitions)| {
            (Operation::DescribeTopic, Answer::Topic(TopicDescription { topic, settings, pipeline, partitions }))
        }),
        vec(any::<(u32, i64, i64)>(), 0..5).prop_map(|found| {
            let offset = |(partition, offset, timestamp)| FoundOffset { partition, offset, timestamp };
            (Operation::ListOffsets, Answer::Offsets(found.into_iter().map(offset).collect()))
        }),
        vec(group_offset(), 0..5).prop_map(|offsets| (Operation::CommittedOffsets, Answer::GroupOffsets(offsets))),
        vec(text(), 0..5).prop_map(|groups| (Operation::ListGroups, Answer::Groups(groups))),
        (text(), text()).prop_map(|(name, version)| (Operation::PutPluginPart, Answer::Plugin { name, version })),
        any::<u64>().prop_map(|revision| (Operation::AttachPipeline, Answer::Pipeline { revision })),
        text().prop_map(|json| (Operation::Status, Answer::Json(json))),
        text().prop_map(|json| (Operation::AddDisk, Answer::Json(json))),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![(0i64..).prop_map(Start::Offset), Just(Start::Latest), Just(Start::Earliest)]
}

fn message() -> impl Strategy<Value = Any> {
    prop_oneof![
        (text(), text()).prop_map(|(client, producer_name)| Any::Hello(Hello { version: VERSION, client, producer_name })),
        welcome().prop_map(Any::Welcome),
        (any::<u32>(), text()).prop_map(|(lane, topic)| Any::LaneOpen(LaneOpen { lane, topic })),
        (any::<u32>(), 1u32.., any::<u64>(), any::<u32>()).prop_map(|(lane, partitions, next_sequence, credit_bytes)| {
            Any::LaneReady(LaneReady { lane, partitions, next_sequence, credit_bytes })
        }),
        (any::<u32>(), any::<u64>(), blob()).prop_map(|(partition, base_sequence, batch)| Any::Batch(Batch {
            partition,
            base_sequence,
            batch
        })),
        vec(ack_item(), 0..5).prop_map(|items| Any::Acks(Acks { items })),
        vec(nack_item(), 0..5).prop_map(|items| Any::Nacks(Nacks { items })),
        (0i64.., any::<i16>(), any::<[u32; 2]>(), text(), any::<u64>(), blob()).prop_map(
            |(producer_id, producer_epoch, [lane, partition], topic, base_sequence, batch)| {
                Any::Publish(Publish { producer_id, producer_epoch, lane, topic, partition, base_sequence, batch })
            }
        ),
        (text(), any::<bool>(), any::<u32>(), vec((any::<u32>(), start()), 0..5)).prop_map(
            |(topic, live, credit_bytes, partitions)| { Any::Subscribe(Subscribe { topic, live, credit_bytes, partitions }) }
        ),
        (any::<u32>(), 0i64.., 0i64.., blob()).prop_map(|(partition, high_watermark, start_offset, batches)| {
            Any::Data(Data { partition, high_watermark, start_offset, batches })
        }),
        any::<u32>().prop_map(|bytes| Any::Credit(Credit { bytes })),
        vec(any::<(u32, i64)>(), 0..5).prop_map(|positions| Any::End(End { positions })),
        (any::<u32>(), request()).prop_map(|(correlation, request)| Any::Request(RequestFrame { correlation, request })),
        (refusal_code(), text()).prop_map(|(code, message)| Any::Error(ErrorNotice { code, message })),
        (refusal_code(), text()).prop_map(|(code, message)| Any::GoAway(GoAway { code, message })),
    ]
}

/// Feeds a stream cut at every `cuts` bytes in turn.
fn frames(stream: &Bytes, cuts: &[usize], max: u32) -> Result<Vec<Frame>, ProtocolError> {
    let (mut decoder, mut rest, mut frames) = (FrameDecoder::new(max), stream.clone(), Vec::new());
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        decoder.push(rest.split_to((*cut).min(rest.len())));
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    assert_eq!(decoder.is_empty(), frames.iter().map(|frame| frame.body.len() + 8).sum::<usize>() == stream.len());
    Ok(frames)
}

proptest! {
    #[test]
    fn messages_survive_any_cutting(messages in vec(message(), 1..8), cuts in vec(1usize..700, 1..6)) {
        let stream = messages.iter().fold(BytesMut::new(), |mut out, one| { out.extend_from_slice(&encode(one)); out }).freeze();
        let decoded: Vec<Any> = frames(&stream, &cuts, MAX).unwrap().into_iter().map(|frame| decode(frame).unwrap()).collect();
        prop_assert_eq!(decoded, messages);
    }

    #[test]
    fn a_frame_in_one_chunk_is_a_slice_of_it(one in message()) {
        let bytes = encode(&one);
        let range = bytes.as_ptr_range();
        let frame = frames(&bytes, &[usize::MAX], MAX).unwrap().remove(0);
        prop_assert!(frame.body.is_empty() || range.contains(&frame.body.as_ptr()));
    }

    #[test]
    fn a_body_cut_short_is_an_error_or_another_batch(one in message(), keep in any::<prop::sample::Index>()) {
        let mut frame = frames(&encode(&one), &[usize::MAX], MAX).unwrap().remove(0);
        if frame.body.is_empty() { return Ok(()); }
        let body = frame.body.slice(..keep.index(frame.body.len()));
        frame.body = body;
        match decode(frame) {
            Err(ProtocolError::Truncated { .. }) => {}
            Ok(Any::Batch(_) | Any::Publish(_) | Any::Data(_)) => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn more_than_a_body_is_an_error(one in message()) {
        let mut frame = frames(&encode(&one), &[usize::MAX], MAX).unwrap().remove(0);
        frame.body = [&frame.body[..], &[0]].concat().into();
        match decode(frame) {
            Err(ProtocolError::TrailingBytes { left: 1, .. }) => {}
            Ok(Any::Batch(_) | Any::Publish(_) | Any::Data(_)) => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn flipped_bits_never_panic(one in message(), flips in vec(any::<(prop::sample::Index, u8)>(), 1..4), cut in 1usize..100) {
        let mut bytes = encode(&one).to_vec();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << (bit % 8);
        }
        for frame in frames(&bytes.into(), &[cut], MAX).unwrap_or_default() {
            if frame.kind == Kind::Response { let _ = ResponseFrame::decode(frame); } else { let _ = decode(frame); }
        }
    }

    #[test]
    fn invented_bodies_never_panic(kind in 0usize..16, flags in 0u8..2, body in blob(), operation in 0usize..18) {
        let frame = Frame { kind: Kind::ALL[kind], flags, body: body.clone() };
        if frame.kind == Kind::Response { let _ = ResponseFrame::decode(frame); } else { let _ = decode(frame); }
        let _ = Answer::decode(Operation::ALL[operation], body);
    }

    #[test]
    fn answers_survive_being_cut_into_frames((operation, answer) in answer(), max in 20u32..200) {
        let mut out = BytesMut::new();
        encode_response(7, &Ok(answer.clone()), max, &mut out).unwrap();
        let (mut parts, mut whole) = (AnswerParts::default(), None);
        for frame in frames(&out.freeze(), &[usize::MAX], max).unwrap() {
            prop_assert!(whole.is_none());
            let response = ResponseFrame::decode(frame).unwrap();
            prop_assert_eq!(response.correlation, 7);
            whole = parts.on_part(response.more, response.result.unwrap()).unwrap();
        }
        prop_assert_eq!(Answer::decode(operation, whole.unwrap()).unwrap(), answer);
    }

    #[test]
    fn acks_and_nacks_split_at_the_limit(acks in vec(ack_item(), 1..60), nacks in vec(nack_item(), 1..10), max in 1100u32..3000) {
        let mut out = BytesMut::new();
        encode_acks(&acks, max, &mut out).unwrap();
        encode_nacks(&nacks, max, &mut out).unwrap();
        let (mut got_acks, mut got_nacks) = (Vec::new(), Vec::new());
        for frame in frames(&out.freeze(), &[usize::MAX], max).unwrap() {
            match decode(frame).unwrap() {
                Any::Acks(more) => got_acks.extend(more.items),
                Any::Nacks(more) => got_nacks.extend(more.items),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(got_acks, acks);
        prop_assert_eq!(got_nacks, nacks);
    }

    #[test]
    fn prefixes_are_what_the_messages_begin_with(partition: u32, number in 0i64.., batch in blob()) {
        let mut out = BytesMut::new();
        put_batch_prefix(&mut out, MAX, partition, number as u64, batch.len()).unwrap();
        out.extend_from_slice(&batch);
        prop_assert_eq!(out.freeze(), encode(&Any::Batch(Batch { partition, base_sequence: number as u64, batch: batch.clone() })));
        let mut out = BytesMut::new();
        let data = Data { partition, high_watermark: number, start_offset: 3, batches: batch.clone() };
        prop_assert_eq!(put_data_prefix(&mut out, MAX, partition, number, 3, batch.len()).unwrap(), data.body_bytes());
        out.extend_from_slice(&batch);
        prop_assert_eq!(out.freeze(), encode(&Any::Data(data)));
    }
}

fn decode_stream(bytes: &[u8], max: u32) -> Result<Option<Frame>, ProtocolError> {
    let mut decoder = FrameDecoder::new(max);
    decoder.push(Bytes::copy_from_slice(bytes));
    decoder.next_frame()
}

#[test]
fn headers_are_refused_before_their_body_arrives() {
    let too_large = [1, 0, 1, 0, 5, 0, 0, 0]; // 65,537 bytes of body
    assert_eq!(
        decode_stream(&too_large, 65_536),
        Err(ProtocolError::FrameTooLarge { kind: Kind::Batch, bytes: 65_545, max: 65_536 })
    );
    assert_eq!(decode_stream(&[0, 0, 0, 0, 99, 0, 0, 0], MAX), Err(ProtocolError::UnknownKind { kind: 99 }));
    assert_eq!(decode_stream(&[0, 0, 0, 0, 5, 1, 0, 0], MAX), Err(ProtocolError::UnknownFlags { kind: Kind::Batch, flags: 1 }));
    assert_eq!(decode_stream(&[0, 0, 0, 0, 5, 0, 0, 1], MAX), Err(ProtocolError::ReservedNotZero { kind: Kind::Batch }));
    assert_eq!(decode_stream(&[0, 0, 0], MAX), Ok(None));
}

#[test]
fn a_list_cannot_claim_more_than_arrived() {
    let claim = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    assert!(matches!(Acks::decode(claim), Err(ProtocolError::Truncated { field: "ack.items", .. })));
}

#[test]
fn what_is_over_the_limit_is_not_written() {
    let mut out = BytesMut::from(&b"before"[..]);
    let batch = Batch { partition: 0, base_sequence: 0, batch: Bytes::from(vec![0; 100]) };
    assert_eq!(batch.encode(119, &mut out), Err(ProtocolError::FrameTooLarge { kind: Kind::Batch, bytes: 120, max: 119 }));
    assert_eq!(&out[..], b"before");
    batch.encode(120, &mut out).unwrap();
    let open = LaneOpen { lane: 1, topic: "x".repeat(70_000) };
    assert!(matches!(open.encode(MAX, &mut out), Err(ProtocolError::TooLong { .. })));
    assert_eq!(out.len(), 6 + 120);
}

#[test]
fn long_sentences_are_cut_between_characters() {
    let notice = ErrorNotice { code: Code::Internal, message: format!("x{}", "ß".repeat(600)) };
    let mut frame = decode_stream(&notice.to_frame(MAX).unwrap(), MAX).unwrap().unwrap();
    let cut = ErrorNotice::decode(std::mem::take(&mut frame.body)).unwrap();
    assert_eq!(cut.message.len(), MESSAGE_BYTES_MAX - 1);
}

#[test]
fn another_versions_hello_can_be_answered() {
    let hello = Hello::decode(Bytes::from_static(&[9, 0, 1, 2, 3])).unwrap();
    assert_eq!(hello.check_version(), Err(ProtocolError::UnsupportedVersion { found: 9, ours: VERSION }));
    assert_eq!(hello.check_version().unwrap_err().code(), Code::UnsupportedVersion);
}

#[test]
fn a_refusal_cannot_be_ok() {
    let body = Bytes::from_static(&[0, 0, 0, 0]);
    assert_eq!(ErrorNotice::decode(body), Err(ProtocolError::BadValue { field: "error.code", value: 0 }));
    let mut out = BytesMut::new();
    let refusal = Err(Refusal { code: Code::Quota, message: "wait".into() });
    encode_response(3, &refusal, MAX, &mut out).unwrap();
    let frame = decode_stream(&out, MAX).unwrap().unwrap();
    assert_eq!(ResponseFrame::decode(frame).unwrap().result.unwrap_err().code, Code::Quota);
}

/// The layouts of FORMAT.md, byte by byte: a change here is a change of the protocol.
#[test]
fn layouts_are_those_of_the_format_document() {
    let ready = LaneReady { lane: 1, partitions: 2, next_sequence: 3, credit_bytes: 4 };
    assert_eq!(
        ready.to_frame(MAX).unwrap()[..],
        [20, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]
    );
    let item = AckItem {
        lane: 1,
        partition: 2,
        base_sequence: 3,
        record_count: 4,
        stored_count: 5,
        base_offset: -1,
        code: AckCode::Duplicate,
        credit_bytes: 6,
    };
    let expected: Vec<u8> = [44, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0]
        .into_iter()
        .chain([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0])
        .chain([0xff; 8])
        .chain([1, 0, 0, 0, 6, 0, 0, 0])
        .collect();
    assert_eq!(Acks { items: vec![item] }.to_frame(MAX).unwrap(), expected);
}
