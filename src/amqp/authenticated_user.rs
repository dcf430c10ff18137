//! Determines the name by which the broker knows orderd's user: that in a client certificate, or one from a user directory.
//!
//! orderd puts this name into everything that it publishes, and compares it with what it consumes. AMQP has no request for the
//! name, but RabbitMQ states it when it refuses a publication in another user's name. Nothing is ever delivered to a queue.

use std::sync::Arc;

use super::connect::Connector;
use super::connect_error::ConnectError;
use super::lifetime::ConnectionEnd;
use super::protocol::{Method, ServerEvent, reject_unexpected};
use crate::message::{Message, Publication};

/// RabbitMQ's reply code for a `user_id` that is not the connection's user.
const PRECONDITION_FAILED: u16 = 406;
const ACCESS_REFUSED: u16 = 403;
const INTERNAL_ERROR: u16 = 541;
/// What follows `PRECONDITION_FAILED - ` in the reply text, up to the stated name. The authenticated name comes after it.
const REFUSED_USER: &str = "user_id property set to '";
const AUTHENTICATED_USER: &str = "' but authenticated user was '";
/// No queue is bound for it, and no user has this name.
const UNROUTED_KEY: &str = "orderd finds out its own user";
const NO_USER: &str = "";

/// Why the name is unknown.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The broker cannot be asked.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// RabbitMQ lets the user state any name, and so does not state the real one.
    #[error(
        "orderd's user has the tag impersonator, so that the broker does not verify who publishes a message: remove the tag \
         with `rabbitmqctl set_user_tags`"
    )]
    Impersonator,
    /// The user may not publish.
    #[error("cannot find out by which name the broker knows orderd's user: {reply}")]
    Denied {
        /// The broker's reply text.
        reply: String,
    },
    /// The broker's reply does not contain the whole name, and `broker.username` is not the name.
    #[error(
        "the broker knows orderd's user by another name than {configured:?}, and does not say which: {reply:?}; set \
         broker.username to that name, which `rabbitmqctl list_connections user` shows"
    )]
    Unreadable {
        /// `broker.username`.
        configured: String,
        /// The broker's reply text.
        reply: String,
    },
}

impl IdentityError {
    /// Whether trying again is pointless until someone changes the configuration or the broker.
    pub fn is_permanent(&self) -> bool {
        match self {
            IdentityError::Connect(error) => error.is_permanent(),
            IdentityError::Impersonator | IdentityError::Denied { .. } | IdentityError::Unreadable { .. } => true,
        }
    }
}

/// Whether the broker refused a publication because it states another user than the connection's.
pub(super) fn is_refused_user(code: u16, text: &str) -> bool {
    code == PRECONDITION_FAILED && text.contains(REFUSED_USER)
}

/// The connection's user, from the broker's refusal of a publication that stated another one. `None` if the text is cut off:
/// it has at most 255 bytes, and the names of certificates are long.
pub(super) fn authenticated_user<'t>(text: &'t str, stated: &str) -> Option<&'t str> {
    let rest = text.split_once(REFUSED_USER)?.1.strip_prefix(stated)?;
    let user = rest.strip_prefix(AUTHENTICATED_USER)?.strip_suffix('\'')?;
    (user != stated && !user.is_empty()).then_some(user)
}

impl Connector {
    /// Finds out the name, which publications state from then on, and whose messages are trusted. `exchange` is a direct
    /// exchange that orderd may publish to.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn identify(&self, exchange: &str) -> Result<Arc<str>, IdentityError> {
        let Some(reply) = self.refusal_of(NO_USER, exchange).await? else { return Err(IdentityError::Impersonator) };
        let configured = self.users().own();
        let read = authenticated_user(&reply, NO_USER);
        for name in [read, Some(&*configured)].into_iter().flatten() {
            // The text may be in another encoding, or cut off.
            let is_certain = read == Some(name) && name.is_ascii();
            if is_certain || self.refusal_of(name, exchange).await?.is_none() {
                self.users().set_own(name);
                return Ok(name.into());
            }
        }
        Err(IdentityError::Unreadable { configured: configured.to_string(), reply })
    }

    /// Publishes a message that states `user` and that no queue receives, on a connection of its own. Returns the reply text if
    /// the broker refuses that user.
    async fn refusal_of(&self, user: &str, exchange: &str) -> Result<Option<String>, IdentityError> {
        let mut channel = self.open_channel("identify").await?;
        let (routing_key, message) = (UNROUTED_KEY.to_owned(), Message::default());
        // The message is empty: so RabbitMQ answers even while it has an alarm, under which it reads nothing after a content
        // header.
        channel.publish(&Publication { exchange: exchange.into(), routing_key, message }, user);
        // Its reply comes after the refusal, or after the returned message.
        let asked = channel.request(&Method::ConfirmSelect, |event| match event {
            ServerEvent::Returned(_) => Ok(()),
            other => reject_unexpected(other),
        });
        let asked = asked.await.map(drop);
        channel.close(asked.as_ref().err()).await;
        match asked {
            Ok(()) => Ok(None),
            Err(ConnectionEnd::ChannelClosed { code, text }) if is_refused_user(code, &text) => Ok(Some(text)),
            // RabbitMQ 4 cannot encode its refusal if the user's name is long and not ASCII.
            Err(ConnectionEnd::ConnectionClosed { code: INTERNAL_ERROR, text }) => Ok(Some(text)),
            Err(ConnectionEnd::ChannelClosed { code: ACCESS_REFUSED, text }) => {
                Err(IdentityError::Denied { reply: text })
            }
            Err(end) => Err(ConnectError::Lost(end).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_from_the_refusal_and_never_cut_off() {
        let refusal = |user: &str| {
            format!("PRECONDITION_FAILED - user_id property set to 'guest' but authenticated user was '{user}'")
        };
        for user in ["orderd", "O'Brien", "CN=orderd,O=Shop", "''"] {
            assert_eq!(authenticated_user(&refusal(user), "guest"), Some(user));
        }
        let long = refusal(&"x".repeat(300));
        assert_eq!(authenticated_user(&format!("{}...", &long[..252]), "guest"), None);
        for other in ["PRECONDITION_FAILED - invalid expiration 'x'", &refusal(""), &refusal("guest"), ""] {
            assert_eq!(authenticated_user(other, "guest"), None, "{other}");
        }
        assert!(is_refused_user(406, &long) && !is_refused_user(406, "PRECONDITION_FAILED - invalid expiration"));
    }
}
