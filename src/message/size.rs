//! How many bytes properties and headers take in AMQP, and cutting a copy's headers until they fit.
//!
//! Pure. It never removes or shortens what orderd itself has put into a copy, except for the text of the failure, and never removes
//! what a CloudEvent is recognised by.

use super::delivery::{Message, Properties};
use super::header::{HeaderContent, HeaderName, HeaderValue, Headers, names};

/// The largest entry that orderd itself adds to a copy's headers, in bytes: the failure's reason with its name.
const MAX_OWN_ENTRY_BYTES: usize = 1100;
/// The longest list of the names of removed headers, in bytes.
const MAX_DROPPED_NAMES_BYTES: usize = 255;
/// What the two headers about removed headers take at most, in bytes.
const NOTE_BYTES: usize = 360;

/// The encoded size of a table in bytes.
pub fn headers_len(headers: &Headers) -> usize {
    4 + headers.iter().map(|(name, value)| entry_len(name, value)).sum::<usize>()
}

fn entry_len(name: &str, value: &HeaderValue) -> usize {
    1 + name.len() + value_len(value)
}

/// The encoded size of a value, including the letter of its type.
fn value_len(value: &HeaderValue) -> usize {
    1 + match value {
        HeaderValue::Void => 0,
        HeaderValue::Bool(_) | HeaderValue::I8(_) | HeaderValue::U8(_) => 1,
        HeaderValue::I16(_) | HeaderValue::U16(_) => 2,
        HeaderValue::I32(_) | HeaderValue::U32(_) | HeaderValue::F32(_) => 4,
        HeaderValue::Decimal { .. } => 5,
        HeaderValue::I64(_) | HeaderValue::F64(_) | HeaderValue::Timestamp(_) => 8,
        HeaderValue::Text(text) => 4 + text.len(),
        HeaderValue::Bytes(bytes) => 4 + bytes.len(),
        HeaderValue::List(values) => 4 + values.iter().map(value_len).sum::<usize>(),
        HeaderValue::Table(headers) => headers_len(headers),
    }
}

/// The memory that headers take, in bytes, roughly. A value of one byte in AMQP takes up to a hundred in memory.
pub fn headers_memory(headers: &Headers) -> usize {
    headers.iter().map(|(name, value)| size_of::<HeaderName>() + name.len() + value_memory(value)).sum()
}

fn value_memory(value: &HeaderValue) -> usize {
    size_of::<HeaderValue>()
        + match value.content() {
            HeaderContent::Scalar { bytes } => bytes,
            HeaderContent::List(values) => values.iter().map(value_memory).sum(),
            HeaderContent::Table(headers) => headers_memory(headers),
        }
}

