//! HELLO and WELCOME: who talks to whom, and the limits of the connection.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    FRAME_BYTES_MAX_FLOOR, FRAME_OVERHEAD_BYTES_MAX, Kind, Message, ProtocolError, VERSION,
    wire::{Reader, put_str},
};

/// The client's first frame on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The version the client speaks.
    pub version: u16,
    /// The client's software and version, for the server's log.
    pub client: String,
    /// Under which its lanes' sequences live; empty: no produce lanes.
    pub producer_name: String,
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;

    /// Reads any version's HELLO, so that a server can name what it speaks; [`Hello::check_version`] decides.
    fn decode(body: Bytes) -> Result<Hello, ProtocolError> {
        let mut body = Reader::new(body);
        let version = body.u16("hello.version")?;
        if version != VERSION {
            return Ok(Hello { version, client: String::new(), producer_name: String::new() });
        }
        let hello = Hello { version, client: body.str("hello.client")?, producer_name: body.str("hello.producer_name")? };
        body.end("HELLO")?;
        Ok(hello)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u16_le(self.version);
        put_str(out, "hello.client", &self.client)?;
        put_str(out, "hello.producer_name", &self.producer_name)
    }
}

impl Hello {
    /// Refuses another version than ours.
    pub fn check_version(&self) -> Result<(), ProtocolError> {
        check_version(self.version)
    }
}

/// The server's answer: identities and limits of this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version the connection speaks.
    pub version: u16,
    /// The node's identity.
    pub node_id: [u8; 16],
    /// The server's software and version.
    pub server: String,
    /// Who the client's certificate says it is.
    pub principal: String,
    /// Of the producer name; -1 where HELLO had none.
    pub producer_id: i64,
    /// Of this connection; it fences every lower one.
    pub producer_epoch: i16,
    /// Largest frame either side may send, header included.
    pub frame_bytes_max: u32,
    /// Largest record batch.
    pub batch_bytes_max: u32,
    /// Lanes this connection may open.
    pub lanes_max: u16,
    /// Unacknowledged batches a lane may have.
    pub batches_in_flight_max: u16,
    /// The server's clock, milliseconds since 1970.
    pub now_ms: i64,
}

impl Message for Welcome {
    const KIND: Kind = Kind::Welcome;

    fn decode(body: Bytes) -> Result<Welcome, ProtocolError> {
        let mut body = Reader::new(body);
        let version = body.u16("welcome.version")?;
        check_version(version)?;
        let welcome = Welcome {
            version,
            node_id: body.array("welcome.node_id")?,
            server: body.str("welcome.server")?,
            principal: body.str("welcome.principal")?,
            producer_id: body.i64("welcome.producer_id")?,
            producer_epoch: body.i16("welcome.producer_epoch")?,
            frame_bytes_max: body.u32("welcome.frame_bytes_max")?,
            batch_bytes_max: body.u32("welcome.batch_bytes_max")?,
            lanes_max: body.u16("welcome.lanes_max")?,
            batches_in_flight_max: body.u16("welcome.batches_in_flight_max")?,
            now_ms: body.i64("welcome.now_ms")?,
        };
        body.end("WELCOME")?;
        welcome.check()?;
        Ok(welcome)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        self.check()?;
        out.put_u16_le(self.version);
        out.put_slice(&self.node_id);
        put_str(out, "welcome.server", &self.server)?;
        put_str(out, "welcome.principal", &self.principal)?;
        out.put_i64_le(self.producer_id);
        out.put_i16_le(self.producer_epoch);
        out.put_u32_le(self.frame_bytes_max);
        out.put_u32_le(self.batch_bytes_max);
        out.put_u16_le(self.lanes_max);
        out.put_u16_le(self.batches_in_flight_max);
        out.put_i64_le(self.now_ms);
        Ok(())
    }
}

impl Welcome {
    /// The relations between the limits.
    fn check(&self) -> Result<(), ProtocolError> {
        let bad = |field, value| Err(ProtocolError::BadValue { field, value });
        if self.frame_bytes_max < FRAME_BYTES_MAX_FLOOR {
            return bad("welcome.frame_bytes_max", self.frame_bytes_max as i128);
        }
        if self.batch_bytes_max == 0 || self.batch_bytes_max > self.frame_bytes_max - FRAME_OVERHEAD_BYTES_MAX {
            return bad("welcome.batch_bytes_max", self.batch_bytes_max as i128);
        }
        if self.batches_in_flight_max == 0 {
            return bad("welcome.batches_in_flight_max", 0);
        }
        if self.producer_id < -1 {
            return bad("welcome.producer_id", self.producer_id as i128);
        }
        if self.producer_epoch < 0 && self.producer_id != -1 {
            return bad("welcome.producer_epoch", self.producer_epoch as i128);
        }
        Ok(())
    }
}

fn check_version(found: u16) -> Result<(), ProtocolError> {
    match found {
        VERSION => Ok(()),
        _ => Err(ProtocolError::UnsupportedVersion { found, ours: VERSION }),
    }
}
