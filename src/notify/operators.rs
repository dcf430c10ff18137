//! The channel of alerts: `channel` and `to` of `[alerts]`, and delivery through the channel and its fallbacks.
//!
//! Recipients are those of the configuration. A message on the broker can neither choose this channel nor add a recipient. It never
//! decides what is sent or when it is tried again.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::address::parse_mailbox;
use super::content::Content;
use super::provider::Provider;
use super::settings::{ChannelKind, ChannelSettings, NotifySettings};
use super::webhook::WebhookBody;
use super::{Channel, Notice};
use crate::config::{HandlerSettings, Section, Value, value_parser};
use crate::pipeline::HandlerError;
use crate::random::random_hex;
use crate::recovery::{Failure, FailureKind};
use crate::steps::{CircuitBreakers, FailureCause, StepFailure, TraceContext};

/// The most addresses.
const MAX_RECIPIENTS: usize = 16;
const MAX_TEXT_BYTES: usize = 1024;
/// The event whose templates are used.
pub(super) const EVENT: &str = "operator";
/// What its circuit breakers are named after, as those of customers' channels are after their consumer.
const OWNER: &str = "alerts";

/// A channel with its fallbacks, and who gets the alerts.
#[derive(Debug, Clone)]
pub struct OperatorChannelSettings {
    /// The channel's name.
    pub name: String,
    /// The addresses; none if no e-mail is sent.
    pub to: Vec<String>,
    /// The channel, then its fallbacks.
    chain: Vec<(String, ChannelSettings)>,
}

impl OperatorChannelSettings {
    /// Takes `channel` and `to`. `None` if there is no channel. The configuration checks that it exists.
    pub fn read(section: &mut Section<'_>, notify: &NotifySettings) -> Option<Self> {
        let hint = ": name one of [notify], such as \"operators\"";
        let name = section.required("channel", hint, &value_parser::text(MAX_TEXT_BYTES));
        let to = section.list("to", MAX_RECIPIENTS, &recipient).unwrap_or_default();
        let name = name?;
        let chain: Vec<_> = notify
            .chain(&name)
            .into_iter()
            .map(|name| (name.clone(), notify.0[&name].clone().without_fault()))
            .collect();
        let settings = OperatorChannelSettings { name, to, chain };
        settings.check(section, notify);
        Some(settings)
    }

    fn check(&self, section: &Section<'_>, notify: &NotifySettings) {
        let OperatorChannelSettings { name, to, chain } = self;
        if chain.is_empty() {
            return;
        }
        let sends_mail = chain.iter().any(|(_, channel)| matches!(channel.kind, ChannelKind::Smtp(..)));
        match (to.is_empty(), sends_mail) {
            (true, true) if !section.has_problem("to") => {
                section.problem(
                    "to",
                    format!("is missing: the channel {name:?} or its fallback sends e-mail, so it needs addresses"),
                );
            }
            (false, false) => section.problem("to", format!("has no effect: the channel {name:?} sends no e-mail")),
            (true, true) | (true, false) | (false, true) => {}
        }
        for (name, channel) in chain {
            let ChannelKind::Webhook(_, body, texts) = &channel.kind else { continue };
            if *body == WebhookBody::Sms {
                section.problem(
                    "channel",
                    format!("must not lead to a text message, as {name:?} does: alerts have no number"),
                );
            }
            if let Err(problem) = body.check(&texts.options, EVENT) {
                section.problem("channel", format!("the body of {name:?} cannot be made of an alert: {problem}"));
            }
        }
        let reserved = self.reserved();
        for other in notify.0.keys().filter(|other| !reserved.contains(*other)) {
            if let Some(shared) = notify.chain(other).iter().find(|next| reserved.contains(*next)) {
                let problem =
                    format!("must not lead to {shared:?}, which is a fallback of the customers' channel {other:?}");
                section.problem("channel", problem);
            }
        }
    }

