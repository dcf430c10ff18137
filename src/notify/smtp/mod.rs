//! E-mail through an SMTP server: pooled connections, and what each of the server's replies means.
//!
//! ```text
//! no connection, no TLS, login refused or missing, 421, MAIL FROM refused, timeout before the e-mail was sent   transient; not sent:
//! a refusal of us or a fault of the server, at any point (see `refusal`)                                    a fallback may
//! 4xx to RCPT TO, DATA or the e-mail   transient: not now, for this recipient
//! 5xx to RCPT TO, DATA or the e-mail   permanent; the server's text is the reason
//! connection lost or timeout after the e-mail was sent   transient, and the server may have accepted it
//! ```
//! A connection returns to the pool only after a complete exchange, so that a reply is never taken for that to another e-mail.

mod idle;
mod mail;
mod refusal;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Noop, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use tokio::net::{TcpStream, lookup_host};
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
use crate::instance;
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, StepFailure};
use crate::tls::{TlsError, TlsReloader};

use idle::{IdleConnection, IdleConnections};
use mail::mail;
use refusal::{Answered, Refusal, SESSION_REPLIES, is_about_service};
use stream::{SmtpStream, StartTlsError, start_tls};

/// The most transactions over one connection, those that were refused included: many servers allow 100.
const MAX_TRANSACTIONS: u32 = 100;
/// How long ending a connection, or a transaction that was refused, may take.
const QUIT_TIMEOUT: Duration = Duration::from_millis(500);
/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;
/// The longest time for one address of a host that has others.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a server that does not begin with TLS.
const NO_TLS: &str =
    "it does not begin with TLS at this port: set tls = \"starttls\", or name its TLS port in address (465 by default)";

/// Of a server that offers no login that we know.
const NO_LOGIN: &str =
    "it offers no login (AUTH PLAIN or LOGIN): remove username and password_file, or use TLS if it offers it only then";

/// An SMTP server.
pub(super) struct SmtpProvider {
    settings: SmtpSettings,
    templates: Arc<Templates>,
    tls: Option<Arc<TlsReloader>>,
    idle: IdleConnections,
}

