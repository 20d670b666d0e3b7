//! The numbers of refusals, their names, and who can do something about them.

use std::fmt;

/// Who can act on a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhoseTurn {
    /// Nobody: it went well.
    Nobody,
    /// The author of the client's software.
    Client,
    /// The application or its caller: a name, an argument, a range.
    Application,
    /// Whoever runs the appliance.
    Operator,
    /// The author of a plugin, or of the device whose record it refused.
    PluginAuthor,
    /// Time: the same request may succeed later.
    RetryLater,
    /// The authors of Weir.
    Us,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $turn:ident;)*) => {
        /// Why something was refused; also the application error code a connection or stream is closed with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $variant,)*
            /// A number this version does not know.
            Unknown(u16),
        }

        impl Code {
            /// Every code this version knows.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The number on the wire.
            pub fn number(self) -> u16 {
                match self { $(Code::$variant => $number,)* Code::Unknown(number) => number }
            }

            /// The code of a number; unknown ones are kept.
            pub fn from_number(number: u16) -> Code {
                match number { $($number => Code::$variant,)* other => Code::Unknown(other) }
            }

            /// The name in FORMAT.md.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* Code::Unknown(_) => "unknown_code" }
            }

            /// Who can act on it.
            pub fn whose_turn(self) -> WhoseTurn {
                match self { $(Code::$variant => WhoseTurn::$turn,)* Code::Unknown(_) => WhoseTurn::Client }
            }
        }
    };
}

codes! {
    /// It went well.
    Ok = 0, "ok", Nobody;
    /// The bytes are not this protocol.
    Malformed = 1, "malformed", Client;
    /// The server does not speak this version.
    UnsupportedVersion = 2, "unsupported_version", Client;
    /// A frame is over `frame_bytes_max`.
    FrameTooLarge = 3, "frame_too_large", Client;
    /// A record batch's CRC or structure is wrong.
    CorruptBatch = 4, "corrupt_batch", Client;
    /// The principal lacks the right; the message names it.
    Unauthorized = 5, "unauthorized", Operator;
    /// No such topic.
    UnknownTopic = 6, "unknown_topic", Application;
    /// No such partition of the topic.
    UnknownPartition = 7, "unknown_partition", Application;
    /// The topic is there already.
    TopicExists = 8, "topic_exists", Application;
    /// The message names field and value.
    InvalidArgument = 9, "invalid_argument", Application;
    /// A batch came before the ones it follows.
    SequenceGap = 10, "sequence_gap", Client;
    /// A newer connection has this producer name.
    Fenced = 11, "fenced", Application;
    /// The message gives the valid range.
    OffsetOutOfRange = 12, "offset_out_of_range", Application;
    /// The pipeline's policy `fail` refused a record.
    RejectedByPipeline = 13, "rejected_by_pipeline", PluginAuthor;
    /// A limit of the principal.
    Quota = 14, "quota", RetryLater;
    /// The disk is full; nothing of the batch was stored.
    StorageFull = 15, "storage_full", Operator;
    /// The log takes no more writes after a failed one.
    StorageFailed = 16, "storage_failed", Operator;
    /// The server drains.
    ShuttingDown = 17, "shutting_down", RetryLater;
    /// The component does not load.
    PluginInvalid = 18, "plugin_invalid", PluginAuthor;
    /// A pipeline uses the plugin.
    PluginInUse = 19, "plugin_in_use", Operator;
    /// Our mistake.
    Internal = 20, "internal", Us;
    /// A record batch is over `batch_bytes_max`.
    BatchTooLarge = 21, "batch_too_large", Application;
    /// A damaged range on disk; the message names it.
    DataGap = 22, "data_gap", Operator;
    /// No such plugin.
    UnknownPlugin = 23, "unknown_plugin", Operator;
    /// The producer id is not of this principal.
    UnknownProducer = 24, "unknown_producer", Client;
    /// A record lacks what its topic asks for: the key, on a compacted topic.
    InvalidRecord = 25, "invalid_record", Application;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Code::Unknown(number) => write!(f, "unknown_code_{number}"),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_survive_a_round_trip() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index, "{code}");
            assert_eq!(Code::from_number(code.number()), *code);
        }
        assert_eq!(Code::from_number(999).number(), 999);
    }

    #[test]
    fn names_are_those_of_the_format_document() {
        let document = include_str!("../FORMAT.md");
        for code in Code::ALL {
            let row = format!("| {} | {} |", code.number(), code.name());
            assert!(document.contains(&row), "FORMAT.md lacks `{row}`");
        }
    }
}
