//! Frames of one QUIC stream, and the last words on one.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use weir_protocol::{ErrorNotice, Frame, FrameDecoder, Message, ProtocolError};

/// Parts of a stream taken from the connection under one of its locks: about 23 KiB at the usual MTU.
const CHUNKS_PER_READ: usize = 16;
/// How long a peer may take to acknowledge an ERROR before the connection is closed under it.
const LAST_WORDS_MAX: Duration = Duration::from_millis(250);

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The peer's bytes are not the protocol: told in an ERROR, and the connection ends.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The peer closed the connection, reset the stream, or went silent.
    #[error("the peer is gone")]
    Gone,
}

impl From<ReadError> for StreamError {
    fn from(_: ReadError) -> StreamError {
        StreamError::Gone
    }
}

impl From<WriteError> for StreamError {
    fn from(_: WriteError) -> StreamError {
        StreamError::Gone
    }
}

/// Reads frames off a stream. The bytes of a frame are copied at most once on their way from the datagrams.
#[derive(Debug)]
pub(super) struct FrameReader {
    recv: RecvStream,
    decoder: FrameDecoder,
}

impl FrameReader {
    pub(super) fn new(recv: RecvStream, frame_bytes_max: u32) -> FrameReader {
        FrameReader { recv, decoder: FrameDecoder::new(frame_bytes_max) }
    }

    /// The next frame, or none at the stream's end. Nothing is lost if the caller stops waiting.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS_PER_READ] = Default::default();
            match self.recv.read_chunks(&mut chunks).await? {
                Some(count) => chunks.into_iter().take(count).for_each(|chunk| self.decoder.push(chunk)),
                None if self.decoder.is_empty() => return Ok(None),
                // A frame that was cut off is a peer that went away in the middle of it.
                None => return Err(StreamError::Gone),
            }
        }
    }
}

/// Writes one message.
pub(super) async fn send_message<M: Message>(send: &mut SendStream, message: &M, max: u32) -> Result<(), StreamError> {
    Ok(send.write_chunk(message.to_frame(max)?).await?)
}

/// Says why and ends the stream; the connection goes on.
pub(super) async fn end_with(send: &mut SendStream, notice: &ErrorNotice, max: u32) -> Result<(), StreamError> {
    send_message(send, notice, max).await?;
    // It can only have been finished or reset already: then nobody listens.
    let _ = send.finish();
    Ok(())
}

/// Says why on the stream, then closes the connection with the same code.
pub(super) async fn close_with(connection: &Connection, send: &mut SendStream, notice: &ErrorNotice, max: u32) {
    if end_with(send, notice, max).await.is_ok() {
        let _ = tokio::time::timeout(LAST_WORDS_MAX, send.stopped()).await;
    }
    close(connection, notice);
}

/// Closes the connection with a notice's code and words.
pub(super) fn close(connection: &Connection, notice: &ErrorNotice) {
    let end = (0..=notice.message.len().min(512)).rev().find(|at| notice.message.is_char_boundary(*at)).unwrap_or(0);
    connection.close(VarInt::from_u32(u32::from(notice.code.number())), &notice.message.as_bytes()[..end]);
}
