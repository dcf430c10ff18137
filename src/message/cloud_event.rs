//! CloudEvents 1.0: the document that a message contains, whether it is wrapped in an event or not, and the event's identity.
//!
//! Structured events are a JSON object that contains the document as `data` or `data_base64`; binary ones have it as the body, and
//! the attributes in headers. Pure. The message itself is never changed: copies stay the events they are.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use serde_json::value::RawValue;

use super::header::Headers;
use super::{Message, Properties};
use crate::domain::{BodyError, JsonError, OrderEvent, body_text, is_compressed, object_values, text};

/// The media types of events that contain all of it: this one, and others that are not supported.
const STRUCTURED: &str = "application/cloudevents+json";
const ANY_STRUCTURED: &str = "application/cloudevents";
/// What a structured event contains.
static SPECVERSION: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"specversion\""));
/// The only version of the specification that is supported.
const VERSION: &str = "1.0";
/// What the names of a binary event's headers begin with, in any case: those of the HTTP and the AMQP binding, and the one that
/// the latter allows for clients that cannot write a colon.
const PREFIXES: [&str; 3] = ["ce-", "cloudEvents:", "cloudEvents_"];
/// What the identities of events begin with.
pub(super) const CLOUD_EVENT_PREFIX: &str = "cloudevent:";
/// The attributes that each event has, after `specversion`.
const REQUIRED: [&str; 3] = ["id", "source", "type"];

/// A message contains no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Its body is no text.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// It is an event without a document.
    #[error("not a valid CloudEvent: {0}")]
    CloudEvent(#[from] CloudEventError),
}

/// What is wrong with an event. Values are not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudEventError {
    /// It is no JSON object.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It has another format, or is a batch.
    #[error("content_type must be {STRUCTURED}; other formats and batches are not supported")]
    Format,
    /// It is of another version.
    #[error("specversion must be \"{VERSION}\"")]
    Version,
    /// An attribute is missing, empty or no text.
    #[error("{0} must be a text that is not empty")]
    Attribute(&'static str),
    /// It has no data, or twice.
    #[error("must have either data or data_base64")]
    Data,
    /// The data is not Base64.
    #[error("data_base64 must be a text in Base64")]
    Base64,
    /// The decoded data is not UTF-8.
    #[error("data_base64: {0}")]
    Text(BodyError),
    /// The data is no document.
    #[error("data must be JSON, or a text with the datacontenttype of one")]
    NoDocument,
}

impl DocumentError {
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            DocumentError::Body(error) => error.code(),
            DocumentError::CloudEvent(_) => "invalid_cloud_event",
        }
    }
}

