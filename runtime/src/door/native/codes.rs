//! The broker's refusals as codes of the native protocol.

use weir_protocol::admin::Refusal as WireRefusal;
use weir_protocol::{Code, ErrorNotice};

use crate::broker::Refusal;

/// The code of a refusal.
pub(super) fn code_of(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Unauthorized { .. } => Code::Unauthorized,
        Refusal::UnknownTopic { .. } => Code::UnknownTopic,
        Refusal::UnknownPartition { .. } => Code::UnknownPartition,
        Refusal::TopicExists { .. } => Code::TopicExists,
        Refusal::InvalidArgument { .. } => Code::InvalidArgument,
        Refusal::SequenceGap { .. } => Code::SequenceGap,
        Refusal::Fenced { .. } => Code::Fenced,
        Refusal::OutOfRange { .. } => Code::OffsetOutOfRange,
        Refusal::Rejected { .. } => Code::RejectedByPipeline,
        // The operator has to act and the producer may keep its records: "wait" is what a client does with it.
        Refusal::PipelineBroken { .. } | Refusal::Quota { .. } => Code::Quota,
        Refusal::StorageFull => Code::StorageFull,
        Refusal::StorageFailed { .. } => Code::StorageFailed,
        Refusal::ShuttingDown => Code::ShuttingDown,
        Refusal::PluginInvalid { .. } => Code::PluginInvalid,
        Refusal::PluginInUse { .. } => Code::PluginInUse,
        Refusal::UnknownPlugin { .. } => Code::UnknownPlugin,
        Refusal::UnknownProducer { .. } => Code::UnknownProducer,
        Refusal::CorruptBatch { .. } => Code::CorruptBatch,
        Refusal::RecordWithoutKey { .. } => Code::InvalidRecord,
        Refusal::BatchTooLarge { .. } => Code::BatchTooLarge,
        Refusal::DataGap { .. } => Code::DataGap,
        Refusal::Internal { .. } => Code::Internal,
    }
}

/// A refusal as the last words on a stream.
pub(super) fn notice_of(refusal: &Refusal) -> ErrorNotice {
    ErrorNotice { code: code_of(refusal), message: refusal.to_string() }
}

/// A refusal as the answer to a request.
pub(super) fn answer_of(refusal: &Refusal) -> WireRefusal {
    WireRefusal { code: code_of(refusal), message: refusal.to_string() }
}
