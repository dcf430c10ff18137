//! Notifications by HTTP: a JSON body made by a template, posted by the HTTP client of the steps. An SMS gateway and chats that
//! accept what Slack does have a body of their own.
//!
//! It never follows what an answer says, apart from its status.

use std::time::Duration;

use bytes::Bytes;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior, context};
use std::sync::Arc;

use super::content::Content;
use super::template_failure;
use super::templates::{RenderError, Templates};
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, HttpService, HttpSettings, StepCall, StepFailure, TraceContext};

/// The longest body, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_FUEL: u64 = 100_000;
/// Its ending makes the engine write every value as JSON.
const NAME: &str = "body.json";

/// What the body is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WebhookBody {
    /// The event, with a text.
    Event,
    /// For chats that accept what Slack does.
    Slack,
    /// For gateways that take a number and a text.
    Sms,
    /// Another template.
    Template(String),
}

impl WebhookBody {
    /// The template.
    pub fn template(&self) -> &str {
        match self {
            WebhookBody::Event => {
                r#"{"id": {{ id }}, "channel": {{ channel }}, "text": {{ text }}, "event": {{ event_body }}}"#
            }
            WebhookBody::Slack => r#"{"text": {{ slack_text }}, "mrkdwn": false}"#,
            WebhookBody::Sms => r#"{"id": {{ id }}, "to": {{ phone }}, "text": {{ text }}}"#,
            WebhookBody::Template(template) => template,
        }
    }

    /// Renders the body with a sample.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn check(&self, sample: &Content) -> Result<(), String> {
        let environment = environment(self).map_err(|error| shown(&error))?;
        let notice = WebhookNotice { id: "ord-2/notification/processed", channel: "sms" };
        let body = render(&environment, notice, sample, Some("text")).map_err(|error| shown(&error))?;
        serde_json::from_str::<serde_json::Value>(&body).map(drop).map_err(|error| {
            format!(
                "makes no JSON: {error}; write {{{{ text }}}} without quotation marks, every value is written as JSON"
            )
        })
    }
}

fn shown(error: &Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("{line}{}{detail}", error.kind())
}

/// What identifies a notification.
#[derive(Debug, Clone, Copy)]
pub(super) struct WebhookNotice<'a> {
    pub id: &'a str,
    pub channel: &'a str,
}

/// An HTTP server.
pub(super) struct WebhookProvider {
    service: HttpService,
    body: WebhookBody,
    environment: Environment<'static>,
    templates: Arc<Templates>,
}

impl WebhookProvider {
    /// Connects with the first notification.
    pub fn new(
        http: HttpSettings,
        body: WebhookBody,
        templates: Arc<Templates>,
        timeout: Duration,
        max_connections: usize,
    ) -> Self {
        let environment = environment(&body).expect("it was checked when it was read");
        WebhookProvider { service: HttpService::new(http, timeout, max_connections), body, environment, templates }
    }

    /// Posts one notification within this time.
    ///
    /// # Errors
    /// As those of steps: see `steps::http`.
    pub async fn deliver(
        &self,
        notice: WebhookNotice<'_>,
        content: &Content,
        trace: TraceContext<'_>,
        timeout: Duration,
    ) -> Result<(), StepFailure> {
        let body = self.body(notice, content)?;
        let call = StepCall { idempotency_key: notice.id, body: &body, trace, timeout };
        match tokio::time::timeout(timeout, self.service.notify(call)).await {
            Ok(answered) => answered,
            Err(_) => {
                let failure = Failure::new(FailureKind::Transient, "timed_out", "the server did not answer in time");
                Err(StepFailure::new(failure, FailureCause::Unanswered))
            }
        }
    }

    /// The body of the request.
    ///
    /// # Errors
    /// A permanent failure.
    pub fn body(&self, notice: WebhookNotice<'_>, content: &Content) -> Result<Bytes, StepFailure> {
        let permanent = |code: &str, reason: &str| {
            StepFailure::new(Failure::new(FailureKind::Permanent, code, reason), FailureCause::Refused)
        };
        let text = match (self.templates.short(content), &self.body) {
            (Ok(text), _) => Some(text),
            // A program reads it.
            (Err(RenderError::UnknownEvent(_)), WebhookBody::Event | WebhookBody::Template(_)) => None,
            (Err(error), _) => return Err(template_failure(&error)),
        };
        if self.body == WebhookBody::Sms && content.recipient.phone.is_none() {
            return Err(permanent("no_address", "the notification has no telephone number"));
        }
        let body = render(&self.environment, notice, content, text.as_deref());
        let body = body.map_err(|error| permanent("template_failed", &shown(&error)))?;
        if body.len() > MAX_BODY_BYTES {
            return Err(permanent("template_failed", "the body of the request is too long"));
        }
        Ok(body.into())
    }
}

