//! The lifetime of one AMQP connection: from its opening until something ends it.
//!
//! The single source of truth for whether a connection is still usable and why it ended. Never opens or closes one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long the broker may take to reply to one request.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection, or the one channel on it, ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionEnd {
    /// The broker closed the channel because of a request it did not accept.
    #[error("the broker closed the channel: {code} {text}")]
    ChannelClosed {
        /// AMQP reply code, such as 404.
        code: u16,
        /// The broker's explanation.
        text: String,
    },
    /// The broker closed the connection because of a protocol error or because it is stopping.
    #[error("the broker closed the connection: {code} {text}")]
    ConnectionClosed {
        /// AMQP reply code, such as 320.
        code: u16,
        /// The broker's explanation.
        text: String,
    },
    /// The broker ended the consumer because a delivery was not settled within its acknowledgement timeout, which is this long
    /// if it is known.
    #[error("the broker's consumer_timeout{} passed for a delivery that was not settled", .0.map(|it| format!(" of {it:?}")).unwrap_or_default())]
    AckTimeout(Option<Duration>),
    /// The broker has not answered a request that was sent after settlements.
    #[error("the broker has not answered for {0:?} since settlements were sent")]
    Unanswered(Duration),
    /// The broker cancelled the consumer, usually because its queue is gone.
    #[error("the broker cancelled the consumer: its queue was deleted or moved")]
    ConsumerCancelled,
    /// The broker sent what AMQP does not allow, or more than orderd asked for.
    #[error("the broker violated the protocol: {problem}")]
    Protocol {
        /// What it did.
        problem: &'static str,
    },
    /// The connection broke: a network failure, missed heartbeats, or a killed broker.
    #[error("the connection broke")]
    Broken,
    /// The broker did not reply to a request in time.
    #[error("no reply to {request} within {} s", REPLY_TIMEOUT.as_secs())]
    NoReply {
        /// Name of the AMQP method sent.
        request: &'static str,
    },
    /// The connection accepted no more frames because the broker has stopped reading.
    #[error("the broker has read nothing for {} s", REPLY_TIMEOUT.as_secs())]
    WriteStalled,
    /// A publication stayed unconfirmed for too long: the broker is stuck or has an alarm.
    #[error("a publication stayed unconfirmed for {} s", .0.as_secs_f64())]
    ConfirmTimeout(Duration),
    /// The broker has an alarm and reads nothing more from a connection that has published.
    #[error("the broker has blocked publishing: it has an alarm ({0})")]
    Blocked(String),
    /// orderd closed it.
    #[error("closed by orderd")]
    ClosedByUs,
}

/// RabbitMQ's reply code for connections that it closes on its own account: it stops, an operator closes them, or its node is in
/// a minority of the cluster.
const CONNECTION_FORCED: u16 = 320;

impl ConnectionEnd {
    /// Whether the broker ended the connection for a reason that no message can have caused.
    pub(super) fn is_by_broker(&self) -> bool {
        match self {
            ConnectionEnd::ConnectionClosed { code, .. } | ConnectionEnd::ChannelClosed { code, .. } => {
                *code == CONNECTION_FORCED
            }
            ConnectionEnd::ConsumerCancelled
            | ConnectionEnd::NoReply { .. }
            | ConnectionEnd::Unanswered(_)
            | ConnectionEnd::Blocked(_)
            | ConnectionEnd::WriteStalled => true,
            ConnectionEnd::Broken
            | ConnectionEnd::Protocol { .. }
            | ConnectionEnd::AckTimeout(_)
            | ConnectionEnd::ConfirmTimeout(_)
            | ConnectionEnd::ClosedByUs => false,
        }
    }

    /// The end of a channel that the broker closed with this code and text.
    pub(super) fn channel_closed(code: u16, text: String) -> Self {
        const PRECONDITION_FAILED: u16 = 406;
        // Many other problems have the same code, and only the text differs.
        if code == PRECONDITION_FAILED && text.contains("delivery acknowledgement on channel") {
            return ConnectionEnd::AckTimeout(stated_timeout(&text));
        }
        ConnectionEnd::ChannelClosed { code, text }
    }
}