/// An e-mail that is ready to be sent.
pub(super) struct OutgoingMail {
    to: Address,
    mail: Vec<u8>,
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
        SmtpProvider { tls, settings, templates, idle: IdleConnections::default() }
    }

    /// The domain of the sender.
    pub fn domain(&self) -> &str {
        self.settings.sender.from.email.domain()
    }

    /// The e-mail for this event, with a `Message-ID` of this domain.
    ///
    /// # Errors
    /// The customer has no address, or the event no template: permanent. No server is needed for that.
    pub fn prepare(&self, event_id: &str, domain: &str, content: &Content) -> Result<OutgoingMail, StepFailure> {
        let to = recipient(content)?;
        let texts = self.templates.mail(content).map_err(|error: RenderError| template_failure(&error))?;
        let mail = mail(&self.settings.sender, &to, (event_id, domain), &texts);
        Ok(OutgoingMail { to, mail })
    }

    /// Sends one e-mail within this time, and then waits for the server's answer for as long as that may take. A client that gives
    /// up on an e-mail that the server accepts would send it twice, so servers are given more time for that (RFC 5321, 4.5.3.2.6).
    ///
    /// # Errors
    /// See the table of the module.
    pub async fn send(&self, mail: &OutgoingMail, limit: Duration) -> Result<(), StepFailure> {
        self.exchange(mail, limit, Some(self.settings.accept_timeout)).await
    }

    /// Sends one e-mail within this time, the server's answer to it included.
    ///
    /// # Errors
    /// As for [`SmtpProvider::send`].
    pub async fn send_within(&self, mail: &OutgoingMail, limit: Duration) -> Result<(), StepFailure> {
        self.exchange(mail, limit, None).await
    }

    async fn exchange(
        &self,
        outgoing: &OutgoingMail,
        limit: Duration,
        accept_timeout: Option<Duration>,
    ) -> Result<(), StepFailure> {
        let OutgoingMail { to, mail } = outgoing;
        let deadline = Instant::now() + limit;
        let timed_out = |what: &str, cause| self.failure("timed_out", &format!("timed out {what}"), cause);
        let ready = timeout_at(deadline, self.prepared(to, deadline)).await;
        let mut ready = ready.map_err(|_| timed_out("before the e-mail was sent", FailureCause::NotReached))??;
        // From here on, the server may accept it.
        let answered_by = accept_timeout.map_or(deadline, |accept_timeout| Instant::now() + accept_timeout);
        let sent = timeout_at(answered_by, ready.connection.message(mail)).await;
        match sent.map_err(|_| timed_out("after the e-mail was sent", FailureCause::Unanswered))? {
            Ok(_) => {
                self.idle.put_back(ready);
                Ok(())
            }
            Err(error) => match Refusal::about(to, error) {
                Refusal::Reply(code, text) => {
                    if !SESSION_REPLIES.contains(&code) {
                        self.idle.put_back(ready);
                    }
                    Err(self.refused(code, &text, Answered::Content))
                }
                Refusal::Lost(why) => Err(self.failure("connection_lost", &why, FailureCause::Unanswered)),
            },
        }
    }

    /// Connects, logs in and names the sender, without sending anything, within this time.
    ///
    /// # Errors
    /// As for [`SmtpProvider::deliver`].
    pub async fn probe(&self, limit: Duration) -> Result<(), StepFailure> {
        let asked = timeout(limit, async {
            let mut connection = self.connect(Instant::now() + limit).await?;
            let from = Mail::new(Some(self.settings.sender.from.email.clone()), Vec::new());
            connection.command(from).await.map_err(|error| self.sender_refused(error.into()))?;
            Ok(connection)
        });
        let asked = asked.await;
        let mut connection = asked.map_err(|_| self.failure("timed_out", "timed out", FailureCause::NotReached))??;
        // Nothing depends on it.
        let _ = timeout(QUIT_TIMEOUT, connection.quit()).await;
        Ok(())
    }

    /// A connection whose server has accepted sender and recipient and waits for the e-mail. An idle connection that the server has
    /// closed is replaced.
    async fn prepared(&self, to: &Address, deadline: Instant) -> Result<IdleConnection, StepFailure> {
        while let Some(mut idle) = self.idle.take() {
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
                    self.idle.put_back(idle);
                    return Err(failure);
                }
                // The server has closed it meanwhile, or accepts no more over it: another one may do.
                Err((_, _)) => {}
            }
        }
        let connection = self.connect(deadline).await?;
        let mut new = IdleConnection { connection, since: Instant::now(), transactions: 0, is_refused: false };
        match self.begin(&mut new, to).await {
            Ok(()) => Ok(new),
            Err((failure, is_usable)) => {
                if is_usable {
                    self.idle.put_back(new);
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
                // It may be an idle connection: that the server works has to be asked.
                connection.command(Noop).await.map_err(|error| (self.not_greeted(error.into()), false))?;
                return Err((invalid_address(reason), true));
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        let lost = |why: &str| (self.failure("connection_lost", why, FailureCause::NotReached), false);
        let from = self.settings.sender.from.email.clone();
        *transactions += 1;
        let named = connection.command(Mail::new(Some(from), options)).await;
        named.map_err(|error| (self.sender_refused(error.into()), false))?;
        for command in [Rcpt::new(to.clone(), Vec::new()).to_string(), Data.to_string()] {
            match connection.command(command).await.map_err(|error| Refusal::about(to, error)) {
                Ok(_) => {}
                Err(Refusal::Reply(code, text)) => {
                    // It is ended before the next one, so that a server which does not answer that changes nothing about this reply.
                    *is_refused = true;
                    return Err((self.refused(code, &text, Answered::Envelope), !SESSION_REPLIES.contains(&code)));
                }
                Err(Refusal::Lost(why)) => return Err(lost(&why)),
            }
        }
        Ok(())
    }

    async fn connect(&self, deadline: Instant) -> Result<AsyncSmtpConnection, StepFailure> {
        let not_reached = |code: &str, why: &str| self.failure(code, why, FailureCause::NotReached);
        let address = &self.settings.address;
        let connected = connect_to_any(&address.host, address.port, deadline).await;
        let mut stream = connected.map_err(|error| not_reached("unreachable", &error.to_string()))?;
        let hello = hello(&stream);
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
                        let started = start_tls(&mut stream, &hello.to_string()).await;
                        started.map_err(|error| self.start_tls_failure(&error))?;
                        SmtpStream::after_start_tls(stream, &connector, name).await
                    }
                    SmtpTls::Tls | SmtpTls::None => SmtpStream::tls(stream, &connector, name).await,
                };
                established.map_err(|error| match TlsError::find_in_chain(&error, has_certificate) {
                    Some(TlsError::NotTls) => not_reached("tls_failed", NO_TLS),
                    Some(tls) => not_reached("tls_failed", &chain(&tls)),
                    None => not_reached("tls_failed", &chain(&error)),
                })?
            }
        };
        let connected = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &hello).await;
        let mut connection = connected.map_err(|error| match Refusal::from(error) {
            Refusal::Lost(why) => {
                self.not_greeted(Refusal::Lost(format!("it does not greet as an SMTP server: {why}")))
            }
            reply @ Refusal::Reply(..) => self.not_greeted(reply),
        })?;
        if let Some((username, password)) = &self.settings.login {
            if connection.server_info().get_auth_mechanism(DEFAULT_MECHANISMS).is_none() {
                return Err(not_reached("login_refused", NO_LOGIN));
            }
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

    /// No e-mail of this channel would be accepted.
    fn sender_refused(&self, refusal: Refusal) -> StepFailure {
        match refusal {
            Refusal::Reply(code, text) if SESSION_REPLIES.contains(&code) => self.unavailable(code, &text),
            Refusal::Reply(code, text) => {
                let reason = format!("MAIL FROM refused: {code} {text}");
                self.failure("sender_refused", &reason, FailureCause::NotReached)
            }
            Refusal::Lost(why) => self.failure("connection_lost", &why, FailureCause::NotReached),
        }
    }

    /// The server itself accepts nothing at present.
    fn unavailable(&self, code: u16, text: &str) -> StepFailure {
        self.failure(&format!("smtp_{code}"), &format!("{code} {text}"), FailureCause::NotReached)
    }

    fn refused(&self, code: u16, text: &str, answered: Answered) -> StepFailure {
        if is_about_service(code, text, answered) {
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
}

/// Connects to the first address of a host that accepts. One that does not answer leaves time for the others.
async fn connect_to_any(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.take(MAX_ADDRESSES).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let connecting = TcpStream::connect(address);
        let connected = match u32::try_from(addresses.len() - tried) {
            Ok(more @ 2..) => {
                let left = deadline.saturating_duration_since(Instant::now());
                timeout(ADDRESS_TIMEOUT.min(left / more), connecting).await
            }
            _ => Ok(connecting.await),
        };
        match connected {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{}{error}", resolved(host, *address))),
            Err(_) => {
                last = io::Error::new(io::ErrorKind::TimedOut, format!("{}no answer", resolved(host, *address)));
            }
        }
    }
    Err(last)
}

/// What the name of a host stands for; nothing for an address, which is shown anyway.
fn resolved(host: &str, address: SocketAddr) -> String {
    if host.parse::<IpAddr>().is_ok() { String::new() } else { format!("{address}: ") }
}

/// How we name ourselves: RFC 5321 (4.1.1.1) wants the host's name, or its address if it has no full name. Never the sender's domain:
/// servers refuse strangers who name themselves like the recipient's own domain.
fn hello(stream: &TcpStream) -> ClientId {
    let name = instance::host_name();
    if is_full_name(&name) {
        return ClientId::Domain(name);
    }
    match stream.local_addr() {
        Ok(SocketAddr::V4(address)) => ClientId::Ipv4(*address.ip()),
        Ok(SocketAddr::V6(address)) => ClientId::Ipv6(*address.ip()),
        Err(_) => ClientId::Domain("localhost".to_owned()),
    }
}

fn is_full_name(name: &str) -> bool {
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.contains('.') && name.split('.').all(is_label) && !name.ends_with(".localdomain")
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
