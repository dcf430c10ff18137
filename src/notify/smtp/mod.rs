//! E-mail through an SMTP server: pooled connections, and what each of the server's replies means.
//!
//! ```text
//! no connection, no TLS, login refused or missing, 421, MAIL FROM refused, timeout before the e-mail was sent   transient; not sent:
//!                                                                                                          a fallback may
//! 4xx to RCPT TO, DATA or the e-mail   transient: not now, for this recipient
//! 5xx to RCPT TO, DATA or the e-mail   permanent; the server's text is the reason
//! connection lost or timeout after the e-mail was sent   transient, and the server may have accepted it
//! ```
//! A connection returns to the pool only after a complete exchange, so that a reply is never taken for that to another e-mail.

mod mail;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::content::Content;
use super::settings::{SmtpSettings, SmtpTls};
use super::templates::{RenderError, Templates};
use super::{address, template_failure};
use crate::chain::chain;
use crate::config::Secret;
use crate::escape::escaped;
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, StepFailure};
use crate::tls::{TlsError, TlsReloader};

use mail::mail;
use stream::{SmtpStream, StartTlsError, start_tls};

/// How long an idle connection is kept; servers close them after minutes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most transactions over one connection, those that were refused included: many servers allow 100.
const MAX_TRANSACTIONS: u32 = 100;
/// How long ending a connection, or a transaction that was refused, may take.
const QUIT_TIMEOUT: Duration = Duration::from_millis(500);
/// Replies about the session, not about the recipient: the service closes, a wrong sequence of commands, a login that is missing,
/// too weak, refused or not encrypted.
const SESSION_REPLIES: [u16; 6] = [421, 503, 530, 534, 535, 538];

/// An SMTP server.
pub(super) struct SmtpProvider {
    settings: SmtpSettings,
    templates: Arc<Templates>,
    tls: Option<Arc<TlsReloader>>,
    hello: ClientId,
    idle: Mutex<Vec<IdleConnection>>,
}

struct IdleConnection {
    connection: AsyncSmtpConnection,
    since: Instant,
    /// Begun so far.
    transactions: u32,
    /// The last transaction was refused and has to be ended before the next one.
    is_refused: bool,
}

/// Why a command did not succeed.
enum Refusal {
    /// The server answered with this code and text.
    Reply(u16, String),
    /// The connection does not work.
    Lost(String),
}

impl From<SmtpError> for Refusal {
    fn from(error: SmtpError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        match error.status() {
            Some(code) => Refusal::Reply(code.into(), escaped(source.unwrap_or_default().trim())),
            None => Refusal::Lost(chain(&error)),
        }
    }
}

impl Refusal {
    /// To what was said about this recipient. Servers repeat it in their replies, and the log and the status show failures.
    fn about(to: &Address, error: SmtpError) -> Self {
        match Refusal::from(error) {
            Refusal::Reply(code, text) => Refusal::Reply(code, without_recipient(&text, to)),
            Refusal::Lost(why) => Refusal::Lost(without_recipient(&why, to)),
        }
    }
}

impl SmtpProvider {
    /// Connects with the first e-mail.
    pub fn new(settings: SmtpSettings, templates: Arc<Templates>) -> Self {
        let tls = match settings.tls {
            SmtpTls::None => None,
            SmtpTls::StartTls | SmtpTls::Tls => {
                Some(Arc::new(TlsReloader::new(&*settings.section, settings.files.clone())))
            }
        };
        let domain = settings.sender.from.email.domain().to_owned();
        SmtpProvider { tls, hello: ClientId::Domain(domain), settings, templates, idle: Mutex::default() }
    }

    /// Whether the customer has an address and the event a template.
    pub fn can_deliver(&self, content: &Content) -> bool {
        recipient(content).is_ok() && self.templates.mail(content).is_ok()
    }

    /// Sends one e-mail within this time.
    ///
    /// # Errors
    /// See the table of the module.
    pub async fn deliver(&self, event_id: &str, content: &Content, limit: Duration) -> Result<(), StepFailure> {
        let to = recipient(content)?;
        let texts = self.templates.mail(content).map_err(|error: RenderError| template_failure(&error))?;
        let mail = mail(&self.settings.sender, &to, event_id, &texts);
        self.send(&to, &mail, Instant::now() + limit).await
    }

    /// Connects and logs in, without sending anything, within this time.
    ///
    /// # Errors
    /// As for [`SmtpProvider::deliver`].
    pub async fn probe(&self, limit: Duration) -> Result<(), StepFailure> {
        let connected = timeout(limit, self.connect()).await;
        let mut connection =
            connected.map_err(|_| self.failure("timed_out", "timed out", FailureCause::NotReached))??;
        // Nothing depends on it.
        let _ = timeout(QUIT_TIMEOUT, connection.quit()).await;
        Ok(())
    }