/// The acknowledgement timeout in the text with which the broker closed the channel: `PRECONDITION_FAILED - delivery
/// acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. …`. RabbitMQ 4.3 states -1.
fn stated_timeout(text: &str) -> Option<Duration> {
    let value = text.split_once("Timeout value used: ")?.1.split_once(" ms")?.0;
    value.parse().ok().map(Duration::from_millis)
}

/// The number of the next connection. Unique in this process and ascending; logs identify connections by it.
pub(super) fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// The state of one connection's lifetime, shared by everything that uses the connection.
#[derive(Debug)]
pub(super) struct ConnectionLifetime {
    /// See [`next_number`].
    pub number: u64,
    ended: CancellationToken,
    reason: OnceLock<ConnectionEnd>,
}

impl ConnectionLifetime {
    /// Begins the lifetime of a new connection.
    pub fn begin() -> Arc<Self> {
        let (ended, reason) = (CancellationToken::new(), OnceLock::new());
        Arc::new(ConnectionLifetime { number: next_number(), ended, reason })
    }

    /// Ends the lifetime. The first reason given is kept.
    pub fn end(&self, reason: ConnectionEnd) {
        // An error means that the lifetime has already ended, and its reason is kept.
        let _ = self.reason.set(reason);
        self.ended.cancel();
    }

    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Resolves when the lifetime has ended. Cancel-safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Like [`ConnectionLifetime::ended`], but without borrowing `self`.
    pub fn ended_owned(&self) -> WaitForCancellationFutureOwned {
        self.ended.clone().cancelled_owned()
    }

    /// Why it ended; [`ConnectionEnd::Broken`] while it has not.
    pub fn reason(&self) -> ConnectionEnd {
        self.reason.get().cloned().unwrap_or(ConnectionEnd::Broken)
    }
}

/// Ends a lifetime as [`ConnectionEnd::Broken`] when dropped.
///
/// The task that owns a connection holds one in case it panics. So do the callbacks registered with the client library,
/// because the library drops them when their channel or connection ends, whatever the cause. Its other signals
/// (`is_open`, failure listeners) miss some of these cases.
#[derive(Debug)]
pub(super) struct EndOnDrop(pub Arc<ConnectionLifetime>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(ConnectionEnd::Broken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_for_an_end_is_kept() {
        let lifetime = ConnectionLifetime::begin();
        assert!(!lifetime.has_ended());
        lifetime.end(ConnectionEnd::ConsumerCancelled);
        drop(EndOnDrop(Arc::clone(&lifetime)));
        assert!(lifetime.has_ended());
        assert_eq!(lifetime.reason(), ConnectionEnd::ConsumerCancelled);
    }

    #[test]
    fn a_passed_acknowledgement_timeout_is_distinguished_from_other_failed_preconditions() {
        let text = |detail: &str| format!("PRECONDITION_FAILED - {detail}");
        let timeout = "delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. This timeout value \
                       can be configured, see consumers doc guide to learn more";
        assert_eq!(
            ConnectionEnd::channel_closed(406, text(timeout)),
            ConnectionEnd::AckTimeout(Some(Duration::from_secs(1800)))
        );
        let unknown = timeout.replace("1800000", "-1");
        assert_eq!(ConnectionEnd::channel_closed(406, text(&unknown)), ConnectionEnd::AckTimeout(None));
        let other = text("unknown delivery tag 1");
        assert_eq!(
            ConnectionEnd::channel_closed(406, other.clone()),
            ConnectionEnd::ChannelClosed { code: 406, text: other }
        );
    }

    #[test]
    fn every_connection_has_a_number_of_its_own() {
        assert!(ConnectionLifetime::begin().number < ConnectionLifetime::begin().number);
    }
}
