//! Requests through the client library, with a timeout, and never dropped before they are complete.
//!
//! Works around two defects of the library: dropping a request makes the library's own tasks panic later, and a request that
//! the broker does not answer waits forever. Never retries.

use std::future::Future;

use tokio::time::{sleep, timeout};

use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime, REPLY_TIMEOUT};

/// Runs one request to the broker, and ends the lifetime if it fails or is not answered in time.
///
/// The request runs in a task of its own that is never aborted, and ends when its connection does.
pub async fn request<T, F>(lifetime: &ConnectionLifetime, name: &'static str, future: F) -> Result<T, ConnectionEnd>
where
    T: Send + 'static,
    F: Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
{
    match timeout(REPLY_TIMEOUT, tokio::spawn(future)).await {
        Ok(Ok(Ok(reply))) => return Ok(reply),
        // The broker closed the channel instead of replying, or the connection died. If the broker gave a reason, the
        // callbacks have recorded it before the request failed, and it is kept.
        Ok(Ok(Err(_)) | Err(_)) => lifetime.end(ConnectionEnd::Broken),
        Err(_) => lifetime.end(ConnectionEnd::NoReply { request: name }),
    }
    Err(lifetime.reason())
}

/// Queues one frame to which the broker does not reply: `basic.publish`. Unlike a request, it is safe to drop.
///
/// Waits while the library's queue is full, which it is when the broker has stopped reading. If that takes too long, or
/// anything fails, the lifetime ends.
pub async fn queue_frame(lifetime: &ConnectionLifetime, frame: impl Future<Output = Result<(), amqprs::error::Error>>) {
    let end = tokio::select! {
        biased;
        // Cancel-safe: the frame is safe to drop, and `ended` and the timer keep no state. Thanks to `biased`, the timer is
        // created only if the queue is full.
        queued = frame => match queued {
            Ok(()) => return,
            Err(_) => ConnectionEnd::Broken,
        },
        () = lifetime.ended() => return,
        () = async { sleep(REPLY_TIMEOUT).await } => ConnectionEnd::WriteStalled,
    };
    lifetime.end(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_request_ends_the_lifetime_and_is_not_dropped() {
        let lifetime = ConnectionLifetime::begin();
        let (reply, late) = tokio::sync::oneshot::channel::<()>();
        let requested = request(&lifetime, "queue.declare", async move {
            tokio::time::sleep(REPLY_TIMEOUT * 2).await;
            let _ = reply.send(());
            Ok(())
        });
        assert_eq!(requested.await, Err(ConnectionEnd::NoReply { request: "queue.declare" }));
        assert!(lifetime.has_ended());
        assert_eq!(late.await, Ok(()), "the request was dropped");
    }

    #[tokio::test]
    async fn a_panic_inside_the_client_library_ends_only_the_lifetime() {
        let lifetime = ConnectionLifetime::begin();
        let requested: Result<(), _> = request(&lifetime, "basic.qos", async { panic!("client bug") }).await;
        assert_eq!(requested, Err(ConnectionEnd::Broken));
    }
}
