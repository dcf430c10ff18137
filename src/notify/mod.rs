//! Delivers notifications: picks the channel, renders its texts, and hands them to an SMTP server, an HTTP server or a file.
//!
//! ```text
//! settings   [notify.<channel>], checked, templates included
//! mod        which channel, and its fallbacks: read it first      provider   one of them: its limits and its circuit breaker
//! lease      one instance delivers a notification at a time       address    what is accepted as an address
//! delivery   the attempts to deliver one notification             deliveries  the tasks that make them
//! route      a channel's providers in order, and what must be available for it
//! content    an event's body as templates see it      templates/  the texts      language   amounts and times in them
//! smtp/      e-mail                                   webhook     JSON by HTTP
//! preview    for `orderd notify`                                  probe      for `orderd check --connect`
//! operators  alerts for operators, through a channel of their own
//! recipient  warnings about orders whose customer cannot be notified
//! ```
//! A channel's provider is the channel itself or one of its fallbacks. It never decides on a retry (`recovery` does), never acks, and never records what was delivered.

mod address;
mod content;
mod deliveries;
mod delivery;
mod language;
mod lease;
mod operators;
mod preview;
mod probe;
mod provider;
mod recipient;
mod route;
mod settings;
mod smtp;
mod templates;
#[cfg(test)]
mod tests;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;

pub use deliveries::Deliveries;
pub use delivery::{Delivered, ReadyDelivery};
pub use lease::Lease;
use lease::{RECORDING_MARGIN, RENEWAL_MARGIN};
pub use operators::{OperatorChannel, OperatorChannelSettings, SendOutcome, send_to_operators};
pub use preview::{check_recipient, preview, send};
pub use probe::{ProbedServer, probe};
use provider::Provider;
pub use provider::Unrecorded;
pub use recipient::{RecipientCheck, RecipientWarning};
use route::Route;
pub use settings::{NotifySettings, channel_routes};

use crate::files::FileState;
use crate::gate::{Gate, GateControl, GateGroup, GateState};
use crate::ledger::FailedDelivery;
use crate::pipeline::{EventFileGate, HandlerError};
use crate::recovery::{Failure, FailureKind};
use crate::steps::{CircuitBreakers, FailureCause, StepFailure, TraceContext};

use templates::RenderError;

/// Where notifications are written instead of being delivered.
pub trait Channel: Send + Sync + 'static {
    /// Writes one notification.
    ///
    /// # Errors
    /// An interruption.
    fn write<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>>;

    /// The file that it writes to, if it does: no notification is started while that cannot be written.
    fn event_file(&self) -> Option<watch::Receiver<FileState>> {
        None
    }
}

/// One notification to deliver.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// The message's identity.
    pub id: &'a str,
    /// The last word of the routing key: `email`, `sms`, …
    pub channel: &'a str,
    /// The order it is about, if the message names one.
    pub order_id: Option<&'a str>,
    /// The message's body: a JSON object.
    pub body: &'a str,
    /// The trace context of the message.
    pub trace: TraceContext<'a>,
}

/// All channels of a consumer.
pub struct Channels {
    routes: BTreeMap<String, Route>,
    /// Channels of operators, which no message can choose.
    reserved: BTreeSet<String>,
    /// The file of notifications.
    log: Arc<dyn Channel>,
    /// Open until a notification is written to the file.
    file_unneeded: GateControl,
}

impl Channels {
    /// Connects nothing yet. Without channels, all notifications go to `log`.
    pub fn new(consumer: &str, settings: &NotifySettings, log: Arc<dyn Channel>, breakers: &CircuitBreakers) -> Self {
        let consumer: Arc<str> = consumer.into();
        let provider = |(name, channel): (&String, &settings::ChannelSettings)| {
            (name.clone(), Arc::new(Provider::new(&consumer, name, channel, &log, breakers)))
        };
        let providers: BTreeMap<String, Arc<Provider>> = settings.0.iter().map(provider).collect();
        let route = |name: &String| {
            let chain = settings.usable_chain(name).iter().map(|name| Arc::clone(&providers[name])).collect();
            (name.clone(), Route::new(name, chain, settings.0[name].fault().is_some()))
        };
        let file_unneeded = GateControl::open("the file of notifications");
        let routes = settings.0.keys().map(route).collect();
        Channels { routes, reserved: settings.1.clone(), log, file_unneeded }
    }

