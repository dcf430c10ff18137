//! `[notify.<channel>]`: reads and checks the channels, and shows them. Templates are read and rendered here too, so that a fault
//! in one is found before a customer waits for an e-mail. Nothing is connected.

mod keys;
mod smtp;
mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::templates::{BASE_LANGUAGE, TemplateOptions};
use super::webhook::WebhookBody;
use crate::config::{HandlerSettings, Section, duration, value_parser};
use crate::domain::is_channel;
use crate::steps::{BreakerSettings, HttpSettings};

pub(super) use smtp::{Sender, SmtpSettings, SmtpTls};
pub(super) use texts::TextSettings;

const MAX_CHANNELS: usize = 32;
/// Most channels that are tried one after the other.
const MAX_FALLBACKS: usize = 4;
const MAX_TEXT_BYTES: usize = 1024;
const MAX_BODY_TEMPLATE_BYTES: usize = 16 * 1024;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_MAX_CONNECTIONS: usize = 8;
const MAX_CONNECTIONS: usize = 256;

/// Keys that only channels of one type have.
const KEYS_OF_ONE_TYPE: [(&str, &str); 14] = [
    ("address", "smtp"),
    ("tls", "smtp"),
    ("ca_file", "smtp"),
    ("certificate_file", "smtp"),
    ("key_file", "smtp"),
    ("username", "smtp"),
    ("password_file", "smtp"),
    ("from", "smtp"),
    ("reply_to", "smtp"),
    ("list_unsubscribe", "smtp"),
    ("accept_timeout", "smtp"),
    ("http", "webhook"),
    ("preset", "webhook"),
    ("body", "webhook"),
];

/// All channels, by name, and the names of those that are reserved for operators. Without any channel, notifications go to the file.
#[derive(Debug, Clone, Default)]
pub struct NotifySettings(pub(super) BTreeMap<String, ChannelSettings>, pub(super) BTreeSet<String>);

/// One channel.
#[derive(Debug, Clone)]
pub(super) struct ChannelSettings {
    pub kind: ChannelKind,
    /// How long one attempt may take; of an e-mail, until the server has accepted `DATA`.
    pub timeout: Duration,
    /// Notifications that are delivered at the same time.
    pub max_connections: usize,
    /// The channel that delivers while this one cannot.
    pub fallback: Option<String>,
    pub without_address: WithoutAddress,
    pub breaker: BreakerSettings,
}

/// What becomes of a notification for an order without an address or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutAddress {
    /// It is recorded as skipped.
    Skip,
    /// It fails, and is dead-lettered.
    Fail,
}

impl WithoutAddress {
    const WORDS: [(&'static str, WithoutAddress); 2] = [("skip", WithoutAddress::Skip), ("fail", WithoutAddress::Fail)];

    fn as_str(self) -> &'static str {
        match self {
            WithoutAddress::Skip => "skip",
            WithoutAddress::Fail => "fail",
        }
    }
}

/// How a channel delivers.
#[derive(Debug, Clone)]
pub(super) enum ChannelKind {
    Smtp(Box<SmtpSettings>, TextSettings),
    Webhook(Box<HttpSettings>, WebhookBody, TextSettings),
    Log,
}

impl NotifySettings {
    /// Reads `[notify]`.
    pub fn read(section: Section<'_>) -> HandlerSettings {
        let (reporter, named) = section.named_sections();
        if named.len() > MAX_CHANNELS {
            reporter.section_problem(format!("must have at most {MAX_CHANNELS}, has {}", named.len()));
        }
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        let mut channels = BTreeMap::new();
        for (name, section) in named {
            if !is_channel(&name) {
                section.section_problem("must be 1 to 32 letters, digits, \"_\" and \"-\"");
            }
            channels.extend(ChannelSettings::read(section, &name).map(|channel| (name, channel)));
        }
        let mut settings = NotifySettings(channels, BTreeSet::new());
        settings.name_shop(&reporter);
        for (name, channel) in &settings.0 {
            if let Some(problem) = settings.fallback_problem(name, channel, &names) {
                reporter.subsection_problem(name, "fallback", problem);
            } else if let Some(warning) = settings.fallback_warning(name, channel) {
                reporter.subsection_warning(name, "fallback", warning);
            }
        }
        settings.into_handler_settings()
    }

    /// As the configuration keeps it.
    pub fn into_handler_settings(self) -> HandlerSettings {
        let lines = self.0.iter().map(|(name, channel)| channel.check_line(name)).collect();
        let (call_time, directories) = (self.longest(), self.template_directories());
        HandlerSettings::new(&self, lines, self.clone()).with_call_time(call_time).with_directories(directories)
    }

