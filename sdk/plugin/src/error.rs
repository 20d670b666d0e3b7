//! Three errors for three turns: a record's, a batch's, a configuration's.
use std::borrow::Cow;
use std::fmt;

/// The most bytes of a message that travel to the host.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why one record is rejected; the failure policy of the attachment decides what becomes of it.
///
/// Every [`std::error::Error`] turns into it, so `?` works on parsing; [`Error::new`] takes any text.
pub struct Error(Cow<'static, str>);

impl Error {
    /// A reject with this message.
    #[cold]
    pub fn new(message: impl fmt::Display) -> Self {
        Self(Cow::Owned(message.to_string()))
    }

    /// A reject with a message that costs no allocation.
    #[must_use]
    pub const fn fixed(message: &'static str) -> Self {
        Self(Cow::Borrowed(message))
    }

    /// The message, at most about a kilobyte of it.
    #[must_use]
    pub fn message(&self) -> &str {
        let mut end = self.0.len().min(MESSAGE_BYTES_MAX);
        while !self.0.is_char_boundary(end) {
            end -= 1;
        }
        &self.0[..end]
    }
}

impl<E: std::error::Error> From<E> for Error {
    #[cold]
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?})", self.message())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

/// What [`Plugin::process`](crate::Plugin::process) returns.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// Why a plugin cannot start: the attachment is refused, the topic stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitError {
    /// The configuration is wrong; the text names the key.
    Config(String),
    /// The plugin and this host do not fit.
    Unsupported(String),
}

impl InitError {
    /// A wrong value of `key`.
    #[must_use]
    pub fn config(key: &str, problem: impl fmt::Display) -> Self {
        Self::Config(format!("`{key}`: {problem}"))
    }
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) => write!(f, "configuration: {text}"),
            Self::Unsupported(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for InitError {}

/// Why a whole batch fails: nothing of it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// Trying again later may help.
    Retry(String),
    /// It will not.
    Fatal(String),
}

impl BatchError {
    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Retry(text) | Self::Fatal(text) => text,
        }
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for BatchError {}