fn environment(body: &WebhookBody) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::Json);
    environment.set_debug(true);
    environment.add_template_owned(NAME, body.template().to_owned())?;
    Ok(environment)
}

fn render(
    environment: &Environment<'_>,
    notice: WebhookNotice<'_>,
    content: &Content,
    text: Option<&str>,
) -> Result<String, Error> {
    let values = context! {
        id => notice.id,
        channel => notice.channel,
        text,
        slack_text => text.map(slack_text),
        email => content.recipient.email.as_deref(),
        phone => content.recipient.phone.as_deref(),
        locale => content.recipient.locale.as_deref(),
        event_body => Value::from(Serde(&content.body)),
        ..Value::from(Serde(content))
    };
    environment.get_template(NAME)?.render(values)
}

/// Slack's control sequences, such as `<!channel>`, begin with a bracket.
fn slack_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::templates::{TemplateFiles, TemplateOptions};
    use super::*;

    fn rendered(body: WebhookBody, content: &str) -> Result<serde_json::Value, StepFailure> {
        let options =
            TemplateOptions { shop: "Lamps".to_owned(), language: "en".to_owned(), zone: jiff::tz::TimeZone::UTC };
        let templates = Arc::new(Templates::new(&TemplateFiles::built_in(), &options).unwrap());
        let http = HttpSettings {
            url: "http://127.0.0.1:1/".parse().unwrap(),
            url_rest: None,
            headers: std::collections::BTreeMap::new(),
            bearer: None,
            hmac_key: None,
            tls: crate::tls::TlsFiles::default(),
        };
        let provider = WebhookProvider::new(http, body, templates, Duration::from_secs(1), 1);
        let notice = WebhookNotice { id: "o\"1/x", channel: "sms" };
        provider.body(notice, &Content::read(content).unwrap()).map(|body| serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn what_an_order_contains_never_changes_the_body_of_a_webhook() {
        let order = r#"{"event":"cancelled","order_id":"1\", \"to\": \"+1\n<!channel> {{ shop }}","phone":"+49 30 1"}"#;
        let sms = rendered(WebhookBody::Sms, order).unwrap();
        assert_eq!(sms["to"], "+49 30 1");
        assert_eq!(sms["id"], "o\"1/x");
        let text = sms["text"].as_str().unwrap();
        assert!(text.contains("{{ shop }}") && !text.contains('\n'), "{text}");
        let slack = rendered(WebhookBody::Slack, order).unwrap();
        assert!(slack["text"].as_str().unwrap().contains("&lt;!channel&gt;"), "{slack}");
        let event = rendered(WebhookBody::Event, order).unwrap();
        assert_eq!(event["event"]["phone"], "+49 30 1");
        let own = WebhookBody::Template(r#"{"a": {{ order_id }}, "b": {{ total }}}"#.to_owned());
        assert_eq!(rendered(own, order).unwrap()["b"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn a_text_message_needs_a_number_and_an_event_that_has_a_text() {
        let code = |body, content| rendered(body, content).unwrap_err().failure.code;
        assert_eq!(code(WebhookBody::Sms, r#"{"event":"processed"}"#), "no_address");
        assert_eq!(code(WebhookBody::Sms, r#"{"event":"../../shipped","phone":"1"}"#), "unknown_event");
        assert!(rendered(WebhookBody::Event, r#"{"event":"shipped"}"#).is_ok());
    }

    #[test]
    fn a_body_that_makes_no_json_or_has_an_unknown_variable_is_found_when_it_is_checked() {
        let sample = &super::super::templates::samples("processed")[0];
        let check = |template: &str| WebhookBody::Template(template.to_owned()).check(sample);
        assert!(check(r#"{"a": {{ text }}}"#).is_ok());
        for wrong in [r#"{"a": "{{ text }}"}"#, r#"{"a": {{ txet }}}"#, r#"{"a": {{ text }"#] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        for body in [WebhookBody::Event, WebhookBody::Slack, WebhookBody::Sms] {
            assert_eq!(body.check(sample), Ok(()));
        }
    }
}
