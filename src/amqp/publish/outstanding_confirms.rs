//! The publications that the broker has not confirmed, in the order they are sent.
//!
//! Pure: no I/O, and the time is an argument. Outlives connections: on each new one everything is sent again, with delivery
//! tags from 1 on.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::amqp::protocol::{Confirm, Returned};
use crate::message::{Publication, PublishError, Unpublished};

/// One of a caller's publications, and its size as counted against the byte limit.
pub struct SizedPublication {
    pub all: Arc<[Publication]>,
    pub index: usize,
    pub bytes: usize,
}

impl SizedPublication {
    fn publication(&self) -> &Publication {
        &self.all[self.index]
    }
}

/// What one caller publishes together, and where it waits for the outcome.
pub struct Batch {
    pub publications: Vec<SizedPublication>,
    pub reply: oneshot::Sender<Result<(), Unpublished>>,
}

/// The caller of a batch that is not confirmed completely.
struct Caller {
    /// How many of its publications are unconfirmed.
    left: usize,
    /// What failed so far, with its index among the caller's publications.
    failures: Vec<(usize, PublishError)>,
    reply: Option<oneshot::Sender<Result<(), Unpublished>>>,
}

/// A publication's place in the order of sending.
struct Slot {
    /// Ascending over all connections.
    sequence: u64,
    /// When it was sent on this connection.
    sent: Option<Instant>,
    /// `None` once it is confirmed.
    unconfirmed: Option<UnconfirmedPublication>,
}

struct UnconfirmedPublication {
    item: SizedPublication,
    /// Key in `callers`.
    caller: usize,
    /// The broker's reply, when it found no queue.
    returned: Option<String>,
}

/// The permits that confirms give back to callers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReleasedPermits {
    pub publications: usize,
    pub bytes: usize,
}

/// The most slots sent on one connection. Confirmed ones stay until those before them are confirmed or the connection
/// ends.
const MAX_SENT: usize = 1 << 16;

/// The publications of one publisher that are not confirmed. On each connection, the slot at index `i` has delivery tag `first_tag + i`, because slots are sent in
/// order and removed only from the front.
pub struct OutstandingConfirms {
    slots: VecDeque<Slot>,
    callers: Vec<Caller>,
    free_callers: Vec<usize>,
    first_tag: u64,
    /// Slots sent on this connection, from the front.
    sent: usize,
    /// How many of `sent` are unconfirmed.
    in_flight: usize,
    last_sequence: u64,
    /// Whether this connection has confirmed anything.
    proven: bool,
    /// Publications up to this sequence are sent one at a time, to find the one that makes the broker close the channel.
    suspects_until: u64,
}

impl OutstandingConfirms {
    pub fn new() -> Self {
        OutstandingConfirms {
            slots: VecDeque::new(),
            callers: Vec::new(),
            free_callers: Vec::new(),
            first_tag: 1,
            sent: 0,
            in_flight: 0,
            last_sequence: 0,
            proven: false,
            suspects_until: 0,
        }
    }

    /// Queues a batch for sending.
    pub fn push(&mut self, batch: Batch) {
        let caller = Caller { left: batch.publications.len(), failures: Vec::new(), reply: Some(batch.reply) };
        let key = match self.free_callers.pop() {
            Some(key) => {
                self.callers[key] = caller;
                key
            }
            None => {
                self.callers.push(caller);
                self.callers.len() - 1
            }
        };
        for item in batch.publications {
            self.last_sequence += 1;
            let unconfirmed = Some(UnconfirmedPublication { item, caller: key, returned: None });
            self.slots.push_back(Slot { sequence: self.last_sequence, sent: None, unconfirmed });
        }
    }

    /// Starts a new connection, on which everything is sent again, with delivery tags from 1 on.
    ///
    /// If the previous connection confirmed nothing, its first publication may go to a queue that is stuck. Then another
    /// publication is sent first this time, so that one stuck queue does not stop all publishing.
    pub fn begin_connection(&mut self) {
        if !self.proven
            && self.sent > 0
            && let Some(first) = self.slots.pop_front()
        {
            self.slots.push_back(first);
        }
        self.slots.retain_mut(|slot| {
            slot.sent = None;
            slot.unconfirmed.as_mut().is_some_and(|publication| {
                publication.returned = None;
                true
            })
        });
        (self.first_tag, self.sent, self.in_flight, self.proven) = (1, 0, 0, false);
    }