impl Message {
    /// The document that the message contains, as text: the data of a CloudEvent, else the body. It may have `max` bytes.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn document(&self, max: usize) -> Result<Cow<'_, str>, DocumentError> {
        match self.envelope() {
            Envelope::None => Ok(self.text(max)?),
            Envelope::Binary => {
                binary_attributes(&self.headers)?;
                Ok(self.text(max)?)
            }
            Envelope::Unsupported => Err(CloudEventError::Format.into()),
            Envelope::Structured { certain } => match self.text(max)? {
                text if !certain && !is_event(&text) => Ok(text),
                Cow::Borrowed(text) => Ok(data(text)?),
                Cow::Owned(text) => Ok(Cow::Owned(data(&text)?.into_owned())),
            },
        }
    }

    /// What the message's type says happened to an order, or the type of the CloudEvent that it is; `None` if they are not about
    /// orders. The body may have `max` bytes once it is decompressed.
    pub fn order_event(&self, max: usize) -> Option<OrderEvent> {
        let of_message = self.properties.message_type.as_deref().and_then(OrderEvent::of_type);
        let of_cloud_event = match self.envelope() {
            Envelope::None | Envelope::Unsupported => None,
            Envelope::Binary => attribute(&self.headers, REQUIRED[2])
                .filter(|_| binary_attributes(&self.headers).is_ok())
                .and_then(OrderEvent::of_type),
            Envelope::Structured { .. } => {
                let text = self.text(max).unwrap_or_default();
                let attributes = structured_attributes(&text).ok();
                attributes.and_then(|[_, _, event_type]| OrderEvent::of_type(&event_type))
            }
        };
        OrderEvent::of_all([of_message, of_cloud_event])
    }

    /// What identifies a CloudEvent: its source and id. `None` if the message is none. The body may have `max` bytes once it is
    /// decompressed.
    ///
    /// The length of the source makes it unambiguous, whatever characters the two contain.
    pub fn cloud_event_identity(&self, max: usize) -> Option<String> {
        let identity = |id: &str, source: &str| format!("{CLOUD_EVENT_PREFIX}{}:{source}:{id}", source.len());
        match self.envelope() {
            Envelope::None | Envelope::Unsupported => None,
            Envelope::Binary => binary_attributes(&self.headers).ok().map(|[id, source]| identity(id, source)),
            Envelope::Structured { .. } => {
                let text = self.text(max).ok()?;
                let [id, source, _] = structured_attributes(&text).ok()?;
                Some(identity(&id, &source))
            }
        }
    }

    /// Whether the message is a CloudEvent, as far as that can be known without decompressing its body: `None` if it may be one
    /// once it is decompressed.
    pub fn is_cloud_event(&self) -> Option<bool> {
        match self.envelope() {
            Envelope::None | Envelope::Unsupported => Some(false),
            Envelope::Structured { .. } if is_compressed(self.properties.content_encoding.as_deref()) => None,
            Envelope::Binary | Envelope::Structured { .. } => {
                Some(self.cloud_event_identity(self.body.len()).is_some())
            }
        }
    }

    /// The headers with the attributes that decide how a binary event is read, if it is one: their names and values.
    pub fn cloud_event_headers(&self) -> impl Iterator<Item = (&str, &str)> {
        ["specversion"].into_iter().chain(REQUIRED).filter_map(|name| attribute_header(&self.headers, name))
    }

    fn envelope(&self) -> Envelope {
        let Properties { content_type, content_encoding, .. } = &self.properties;
        let media_type = content_type.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        // The content type first: a producer may repeat the attributes of a structured event in its headers, for routing.
        if media_type.eq_ignore_ascii_case(STRUCTURED) {
            Envelope::Structured { certain: true }
        } else if media_type.get(..ANY_STRUCTURED.len()).is_some_and(|start| start.eq_ignore_ascii_case(ANY_STRUCTURED))
        {
            Envelope::Unsupported
        } else if attribute(&self.headers, "specversion").is_some() {
            Envelope::Binary
        } else if !is_compressed(content_encoding.as_deref()) && SPECVERSION.find(&self.body).is_some() {
            // Many producers set no content type, or that of JSON.
            Envelope::Structured { certain: false }
        } else {
            Envelope::None
        }
    }
}

/// How a message is wrapped.
enum Envelope {
    None,
    Binary,
    /// `certain`: its content type says so, so it must be a valid event.
    Structured {
        certain: bool,
    },
    Unsupported,
}

/// An attribute of a binary event.
fn attribute<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    attribute_header(headers, name).map(|(_, value)| value)
}

/// The header that has this attribute, and its value.
fn attribute_header<'h>(headers: &'h Headers, name: &str) -> Option<(&'h str, &'h str)> {
    let is_named = |header: &str| {
        PREFIXES.iter().any(|prefix| {
            header.len() == prefix.len() + name.len()
                && header.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
                && header.get(prefix.len()..).is_some_and(|rest| rest.eq_ignore_ascii_case(name))
        })
    };
    let (header, value) = headers.iter().find(|(header, _)| is_named(header))?;
    Some((header, value.as_text()?))
}

/// The id and the source of a binary event that has all attributes.
fn binary_attributes(headers: &Headers) -> Result<[&str; 2], CloudEventError> {
    if attribute(headers, "specversion") != Some(VERSION) {
        return Err(CloudEventError::Version);
    }
    let required = |name: &'static str| {
        attribute(headers, name).filter(|value| !value.is_empty()).ok_or(CloudEventError::Attribute(name))
    };
    let [id, source, _] = [required(REQUIRED[0])?, required(REQUIRED[1])?, required(REQUIRED[2])?];
    Ok([id, source])
}

/// Whether a JSON object has the attributes of an event. One without is a document with a field of that name.
fn is_event(text: &str) -> bool {
    let values = object_values(text, &["specversion", REQUIRED[0], REQUIRED[1], REQUIRED[2]]);
    values.is_ok_and(|values| values.iter().all(|value| value.is_some_and(|value| value.get().starts_with('"'))))
}

/// The id, the source and the type of a structured event that has all attributes.
fn structured_attributes(json: &str) -> Result<[String; 3], CloudEventError> {
    let values = object_values(json, &["specversion", REQUIRED[0], REQUIRED[1], REQUIRED[2]])?;
    let text = |index: usize| values[index].and_then(|value| text(value.get()));
    if text(0).as_deref() != Some(VERSION) {
        return Err(CloudEventError::Version);
    }
    let required = |index: usize| {
        let value = text(index).filter(|value| !value.is_empty());
        value.map(Cow::into_owned).ok_or(CloudEventError::Attribute(REQUIRED[index - 1]))
    };
    Ok([required(1)?, required(2)?, required(3)?])
}

