//! Delivers notifications: picks the channel, renders its texts, and hands them to an SMTP server, an HTTP server or a file.
//!
//! ```text
//! settings   [notify.<channel>], checked, templates included
//! mod        which channel, and its fallbacks: read it first      provider   one of them: its limits and its circuit breaker
//! lease      one instance delivers a notification at a time       address    what is accepted as an address
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

use futures_util::future::{BoxFuture, FutureExt, select_all};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

pub use lease::Lease;
pub use operators::{OperatorChannel, OperatorChannelSettings, SendOutcome, send_to_operators};
pub use preview::{check_recipient, preview, send};
pub use probe::{ProbedServer, probe};
pub use provider::Unrecorded;
use provider::{Attempt, Provider, Slot};
pub use recipient::{RecipientCheck, RecipientWarning};
use route::Route;
pub use settings::{NotifySettings, channel_routes};

use crate::files::FileState;
use crate::gate::{GateControl, GateGroup, GateState};
use crate::ledger::FailedDelivery;
use crate::pipeline::{EventFileGate, HandlerError, HandlerInput, Interruption};
use crate::recovery::{Failure, FailureKind};
use crate::steps::{CircuitBreakers, FailureCause, StepFailure, TraceContext};

use content::Content;
use templates::RenderError;

/// How much longer than its attempts a notification stays claimed: time to record it.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// The longest time that a server may ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Delivers notifications to one place.
pub trait Channel: Send + Sync + 'static {
    /// Delivers one notification, which `input` brought.
    ///
    /// # Errors
    /// A [`Failure`], whose kind says whether a retry can help, or an interruption.
    fn deliver<'a>(&'a self, notice: Notice<'a>, input: HandlerInput<'a>) -> BoxFuture<'a, Result<(), HandlerError>>;

    /// Writes one notification to the file, if it is one: no other channel delivers without a message.
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