    fn fallback_problem(&self, name: &str, channel: &ChannelSettings, names: &[String]) -> Option<String> {
        let fallback = channel.fallback.as_ref()?;
        if !names.contains(fallback) {
            return Some(format!("must be one of [notify], is {fallback:?}"));
        }
        let chain = self.chain(name);
        let last = self.0.get(chain.last()?.as_str())?;
        match &last.fallback {
            Some(next) if self.0.contains_key(next) && chain.contains(next) => {
                Some(format!("leads back to {next:?}: a channel cannot be its own fallback"))
            }
            Some(next) if self.0.contains_key(next) => {
                Some(format!("at most {MAX_FALLBACKS} channels can be tried one after the other"))
            }
            _ => None,
        }
    }

    /// A fallback that keeps a notification from the customer for good, although the server may be back in a second.
    fn fallback_warning(&self, name: &str, channel: &ChannelSettings) -> Option<String> {
        channel.fallback.as_ref()?;
        let chain = self.chain(name);
        let file = chain.iter().skip(1).find(|name| matches!(self.0[*name].kind, ChannelKind::Log))?;
        Some(format!(
            "leads to {file:?}, a file: what is written there while a server is unavailable counts as delivered and never reaches the \
             customer; without it, notifications wait for the server"
        ))
    }

    /// How long one attempt may take at most: that through the slowest channel, with all its fallbacks. After an e-mail that a server has
    /// got and not answered to no fallback is tried.
    fn longest(&self) -> Duration {
        let time = |name: &String| {
            let chain: Vec<_> = self.chain(name).iter().map(|name| &self.0[name]).collect();
            let timeouts: Duration = chain.iter().filter_map(|channel| channel.server_timeout()).sum();
            timeouts + chain.iter().map(|channel| channel.accept_timeout()).max().unwrap_or_default()
        };
        self.0.keys().map(time).max().unwrap_or_default()
    }

    /// The channel and its fallbacks, in order.
    pub(super) fn chain(&self, name: &str) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = Some(name.to_owned());
        while let Some(name) = next.take().filter(|name| chain.len() < MAX_FALLBACKS && !chain.contains(name)) {
            next = self.0.get(&name).and_then(|channel| channel.fallback.clone());
            if self.0.contains_key(&name) {
                chain.push(name);
            }
        }
        chain
    }

    /// The channel and those of its fallbacks whose templates have no fault. The channel alone, if its own have one: its notifications are
    /// held.
    pub(super) fn usable_chain(&self, name: &str) -> Vec<String> {
        let is_held = |name: &String| self.0[name].fault().is_some();
        let mut chain = self.chain(name);
        if chain.first().is_some_and(is_held) {
            chain.truncate(1);
        } else {
            chain.retain(|name| !is_held(name));
        }
        chain
    }
}

/// The providers of each channel, in the order in which they are tried; none without channels.
pub fn channel_routes(notify: &HandlerSettings) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
    let settings = notify.constructor::<NotifySettings>();
    let route = |settings: &NotifySettings, name: &String| {
        let providers = settings.usable_chain(name).iter().map(|name| Arc::from(name.as_str())).collect();
        (Arc::from(name.as_str()), providers)
    };
    settings.into_iter().flat_map(|settings| settings.0.keys().map(|name| route(settings, name))).collect()
}

impl ChannelSettings {
    /// `None` if something is wrong, which is reported.
    fn read(mut section: Section<'_>, name: &str) -> Option<Self> {
        let kinds = [("smtp", Kind::Smtp), ("webhook", Kind::Webhook), ("log", Kind::Log)];
        let hint = ": \"smtp\", \"webhook\" or \"log\"";
        let kind = section.required("type", hint, &value_parser::one_of(&kinds));
        let is_smtp = matches!(kind, Some(Kind::Smtp));
        let kind = match kind {
            Some(Kind::Smtp) => {
                let smtp = SmtpSettings::read(&mut section);
                let shop = smtp.as_ref().and_then(|smtp| smtp.sender.from.name.clone());
                let texts = TextSettings::read(&mut section, shop, name);
                smtp.zip(texts).map(|(smtp, texts)| ChannelKind::Smtp(Box::new(smtp), texts))
            }
            Some(Kind::Webhook) => read_webhook(&mut section, name),
            Some(Kind::Log) => Some(ChannelKind::Log),
            None => {
                // It is unknown which keys it was meant to have.
                return None;
            }
        };
        for (key, of) in KEYS_OF_ONE_TYPE {
            // Those of its own type were taken, except the files of TLS without it.
            if section.has(key) && !(of == "smtp" && is_smtp) {
                section.problem(key, format!("is a key of channels with type = {of:?}"));
            }
        }
        let is_log = matches!(kind, Some(ChannelKind::Log));
        let channel = if is_log {
            let breaker = BreakerSettings::default();
            let (timeout, max_connections) = (DEFAULT_TIMEOUT, MAX_CONNECTIONS);
            let without_address = WithoutAddress::Skip;
            let kind = ChannelKind::Log;
            Some(ChannelSettings { kind, timeout, max_connections, fallback: None, without_address, breaker })
        } else {
            let second = Duration::from_secs(1);
            let timeout =
                section.optional_or("timeout", DEFAULT_TIMEOUT, &value_parser::duration(second / 10..=MAX_TIMEOUT));
            let max_connections = section.optional_or(
                "max_connections",
                DEFAULT_MAX_CONNECTIONS,
                &value_parser::number(1..=MAX_CONNECTIONS),
            );
            let fallback = section.optional("fallback", &value_parser::text(MAX_TEXT_BYTES));
            let breaker = section
                .optional_section("circuit_breaker")
                .map_or_else(BreakerSettings::default, BreakerSettings::read);
            breaker.warn_of_short_window(&section, timeout, ("max_connections", max_connections));
            let needs_address = !matches!(
                kind,
                Some(ChannelKind::Webhook(_, WebhookBody::Event | WebhookBody::Slack | WebhookBody::Template(_), _))
            );
            let without_address = match needs_address {
                true => section.optional_or(
                    "without_address",
                    WithoutAddress::Skip,
                    &value_parser::one_of(&WithoutAddress::WORDS),
                ),
                false => WithoutAddress::Skip,
            };
            kind.map(|kind| ChannelSettings { kind, timeout, max_connections, fallback, without_address, breaker })
        };
        section.finish();
        channel
    }

