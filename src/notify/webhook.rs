//! Notifications by HTTP: a JSON body made by a template, posted by the HTTP client of the steps. An SMS gateway and chats that
//! accept what Slack does have a body of their own.
//!
//! It never follows what an answer says, apart from its status.

use std::time::Duration;

use bytes::Bytes;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, UndefinedBehavior, context};
use serde::de::IgnoredAny;
use std::sync::Arc;

use super::content::Content;
use super::template_failure;
use super::templates::{
    RenderError, TemplateOptions, Templates, environment, is_name, samples, shown as shown_error, unknown_names,
};
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, HttpService, HttpSettings, StepCall, StepFailure, TraceContext};

/// The longest body, in bytes: more than an event, which has less than 1 MiB, and its text.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Its ending makes the engine write every value as JSON.
const NAME: &str = "body.json";
/// The variables of the template besides those of an event.
const VARIABLES: [&str; 8] = ["id", "channel", "text", "slack_text", "email", "phone", "locale", "event_body"];

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
            WebhookBody::Slack => {
                r#"{"text": {{ slack_text }}, "mrkdwn": false, "unfurl_links": false, "unfurl_media": false}"#
            }
            WebhookBody::Sms => r#"{"id": {{ id }}, "to": {{ phone }}, "text": {{ text }}}"#,
            WebhookBody::Template(template) => template,
        }
    }

    fn is_template(&self) -> bool {
        matches!(self, WebhookBody::Template(_))
    }

    /// Renders the body with samples of this event.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn check(&self, options: &TemplateOptions, event: &str) -> Result<(), String> {
        let environment = self.environment(options).map_err(|error| shown(&error))?;
        let template = environment.get_template(NAME).map_err(|error| shown(&error))?;
        let is_variable = |name: &str| VARIABLES.contains(&name) || is_name(name);
        if let Some((line, problem)) = unknown_names(&environment, &template, "", is_variable).into_iter().next() {
            return Err(line.map(|line| format!("line {line}: {problem}")).unwrap_or(problem));
        }
        let notice = WebhookNotice { id: "ord-2/notification/processed", channel: "sms" };
        for sample in samples(event) {
            let body = render(&environment, notice, &sample, Some("text"), "en").map_err(|error| shown(&error))?;
            check_json(&body)?;
        }
        Ok(())
    }

    /// The engine that makes the body: that of the texts, except that every value is written as JSON and what an event does not
    /// have is null.
    fn environment(&self, options: &TemplateOptions) -> Result<Environment<'static>, Error> {
        let mut environment = environment(options);
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.add_template_owned(NAME, self.template().to_owned())?;
        Ok(environment)
    }
}

fn check_json(body: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(body).map(drop).map_err(|error| {
        format!("makes no JSON: {error}; write {{{{ text }}}} without quotation marks, every value is written as JSON")
    })
}

fn shown(error: &Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("{line}{}", shown_error(error))
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
        let environment = body.environment(templates.options()).expect("it was checked when it was read");
        WebhookProvider { service: HttpService::new(http, timeout, max_connections), body, environment, templates }
    }

    /// Whether it sends to a telephone number.
    pub fn is_sms(&self) -> bool {
        self.body == WebhookBody::Sms
    }

    /// Posts the body of one notification within this time.
    ///
    /// # Errors
    /// As those of steps: see `steps::http`.
    pub async fn deliver(
        &self,
        id: &str,
        body: &Bytes,
        trace: TraceContext<'_>,
        timeout: Duration,
    ) -> Result<(), StepFailure> {
        let call = StepCall { idempotency_key: id, body, trace, timeout };
        match tokio::time::timeout(timeout, self.service.notify(call)).await {
            Ok(answered) => answered,
            Err(_) => {
                let failure = Failure::new(FailureKind::Transient, "timed_out", "the server did not answer in time");
                Err(StepFailure::new(failure, FailureCause::Unanswered))
            }
        }
    }

    /// Whether it is for telephones.
    pub fn needs_phone(&self) -> bool {
        self.body == WebhookBody::Sms
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
        if self.needs_phone() && content.recipient.phone.as_deref().is_none_or(|phone| phone.trim().is_empty()) {
            return Err(permanent("no_address", "the notification has no telephone number"));
        }
        let language = self.templates.language(content);
        let body = render(&self.environment, notice, content, text.as_deref(), &language);
        let body = body.map_err(|error| permanent("template_failed", &shown(&error)))?;
        if self.body.is_template() {
            check_json(&body).map_err(|problem| permanent("template_failed", &problem))?;
        }
        if body.len() > MAX_BODY_BYTES {
            return Err(permanent("template_failed", "the body of the request is too long"));
        }
        Ok(body.into())
    }
}