/// How a delivery ended.
#[derive(Debug)]
pub enum Delivered {
    /// It was delivered now.
    Now {
        /// By this provider; `None`: to the file, because there are no channels.
        provider: Option<String>,
        /// To this recipient, shortened so that it names nobody.
        recipient: Option<String>,
        /// To be dropped once it is recorded.
        unrecorded: Option<Unrecorded>,
    },
    /// Another instance had delivered it meanwhile.
    Before,
    /// It was not: the order has no address or number, and the channel skips such orders.
    WithoutAddress,
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
            let chain = settings.chain(name).iter().map(|name| Arc::clone(&providers[name])).collect();
            (name.clone(), Route::new(name, chain))
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
        if self.routes.is_empty() && !self.reserved.contains(channel) {
            return Ok(None);
        }
        let route = self.route(channel)?;
        Ok(route.has_server().then(|| route.time() + LEASE_MARGIN))
    }

    fn route(&self, channel: &str) -> Result<&Route, Failure> {
        self.routes.get(channel).ok_or_else(|| {
            let known: Vec<&str> = self.routes.keys().map(String::as_str).collect();
            let reason = match known.is_empty() {
                true => format!("the notification channel {channel:?} is not for customers"),
                false => format!("there is no notification channel {channel:?}, only {}", known.join(", ")),
            };
            Failure::new(FailureKind::Permanent, "unknown_channel", reason)
        })
    }

    /// Delivers a notification through its channel, or through a fallback while the channel's own server is unavailable. The
    /// handler's deadline is suspended: each attempt has a limit of its own. Attempts that fail are added to `failed`.
    ///
    /// # Errors
    /// The failure of the last attempt, or an interruption.
    pub async fn deliver(
        &self,
        notice: Notice<'_>,
        input: HandlerInput<'_>,
        mut lease: Option<&mut Lease<'_>>,
        failed: &mut Vec<FailedDelivery>,
    ) -> Result<Delivered, HandlerError> {
        if self.routes.is_empty() {
            self.log.deliver(notice, input).await?;
            return Ok(Delivered::Now { provider: None, recipient: None, unrecorded: None });
        }
        let _suspended = input.ledger.suspend_deadline();
        let content = Content::read(notice.body)
            .map_err(|error| Failure::new(FailureKind::Malformed, "invalid_event", error.to_string()))?;
        let route = self.route(notice.channel)?;
        if route.providers()[0].skips(&content) {
            return Ok(Delivered::WithoutAddress);
        }
        route.used();
        let chain = route.providers().iter().enumerate();
        let chain = chain.filter(|(index, provider)| *index == 0 || provider.can_deliver(notice, &content));
        let chain: Vec<Arc<Provider>> = chain.map(|(_, provider)| Arc::clone(provider)).collect();
        let waited = lease.as_ref().map_or(Duration::ZERO, |lease| lease.waited());
        let (mut index, mut slot) = available(&chain, input, waited).await?;
        loop {
            let provider = &chain[index];
            if let Some(lease) = &mut lease
                && !lease.cover(provider.timeout() + LEASE_MARGIN).await?
            {
                return Ok(Delivered::Before);
            }
            let recipient = provider.recipient(&content);
            let failure = match self.attempt(provider, slot, notice, &content, input).await? {
                Ok(unrecorded) => {
                    let (provider, unrecorded) = (Some(provider.name().to_string()), Some(unrecorded));
                    return Ok(Delivered::Now { provider, recipient, unrecorded });
                }
                Err(failure) => failure,
            };
            failed.push(failed_delivery(notice.channel, provider, recipient, &failure.failure));
            // Only what was certainly not delivered may be delivered another way.
            let next = match failure.cause {
                FailureCause::NotReached => available_now(&chain, index + 1).await,
                FailureCause::Refused | FailureCause::Unanswered => None,
            };
            match next {
                Some(next) => (index, slot) = next,
                None => {
                    let retry_after = failure.retry_after.map(|delay| delay.min(MAX_RETRY_AFTER));
                    return Err(failure.failure.with_retry_after(retry_after).into());
                }
            }
        }
    }

    /// One attempt, counted.
    async fn attempt(
        &self,
        provider: &Provider,
        slot: Slot,
        notice: Notice<'_>,
        content: &Content,
        input: HandlerInput<'_>,
    ) -> Result<Result<Unrecorded, StepFailure>, HandlerError> {
        if provider.is_log() {
            self.file_unneeded.set(GateState::Closed(None));
        }
        let counted = input.steps.0.map(|services| services.channels().begun(notice.channel, provider.name()));
        let result = provider.deliver(Attempt { notice, content, input }).await;
        let failure = match result {
            Ok(()) => None,
            Err(provider::AttemptError::Failed(failure)) => Some(failure),
            Err(provider::AttemptError::Interrupted(error)) => return Err(error),
        };
        let unrecorded = slot.ended(failure.as_ref());
        if let Some(counted) = counted {
            counted.ended(failure.as_ref().map(|failure| &failure.failure));
        }
        Ok(failure.map_or(Ok(unrecorded), Err))
    }
}

/// The first provider that may be called, waiting until one may if none does. Not longer than a delivery may wait, which has
/// `waited` so long already.
async fn available(
    chain: &[Arc<Provider>],
    input: HandlerInput<'_>,
    waited: Duration,
) -> Result<(usize, Slot), HandlerError> {
    let search = async {
        if let Some(found) = available_now(chain, 0).await {
            return found;
        }
        let waits = chain.iter().enumerate();
        let waits = waits.map(|(index, provider)| async move { (index, provider.slot().await) }.boxed());
        select_all(waits).await.0
    };
    match input.steps.0 {
        Some(services) => timeout(services.max_hold().saturating_sub(waited), search)
            .await
            .map_err(|_| HandlerError::Interrupted(Interruption::TakenOver)),
        None => Ok(search.await),
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

/// The first provider, from this one on, whose circuit breaker allows an attempt. One that is busy is waited for.
async fn available_now(chain: &[Arc<Provider>], from: usize) -> Option<(usize, Slot)> {
    for (index, provider) in chain.iter().enumerate().skip(from) {
        if let Some(slot) = provider.try_slot().await {
            return Some((index, slot));
        }
    }
    None
}

/// The failure of a notification whose text cannot be made.
fn template_failure(error: &RenderError) -> StepFailure {
    let code = match error {
        RenderError::UnknownEvent(_) => "unknown_event",
        RenderError::Failed(_) => "template_failed",
    };
    StepFailure::new(Failure::new(FailureKind::Permanent, code, error.to_string()), FailureCause::Refused)
}
