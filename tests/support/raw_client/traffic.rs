//! Publishing to exchanges, and getting messages without acknowledging them.

use super::properties::Properties;
use super::{RawClient, ReceivedMessage, frame, method_frame, short, take_short};

/// Limit of unconfirmed publications.
const MAX_UNCONFIRMED: u64 = 1000;

impl ReceivedMessage {
    /// The decoded properties and headers.
    pub fn properties(&self) -> Properties {
        Properties::decode(&self.properties)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl RawClient {
    /// Publishes to an exchange, without the `mandatory` flag, and waits for the confirm.
    pub fn publish_to(&mut self, exchange: &str, key: &str, properties: &Properties, body: &[u8]) {
        self.write_message(exchange, key, &properties.encode(), body);
        let (method, _) = self.read_method();
        assert_eq!(method, (60, 80), "the broker did not confirm {key:?} to exchange {exchange:?}");
    }

    /// Publishes to an exchange, and returns whether the broker accepts the message. If not, it has closed the channel, which is
    /// opened again.
    pub fn may_publish(&mut self, exchange: &str, key: &str, properties: &Properties, body: &[u8]) -> bool {
        self.write_message(exchange, key, &properties.encode(), body);
        let (method, arguments) = self.read_method();
        if method == (20, 40) {
            self.send(1, (20, 41), &[]);
            self.open_channel();
            return false;
        }
        assert_eq!(method, (60, 80), "{}", String::from_utf8_lossy(&arguments));
        true
    }

    /// Publishes many persistent messages to an exchange, and waits for all confirms. The connection must not have published
    /// before: delivery tags in confirms are counted from 1.
    pub fn publish_all(mut self, exchange: &str, messages: impl IntoIterator<Item = (String, Vec<u8>)>) {
        let properties = Properties::persistent().encode();
        let (mut sent, mut confirmed) = (0_u64, std::collections::BTreeSet::new());
        let mut messages = messages.into_iter().peekable();
        let mut confirmed_up_to = 0;
        while messages.peek().is_some() || confirmed_up_to < sent {
            while sent - confirmed_up_to < MAX_UNCONFIRMED
                && let Some((key, body)) = messages.next()
            {
                self.write_message(exchange, &key, &properties, &body);
                sent += 1;
            }
            let (method, arguments) = self.read_method();
            assert_eq!(method, (60, 80), "the broker did not confirm a message to exchange {exchange:?}");
            let tag = u64::from_be_bytes(arguments[..8].try_into().unwrap());
            if arguments[8] == 0 {
                confirmed.insert(tag);
            } else {
                confirmed_up_to = confirmed_up_to.max(tag);
            }
            confirmed = confirmed.split_off(&(confirmed_up_to + 1));
            while confirmed.remove(&(confirmed_up_to + 1)) {
                confirmed_up_to += 1;
            }
        }
    }

    pub(super) fn write_message(&mut self, exchange: &str, key: &str, properties: &[u8], body: &[u8]) {
        use std::io::Write;
        let mut bytes = method_frame(1, (60, 40), &[vec![0, 0], short(exchange), short(key), vec![0]].concat());
        let header = [&60_u16.to_be_bytes()[..], &[0, 0], &(body.len() as u64).to_be_bytes(), properties].concat();
        bytes.extend(frame(2, 1, &header));
        for chunk in body.chunks(100_000) {
            bytes.extend(frame(3, 1, chunk));
        }
        self.stream.write_all(&bytes).unwrap();
        self.sent += 1;
    }

    /// Takes one message from a queue without acknowledging it. Returns the delivery tag too. The broker requeues the message
    /// when the connection closes.
    pub fn get_unacked(&mut self, queue: &str) -> Option<(u64, ReceivedMessage)> {
        self.send(1, (60, 70), &[vec![0, 0], short(queue), vec![0]].concat());
        let (method, arguments) = self.read_method();
        if method == (60, 72) {
            return None;
        }
        assert_eq!(method, (60, 71));
        let tag = u64::from_be_bytes(arguments[..8].try_into().unwrap());
        let redelivered = arguments[8] != 0;
        let (exchange, rest) = take_short(&arguments[9..]);
        let (routing_key, _) = take_short(rest);
        let (_, header) = self.read_frame();
        let size = u64::from_be_bytes(header[4..12].try_into().unwrap()) as usize;
        let mut body = Vec::new();
        while body.len() < size {
            body.extend(self.read_frame().1);
        }
        Some((tag, ReceivedMessage { redelivered, exchange, routing_key, properties: header[12..].to_vec(), body }))
    }

    /// Acknowledges a message with `basic.ack`.
    pub fn ack(&mut self, tag: u64) {
        self.send(1, (60, 80), &[&tag.to_be_bytes()[..], &[0]].concat());
    }

    /// Requeues a message with `basic.nack`, as orderd does.
    pub fn nack_requeue(&mut self, tag: u64) {
        const REQUEUE: u8 = 2;
        self.send(1, (60, 120), &[&tag.to_be_bytes()[..], &[REQUEUE]].concat());
    }

    /// Requeues a message with `basic.reject`, which counts toward the delivery limit.
    pub fn reject(&mut self, tag: u64) {
        self.send(1, (60, 90), &[&tag.to_be_bytes()[..], &[1]].concat());
    }
}
