//! The keys of a channel of e-mail: the server, TLS, the login and the sender. Reads and checks them; connects nothing.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::Mailbox;

use super::MAX_TEXT_BYTES;
use crate::config::{Address, Secret, Section, Value, client_files, password_in_file, value_parser};
use crate::notify::address::parse_mailbox;
use crate::tls::TlsFiles;

/// RFC 5321 (4.5.3.2.6) asks for ten minutes.
const DEFAULT_ACCEPT_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_ACCEPT_TIMEOUT: Duration = Duration::from_secs(600);

/// An SMTP server, and the sender.
#[derive(Debug, Clone)]
pub(in crate::notify) struct SmtpSettings {
    pub address: Address,
    pub tls: SmtpTls,
    pub files: TlsFiles,
    /// The user's name and password.
    pub login: Option<(String, Secret)>,
    pub sender: Sender,
    /// How long sending the text of an e-mail, and the server's answer to it, may take.
    pub accept_timeout: Duration,
    /// The section that it was read from, for the log.
    pub section: Arc<str>,
}

/// The headers that are the same for each e-mail of a channel.
#[derive(Debug, Clone)]
pub(in crate::notify) struct Sender {
    pub from: Mailbox,
    pub reply_to: Option<Mailbox>,
    /// With angle brackets, as in the header.
    pub list_unsubscribe: Option<String>,
}

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::notify) enum SmtpTls {
    StartTls,
    Tls,
    None,
}

impl SmtpTls {
    const WORDS: [(&'static str, SmtpTls); 3] =
        [("starttls", SmtpTls::StartTls), ("tls", SmtpTls::Tls), ("none", SmtpTls::None)];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            SmtpTls::StartTls => "starttls",
            SmtpTls::Tls => "tls",
            SmtpTls::None => "none",
        }
    }

    pub(super) fn shown(self) -> &'static str {
        match self {
            SmtpTls::StartTls => "STARTTLS",
            SmtpTls::Tls => "TLS",
            SmtpTls::None => "without TLS",
        }
    }

    fn port(self) -> u16 {
        match self {
            SmtpTls::StartTls => 587,
            SmtpTls::Tls => 465,
            SmtpTls::None => 25,
        }
    }
}

impl SmtpSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Option<Self> {
        let tls = section.optional_or("tls", SmtpTls::StartTls, &value_parser::one_of(&SmtpTls::WORDS));
        let hint = ": name the SMTP server, such as \"smtp.example.com:587\"";
        let address = section.required("address", hint, &value_parser::address(tls.port()));
        let files = match tls {
            SmtpTls::None => TlsFiles::default(),
            SmtpTls::StartTls | SmtpTls::Tls => client_files(section, true),
        };
        let username = section.optional("username", &value_parser::text(MAX_TEXT_BYTES));
        let password = password_in_file(section, "password_file");
        for (given, missing, is_given) in
            [("username", "password_file", username.is_some()), ("password_file", "username", password.is_some())]
        {
            let other = if missing == "username" { username.is_some() } else { password.is_some() };
            if is_given && !other && !section.has_problem(missing) {
                section.problem(missing, format!("is missing: {given} has no effect without it"));
            }
        }
        let is_local = address.as_ref().is_some_and(|address| {
            address.host == "localhost" || address.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        });
        if tls == SmtpTls::None && password.is_some() && !is_local {
            section.problem("tls", "must not be \"none\" with a password: it would be sent in plain text");
        } else if tls == SmtpTls::None && address.is_some() && !is_local {
            section.warning("tls", "is \"none\": e-mails are sent in plain text, with the addresses in them");
        }
        let mailbox = |value: &Value| {
            parse_mailbox(&value_parser::text(MAX_TEXT_BYTES)(value)?)
                .map_err(|problem| format!("{problem}, is {value}"))
        };
        let from = section.required("from", ": name the sender, such as \"Lamps <orders@example.com>\"", &mailbox);
        let reply_to = section.optional("reply_to", &mailbox);
        let list_unsubscribe = section.optional("list_unsubscribe", &list_unsubscribe);
        let limits = Duration::from_millis(100)..=MAX_ACCEPT_TIMEOUT;
        let accept_timeout =
            section.optional_or("accept_timeout", DEFAULT_ACCEPT_TIMEOUT, &value_parser::duration(limits));
        Some(SmtpSettings {
            address: address?,
            tls,
            files,
            login: username.zip(password),
            sender: Sender { from: from?, reply_to, list_unsubscribe },
            accept_timeout,
            section: section.path().into(),
        })
    }
}

/// A URL, as the header has it.
fn list_unsubscribe(value: &Value) -> Result<String, String> {
    let text = value_parser::text(MAX_TEXT_BYTES)(value)?;
    match url::Url::parse(&text) {
        Ok(url) if ["https", "mailto"].contains(&url.scheme()) => Ok(format!("<{url}>")),
        _ => Err(format!("must be a URL that begins with \"https:\" or \"mailto:\", is {value}")),
    }
}
