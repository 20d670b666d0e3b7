//! PUBLISH: one batch on a stream of its own, before or without HELLO; the answer is one ACK or NACK on the same stream.

use std::sync::Arc;

use quinn::SendStream;
use weir_protocol::Publish;

use super::connection::Session;
use super::control::{refuse, send_single};
use super::stream::StreamError;
use crate::broker::{BatchId, Decision, Refusal, Single};

/// Serves one publish.
pub(super) async fn serve(session: &Arc<Session>, send: &mut SendStream, publish: Publish) -> Result<(), StreamError> {
    let Publish { producer_id, producer_epoch, lane, topic, partition, base_sequence, batch } = publish;
    let batch_bytes = batch.len();
    let producer = (producer_id, producer_epoch);
    let single = Single { producer, lane, topic: &topic, partition, base_sequence, batch };
    let decided = session.door.broker.publish(session.principal(), single, session.outbox.mailroom()).await;
    let decision = match decided {
        Ok(decision) => decision,
        // Too large a refusal to belong to the batch: the stream ends with it.
        Err(refusal @ Refusal::Internal { .. }) => return refuse(session, send, &refusal).await,
        Err(refusal) => {
            let id = BatchId { lane, partition, base_sequence, record_count: 0, batch_bytes };
            Decision { id, result: Err(refusal), counted: false }
        }
    };
    send_single(session, send, &decision).await
}
