//! ERROR and GO_AWAY: the last words on a stream, and of a server that drains.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Code, Kind, Message, ProtocolError,
    ack::read_refusal,
    wire::{Reader, put_message},
};

/// Why a stream (or connection) ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorNotice {
    /// The reason.
    pub code: Code,
    /// What to do about it.
    pub message: String,
}

impl ErrorNotice {
    /// What to tell a peer whose bytes were wrong.
    pub fn from_error(error: &ProtocolError) -> ErrorNotice {
        ErrorNotice { code: error.code(), message: error.to_string() }
    }
}

impl Message for ErrorNotice {
    const KIND: Kind = Kind::Error;

    fn decode(body: Bytes) -> Result<ErrorNotice, ProtocolError> {
        let mut body = Reader::new(body);
        let notice = ErrorNotice { code: read_refusal(&mut body, "error.code")?, message: body.str("error.message")? };
        body.end("ERROR")?;
        Ok(notice)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u16_le(self.code.number());
        put_message(out, &self.message);
        Ok(())
    }
}

/// The server drains: finish what is in flight, reconnect later or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// The reason.
    pub code: Code,
    /// What to do about it.
    pub message: String,
}

impl Message for GoAway {
    const KIND: Kind = Kind::GoAway;

    fn decode(body: Bytes) -> Result<GoAway, ProtocolError> {
        let mut body = Reader::new(body);
        let notice = GoAway { code: read_refusal(&mut body, "go_away.code")?, message: body.str("go_away.message")? };
        body.end("GO_AWAY")?;
        Ok(notice)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u16_le(self.code.number());
        put_message(out, &self.message);
        Ok(())
    }
}