impl Properties {
    /// The properties that are short strings, with their names.
    pub fn short_strings(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Properties { content_type, content_encoding, priority: _, correlation_id, reply_to, .. } = self;
        let Properties { expiration, message_id, timestamp: _, message_type, user_id, app_id, .. } = self;
        [
            ("content_type", content_type),
            ("content_encoding", content_encoding),
            ("correlation_id", correlation_id),
            ("reply_to", reply_to),
            ("expiration", expiration),
            ("message_id", message_id),
            ("type", message_type),
            ("user_id", user_id),
            ("app_id", app_id),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

impl Message {
    /// What properties and headers take in AMQP, in bytes.
    pub fn properties_len(&self) -> usize {
        let strings: usize = self.properties.short_strings().map(|(_, value)| 1 + value.len()).sum();
        // Flags, delivery mode, priority, timestamp.
        strings + 2 + 1 + 1 + 8 + headers_len(&self.headers)
    }

    /// Removes the sender's largest headers until properties and headers take at most `max` bytes. Two headers then say how
    /// many were removed from all copies so far, and the names of those removed from this one.
    pub fn cut_headers(&mut self, max: usize) {
        let mut length = self.properties_len();
        if length <= max {
            return;
        }
        let earlier = self.headers.remove(names::HEADERS_DROPPED).and_then(|count| count.as_u64()).unwrap_or(0);
        self.headers.remove(names::HEADERS_DROPPED_NAMES);
        length = self.properties_len() + NOTE_BYTES;
        let attributes: Vec<&str> = self.cloud_event_headers().map(|(name, _)| name).collect();
        let is_kept =
            |name: &str, bytes| is_own(name, bytes) || attributes.contains(&name) && bytes <= MAX_OWN_ENTRY_BYTES;
        let droppable = self.headers.iter().map(|(name, value)| (entry_len(name, value), name));
        let mut droppable: Vec<_> = droppable
            .filter(|(bytes, name)| !is_kept(name, *bytes))
            .map(|(bytes, name)| (bytes, name.clone()))
            .collect();
        droppable.sort_unstable_by(|a, b| b.cmp(a));
        let (mut dropped, mut list) = (0, String::new());
        for (bytes, name) in droppable {
            if length <= max {
                break;
            }
            self.headers.remove(&name);
            length -= bytes;
            dropped += 1;
            if list.len() + name.len() + 2 <= MAX_DROPPED_NAMES_BYTES {
                list.push_str(if list.is_empty() { "" } else { ", " });
                list.push_str(&name);
            }
        }
        let count = i64::try_from(earlier).unwrap_or(i64::MAX).saturating_add(dropped);
        self.headers.insert(names::HEADERS_DROPPED.to_owned(), HeaderValue::I64(count));
        self.headers.insert(names::HEADERS_DROPPED_NAMES.to_owned(), HeaderValue::Text(list));
        let excess = self.properties_len().saturating_sub(max);
        if let Some(HeaderValue::Text(reason)) = self.headers.get_mut(names::FAILURE_REASON) {
            reason.truncate(reason.floor_char_boundary(reason.len().saturating_sub(excess)));
        }
    }
}

/// Whether orderd has added this header to the copy. A larger one was sent by a producer under the same name.
fn is_own(name: &str, bytes: usize) -> bool {
    names::ADDED.contains(&name) && bytes <= MAX_OWN_ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: impl IntoIterator<Item = (String, HeaderValue)>) -> Message {
        Message { headers: headers.into_iter().collect(), ..Message::default() }
    }

    fn text(bytes: usize) -> HeaderValue {
        HeaderValue::Text("x".repeat(bytes))
    }

    #[test]
    fn the_senders_largest_headers_are_removed_first_and_orderds_own_stay() {
        let own = names::ADDED.iter().map(|name| ((*name).to_owned(), text(200)));
        let mut message = with(own);
        message.headers.remove(names::HEADERS_DROPPED_NAMES);
        message.headers.insert(names::HEADERS_DROPPED.to_owned(), HeaderValue::I64(2));
        message.headers.extend([("big".to_owned(), text(9_000)), ("bigger".to_owned(), text(9_001))]);
        message.headers.insert("traceparent".to_owned(), text(55));
        message.cut_headers(10_000);
        assert!(message.properties_len() <= 10_000);
        assert_eq!(message.headers[names::HEADERS_DROPPED], HeaderValue::I64(4), "2 of an earlier copy, 2 of this one");
        assert_eq!(message.headers[names::HEADERS_DROPPED_NAMES].as_text(), Some("bigger, big"));
        assert!(message.headers.contains_key("traceparent"));
        assert!(names::ADDED.iter().all(|name| message.headers.contains_key(*name)));
    }

    #[test]
    fn headers_that_fit_stay_as_they_are() {
        let mut message = with([("big".to_owned(), text(9_000))]);
        let before = message.clone();
        message.cut_headers(before.properties_len());
        assert_eq!(message, before);
    }

    #[test]
    fn whatever_a_producer_sends_fits_the_smallest_frame() {
        let long = |n: usize| format!("{}{n}", "n".repeat(250));
        let deep = (0..32).fold(text(3_000), |value, _| HeaderValue::Table([("t".to_owned(), value)].into()));
        for headers in [
            (0..20_000).map(|n| (n.to_string(), HeaderValue::Void)).collect::<Headers>(),
            (0..300).map(|n| (long(n), HeaderValue::Void)).collect(),
            [("one".to_owned(), text(130_000))].into(),
            [("deep".to_owned(), deep)].into(),
            names::ADDED.iter().map(|name| ((*name).to_owned(), text(100_000))).collect(),
        ] {
            let mut message = with(headers);
            let own = [names::ORIGIN_QUEUE, names::ORIGIN_EXCHANGE, names::ORIGIN_ROUTING_KEY, names::ORIGINAL_USER_ID];
            message.headers.extend(own.map(|name| (name.to_owned(), text(255))));
            message.headers.insert(names::FAILURE_REASON.to_owned(), text(1024));
            let property = || Some("p".repeat(255));
            message.properties = Properties {
                message_id: property(),
                content_type: property(),
                correlation_id: property(),
                reply_to: property(),
                ..Properties::default()
            };
            message.cut_headers(3_968);
            assert!(message.properties_len() <= 3_968, "{}", message.properties_len());
            assert_eq!(message.headers[names::ORIGIN_QUEUE], text(255));
        }
    }
}
