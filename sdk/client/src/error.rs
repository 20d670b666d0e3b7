//! What can go wrong, by who can act on it.

use std::time::Duration;

use weir_batch::BatchError;
use weir_protocol::{Code, ProtocolError, WhoseTurn, lane::LaneError};

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// Its time is over.
    Expired,
    /// Its time has not come, or this machine's clock is wrong.
    NotYetValid,
    /// No trusted CA signed it.
    UnknownIssuer,
    /// It is for another host name.
    WrongName,
    /// Its CA took it back.
    Revoked,
    /// There is none, and one is required.
    Missing,
    /// It may not be used for this.
    WrongPurpose,
    /// Anything else.
    Invalid,
}

impl CertificateProblem {
    fn sentence(self) -> &'static str {
        match self {
            CertificateProblem::Expired => "has expired; issue a new one",
            CertificateProblem::NotYetValid => "is not valid yet; check the clocks of both machines",
            CertificateProblem::UnknownIssuer => "is signed by an unknown CA; check which CA file each side trusts",
            CertificateProblem::WrongName => {
                "is for another host name; set server_name to a name in it, or issue one with this name"
            }
            CertificateProblem::Revoked => "is revoked; issue a new one",
            CertificateProblem::Missing => "is missing; give the client a certificate and its key",
            CertificateProblem::WrongPurpose => "may not be used for this; issue it with the right extended key usage",
            CertificateProblem::Invalid => "is not accepted; the peer's log says why",
        }
    }
}

/// Why the client could not do what it was asked.
///
/// `Certificate`, `Config` and `Refused` with an operator's code want a person. `Unreachable`, `Disconnected` and `TimedOut` have been retried
/// as long as the configuration allows. The rest is the application's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration cannot work.
    #[error("{what}: {reason}")]
    Config {
        /// The setting.
        what: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// TLS refuses a certificate.
    #[error("the certificate of {whose} {}", problem.sentence())]
    Certificate {
        /// "the server" or "this client".
        whose: &'static str,
        /// What is wrong with it.
        problem: CertificateProblem,
    },
    /// Whoever listens there does not speak weir/1.
    #[error("{addr} does not speak weir/1 ({reason}); check host and port")]
    NotWeir {
        /// Where.
        addr: String,
        /// What it said.
        reason: String,
    },
    /// No connection could be made.
    #[error("{addr} cannot be reached: {reason}; check that the server runs and that UDP gets through")]
    Unreachable {
        /// Where.
        addr: String,
        /// Why.
        reason: String,
    },
    /// The connection broke while an answer was due.
    #[error("the connection was lost ({reason}) before the answer came; ask again")]
    Disconnected {
        /// Why.
        reason: String,
    },
    /// The time the configuration allows is over.
    #[error("{what} did not succeed within {after:?}, last because: {last}")]
    TimedOut {
        /// What.
        what: &'static str,
        /// The limit.
        after: Duration,
        /// The last error.
        last: String,
    },
    /// A newer connection has this producer name.
    #[error("a newer connection uses producer name {producer_name}; stop one of the two or give each a name of its own")]
    Fenced {
        /// The name.
        producer_name: String,
    },
    /// The principal lacks a right.
    #[error("not authorized: {message}")]
    Unauthorized {
        /// Which right, says the server.
        message: String,
    },
    /// The server refused.
    #[error("the server refused ({code}): {message}")]
    Refused {
        /// Why.
        code: Code,
        /// What to do, says the server.
        message: String,
    },
    /// This lane's sequence and the server's disagree.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The server's bytes are not the protocol, or a message does not fit it.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A record batch does not build or does not read.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// One record is larger than a batch may be.
    #[error(
        "a record of {bytes} bytes does not fit a batch of {max}; send smaller records or raise the server's batch_bytes_max"
    )]
    RecordTooLarge {
        /// The record, encoded.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The record names a partition the topic does not have.
    #[error("topic {topic} has {partitions} partitions, there is none with number {partition}")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// Another producer of this client has the lane.
    #[error("lane {lane} is used by another producer of this client; give each a lane of its own")]
    LaneInUse {
        /// The lane.
        lane: u32,
    },
    /// The producer, consumer or client was closed.
    #[error("{what} is closed; make a new one")]
    Closed {
        /// What.
        what: &'static str,
    },
}

impl ClientError {
    /// Who can act on it.
    pub fn whose_turn(&self) -> WhoseTurn {
        match self {
            ClientError::Config { .. } | ClientError::Certificate { .. } | ClientError::NotWeir { .. } => WhoseTurn::Operator,
            ClientError::Unauthorized { .. } => WhoseTurn::Operator,
            ClientError::Unreachable { .. } | ClientError::Disconnected { .. } | ClientError::TimedOut { .. } => {
                WhoseTurn::RetryLater
            }
            ClientError::Refused { code, .. } => code.whose_turn(),
            ClientError::Lane(LaneError::Rewound { .. }) => WhoseTurn::Operator,
            ClientError::Protocol(_) => WhoseTurn::Client,
            _ => WhoseTurn::Application,
        }
    }

    /// Whether the same may succeed on a later connection without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } | ClientError::Disconnected { .. } => true,
            ClientError::Refused { code, .. } => {
                matches!(code, Code::Quota | Code::ShuttingDown | Code::StorageFull | Code::StorageFailed | Code::Internal)
            }
            _ => false,
        }
    }

    /// The error of a code and its sentence.
    pub(crate) fn refused(code: Code, message: String, producer_name: &str) -> ClientError {
        match code {
            Code::Fenced => ClientError::Fenced { producer_name: producer_name.to_owned() },
            Code::Unauthorized => ClientError::Unauthorized { message },
            _ => ClientError::Refused { code, message },
        }
    }
}