    async fn send(&self, to: &Address, mail: &[u8], deadline: Instant) -> Result<(), StepFailure> {
        let timed_out = |what: &str, cause| self.failure("timed_out", &format!("timed out {what}"), cause);
        let ready = timeout_at(deadline, self.prepared(to)).await;
        let mut ready = ready.map_err(|_| timed_out("before the e-mail was sent", FailureCause::NotReached))??;
        // From here on, the server may accept it.
        let sent = timeout_at(deadline, ready.connection.message(mail)).await;
        match sent.map_err(|_| timed_out("after the e-mail was sent", FailureCause::Unanswered))? {
            Ok(_) => {
                self.put_back(ready);
                Ok(())
            }
            Err(error) => match Refusal::about(to, error) {
                Refusal::Reply(code, text) => {
                    if !SESSION_REPLIES.contains(&code) {
                        self.put_back(ready);
                    }
                    Err(self.about_recipient(code, &text))
                }
                Refusal::Lost(why) => Err(self.failure("connection_lost", &why, FailureCause::Unanswered)),
            },
        }
    }

    /// A connection whose server has accepted sender and recipient and waits for the e-mail. An idle connection that the server has
    /// closed is replaced.
    async fn prepared(&self, to: &Address) -> Result<IdleConnection, StepFailure> {
        while let Some(mut idle) = self.take_idle() {
            if idle.transactions >= MAX_TRANSACTIONS {
                // Nothing depends on it.
                let _ = timeout(QUIT_TIMEOUT, idle.connection.quit()).await;
                continue;
            }
            if idle.is_refused {
                let reset = timeout(QUIT_TIMEOUT, idle.connection.command(Rset)).await;
                if !reset.is_ok_and(|reset| reset.is_ok()) {
                    continue;
                }
                idle.is_refused = false;
            }
            match self.begin(&mut idle, to).await {
                Ok(()) => return Ok(idle),
                Err((failure, is_usable)) if is_usable => {
                    self.put_back(idle);
                    return Err(failure);
                }
                // The server has closed it meanwhile, or accepts no more over it: another one may do.
                Err((_, _)) => {}
            }
        }
        let connection = self.connect().await?;
        let mut new = IdleConnection { connection, since: Instant::now(), transactions: 0, is_refused: false };
        match self.begin(&mut new, to).await {
            Ok(()) => Ok(new),
            Err((failure, is_usable)) => {
                if is_usable {
                    self.put_back(new);
                }
                Err(failure)
            }
        }
    }

