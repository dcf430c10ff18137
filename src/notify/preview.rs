//! What a notification would look like, and a trial delivery of it to an address of the operator's choice.
//!
//! It claims and records nothing, and never uses the customer's own address.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::address;
use super::content::Content;
use super::settings::{ChannelKind, ChannelSettings, NotifySettings, TextSettings};
use super::smtp::SmtpProvider;
use super::templates::{BASE_LANGUAGE, TemplateFiles, TemplateOptions, Templates};
use super::unknown_channel;
use super::webhook::{WebhookBody, WebhookNotice, WebhookProvider};
use crate::domain::is_phone;
use crate::escape::escaped;
use crate::random::random_hex;
use crate::steps::TraceContext;

/// The name of the shop in previews without a channel.
const SAMPLE_SHOP: &str = "Shop";

/// What a channel would send for this body of an event.
///
/// # Errors
/// There is no such channel, or it cannot send this; for people.
pub fn preview(settings: &NotifySettings, channel: &str, body: &str) -> Result<String, String> {
    let content = Content::read(body).map_err(|error| error.to_string())?;
    if settings.0.is_empty() && !settings.1.contains(channel) {
        let options =
            TemplateOptions { shop: SAMPLE_SHOP.to_owned(), language: BASE_LANGUAGE.to_owned(), zone: TimeZone::UTC };
        return mail(&templates(&TemplateFiles::built_in(), &options), &content, None);
    }
    match &find(settings, channel)?.kind {
        ChannelKind::Smtp(smtp, texts) => {
            let from = smtp.sender.from.to_string();
            mail(&of(texts), &content, Some(&from))
        }
        ChannelKind::Webhook(http, kind, texts) => {
            let found = find(settings, channel)?;
            let provider =
                WebhookProvider::new((**http).clone(), kind.clone(), of(texts), found.timeout, found.max_connections);
            let notice = WebhookNotice { id: "preview", channel };
            let body = provider.body(notice, &content).map_err(|failure| failure.to_string())?;
            Ok(format!("POST {}\n\n{}\n", http.url, escaped(&String::from_utf8_lossy(&body))))
        }
        ChannelKind::Log => Ok(format!("{}\n", escaped(body))),
    }
}

/// Sends what [`preview`] shows; the body has the recipient.
///
/// # Errors
/// Why it was not sent; for people.
pub async fn send(settings: &NotifySettings, channel: &str, body: &str) -> Result<(), String> {
    let content = Content::read(body).map_err(|error| error.to_string())?;
    let found = find(settings, channel)?;
    let id = format!("preview/{}", random_hex(8).map_err(|error| error.to_string())?);
    let sent = match &found.kind {
        ChannelKind::Smtp(smtp, texts) => {
            let provider = SmtpProvider::new((**smtp).clone(), of(texts));
            match provider.prepare(&id, provider.domain(), &content) {
                Ok(mail) => provider.send(&mail, found.timeout).await,
                Err(failure) => Err(failure),
            }
        }
        ChannelKind::Webhook(http, kind, texts) => {
            let provider =
                WebhookProvider::new((**http).clone(), kind.clone(), of(texts), found.timeout, found.max_connections);
            let notice = WebhookNotice { id: &id, channel };
            match provider.body(notice, &content) {
                Ok(body) => provider.deliver(&id, &body, TraceContext::default(), found.timeout).await,
                Err(failure) => Err(failure),
            }
        }
        ChannelKind::Log => return Err(format!("the channel {channel:?} is a file")),
    };
    sent.map_err(|failure| failure.to_string())
}

/// Checks the address or number to which [`send`] is to send.
///
/// # Errors
/// It is none, or the channel has no recipients; for people.
pub fn check_recipient(settings: &NotifySettings, channel: &str, recipient: &str) -> Result<(), String> {
    match &find(settings, channel)?.kind {
        ChannelKind::Smtp(..) => match address::parse_customer(recipient) {
            Ok(_) => Ok(()),
            Err(problem) => Err(format!("{recipient:?} is no address to which e-mail can be sent: {problem}")),
        },
        ChannelKind::Webhook(_, WebhookBody::Sms, _) if !is_phone(recipient) => {
            Err(format!("{recipient:?} is no telephone number"))
        }
        ChannelKind::Webhook(..) => Ok(()),
        ChannelKind::Log => Err(format!("the channel {channel:?} is a file: it sends to nobody")),
    }
}

fn find<'a>(settings: &'a NotifySettings, channel: &str) -> Result<&'a ChannelSettings, String> {
    settings.0.get(channel).ok_or_else(|| match settings.0.is_empty() && !settings.1.contains(channel) {
        true => "no notification channel is configured for customers: add [notify.<channel>]".to_owned(),
        false => unknown_channel(channel, settings.0.keys()),
    })
}

fn of(texts: &TextSettings) -> Arc<Templates> {
    templates(&texts.files, &texts.options)
}

fn templates(files: &TemplateFiles, options: &TemplateOptions) -> Arc<Templates> {
    Arc::new(Templates::new(files, options).expect("they were checked when they were read"))
}

fn mail(templates: &Templates, content: &Content, from: Option<&str>) -> Result<String, String> {
    let texts = templates.mail(content).map_err(|error| error.to_string())?;
    let mut shown = String::new();
    let to = content.recipient.email.as_deref().unwrap_or("(the order has no email)");
    let lines = [("From", from), ("To", Some(to)), ("Subject", Some(texts.subject.as_str()))];
    for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        writeln!(shown, "{name}: {}", escaped(value)).expect("writing to a string does not fail");
    }
    write!(shown, "\n{}\n", texts.text.trim_end()).expect("writing to a string does not fail");
    if let Some(html) = texts.html {
        write!(shown, "\n--- HTML ---\n\n{}\n", html.trim_end()).expect("writing to a string does not fail");
    }
    Ok(shown)
}