    /// What is wrong with its templates, so that its notifications are held.
    pub(super) fn fault(&self) -> Option<&str> {
        self.texts()?.fault.as_deref()
    }

    /// Its templates, if it has any.
    pub(super) fn texts(&self) -> Option<&TextSettings> {
        match &self.kind {
            ChannelKind::Smtp(_, texts) | ChannelKind::Webhook(_, _, texts) => Some(texts),
            ChannelKind::Log => None,
        }
    }

    /// The same channel with the built-in templates in place of faulty ones.
    pub(super) fn without_fault(mut self) -> Self {
        match &mut self.kind {
            ChannelKind::Smtp(_, texts) | ChannelKind::Webhook(_, _, texts) => texts.fault = None,
            ChannelKind::Log => {}
        }
        self
    }

    /// How long an attempt may take; `None`: it is a file.
    fn server_timeout(&self) -> Option<Duration> {
        match self.kind {
            ChannelKind::Smtp(..) | ChannelKind::Webhook(..) => Some(self.timeout),
            ChannelKind::Log => None,
        }
    }

    /// What an attempt may take besides.
    fn accept_timeout(&self) -> Duration {
        match &self.kind {
            ChannelKind::Smtp(smtp, _) => smtp.accept_timeout,
            ChannelKind::Webhook(..) | ChannelKind::Log => Duration::ZERO,
        }
    }

    pub(super) fn check_line(&self, name: &str) -> String {
        let (how, texts) = match &self.kind {
            ChannelKind::Smtp(smtp, texts) => {
                let how = format!("e-mail from {} through {}, {}", smtp.sender.from, smtp.address, smtp.tls.shown());
                (how, texts)
            }
            ChannelKind::Webhook(http, _, texts) => (format!("POST {}", http.url), texts),
            ChannelKind::Log => return format!("notification channel {name:?}: the file of notifications"),
        };
        let fallback = self.fallback.as_ref().map(|next| format!(", else {next:?}")).unwrap_or_default();
        let (timeout, texts) = (duration::format(self.timeout), texts.shown());
        format!("notification channel {name:?}: {how}, within {timeout}{fallback}; {texts}")
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Smtp,
    Webhook,
    Log,
}

fn read_webhook(section: &mut Section<'_>, name: &str) -> Option<ChannelKind> {
    let http = match section.optional_section("http") {
        Some(http) => HttpSettings::read(http),
        None => {
            section.problem("http", "is missing: say what to call, http = { url = \"…\" }");
            None
        }
    };
    let presets = [("event", WebhookBody::Event), ("slack", WebhookBody::Slack), ("sms", WebhookBody::Sms)];
    let words: Vec<(&str, usize)> = presets.iter().enumerate().map(|(index, (word, _))| (*word, index)).collect();
    let preset = section.optional("preset", &value_parser::one_of(&words));
    let template = section.optional("body", &value_parser::text(MAX_BODY_TEMPLATE_BYTES));
    if preset.is_some() && template.is_some() {
        section.problem("body", "cannot be combined with preset");
    }
    let body = match template {
        Some(template) => WebhookBody::Template(template),
        None => presets[preset.unwrap_or_default()].1.clone(),
    };
    // Who knows the address of a chat can write to it.
    let http = if body == WebhookBody::Slack { http.map(HttpSettings::with_secret_path) } else { http };
    let texts = TextSettings::read(section, None, name);
    let none = TemplateOptions { shop: name.to_owned(), language: BASE_LANGUAGE.to_owned(), zone: TimeZone::UTC };
    let options = texts.as_ref().map_or(&none, |texts| &texts.options);
    if let Err(problem) = body.check(options, "processed") {
        section.problem("body", problem);
    }
    http.zip(texts).map(|(http, texts)| ChannelKind::Webhook(Box::new(http), body, texts))
}

#[cfg(test)]
mod tests;