    /// `MAIL FROM`, `RCPT TO` and `DATA`. An error comes with whether the connection can be used again.
    async fn begin(&self, idle: &mut IdleConnection, to: &Address) -> Result<(), (StepFailure, bool)> {
        let IdleConnection { connection, transactions, is_refused, .. } = idle;
        let mut options = Vec::new();
        if !to.to_string().is_ascii() {
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                let reason = "the server does not accept addresses with other than ASCII characters before the \"@\"";
                return Err((invalid_address(reason), true));
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        let lost = |why: &str| (self.failure("connection_lost", why, FailureCause::NotReached), false);
        let from = self.settings.sender.from.email.clone();
        *transactions += 1;
        match connection.command(Mail::new(Some(from), options)).await.map_err(|error| Refusal::about(to, error)) {
            Ok(_) => {}
            Err(Refusal::Reply(421, text)) => return Err((self.unavailable(421, &text), false)),
            // It refuses the sender: no e-mail of this channel would be accepted.
            Err(Refusal::Reply(code, text)) => {
                let reason = format!("MAIL FROM refused: {code} {text}");
                return Err((self.failure("sender_refused", &reason, FailureCause::NotReached), false));
            }
            Err(Refusal::Lost(why)) => return Err(lost(&why)),
        }
        for command in [Rcpt::new(to.clone(), Vec::new()).to_string(), Data.to_string()] {
            match connection.command(command).await.map_err(|error| Refusal::about(to, error)) {
                Ok(_) => {}
                Err(Refusal::Reply(code, text)) => {
                    // It is ended before the next one, so that a server which does not answer that changes nothing about this reply.
                    *is_refused = true;
                    return Err((self.about_recipient(code, &text), !SESSION_REPLIES.contains(&code)));
                }
                Err(Refusal::Lost(why)) => return Err(lost(&why)),
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, StepFailure> {
        let not_reached = |code: &str, why: &str| self.failure(code, why, FailureCause::NotReached);
        let address = &self.settings.address;
        let connected = TcpStream::connect((address.host.as_str(), address.port)).await;
        let mut stream = connected.map_err(|error| not_reached("unreachable", &error.to_string()))?;
        // The end of an e-mail is a write of its own.
        let _ = stream.set_nodelay(true);
        let stream = match (&self.tls, self.settings.tls) {
            (None, _) | (_, SmtpTls::None) => SmtpStream::plain(stream),
            (Some(tls), mode) => {
                let tls = Arc::clone(tls);
                let read = tokio::task::spawn_blocking(move || tls.read()).await;
                let read = read.expect("reading files neither panics nor is cancelled");
                let loaded = read.map_err(|error| not_reached("tls_failed", &chain(&error)))?;
                let has_certificate = loaded.identity.is_some();
                let connector = TlsConnector::from(Arc::clone(&loaded.config));
                let name = ServerName::try_from(address.host.clone())
                    .map_err(|_| not_reached("tls_failed", "the host is no name that a certificate can have"))?;
                let established = match mode {
                    SmtpTls::StartTls => {
                        let started = start_tls(&mut stream, &self.hello.to_string()).await;
                        started.map_err(|error| self.start_tls_failure(&error))?;
                        SmtpStream::after_start_tls(stream, &connector, name).await
                    }
                    SmtpTls::Tls | SmtpTls::None => SmtpStream::tls(stream, &connector, name).await,
                };
                established.map_err(|error| match TlsError::find_in_chain(&error, has_certificate) {
                    Some(tls) => not_reached("tls_failed", &chain(&tls)),
                    None => not_reached("tls_failed", &chain(&error)),
                })?
            }
        };
        let connected = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &self.hello).await;
        let mut connection = connected.map_err(|error| self.not_greeted(error.into()))?;
        if let Some((username, password)) = &self.settings.login {
            let credentials = Credentials::new(username.clone(), Secret::expose(password).to_owned());
            let answered = connection.auth(DEFAULT_MECHANISMS, &credentials).await;
            answered.map_err(|error| match error.into() {
                Refusal::Reply(421, text) => self.unavailable(421, &text),
                Refusal::Reply(code, text) => not_reached("login_refused", &format!("login refused: {code} {text}")),
                Refusal::Lost(why) => not_reached("login_refused", &format!("cannot log in: {why}")),
            })?;
        }
        Ok(connection)
    }

    fn start_tls_failure(&self, error: &StartTlsError) -> StepFailure {
        let code = match error {
            StartTlsError::NotGreeted(code, text) | StartTlsError::Refused(code @ 421, text) => {
                return self.unavailable(*code, text);
            }
            StartTlsError::Io(_) => "connection_lost",
            StartTlsError::Refused(..) | StartTlsError::NotOffered | StartTlsError::Injected => "tls_failed",
        };
        self.failure(code, &escaped(&chain(error)), FailureCause::NotReached)
    }

    fn not_greeted(&self, refusal: Refusal) -> StepFailure {
        match refusal {
            Refusal::Reply(code, text) => self.unavailable(code, &text),
            Refusal::Lost(why) => self.failure("connection_lost", &why, FailureCause::NotReached),
        }
    }

    /// The server itself accepts nothing at present.
    fn unavailable(&self, code: u16, text: &str) -> StepFailure {
        self.failure(&format!("smtp_{code}"), &format!("{code} {text}"), FailureCause::NotReached)
    }

    /// A reply to the recipient, or to the e-mail for it.
    fn about_recipient(&self, code: u16, text: &str) -> StepFailure {
        if SESSION_REPLIES.contains(&code) {
            return self.unavailable(code, text);
        }
        let kind = if (500..600).contains(&code) { FailureKind::Permanent } else { FailureKind::Transient };
        let failure = Failure::new(kind, format!("smtp_{code}"), format!("{code} {text}"));
        StepFailure::new(failure, FailureCause::Refused)
    }

    fn failure(&self, code: &str, why: &str, cause: FailureCause) -> StepFailure {
        let reason = format!("{}: {why}", self.settings.address);
        StepFailure::new(Failure::new(FailureKind::Transient, code, reason), cause)
    }

    fn take_idle(&self) -> Option<IdleConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        idle.retain(|connection| now.duration_since(connection.since) < IDLE_TIMEOUT);
        // The one that was used last.
        idle.pop()
    }

    /// Keeps a connection after a complete exchange.
    fn put_back(&self, mut connection: IdleConnection) {
        connection.since = Instant::now();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

/// The text with the recipient shortened wherever it occurs. What is inserted is not searched: it may contain the address again.
fn without_recipient(text: &str, to: &Address) -> String {
    let to = to.to_string();
    let hidden = address::shortened(&to);
    // Of the same length as the text.
    let lower = text.to_ascii_lowercase();
    let mut shown = String::with_capacity(text.len());
    let mut end = 0;
    for (at, found) in lower.match_indices(&to.to_ascii_lowercase()) {
        shown.push_str(&text[end..at]);
        shown.push_str(&hidden);
        end = at + found.len();
    }
    shown.push_str(&text[end..]);
    shown
}

/// The customer's address, if it can be used.
pub(super) fn recipient(content: &Content) -> Result<Address, StepFailure> {
    let Some(email) = content.recipient.email.as_deref().filter(|email| !email.trim().is_empty()) else {
        let failure = Failure::new(FailureKind::Permanent, "no_address", "the notification has no e-mail address");
        return Err(StepFailure::new(failure, FailureCause::Refused));
    };
    address::parse_customer(email).map_err(|problem| invalid_address(&problem.to_string()))
}

fn invalid_address(reason: &str) -> StepFailure {
    StepFailure::new(Failure::new(FailureKind::Permanent, "invalid_address", reason), FailureCause::Refused)
}
