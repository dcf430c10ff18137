//! The route of a channel: its providers in the order in which they are tried, and what must be available for a delivery.
//!
//! It delivers nothing.

use std::sync::Arc;
use std::time::Duration;

use super::provider::Provider;
use crate::gate::{Gate, GateControl, GateGroup, GateState};

/// A channel's own server, then its fallbacks.
pub(super) struct Route {
    name: Arc<str>,
    providers: Vec<Arc<Provider>>,
    /// Open until the first notification for this channel: one that is not used must not stop the others.
    unused: GateControl,
    /// The channel's templates have a fault: nothing can be delivered until a reload replaces this route.
    is_held: bool,
}

impl Route {
    /// `providers` are at least one.
    pub fn new(channel: &str, providers: Vec<Arc<Provider>>, is_held: bool) -> Self {
        let name = format!("each server of notification channel {channel:?}");
        let name = if providers.len() == 1 { name.replacen("each", "the", 1) } else { name };
        let unused = GateControl::open(format!("the templates of notification channel {channel:?}"));
        Route { name: name.into(), providers, unused, is_held }
    }

    /// Whether nothing can be delivered because of a fault in the templates.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Closed once there is a notification for a channel that is held.
    pub fn held(&self) -> Option<Gate> {
        self.is_held.then(|| self.unused.gate())
    }

    /// The providers.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }

    /// There is a notification for this channel.
    pub fn used(&self) {
        self.unused.set(GateState::Closed(None));
    }

    /// Closed while the channel is used and the circuit breakers of all its providers are open. `None`: one of them is a file, or it is held.
    pub fn gate(&self) -> Option<GateGroup> {
        if self.is_held {
            return None;
        }
        let breakers: Option<Vec<_>> = self.providers.iter().map(|provider| provider.gate()).collect();
        Some(GateGroup::new(Arc::clone(&self.name), [vec![self.unused.gate()], breakers?].concat()))
    }

    /// Whether one of its providers is a server.
    pub fn has_server(&self) -> bool {
        self.providers.iter().any(|provider| !provider.is_log())
    }

    /// The domain of the `Message-ID` of its e-mails: the same whichever of its servers sends one.
    pub fn mail_domain(&self) -> &str {
        self.providers.iter().find_map(|provider| provider.mail_domain()).unwrap_or_default()
    }

    /// How long a delivery may take that tries all of them, without the time for the answer to a whole e-mail.
    pub fn time(&self) -> Duration {
        self.providers.iter().filter(|provider| !provider.is_log()).map(|provider| provider.timeout()).sum()
    }

    /// See [`super::Channels::max_in_flight`].
    pub fn max_in_flight(&self, max_hold: Duration) -> Option<usize> {
        let servers = self.providers.iter().filter(|provider| !provider.is_log());
        let at_once = servers.map(|provider| provider.max_connections()).min()?;
        let in_turn = max_hold.as_millis() / self.time().as_millis().max(1);
        Some(at_once.saturating_mul(usize::try_from(in_turn).unwrap_or(usize::MAX).max(1)))
    }
}
