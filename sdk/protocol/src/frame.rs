//! The frame: 8 bytes of header and a body. Bytes of one stream go into a [`FrameDecoder`], typed [`Message`]s come out of its frames.
//!
//! A frame that lies within one received chunk is a slice of it. One that does not is copied once into a buffer of its own: its parts are not
//! held until the last has arrived, because a part can pin a whole receive buffer of the socket.

use std::{collections::VecDeque, fmt};

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 8;
/// RESPONSE: the answer goes on in the next RESPONSE of the same correlation.
pub const FLAG_MORE: u8 = 1;
/// What a split frame's buffer has at first; later it grows to at most [`GATHER_GROWTH`] times what arrived.
const GATHER_BYTES_FIRST: usize = 16 << 10;
const GATHER_GROWTH: usize = 4;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $variant = $number,)* }

        impl Kind {
            /// Every kind there is.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// The kind of a byte.
            pub fn from_number(number: u8) -> Option<Kind> {
                match number { $($number => Some(Kind::$variant),)* _ => None }
            }

            /// The name in FORMAT.md.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    /// [`crate::Hello`]
    Hello = 1, "HELLO";
    /// [`crate::Welcome`]
    Welcome = 2, "WELCOME";
    /// [`crate::LaneOpen`]
    LaneOpen = 3, "LANE_OPEN";
    /// [`crate::LaneReady`]
    LaneReady = 4, "LANE_READY";
    /// [`crate::Batch`]
    Batch = 5, "BATCH";
    /// [`crate::Acks`]
    Ack = 6, "ACK";
    /// [`crate::Nacks`]
    Nack = 7, "NACK";
    /// [`crate::Publish`]
    Publish = 8, "PUBLISH";
    /// [`crate::Subscribe`]
    Subscribe = 9, "SUBSCRIBE";
    /// [`crate::Data`]
    Data = 10, "DATA";
    /// [`crate::Credit`]
    Credit = 11, "CREDIT";
    /// [`crate::End`]
    End = 12, "END";
    /// [`crate::RequestFrame`]
    Request = 13, "REQUEST";
    /// [`crate::ResponseFrame`]
    Response = 14, "RESPONSE";
    /// [`crate::ErrorNotice`]
    Error = 15, "ERROR";
    /// [`crate::GoAway`]
    GoAway = 16, "GO_AWAY";
}

impl Kind {
    /// The flags a frame of this kind may have.
    pub fn flags_known(self) -> u8 {
        match self {
            Kind::Response => FLAG_MORE,
            _ => 0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One whole frame; its length, kind and flags are checked, its body is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Bits its kind knows.
    pub flags: u8,
    /// The bytes after the header.
    pub body: Bytes,
}

impl Frame {
    /// The message in it, if it is an `M`; `wanted` names what was due in the error.
    pub fn expect<M: Message>(self, wanted: &'static str) -> Result<M, ProtocolError> {
        if self.kind != M::KIND {
            return Err(ProtocolError::UnexpectedKind { found: self.kind, wanted });
        }
        M::decode(self.body)
    }
}

/// A typed body of one kind of frame.
pub trait Message: Sized {
    /// The kind of frame it travels in.
    const KIND: Kind;

    /// Reads a whole body; bytes left over are an error.
    fn decode(body: Bytes) -> Result<Self, ProtocolError>;

    /// Appends the body.
    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError>;

    /// Appends header and body. On an error `out` is as it was.
    fn encode(&self, frame_bytes_max: u32, out: &mut BytesMut) -> Result<(), ProtocolError> {
        put_frame(Self::KIND, 0, frame_bytes_max, out, |out| self.encode_body(out))
    }

    /// Header and body in bytes of their own.
    fn to_frame(&self, frame_bytes_max: u32) -> Result<Bytes, ProtocolError> {
        let mut out = BytesMut::new();
        self.encode(frame_bytes_max, &mut out)?;
        Ok(out.freeze())
    }
}

/// Appends a frame whose body `body` writes. On an error `out` is as it was.
pub(crate) fn put_frame(
    kind: Kind,
    flags: u8,
    frame_bytes_max: u32,
    out: &mut BytesMut,
    body: impl FnOnce(&mut BytesMut) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let start = out.len();
    put_header(out, kind, flags, 0);
    let written = body(out);
    let bytes = (out.len() - start) as u64;
    let fits = bytes <= frame_bytes_max as u64;
    if let (Ok(()), true) = (&written, fits) {
        let body_bytes = bytes as u32 - FRAME_HEADER_BYTES as u32;
        out[start..start + 4].copy_from_slice(&body_bytes.to_le_bytes());
        return Ok(());
    }
    out.truncate(start);
    written?;
    Err(ProtocolError::FrameTooLarge { kind, bytes, max: frame_bytes_max })
}

/// Appends the header of a frame whose body of `body_bytes` the caller sends itself, so that a batch need not be copied.
pub(crate) fn put_header(out: &mut BytesMut, kind: Kind, flags: u8, body_bytes: u32) {
    out.put_u32_le(body_bytes);
    out.put_u8(kind as u8);
    out.put_u8(flags);
    out.put_u16_le(0);
}

/// Cuts one stream's bytes into frames.
///
/// After each [`push`](FrameDecoder::push) call [`next_frame`](FrameDecoder::next_frame) until it has no more: then at most one unfinished frame is held.
/// After an error the stream is beyond repair.
#[derive(Debug)]
pub struct FrameDecoder {
    frame_bytes_max: u32,
    chunks: VecDeque<Bytes>,
    /// The unfinished frame, header included; empty while the next frame begins in a chunk.
    partial: BytesMut,
}

struct Header {
    kind: Kind,
    flags: u8,
    frame_bytes: usize,
}

impl FrameDecoder {
    /// A decoder at the start of a stream whose frames have at most `frame_bytes_max` bytes, header included.
    pub fn new(frame_bytes_max: u32) -> FrameDecoder {
        FrameDecoder { frame_bytes_max, chunks: VecDeque::new(), partial: BytesMut::new() }
    }

    /// Another limit from the next frame on: WELCOME sets it.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: u32) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Takes what the stream delivered next.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame, or `None` until more has arrived.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        if self.partial.is_empty() {
            let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
            if let Some(header) = parse_header(chunk, self.frame_bytes_max)?
                && chunk.len() >= header.frame_bytes
            {
                let frame = chunk.split_to(header.frame_bytes);
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
                return Ok(Some(whole(&header, frame)));
            }
        }
        self.gather()
    }