    /// The next publication to send, if there is one that may be sent now.
    ///
    /// A new connection sends one and waits for its confirm: a broker with an alarm stops reading, and everything sent to it
    /// would stay in memory until the alarm is over.
    pub fn next_to_send(&mut self, now: Instant) -> Option<&Publication> {
        if self.sent >= MAX_SENT {
            return None;
        }
        let slot = self.slots.get_mut(self.sent)?;
        let one_at_a_time = !self.proven || slot.sequence <= self.suspects_until;
        if one_at_a_time && self.in_flight > 0 {
            return None;
        }
        slot.sent = Some(now);
        self.sent += 1;
        self.in_flight += 1;
        let publication = slot.unconfirmed.as_ref().expect("unsent slots are unconfirmed");
        Some(publication.item.publication())
    }

    /// Records that the broker returned this one. Its confirm follows.
    ///
    /// A return has no delivery tag, and an id in a header would enlarge every message for the sake of the few that are
    /// returned. So a return is matched by its content: of equal publications, either all are returned or, if a binding changed between them, one
    /// is reported in place of another.
    pub fn returned(&mut self, returned: Returned) {
        let sent = self.slots.iter_mut().take(self.sent).filter_map(|slot| slot.unconfirmed.as_mut());
        let is_equal = |publication: &&mut UnconfirmedPublication| {
            let Publication { exchange, routing_key, message } = publication.item.publication();
            publication.returned.is_none()
                && **exchange == *returned.exchange
                && *routing_key == returned.routing_key
                && message.properties.message_id == returned.message.properties.message_id
                && message.body == returned.message.body
        };
        if let Some(publication) = sent.into_iter().find(is_equal) {
            publication.returned = Some(returned.reply);
        }
    }

    /// Whether a publication was sent with this tag on this connection.
    pub fn has_sent(&self, tag: u64) -> bool {
        (1..self.first_tag + self.sent as u64).contains(&tag)
    }

    /// Handles the confirm of the publication with this tag, or of all up to it. Confirms come in any order.
    pub fn confirmed(&mut self, tag: u64, multiple: bool, confirm: Confirm) -> ReleasedPermits {
        let mut released = ReleasedPermits::default();
        let Some(index) = tag.checked_sub(self.first_tag).and_then(|index| usize::try_from(index).ok()) else {
            return released;
        };
        let first = if multiple { 0 } else { index };
        for index in first..index.saturating_add(1).min(self.sent) {
            if self.finish(index, confirm, &mut released) {
                self.in_flight -= 1;
                self.proven = true;
            }
        }
        self.remove_confirmed();
        released
    }