    /// What must be available for a delivery to be started: of each channel that has been used, one of its servers. Deliveries that
    /// cannot be made would otherwise be released again and again, and at last be dead-lettered by the broker.
    pub fn gates(&self) -> Vec<GateGroup> {
        self.routes.values().filter_map(Route::gate).collect()
    }

    /// Each is closed once there is a notification for a channel whose templates have a fault. Such a notification can be neither delivered nor
    /// retried before a reload, which builds other channels.
    pub fn held(&self) -> Vec<Gate> {
        self.routes.values().filter_map(Route::held).collect()
    }

    /// Whether notifications for this channel have to wait for a reload, because its templates have a fault. If so, it counts as used.
    pub fn is_held(&self, channel: &str) -> bool {
        let held = self.routes.get(channel).filter(|route| route.is_held());
        held.inspect(|route| route.used()).is_some()
    }

    /// The file that notifications are written to, if one is. With channels, it is needed once one of them has written to it.
    pub fn event_file(&self) -> Option<EventFileGate> {
        let file = self.log.event_file()?;
        if self.routes.is_empty() {
            return Some(file.into());
        }
        let writes = self.routes.values().any(|route| route.providers().iter().any(|provider| provider.is_log()));
        writes.then(|| EventFileGate { file, unneeded: Some(self.file_unneeded.gate()) })
    }

    /// How many notifications may wait for a server without any of them waiting for longer than this, if each takes as long as it
    /// may and all are for the slowest channel. `None`: no limit.
    pub fn max_in_flight(&self, max_hold: Duration) -> Option<usize> {
        self.routes.values().filter_map(|route| route.max_in_flight(max_hold)).min()
    }

    /// How long a notification through this channel has to be claimed; `None` if two instances may both deliver it, to a file.
    ///
    /// # Errors
    /// There is no such channel.
    pub fn lease_time(&self, channel: &str) -> Result<Option<Duration>, Failure> {
        let route = self.route(channel)?;
        Ok(route.has_server().then(|| route.time() + RECORDING_MARGIN + RENEWAL_MARGIN))
    }

    fn route(&self, channel: &str) -> Result<&Route, Failure> {
        self.routes.get(channel).ok_or_else(|| {
            Failure::new(FailureKind::Permanent, "unknown_channel", unknown_channel(channel, self.routes.keys()))
        })
    }

    /// Whether notifications for this channel are written to the file, because there are no channels for customers.
    pub fn is_file(&self, channel: &str) -> bool {
        self.routes.is_empty() && !self.reserved.contains(channel)
    }

    /// Writes a notification to the file.
    ///
    /// # Errors
    /// The file was closed.
    pub async fn write_to_file(&self, notice: Notice<'_>) -> Result<(), HandlerError> {
        self.log.write(notice).await
    }

    /// A notification is about to be written to the file.
    fn file_used(&self) {
        self.file_unneeded.set(GateState::Closed(None));
    }
}

/// Why a customer's notification cannot have this channel. `known` are those that it can have.
fn unknown_channel<'k>(channel: &str, known: impl Iterator<Item = &'k String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    match known.is_empty() {
        true => format!("the notification channel {channel:?} is for operators, not for customers"),
        false => format!("there is no notification channel {channel:?} for customers, only {}", known.join(", ")),
    }
}

fn failed_delivery(channel: &str, provider: &Provider, recipient: Option<String>, failure: &Failure) -> FailedDelivery {
    FailedDelivery {
        channel: channel.to_owned(),
        provider: provider.name().to_string(),
        recipient,
        kind: failure.kind.as_str(),
        code: failure.code.clone(),
        reason: failure.reason.clone(),
        at: Timestamp::now(),
    }
}

/// The failure of a notification whose text cannot be made.
fn template_failure(error: &RenderError) -> StepFailure {
    let code = match error {
        RenderError::UnknownEvent(_) => "unknown_event",
        RenderError::Failed(_) => "template_failed",
    };
    StepFailure::new(Failure::new(FailureKind::Permanent, code, error.to_string()), FailureCause::Refused)
}