/// The document in a structured event.
fn data(json: &str) -> Result<Cow<'_, str>, CloudEventError> {
    structured_attributes(json)?;
    let values = object_values(json, &["datacontenttype", "data", "data_base64"])?;
    let present = |index: usize| values[index].map(RawValue::get).filter(|raw| *raw != "null");
    match (present(1), present(2)) {
        (Some(data), None) => {
            let content_type = present(0).and_then(text).unwrap_or(Cow::Borrowed(""));
            match text(data) {
                // Text of another type than JSON is the document itself, in a JSON string.
                Some(document) if !is_json(&content_type) => Ok(document),
                Some(_) => Err(CloudEventError::NoDocument),
                None => Ok(Cow::Borrowed(data)),
            }
        }
        (None, Some(encoded)) => {
            let bytes = text(encoded).and_then(|encoded| STANDARD.decode(encoded.as_bytes()).ok());
            let bytes = bytes.ok_or(CloudEventError::Base64)?;
            let document = body_text(&bytes, None, bytes.len()).map_err(CloudEventError::Text)?;
            Ok(Cow::Owned(document.into_owned()))
        }
        (Some(_), Some(_)) | (None, None) => Err(CloudEventError::Data),
    }
}

/// Whether a media type is one of JSON. An event without one contains JSON.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.is_empty() || media_type.ends_with("/json") || media_type.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::HeaderValue;

    const ORDER: &str = r#"{"id": 1, "price": 0.10}"#;
    const MAX: usize = 1 << 20;

    fn message(content_type: Option<&str>, body: &str) -> Message {
        let properties = Properties { content_type: content_type.map(str::to_owned), ..Properties::default() };
        Message { properties, body: body.to_owned().into(), ..Message::default() }
    }

    fn event(more: &str) -> String {
        format!(r#"{{"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.placed"{more}}}"#)
    }

    fn binary(prefix: &str) -> Message {
        let attributes = [("specversion", "1.0"), ("id", "e-1"), ("source", "/shop"), ("type", "order.placed")];
        let header = |(name, value): (&str, &str)| (format!("{prefix}{name}"), HeaderValue::from(value));
        Message { headers: attributes.map(header).into(), ..message(Some("application/json"), ORDER) }
    }

    fn error(message: &Message) -> CloudEventError {
        match message.document(MAX).unwrap_err() {
            DocumentError::CloudEvent(error) => error,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_structured_event_contains_its_document_in_any_notation() {
        let encoded = STANDARD.encode(ORDER);
        let quoted = serde_json::to_string(ORDER).unwrap();
        for (more, expected) in [
            (format!(r#", "data": {ORDER}"#), ORDER),
            (
                format!(
                    r#", "data": {ORDER}, "data_base64": null, "datacontenttype": "application/vnd.shop+json; charset=utf-8""#
                ),
                ORDER,
            ),
            (format!(r#", "data_base64": "{encoded}", "datacontenttype": "application/json""#), ORDER),
            (format!(r#", "data": {quoted}, "datacontenttype": "text/plain""#), ORDER),
        ] {
            for content_type in [
                Some("application/cloudevents+json; charset=utf-8"),
                Some("Application/CloudEvents+JSON"),
                Some("application/json"),
                None,
            ] {
                let message = message(content_type, &event(&more));
                assert_eq!(message.document(MAX).unwrap(), expected, "{more}");
                assert_eq!(message.cloud_event_identity(MAX).as_deref(), Some("cloudevent:5:/shop:e-1"));
            }
        }
    }

    #[test]
    fn a_binary_event_has_its_document_as_the_body() {
        for prefix in ["ce-", "Ce-", "cloudEvents:", "cloudEvents_", "CLOUDEVENTS:"] {
            let message = binary(prefix);
            assert_eq!(message.document(MAX).unwrap(), ORDER, "{prefix}");
            assert_eq!(message.cloud_event_identity(MAX).as_deref(), Some("cloudevent:5:/shop:e-1"));
        }
        let mut without = binary("ce-");
        without.headers.remove("ce-source");
        assert_eq!(error(&without), CloudEventError::Attribute("source"));
        assert_eq!((without.cloud_event_identity(MAX), without.is_cloud_event()), (None, Some(false)));
        without.headers.insert("ce-specversion".to_owned(), "0.3".into());
        assert_eq!(error(&without), CloudEventError::Version);
    }

    #[test]
    fn a_message_that_is_no_event_is_its_own_document() {
        let own = r#"{"id": 1, "specversion": 2, "note": "\"specversion\""}"#;
        for message in [
            message(None, ORDER),
            message(Some("application/json"), own),
            message(Some("text/plain"), "\"specversion\""),
        ] {
            assert_eq!(message.document(MAX).unwrap(), message.text(MAX).unwrap());
            assert_eq!((message.cloud_event_identity(MAX), message.is_cloud_event()), (None, Some(false)));
        }
    }

    #[test]
    fn an_invalid_event_is_refused_with_its_cause() {
        let structured = |body: &str| error(&message(Some("application/cloudevents+json"), body));
        let data = format!(r#", "data": {ORDER}"#);
        assert_eq!(structured(&event("")), CloudEventError::Data);
        assert_eq!(structured(&event(&format!(r#"{data}, "data_base64": "e30=""#))), CloudEventError::Data);
        assert_eq!(structured(&event(r#", "data_base64": "e30""#)), CloudEventError::Base64);
        assert_eq!(structured(&event(r#", "data_base64": {}"#)), CloudEventError::Base64);
        assert!(matches!(structured(&event(r#", "data_base64": "//79""#)), CloudEventError::Text(_)));
        assert_eq!(structured(&event(r#", "data": "{}""#)), CloudEventError::NoDocument);
        assert_eq!(structured(&event(&data).replace("1.0", "0.3")), CloudEventError::Version);
        assert_eq!(structured(&event(&data).replace("\"/shop\"", "7")), CloudEventError::Attribute("source"));
        assert!(matches!(structured("[]"), CloudEventError::Json(_)));
        assert!(matches!(structured(&event(&format!("{data}{data}"))), CloudEventError::Json(_)));
        let batch = message(Some("application/cloudevents-batch+json"), "[]");
        assert_eq!(
            (error(&batch), batch.document(MAX).unwrap_err().code()),
            (CloudEventError::Format, "invalid_cloud_event")
        );
    }

    #[test]
    fn a_structured_event_that_repeats_its_attributes_in_headers_is_not_taken_for_a_binary_one() {
        let mut message = binary("ce-");
        message.properties.content_type = Some("application/cloudevents+json".to_owned());
        message.body = event(&format!(r#", "data": {ORDER}"#)).into();
        assert_eq!(message.document(MAX).unwrap(), ORDER);
        message.properties.content_type = Some("application/cloudevents-batch+json".to_owned());
        assert_eq!(error(&message), CloudEventError::Format);
    }

    #[test]
    fn an_event_whose_content_encoding_is_a_character_set_is_unwrapped() {
        // Kombu sets it on all messages.
        for encoding in ["utf-8", "UTF-8", "", "identity"] {
            let mut message = message(Some("application/json"), &event(&format!(r#", "data": {ORDER}"#)));
            message.properties.content_encoding = Some(encoding.to_owned());
            assert_eq!(message.document(MAX).unwrap(), ORDER, "{encoding}");
            assert_eq!(message.is_cloud_event(), Some(true));
        }
    }

    #[test]
    fn different_sources_and_ids_never_have_the_same_identity() {
        let of = |source: &str, id: &str| {
            let body = event("").replace("/shop", source).replace("e-1", id);
            message(None, &body).cloud_event_identity(MAX).unwrap()
        };
        for ((source, id), (other_source, other_id)) in [(("a b", "c"), ("a", "b c")), (("a:b", "c"), ("a", "b:c"))] {
            assert_ne!(of(source, id), of(other_source, other_id));
        }
    }

    #[test]
    fn whether_a_compressed_body_is_an_event_is_not_found_out_by_decompressing_it() {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(event("").as_bytes()).unwrap();
        let mut compressed = message(Some("application/cloudevents+json"), "");
        compressed.body = encoder.finish().unwrap().into();
        compressed.properties.content_encoding = Some("gzip".to_owned());
        assert_eq!(compressed.is_cloud_event(), None);
        assert_eq!(compressed.cloud_event_identity(MAX).as_deref(), Some("cloudevent:5:/shop:e-1"));
        assert_eq!(compressed.cloud_event_identity(10), None, "longer than a body may be");
        compressed.properties.content_type = None;
        assert_eq!((compressed.is_cloud_event(), compressed.cloud_event_identity(MAX)), (Some(false), None));
    }

    #[test]
    fn an_event_in_an_event_is_unwrapped_once() {
        let inner = event(&format!(r#", "data": {ORDER}"#));
        let outer = message(Some("application/cloudevents+json"), &event(&format!(r#", "data": {inner}"#)));
        assert_eq!(outer.document(MAX).unwrap(), inner);
        let large = format!(r#", "data_base64": "{}""#, STANDARD.encode(vec![b' '; MAX]));
        assert!(matches!(
            message(None, &event(&large)).document(MAX),
            Err(DocumentError::Body(BodyError::TooLong(_))) | Ok(_)
        ));
    }
}
