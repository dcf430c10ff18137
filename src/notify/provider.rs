//! One channel's server: how many notifications it gets at the same time, and its circuit breaker.
//!
//! It makes one attempt and classifies its outcome. It never retries and never chooses another server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::address;
use super::content::Content;
use super::settings::{ChannelKind, ChannelSettings, WithoutAddress};
use super::smtp::{OutgoingMail, SmtpProvider};
use super::templates::Templates;
use super::webhook::{WebhookNotice, WebhookProvider};
use super::{Channel, Notice};
use crate::gate::Gate;
use crate::pipeline::HandlerError;
use crate::recovery::{Failure, FailureKind};
use crate::steps::{BreakerKind, BreakerPermit, CircuitBreaker, CircuitBreakers, FailureCause, StepFailure};

/// Notifications that are being delivered or are not recorded yet, for each connection. More than one, so that a connection is used
/// while the ledger records.
const UNRECORDED_PART: usize = 2;

/// A channel's own server.
pub(super) struct Provider {
    name: Arc<str>,
    transport: Transport,
    timeout: Duration,
    max_connections: usize,
    permits: Arc<Semaphore>,
    unrecorded: Arc<Semaphore>,
    without_address: WithoutAddress,
    /// `None`: it is a file.
    breaker: Option<Arc<CircuitBreaker>>,
}

enum Transport {
    Smtp(Box<SmtpProvider>),
    Webhook(Box<WebhookProvider>),
    Log(Arc<dyn Channel>),
}

/// The right to make one attempt.
pub(super) struct Slot {
    breaker: Option<BreakerPermit>,
    _permit: OwnedSemaphorePermit,
    unrecorded: Unrecorded,
}

/// A notification that a server is about to accept or has accepted, and that is not recorded yet. Dropped once it is: if orderd is
/// killed before that, it is delivered again, so there are not many.
#[derive(Debug)]
pub struct Unrecorded {
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// The attempt has ended, and another one may begin.
    pub fn ended(self, failure: Option<&StepFailure>) -> Unrecorded {
        if let Some(breaker) = self.breaker {
            breaker.ended(failure);
        }
        self.unrecorded
    }
}

/// What a provider would send.
pub(super) enum Outgoing {
    Mail(OutgoingMail),
    /// The body of a request.
    Request(Bytes),
    /// The line is made when it is written.
    Line,
}

/// Why an attempt did not succeed.
pub(super) enum AttemptError {
    Failed(StepFailure),
    Interrupted(HandlerError),
}

impl From<StepFailure> for AttemptError {
    fn from(failure: StepFailure) -> Self {
        AttemptError::Failed(failure)
    }
}

impl Provider {
    /// Connects nothing yet.
    pub fn new(
        consumer: &Arc<str>,
        name: &str,
        settings: &ChannelSettings,
        log: &Arc<dyn Channel>,
        breakers: &CircuitBreakers,
    ) -> Self {
        let name: Arc<str> = name.into();
        let templates = |texts: &super::settings::TextSettings| {
            Arc::new(Templates::new(&texts.files, &texts.options).expect("they were checked when they were read"))
        };
        let (timeout, max_connections) = (settings.timeout, settings.max_connections);
        let transport = match &settings.kind {
            ChannelKind::Smtp(smtp, texts) => {
                Transport::Smtp(Box::new(SmtpProvider::new((**smtp).clone(), templates(texts))))
            }
            ChannelKind::Webhook(http, body, texts) => {
                let http = (**http).clone();
                let webhook = WebhookProvider::new(http, body.clone(), templates(texts), timeout, max_connections);
                Transport::Webhook(Box::new(webhook))
            }
            ChannelKind::Log => Transport::Log(Arc::clone(log)),
        };
        let breaker = match transport {
            Transport::Log(_) => None,
            Transport::Smtp(_) | Transport::Webhook(_) => {
                let (kind, breaker) = (BreakerKind::Channel, settings.breaker);
                Some(match settings.fault() {
                    None => breakers.breaker(consumer, kind, &name, breaker),
                    Some(fault) => breakers.held(consumer, kind, &name, breaker, ("templates_faulty", fault)),
                })
            }
        };
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        let (permits, unrecorded) = (semaphore(max_connections), semaphore(UNRECORDED_PART * max_connections));
        let without_address = settings.without_address;
        Provider { name, transport, timeout, max_connections, permits, unrecorded, without_address, breaker }
    }

    /// The channel's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How long one attempt may take until the server has got the notification, and until it has answered if it is no SMTP server.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The domain of the sender of e-mails, if it sends e-mails.
    pub fn mail_domain(&self) -> Option<&str> {
        match &self.transport {
            Transport::Smtp(smtp) => Some(smtp.domain()),
            Transport::Webhook(_) | Transport::Log(_) => None,
        }
    }

    /// Attempts that may begin now, were its circuit breaker closed.
    #[cfg(test)]
    pub fn free_permits(&self) -> usize {
        self.permits.available_permits().min(self.unrecorded.available_permits())
    }

    /// Notifications that it delivers at the same time.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Whom it would notify, shortened so that it names nobody; `None` if that is not known.
    pub fn recipient(&self, content: &Content) -> Option<String> {
        let recipient = match &self.transport {
            Transport::Smtp(_) => content.recipient.email.as_deref(),
            Transport::Webhook(webhook) if webhook.is_sms() => content.recipient.phone.as_deref(),
            Transport::Webhook(_) | Transport::Log(_) => None,
        };
        recipient.map(address::shortened)
    }

    /// Whether it is a file.
    pub fn is_log(&self) -> bool {
        matches!(self.transport, Transport::Log(_))
    }