fn render(
    environment: &Environment<'_>,
    notice: WebhookNotice<'_>,
    content: &Content,
    text: Option<&str>,
    language: &str,
) -> Result<String, Error> {
    let values = context! {
        language,
        id => notice.id,
        channel => notice.channel,
        text,
        slack_text => text.map(slack_text),
        email => content.recipient.email.as_deref(),
        phone => content.recipient.phone.as_deref(),
        locale => content.recipient.locale.as_deref(),
        event_body => Value::from(Serde(&content.raw_body)),
        ..Value::from(Serde(content))
    };
    environment.get_template(NAME)?.render(values)
}

/// The text as text for chats: control sequences of Slack, such as `<!channel>`, begin with a bracket; Mattermost notifies everybody
/// who is named with an at sign, and makes links and images of brackets that a parenthesis follows.
fn slack_text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut last = ' ';
    for c in text.chars() {
        match c {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            // Not an address of e-mail.
            '@' if !last.is_alphanumeric() => shown.push_str("@\u{200b}"),
            '(' if last == ']' => shown.push_str("\u{200b}("),
            _ => shown.push(c),
        }
        last = c;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::templates::TemplateFiles;
    use super::*;

    fn options() -> TemplateOptions {
        TemplateOptions { shop: "Lamps".to_owned(), language: "en".to_owned(), zone: jiff::tz::TimeZone::UTC }
    }

    fn rendered(body: WebhookBody, content: &str) -> Result<serde_json::Value, StepFailure> {
        let templates = Arc::new(Templates::new(&TemplateFiles::built_in(), &options()).unwrap());
        let http = HttpSettings {
            section: "http".into(),
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
    fn a_body_that_makes_no_json_or_has_an_unknown_name_is_found_when_it_is_checked() {
        let check = |template: &str| WebhookBody::Template(template.to_owned()).check(&options(), "processed");
        for right in [
            r#"{"a": {{ text }}}"#,
            r#"{"shop": {{ shop }}, "in": {{ language }}, "costs": {{ total | money }}, "on": {{ placed_at | date }}}"#,
            r#"{"parcel": {{ body.parcel }}, "first": {{ body.parcels[0].number }}, "n": {{ items | length }}}"#,
            r#"{"items": [{% for item in items %}{{ item.product | upper }}{% if not loop.last %},{% endif %}{% endfor %}]}"#,
        ] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for wrong in [
            r#"{"a": "{{ text }}"}"#,
            r#"{"a": {{ txet }}}"#,
            r#"{"a": {{ text }"#,
            r#"{"a": {% if body.rare %}{{ text | uper }}{% else %}1{% endif %}}"#,
            r#"{"a": {% if total is none %}x{% else %}{{ total }}{% endif %}}"#,
            r#"{"a": "{{ text | safe }}"}"#,
            r#"{"a": "{% autoescape false %}{{ text }}{% endautoescape %}"}"#,
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        for body in [WebhookBody::Event, WebhookBody::Slack, WebhookBody::Sms] {
            assert_eq!(body.check(&options(), "processed"), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_body_of_a_template_has_the_shop_the_language_the_filters_and_the_fields_of_own_events() {
        let template = r#"{"shop": {{ shop }}, "language": {{ language }}, "total": {{ total | money }}, "parcel": {{ body.parcel }},
            "none": {{ body.nothing.at.all }}, "name": {{ body.name | e }}, "text": {{ text }}}"#;
        let event = r#"{"event":"shipped","locale":"de-AT","total":"1299.00","currency":"EUR","parcel":"P\"\n1","name":"\"}<b>"}"#;
        let body = rendered(WebhookBody::Template(template.to_owned()), event).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"shop": "Lamps", "language": "de-at", "total": "1.299,00\u{a0}€", "parcel": "P\" 1", "none": null,
                "name": "\"}<b>", "text": null})
        );
    }

    #[tokio::test]
    async fn markup_of_chats_in_an_order_notifies_nobody_and_makes_no_link() {
        let order = r#"{"event":"cancelled","order_id":"<!channel> <@U1> @here [x](http://evil.example) ada@example.com &amp;"}"#;
        let text = rendered(WebhookBody::Slack, order).unwrap()["text"].as_str().unwrap().to_owned();
        assert!(!text.contains(['<', '>']) && !text.contains("@here") && !text.contains("]("), "{text}");
        assert!(text.contains("ada@example.com &amp;amp;"), "{text}");
    }

    #[tokio::test]
    async fn a_cart_of_a_thousand_lines_with_long_words_is_delivered_by_every_kind_of_body() {
        let line = serde_json::json!({"product": "\"<&'\\\u{202e}".repeat(60), "quantity": 1, "price": "1.00", "total": "1.00"});
        let order = serde_json::json!({"event": "processed", "order_id": "x".repeat(200), "phone": "1", "items": vec![line; 1000],
            "total": "1000.00", "currency": "EUR"})
        .to_string();
        let own = r#"{"lines": [{% for item in items %}[{{ item.product }}, {{ item.total | money }}]{% if not loop.last %},{% endif %}{% endfor %}]}"#;
        for body in [WebhookBody::Event, WebhookBody::Slack, WebhookBody::Sms, WebhookBody::Template(own.to_owned())] {
            assert!(rendered(body, &order).is_ok());
        }
    }
}
