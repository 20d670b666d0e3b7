//! Lines in the node's log, limited by the manifest's `[grants] log`.
//!
//! In native tests they go to standard error, where `cargo test` shows them for a test that fails.
use std::fmt;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the plugin's author.
    Debug = 0,
    /// Worth knowing.
    Info = 1,
    /// Somebody should look.
    Warn = 2,
    /// Something is wrong.
    Error = 3,
}

/// Writes one line; [`log!`](crate::log!) is shorter.
pub fn write(level: Level, message: fmt::Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    match message.as_str() {
        Some(text) => crate::guest::log(level, text),
        None => crate::guest::log(level, &message.to_string()),
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Writes a line to the node's log: `log!(Level::Warn, "sensor {id} is silent")`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($message:tt)+) => {
        $crate::log::write($level, ::core::format_args!($($message)+))
    };
}