    /// Removes the publication from its slot, and answers its caller if it was the last one.
    fn finish(&mut self, index: usize, confirm: Confirm, released: &mut ReleasedPermits) -> bool {
        let Some(mut publication) = self.slots[index].unconfirmed.take() else { return false };
        let address = || {
            let Publication { exchange, routing_key, .. } = publication.item.publication();
            (Arc::clone(exchange), routing_key.clone())
        };
        let outcome = match (confirm, publication.returned.take()) {
            (Confirm::Nack, _) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Refused { exchange, routing_key })
            }
            (Confirm::Ack, Some(reply)) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Unroutable { exchange, routing_key, reply })
            }
            (Confirm::Ack, None) => Ok(()),
        };
        self.answer(&publication, outcome);
        released.publications += 1;
        released.bytes += publication.item.bytes;
        true
    }

    fn answer(&mut self, publication: &UnconfirmedPublication, outcome: Result<(), PublishError>) {
        let caller = &mut self.callers[publication.caller];
        caller.left -= 1;
        if let Err(error) = outcome {
            caller.failures.push((publication.item.index, error));
        }
        if caller.left == 0 {
            let failures = std::mem::take(&mut caller.failures);
            let outcome = if failures.is_empty() { Ok(()) } else { Err(Unpublished { failures }) };
            if let Some(reply) = caller.reply.take() {
                // The caller may have given up waiting.
                let _ = reply.send(outcome);
            }
            self.free_callers.push(publication.caller);
        }
    }

    fn remove_confirmed(&mut self) {
        while self.sent > 0 && self.slots.front().is_some_and(|slot| slot.unconfirmed.is_none()) {
            self.slots.pop_front();
            self.sent -= 1;
            self.first_tag += 1;
        }
    }

    /// When the oldest unconfirmed publication of this connection was sent.
    pub fn oldest_sent(&self) -> Option<Instant> {
        // The slot at the front is unconfirmed: see `remove_confirmed`.
        self.slots.front()?.sent
    }

    /// Handles a channel that the broker closed because of a publication. If only one was in flight, that is the one, and its
    /// caller gets the error. Otherwise all in flight are suspects, and the next connection sends them one at a time.
    pub fn reject_in_flight(&mut self, error: impl FnOnce(&Arc<str>, &str) -> PublishError) -> ReleasedPermits {
        let mut released = ReleasedPermits::default();
        if self.in_flight > 1 {
            self.suspects_until = self.slots[self.sent - 1].sequence;
        } else if self.in_flight == 1 {
            let in_flight = self.slots.iter_mut().take(self.sent).find_map(|slot| slot.unconfirmed.take());
            let publication = in_flight.expect("one is in flight");
            let Publication { exchange, routing_key, .. } = publication.item.publication();
            let error = error(exchange, routing_key);
            self.answer(&publication, Err(error));
            self.in_flight = 0;
            self.remove_confirmed();
            released = ReleasedPermits { publications: 1, bytes: publication.item.bytes };
        }
        released
    }

    /// How many were sent on this connection and are unconfirmed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether this connection has confirmed anything.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// How many are unconfirmed.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.unconfirmed.is_some()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    type Answer = oneshot::Receiver<Result<(), Unpublished>>;

    fn batch(keys: &[&str]) -> (Batch, Answer) {
        let to = |key: &&str| Publication {
            exchange: "orders".into(),
            routing_key: (*key).to_owned(),
            message: Message::default(),
        };
        let all: Arc<[Publication]> = keys.iter().map(to).collect();
        let publications = (0..all.len()).map(|index| SizedPublication { all: Arc::clone(&all), index, bytes: 10 });
        let (reply, answer) = oneshot::channel();
        (Batch { publications: publications.collect(), reply }, answer)
    }

    /// On a first connection, proven by a first publication.
    fn proven() -> OutstandingConfirms {
        let mut outstanding = OutstandingConfirms::new();
        outstanding.begin_connection();
        outstanding.push(batch(&["canary"]).0);
        assert_eq!(send_all(&mut outstanding), ["canary"]);
        outstanding.confirmed(1, false, Confirm::Ack);
        outstanding
    }

    fn send_all(outstanding: &mut OutstandingConfirms) -> Vec<String> {
        let now = Instant::now();
        std::iter::from_fn(|| outstanding.next_to_send(now).map(|p| p.routing_key.clone())).collect()
    }

    #[test]
    fn a_batch_is_answered_when_its_last_confirm_arrives() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b", "c"]);
        outstanding.push(one);
        assert_eq!(send_all(&mut outstanding), ["a", "b", "c"]);
        outstanding.confirmed(4, false, Confirm::Ack);
        outstanding.confirmed(2, false, Confirm::Ack);
        assert!(answer.try_recv().is_err());
        let released = outstanding.confirmed(3, false, Confirm::Ack);
        assert_eq!(released, ReleasedPermits { publications: 1, bytes: 10 });
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_multiple_confirm_covers_everything_unconfirmed_up_to_it() {
        let mut outstanding = proven();
        let (one, mut first) = batch(&["a", "b"]);
        let (two, mut second) = batch(&["c", "d"]);
        outstanding.push(one);
        outstanding.push(two);
        send_all(&mut outstanding);
        outstanding.confirmed(3, false, Confirm::Ack);
        assert_eq!(outstanding.confirmed(4, true, Confirm::Ack).publications, 2);
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert!(second.try_recv().is_err());
        outstanding.confirmed(5, true, Confirm::Nack);
        let refused = PublishError::Refused { exchange: "orders".into(), routing_key: "d".to_owned() };
        assert_eq!(second.try_recv(), Ok(Err(Unpublished::one(1, refused))), "c is confirmed");
    }

    #[test]
    fn a_refusal_is_reported_once_every_other_publication_is_answered() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b", "c"]);
        outstanding.push(one);
        send_all(&mut outstanding);
        outstanding.confirmed(2, false, Confirm::Nack);
        outstanding.begin_connection();
        assert!(answer.try_recv().is_err(), "b and c are unconfirmed");
        assert_eq!(send_all(&mut outstanding), ["b"]);
        outstanding.confirmed(1, false, Confirm::Ack);
        send_all(&mut outstanding);
        outstanding.confirmed(2, false, Confirm::Ack);
        let refused = PublishError::Refused { exchange: "orders".into(), routing_key: "a".to_owned() };
        assert_eq!(answer.try_recv(), Ok(Err(Unpublished::one(0, refused))));
    }

    #[test]
    fn a_return_before_its_ack_is_unroutable() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b"]);
        outstanding.push(one);
        send_all(&mut outstanding);
        let returned = Returned {
            reply: "312 NO_ROUTE".into(),
            exchange: "orders".into(),
            routing_key: "b".into(),
            ..Returned::default()
        };
        outstanding.returned(returned);
        outstanding.confirmed(3, true, Confirm::Ack);
        let expected = PublishError::Unroutable {
            exchange: "orders".into(),
            routing_key: "b".into(),
            reply: "312 NO_ROUTE".into(),
        };
        assert_eq!(answer.try_recv(), Ok(Err(Unpublished::one(1, expected))));
    }

    #[test]
    fn a_new_connection_sends_everything_unconfirmed_again_in_order() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b", "c", "d"]);
        outstanding.push(one);
        send_all(&mut outstanding);
        outstanding.confirmed(3, false, Confirm::Ack);
        outstanding.begin_connection();
        assert_eq!(send_all(&mut outstanding), ["a"], "one to prove the connection");
        assert_eq!(outstanding.confirmed(1, false, Confirm::Ack).publications, 1);
        assert_eq!(send_all(&mut outstanding), ["c", "d"]);
        outstanding.confirmed(3, true, Confirm::Ack);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn the_publication_that_makes_the_broker_close_channels_is_found() {
        let mut outstanding = proven();
        let (good, mut taken) = batch(&["a", "b"]);
        let (bad, mut refused) = batch(&["bad"]);
        let (after, mut later) = batch(&["c"]);
        for batch in [good, bad, after] {
            outstanding.push(batch);
        }
        assert_eq!(send_all(&mut outstanding).len(), 4);
        let error = |exchange: &Arc<str>, problem: &str| PublishError::Invalid {
            exchange: Arc::clone(exchange),
            problem: problem.to_owned(),
        };
        assert_eq!(outstanding.reject_in_flight(error), ReleasedPermits::default(), "any of four may be it");
        outstanding.begin_connection();
        for (tag, key) in [(1, "a"), (2, "b")] {
            assert_eq!(send_all(&mut outstanding), [key]);
            outstanding.confirmed(tag, false, Confirm::Ack);
        }
        assert_eq!(send_all(&mut outstanding), ["bad"]);
        assert_eq!(outstanding.reject_in_flight(error).publications, 1);
        outstanding.begin_connection();
        assert_eq!(send_all(&mut outstanding), ["c"]);
        outstanding.confirmed(1, false, Confirm::Ack);
        assert_eq!(taken.try_recv(), Ok(Ok(())));
        assert!(matches!(refused.try_recv(), Ok(Err(unpublished)) if unpublished.permanent().is_some()));
        assert_eq!(later.try_recv(), Ok(Ok(())));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn nothing_is_outstanding_once_the_last_publication_was_rejected() {
        let mut outstanding = proven();
        let (bad, mut answer) = batch(&["bad"]);
        outstanding.push(bad);
        assert_eq!(send_all(&mut outstanding), ["bad"]);
        let error =
            |exchange: &Arc<str>, _: &str| PublishError::Invalid { exchange: exchange.clone(), problem: "406".into() };
        assert_eq!(outstanding.reject_in_flight(error).publications, 1);
        assert!(answer.try_recv().unwrap().is_err());
        assert!(outstanding.is_empty());
    }

    #[test]
    fn only_what_was_sent_on_this_connection_has_a_tag() {
        let mut outstanding = proven();
        outstanding.push(batch(&["a", "b"]).0);
        assert!(outstanding.has_sent(1) && !outstanding.has_sent(0) && !outstanding.has_sent(2));
        send_all(&mut outstanding);
        assert!(outstanding.has_sent(3) && !outstanding.has_sent(4) && !outstanding.has_sent(u64::MAX));
        outstanding.begin_connection();
        assert!(!outstanding.has_sent(1), "a confirm from an earlier channel");
    }

    #[test]
    fn confirms_of_unused_tags_are_ignored() {
        let mut outstanding = proven();
        assert_eq!(outstanding.confirmed(0, false, Confirm::Ack), ReleasedPermits::default());
        assert_eq!(outstanding.confirmed(1, true, Confirm::Ack), ReleasedPermits::default());
        let (one, _answer) = batch(&["a"]);
        outstanding.push(one);
        assert_eq!(outstanding.confirmed(9, false, Confirm::Ack), ReleasedPermits::default(), "not sent yet");
        assert_eq!(send_all(&mut outstanding), ["a"]);
        assert_eq!(outstanding.confirmed(9, false, Confirm::Ack), ReleasedPermits::default(), "another tag");
        assert_eq!(outstanding.confirmed(9, true, Confirm::Ack).publications, 1);
    }
}
