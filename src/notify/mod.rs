//! Delivers notifications: picks the channel, renders its texts, and hands them to an SMTP server, an HTTP server or a file.
//!
//! ```text
//! settings   [notify.<channel>], checked, templates included
//! mod        which channel, and its fallbacks: read it first      provider   one of them: its limits and its circuit breaker
//! lease      one instance delivers a notification at a time       address    what is accepted as an address
//! content    an event's body as templates see it      templates/  the texts      language   amounts and times in them
//! smtp/      e-mail                                   webhook     JSON by HTTP
//! preview    for `orderd notify`
//! ```
//! A channel counts as a step of its consumer: its circuit breaker, its calls and their durations are shown as those of a step
//! with the channel's name. It never decides on a retry (`recovery` does), never acks, and never records what was delivered.

mod address;
mod content;
mod language;
mod lease;
mod preview;
mod provider;
mod settings;
mod smtp;
mod templates;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, select_all};
use tokio::sync::watch;
use tokio::time::timeout;

pub use lease::Lease;
pub use preview::{preview, send};
use provider::{Attempt, Provider, Slot};
pub use settings::NotifySettings;

use crate::files::FileState;
use crate::gate::Gate;
use crate::ledger::StepAction;
use crate::metrics::CallEnd;
use crate::pipeline::{HandlerError, HandlerInput, Interruption};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It was delivered now.
    Now,
    /// Another instance had delivered it meanwhile.
    Before,
}

/// All channels of a consumer.
pub struct Channels {
    providers: BTreeMap<String, Arc<Provider>>,
    /// The providers of each channel: its own, and its fallbacks.
    chains: BTreeMap<String, Vec<Arc<Provider>>>,
    /// The file of notifications.
    log: Arc<dyn Channel>,
}

impl Channels {
    /// Connects nothing yet. Without channels, all notifications go to `log`.
    pub fn new(consumer: &str, settings: &NotifySettings, log: Arc<dyn Channel>, breakers: &CircuitBreakers) -> Self {
        let consumer: Arc<str> = consumer.into();
        let provider = |(name, channel): (&String, &settings::ChannelSettings)| {
            (name.clone(), Arc::new(Provider::new(&consumer, name, channel, &log, breakers)))
        };
        let providers: BTreeMap<String, Arc<Provider>> = settings.0.iter().map(provider).collect();
        let chain = |name: &String| {
            let chain = settings.chain(name).iter().map(|name| Arc::clone(&providers[name])).collect();
            (name.clone(), chain)
        };
        let chains = settings.0.keys().map(chain).collect();
        Channels { providers, chains, log }
    }

    /// What must be available for a delivery to be started: the servers of channels without a fallback. Deliveries that cannot be made
    /// would otherwise be released again and again, and at last be dead-lettered by the broker.
    pub fn gates(&self) -> Vec<Gate> {
        let alone = self.chains.values().filter(|chain| chain.len() == 1);
        alone.filter_map(|chain| chain[0].gate()).collect()
    }

    /// The file that notifications are written to, if one is.
    pub fn event_file(&self) -> Option<watch::Receiver<FileState>> {
        let writes = self.providers.is_empty() || self.providers.values().any(|provider| provider.is_log());
        writes.then(|| self.log.event_file()).flatten()
    }

    /// How long a notification through this channel has to be claimed; `None` if two instances may both deliver it, to a file.
    ///
    /// # Errors
    /// There is no such channel.
    pub fn lease_time(&self, channel: &str) -> Result<Option<Duration>, Failure> {
        if self.chains.is_empty() {
            return Ok(None);
        }
        let chain = self.chain(channel)?;
        let time: Duration = chain.iter().map(|provider| provider.timeout()).sum();
        Ok(chain.iter().any(|provider| !provider.is_log()).then_some(time + LEASE_MARGIN))
    }

    fn chain(&self, channel: &str) -> Result<&[Arc<Provider>], Failure> {
        self.chains.get(channel).map(Vec::as_slice).ok_or_else(|| {
            let known: Vec<&str> = self.chains.keys().map(String::as_str).collect();
            let reason = format!("there is no notification channel {channel:?}, only {}", known.join(", "));
            Failure::new(FailureKind::Permanent, "unknown_channel", reason)
        })
    }

    /// Delivers a notification through its channel, or through a fallback while the channel's own server is unavailable. The
    /// handler's deadline is suspended: each attempt has a limit of its own.
    ///
    /// # Errors
    /// The failure of the last attempt, or an interruption.
    pub async fn deliver(
        &self,
        notice: Notice<'_>,
        input: HandlerInput<'_>,
        lease: Option<&mut Lease<'_>>,
    ) -> Result<Delivered, HandlerError> {
        let Some(lease) = lease else {
            self.log.deliver(notice, input).await?;
            return Ok(Delivered::Now);
        };
        let _suspended = input.ledger.suspend_deadline();
        let content = Content::read(notice.body)
            .map_err(|error| Failure::new(FailureKind::Malformed, "invalid_event", error.to_string()))?;
        let chain = self.chain(notice.channel)?.iter().enumerate();
        let chain = chain.filter(|(index, provider)| *index == 0 || provider.can_deliver(notice, &content));
        let chain: Vec<Arc<Provider>> = chain.map(|(_, provider)| Arc::clone(provider)).collect();
        let (mut index, mut slot) = self.available(&chain, input).await?;
        loop {
            let provider = &chain[index];
            if !lease.cover(provider.timeout() + LEASE_MARGIN).await? {
                return Ok(Delivered::Before);
            }
            let failure = match self.attempt(provider, slot, notice, &content, input).await? {
                None => return Ok(Delivered::Now),
                Some(failure) => failure,
            };
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

    /// The first provider that may be called, waiting until one may if none does. Not longer than a delivery may wait.
    async fn available(&self, chain: &[Arc<Provider>], input: HandlerInput<'_>) -> Result<(usize, Slot), HandlerError> {
        let search = async {
            if let Some(found) = available_now(chain, 0).await {
                return found;
            }
            let waits = chain.iter().enumerate();
            let waits = waits.map(|(index, provider)| async move { (index, provider.slot().await) }.boxed());
            select_all(waits).await.0
        };
        match input.steps.0 {
            Some(services) => timeout(services.max_hold(), search)
                .await
                .map_err(|_| HandlerError::Interrupted(Interruption::TakenOver)),
            None => Ok(search.await),
        }
    }

    /// One attempt, counted. `None`: it was delivered.
    async fn attempt(
        &self,
        provider: &Provider,
        slot: Slot,
        notice: Notice<'_>,
        content: &Content,
        input: HandlerInput<'_>,
    ) -> Result<Option<StepFailure>, HandlerError> {
        let counted = input.steps.0.map(|services| services.counters().called(provider.name(), StepAction::Do));
        let result = provider.deliver(Attempt { notice, content, input }).await;
        let failure = match result {
            Ok(()) => None,
            Err(provider::AttemptError::Failed(failure)) => Some(failure),
            Err(provider::AttemptError::Interrupted(error)) => return Err(error),
        };
        slot.ended(failure.as_ref());
        if let Some(counted) = counted {
            counted.ended(match failure.as_ref().map(|failure| failure.failure.kind) {
                None => CallEnd::Done,
                Some(FailureKind::Permanent | FailureKind::Malformed) => CallEnd::Refused,
                Some(_) => CallEnd::Failed,
            });
        }
        Ok(failure)
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
