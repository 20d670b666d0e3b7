//! How a command ends when it cannot do its work: an exit code, one sentence, and what to do next.

use std::fmt;
use std::io;
use std::process::ExitCode;

use weir_client::{ClientError, Code};

/// What the exit code tells a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command failed.
    Failed = 1,
    /// Wrong usage or configuration: nothing was tried.
    Usage = 2,
    /// The node cannot be reached.
    Unreachable = 3,
    /// The node refused: rights or limits.
    Refused = 4,
    /// What was asked for does not exist.
    NotFound = 5,
    /// What should be created exists.
    Exists = 6,
}

/// Why a command ended early.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    next: Option<String>,
    /// The reader of standard output went away (`| head`): that is no failure.
    quiet: bool,
}

impl Failure {
    /// A failure with one sentence.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string(), next: None, quiet: false }
    }

    /// Wrong arguments.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl fmt::Display) -> Failure {
        self.next = Some(next.to_string());
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Tells the user and gives the process's exit code.
    pub fn report(self) -> ExitCode {
        if self.quiet {
            return ExitCode::SUCCESS;
        }
        eprintln!("weir: {self}");
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl Failure {
    /// What a client's error means for the exit code, and what to do about it. `addr` is where the node was looked for.
    pub fn from_client(error: ClientError, addr: &str) -> Failure {
        match &error {
            ClientError::Unreachable { .. } | ClientError::NotWeir { .. } => Failure::new(Exit::Unreachable, error)
                .next("start a node with `weir serve`, or name the address with --addr (WEIR_ADDR)"),
            ClientError::TimedOut { what: "connecting", .. } => Failure::new(Exit::Unreachable, format!("{addr}: {error}"))
                .next("start a node with `weir serve`, or name the address with --addr (WEIR_ADDR)"),
            ClientError::Disconnected { .. } => Failure::new(Exit::Unreachable, format!("{addr}: {error}")),
            ClientError::Certificate { .. } => Failure::new(Exit::Refused, format!("{addr}: {error}"))
                .next("choose certificates with --certs and --as; `weir cert device NAME` makes one"),
            ClientError::Config { .. } => Failure::usage(error),
            ClientError::Unauthorized { .. } => Failure::new(Exit::Refused, error)
                .next("an [[acl]] rule in the node's configuration gives the right; --as chooses another certificate"),
            ClientError::Fenced { .. } => Failure::new(Exit::Refused, error),
            ClientError::UnknownPartition { topic, .. } => {
                let next = format!("weir topic describe {topic} shows its partitions");
                Failure::new(Exit::NotFound, error).next(next)
            }
            ClientError::Refused { code, .. } => Failure::refused(*code, &error),
            _ => Failure::new(Exit::Failed, error),
        }
    }

    fn refused(code: Code, error: &ClientError) -> Failure {
        let (exit, next) = match code {
            Code::Unauthorized => (Exit::Refused, Some("an [[acl]] rule in the node's configuration gives the right")),
            Code::UnknownTopic => (Exit::NotFound, Some("weir topic list shows what there is; weir topic create makes one")),
            Code::UnknownPartition => (Exit::NotFound, Some("weir topic describe shows a topic's partitions")),
            Code::UnknownPlugin => (Exit::NotFound, Some("weir plugin list shows what there is; weir plugin upload stores one")),
            Code::UnknownProducer => (Exit::NotFound, None),
            Code::TopicExists => (Exit::Exists, None),
            Code::InvalidArgument => (Exit::Usage, None),
            Code::Quota | Code::RejectedByPipeline | Code::BatchTooLarge | Code::InvalidRecord => (Exit::Refused, None),
            Code::PluginInUse => (Exit::Refused, Some("weir pipeline list shows who uses it; detach it there first")),
            Code::StorageFull => (
                Exit::Refused,
                Some("free space on the node's disk: weir topic delete, or weir topic set with a shorter retention"),
            ),
            Code::ShuttingDown => (Exit::Unreachable, Some("try again when the node is back")),
            _ => (Exit::Failed, None),
        };
        let failure = Failure::new(exit, error);
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let quiet = error.kind() == io::ErrorKind::BrokenPipe;
        Failure { exit: Exit::Failed, message: format!("cannot write the output: {error}"), next: None, quiet }
    }
}

impl From<crate::cert::CertError> for Failure {
    fn from(error: crate::cert::CertError) -> Failure {
        let exit = match error {
            crate::cert::CertError::Exists(_) => Exit::Exists,
            crate::cert::CertError::Name { .. } => Exit::Usage,
            crate::cert::CertError::NoCa { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}