    /// The channels that are for operators only: the channel itself, and fallbacks that reach the operators by themselves. A
    /// server for e-mail may also be a channel of customers: it sends to the customer's address.
    fn reserved(&self) -> BTreeSet<String> {
        let is_reserved = |(index, (_, channel)): &(usize, &(String, ChannelSettings))| {
            *index == 0 || matches!(channel.kind, ChannelKind::Webhook(..))
        };
        self.chain.iter().enumerate().filter(is_reserved).map(|(_, (name, _))| name.clone()).collect()
    }

    /// What `orderd check` prints about the channels that are for operators only.
    pub fn check_lines(&self) -> Vec<String> {
        let reserved = self.reserved();
        let own = self.chain.iter().filter(|(name, _)| reserved.contains(name));
        own.map(|(name, channel)| channel.check_line(name)).collect()
    }

    /// The channels that customers' notifications may choose.
    pub fn customers(&self, notify: &NotifySettings) -> HandlerSettings {
        let reserved = self.reserved();
        let mut channels = notify.0.clone();
        channels.retain(|name, _| !reserved.contains(name));
        NotifySettings(channels, reserved).into_handler_settings()
    }
}

/// An address. Without the name, which no header shows.
fn recipient(value: &Value) -> Result<String, String> {
    let mailbox = parse_mailbox(&value_parser::text(MAX_TEXT_BYTES)(value)?)
        .map_err(|problem| format!("{problem}, is {value}"))?;
    if !mailbox.email.domain().contains('.') {
        return Err(format!("must have a domain of the Internet, is {value}"));
    }
    Ok(mailbox.email.to_string())
}

/// The channel, ready to send.
pub struct OperatorChannel {
    name: String,
    to: Vec<String>,
    chain: Vec<Provider>,
}

/// What became of one attempt to send a message.
#[derive(Debug, Default)]
pub struct SendOutcome {
    /// The recipients that have it now.
    pub accepted: usize,
    /// Recipients that will never get it, with the reason.
    pub refused: Vec<(String, String)>,
    /// Why it has not reached those that are left.
    pub failure: Option<String>,
}

impl OperatorChannel {
    /// Connects nothing yet. `log` is the file of notifications.
    pub fn new(settings: &OperatorChannelSettings, log: &Arc<dyn Channel>, breakers: &CircuitBreakers) -> Self {
        let owner: Arc<str> = OWNER.into();
        let providers =
            settings.chain.iter().map(|(name, channel)| Provider::new(&owner, name, channel, log, breakers));
        OperatorChannel { name: settings.name.clone(), to: settings.to.clone(), chain: providers.collect() }
    }

    /// Who gets each message: the addresses, or the channel's name if everyone reads the same.
    pub fn recipients(&self) -> Vec<String> {
        if self.to.is_empty() { vec![self.name.clone()] } else { self.to.clone() }
    }