    /// Bytes of an unfinished frame: at a stream's end there must be none.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.chunks.is_empty()
    }

    fn gather(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            let header = parse_header(&self.partial, self.frame_bytes_max)?;
            let wanted = header.as_ref().map_or(FRAME_HEADER_BYTES, |header| header.frame_bytes);
            if let Some(header) = header
                && self.partial.len() == wanted
            {
                let frame = std::mem::take(&mut self.partial).freeze();
                return Ok(Some(whole(&header, frame)));
            }
            let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
            let part = chunk.split_to(chunk.len().min(wanted - self.partial.len()));
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
            self.make_room(part.len(), wanted);
            self.partial.extend_from_slice(&part);
        }
    }

    /// Room for `more` bytes: never more than a small multiple of what arrived, whatever the header claims.
    fn make_room(&mut self, more: usize, frame_bytes: usize) {
        let needed = self.partial.len() + more;
        if needed > self.partial.capacity() {
            let generous = (needed * GATHER_GROWTH).max(GATHER_BYTES_FIRST).min(frame_bytes.max(needed));
            let mut larger = BytesMut::with_capacity(generous);
            larger.extend_from_slice(&self.partial);
            self.partial = larger;
        }
    }
}

fn whole(header: &Header, mut frame: Bytes) -> Frame {
    Frame { kind: header.kind, flags: header.flags, body: frame.split_off(FRAME_HEADER_BYTES) }
}

/// The header at the front of `bytes`, once it is all there.
fn parse_header(bytes: &[u8], frame_bytes_max: u32) -> Result<Option<Header>, ProtocolError> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let [l0, l1, l2, l3, number, flags, r0, r1] = *header;
    let kind = Kind::from_number(number).ok_or(ProtocolError::UnknownKind { kind: number })?;
    if flags & !kind.flags_known() != 0 {
        return Err(ProtocolError::UnknownFlags { kind, flags });
    }
    if (r0, r1) != (0, 0) {
        return Err(ProtocolError::ReservedNotZero { kind });
    }
    let frame_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as u64 + FRAME_HEADER_BYTES as u64;
    if frame_bytes > frame_bytes_max as u64 {
        return Err(ProtocolError::FrameTooLarge { kind, bytes: frame_bytes, max: frame_bytes_max });
    }
    Ok(Some(Header { kind, flags, frame_bytes: frame_bytes as usize }))
}