    /// Closed while its circuit breaker is open.
    pub fn gate(&self) -> Option<Gate> {
        self.breaker.as_ref().map(|breaker| breaker.gate())
    }

    /// The right to make an attempt, unless its circuit breaker allows none now. Waits while it has enough to do. Cancel-safe.
    pub async fn try_slot(&self) -> Option<Slot> {
        let (unrecorded, permit) = self.permit().await;
        let breaker = match &self.breaker {
            Some(breaker) => Some(breaker.try_begin_now()?),
            None => None,
        };
        Some(Slot { breaker, _permit: permit, unrecorded })
    }

    /// Waits for the right to make an attempt. Nothing is occupied while its circuit breaker allows none: it may be the fallback of a
    /// channel whose own server works. Cancel-safe.
    pub async fn slot(&self) -> Slot {
        loop {
            // The permits first, then the breaker: an attempt that the breaker allows must be made at once. The other way round, each
            // of many that wait would pass its permit on to the next, without end.
            if let Some(slot) = self.try_slot().await {
                return slot;
            }
            if let Some(breaker) = &self.breaker {
                breaker.allows().await;
            }
        }
    }

    /// What it would send to notify this customer of this event. E-mails have a `Message-ID` of this domain.
    ///
    /// # Errors
    /// It cannot notify this customer, or not of this event: permanent. No server was asked.
    pub fn prepare(&self, notice: Notice<'_>, domain: &str, content: &Content) -> Result<Outgoing, StepFailure> {
        match &self.transport {
            Transport::Smtp(smtp) => smtp.prepare(notice.id, domain, content).map(Outgoing::Mail),
            Transport::Webhook(webhook) => {
                let named = WebhookNotice { id: notice.id, channel: notice.channel };
                webhook.body(named, content).map(Outgoing::Request)
            }
            Transport::Log(_) => Ok(Outgoing::Line),
        }
    }

    /// Whether it sends e-mail, so that it needs an address.
    pub fn is_smtp(&self) -> bool {
        matches!(self.transport, Transport::Smtp(_))
    }

    /// Makes one attempt to deliver what no message brought.
    ///
    /// # Errors
    /// What the server says, or that it says nothing.
    pub async fn deliver_without_message(&self, notice: Notice<'_>, content: &Content) -> Result<(), StepFailure> {
        let domain = self.mail_domain().unwrap_or_default();
        match (&self.transport, self.prepare(notice, domain, content)?) {
            // An alert that is sent twice does no harm, but others wait for its end.
            (Transport::Smtp(smtp), Outgoing::Mail(mail)) => smtp.send_within(&mail, self.timeout).await,
            (Transport::Webhook(webhook), Outgoing::Request(body)) => {
                webhook.deliver(notice.id, &body, notice.trace, self.timeout).await
            }
            (Transport::Log(log), Outgoing::Line) => match timeout(self.timeout, log.write(notice)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(HandlerError::Failed(failure))) => Err(StepFailure::new(failure, FailureCause::Refused)),
                Ok(Err(HandlerError::Interrupted(_))) | Err(_) => {
                    let reason = "the file of notifications cannot be written";
                    let failure = Failure::new(FailureKind::Transient, "file_unavailable", reason);
                    Err(StepFailure::new(failure, FailureCause::NotReached))
                }
            },
            (Transport::Smtp(_) | Transport::Webhook(_) | Transport::Log(_), _) => {
                unreachable!("it was prepared for this provider")
            }
        }
    }

    /// Whether the customer is not to be notified, having no address or number.
    pub fn skips(&self, content: &Content) -> bool {
        let is_missing = |text: &Option<String>| text.as_deref().is_none_or(|text| text.trim().is_empty());
        let has_none = match &self.transport {
            Transport::Smtp(_) => is_missing(&content.recipient.email),
            Transport::Webhook(webhook) => webhook.needs_phone() && is_missing(&content.recipient.phone),
            Transport::Log(_) => false,
        };
        has_none && self.without_address == WithoutAddress::Skip
    }

    /// First the right to have one more that is not recorded: it does not wait for another right.
    async fn permit(&self) -> (Unrecorded, OwnedSemaphorePermit) {
        let acquired = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).acquire_owned();
        let unrecorded = acquired(&self.unrecorded).await.expect("the semaphore is never closed");
        let permit = acquired(&self.permits).await.expect("the semaphore is never closed");
        (Unrecorded { _permit: unrecorded }, permit)
    }

    /// Makes one attempt with what it has prepared, which ends within its limits.
    ///
    /// # Errors
    /// What the server says, or that it says nothing.
    pub async fn deliver(&self, notice: Notice<'_>, outgoing: &Outgoing) -> Result<(), AttemptError> {
        match (&self.transport, outgoing) {
            (Transport::Smtp(smtp), Outgoing::Mail(mail)) => Ok(smtp.send(mail, self.timeout).await?),
            (Transport::Webhook(webhook), Outgoing::Request(body)) => {
                Ok(webhook.deliver(notice.id, body, notice.trace, self.timeout).await?)
            }
            (Transport::Log(log), Outgoing::Line) => log.write(notice).await.map_err(|error| match error {
                HandlerError::Failed(failure) => StepFailure::new(failure, FailureCause::Refused).into(),
                interrupted @ HandlerError::Interrupted(_) => AttemptError::Interrupted(interrupted),
            }),
            (Transport::Smtp(_) | Transport::Webhook(_) | Transport::Log(_), _) => {
                unreachable!("it was prepared for this provider")
            }
        }
    }
}