    /// Sends a message to the recipients that are `left`, and removes those that have it or never will. A fallback is used while a
    /// server is certainly not reached, and if it refuses every recipient.
    pub async fn send(&self, id: &str, body: &str, left: &mut Vec<String>) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        let content = match Content::read(body) {
            Ok(content) => content,
            Err(error) => return SendOutcome { failure: Some(error.to_string()), ..outcome },
        };
        let message = OperatorMessage { id, body, content: &content };
        // Otherwise others have it.
        let is_for_all = left.len() == self.recipients().len();
        for (index, provider) in self.chain.iter().enumerate() {
            let mut rest = left.clone();
            let has_reached = match provider.is_smtp() {
                true => self.mail(provider, message, &mut rest, &mut outcome).await,
                false => self.post(provider, message, &mut rest, &mut outcome).await,
            };
            let has_fallback = index + 1 < self.chain.len();
            if has_reached && is_for_all && outcome.accepted == 0 && has_fallback {
                let refused = outcome.refused.drain(..).next();
                outcome.failure = outcome.failure.or(refused.map(|(to, reason)| format!("{to}: {reason}")));
                continue;
            }
            *left = rest;
            if has_reached || left.is_empty() {
                break;
            }
        }
        outcome
    }

    /// One e-mail for each recipient. Returns whether the server was reached.
    async fn mail(
        &self,
        provider: &Provider,
        message: OperatorMessage<'_>,
        left: &mut Vec<String>,
        outcome: &mut SendOutcome,
    ) -> bool {
        let mut later = Vec::new();
        while let Some(to) = left.first().cloned() {
            let mut content = message.content.clone();
            content.recipient.email = Some(to.clone());
            match self.attempt(provider, OperatorMessage { content: &content, ..message }).await {
                Ok(()) => outcome.accepted += 1,
                Err(failure) if failure.cause == FailureCause::NotReached => {
                    outcome.failure = Some(failure.to_string());
                    left.extend(later);
                    return false;
                }
                Err(failure) if failure.failure.kind == FailureKind::Permanent => {
                    outcome.refused.push((to, failure.to_string()));
                }
                Err(failure) => {
                    outcome.failure = Some(failure.to_string());
                    later.push(to);
                }
            }
            left.remove(0);
        }
        left.extend(later);
        true
    }

    /// One request or line for everyone. Returns whether the server was reached.
    async fn post(
        &self,
        provider: &Provider,
        message: OperatorMessage<'_>,
        left: &mut Vec<String>,
        outcome: &mut SendOutcome,
    ) -> bool {
        match self.attempt(provider, message).await {
            Ok(()) => {
                outcome.accepted += 1;
                left.clear();
                true
            }
            Err(failure) => {
                outcome.failure = Some(failure.to_string());
                failure.cause != FailureCause::NotReached
            }
        }
    }

    async fn attempt(&self, provider: &Provider, message: OperatorMessage<'_>) -> Result<(), StepFailure> {
        let OperatorMessage { id, body, content } = message;
        let Some(slot) = provider.try_slot().await else {
            let reason = format!("the circuit breaker of notification channel {:?} is open", provider.name());
            let failure = Failure::new(FailureKind::Transient, "circuit_open", reason);
            return Err(StepFailure::new(failure, FailureCause::NotReached));
        };
        let notice = Notice { id, channel: &self.name, order_id: None, body, trace: TraceContext::default() };
        let result = provider.deliver_without_message(notice, content).await;
        slot.ended(result.as_ref().err());
        result
    }
}

/// One message to the operators.
#[derive(Clone, Copy)]
struct OperatorMessage<'a> {
    id: &'a str,
    /// JSON.
    body: &'a str,
    /// The same, as templates see it.
    content: &'a Content,
}

/// Sends a message for a trial. Returns who has it.
///
/// # Errors
/// Why some recipients do not have it; for people.
pub async fn send_to_operators(settings: &OperatorChannelSettings, body: &str) -> Result<String, String> {
    let id = format!("alerts/test/{}", random_hex(8).map_err(|error| error.to_string())?);
    let log: Arc<dyn Channel> = Arc::new(NoFile);
    let channel = OperatorChannel::new(settings, &log, &CircuitBreakers::default());
    let recipients = channel.recipients();
    let mut left = recipients.clone();
    let SendOutcome { accepted: _, refused, failure } = channel.send(&id, body, &mut left).await;
    let refused = refused.into_iter().map(|(recipient, reason)| format!("{recipient}: {reason}"));
    let failed = failure.filter(|_| !left.is_empty()).map(|failure| format!("{}: {failure}", left.join(", ")));
    let problems: Vec<String> = refused.chain(failed).collect();
    if problems.is_empty() { Ok(recipients.join(", ")) } else { Err(problems.join("; ")) }
}

/// In place of the file of notifications, which belongs to the daemon.
struct NoFile;

impl Channel for NoFile {
    fn write<'a>(&'a self, _: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        let failure =
            Failure::new(FailureKind::Permanent, "file", "the channel is a file, which only the daemon writes");
        Box::pin(async { Err(failure.into()) })
    }
}

impl std::fmt::Debug for OperatorChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorChannel").field("name", &self.name).field("to", &self.to).finish_non_exhaustive()
    }
}
