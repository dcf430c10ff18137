//! The publications that the broker has not confirmed, in the order they are sent.
//!
//! Pure: no I/O, and the time is an argument. Outlives connections: on each new one everything is sent again, with delivery
//! tags from 1 on.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::rejected_destinations::RejectedDestinations;
use crate::amqp::protocol::{Confirm, Returned};
use crate::message::{Publication, PublishError, Unpublished};

/// The most refused destinations that are remembered.
const MAX_REFUSED: usize = 64;

fn add_destination(refused: &mut Vec<(Arc<str>, String)>, publication: &Publication) {
    let Publication { exchange, routing_key, .. } = publication;
    if refused.len() < MAX_REFUSED && !refused.iter().any(|(known, key)| known == exchange && key == routing_key) {
        refused.push((Arc::clone(exchange), routing_key.clone()));
    }
}

/// Returns whether it was refused before.
fn remove_destination(refused: &mut Vec<(Arc<str>, String)>, publication: &Publication) -> bool {
    let before = refused.len();
    refused.retain(|(exchange, key)| *exchange != publication.exchange || *key != publication.routing_key);
    refused.len() < before
}

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

impl std::ops::AddAssign for ReleasedPermits {
    fn add_assign(&mut self, more: Self) {
        self.publications += more.publications;
        self.bytes += more.bytes;
    }
}

/// The most slots sent on one connection. Confirmed ones stay until those before them are confirmed or the connection
/// ends.
const MAX_SENT: usize = 1 << 16;

/// The publications of one publisher that are not confirmed. On each connection, the slot at index `i` has delivery tag
/// `first_tag + i`, because slots are sent in order and removed only from the front.
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
    /// Whether what is in flight may make the broker close the channel, so that nothing is sent besides it.
    alone_in_flight: bool,
    /// Whether this connection has confirmed anything.
    proven: bool,
    /// Publications up to this sequence are sent one at a time, to find the one that makes the broker close the channel.
    suspects_until: u64,
    rejected: RejectedDestinations,
    /// Exchanges and routing keys of what was unroutable or not permitted, which are accepted again only once someone changes
    /// the broker. What is refused with `basic.nack` may be accepted or not from one message to the next, so it is not here.
    refused: Vec<(Arc<str>, String)>,
    /// Whether the broker accepts what it refused before, since [`OutstandingConfirms::take_recovered`] was last asked.
    recovered: bool,
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
            alone_in_flight: false,
            proven: false,
            suspects_until: 0,
            rejected: RejectedDestinations::default(),
            refused: Vec::new(),
            recovered: false,
        }
    }

    /// Queues a batch for sending, except what is for a destination that was rejected a short time ago: that is answered at
    /// once.
    pub fn push(&mut self, batch: Batch, now: Instant) -> ReleasedPermits {
        let mut released = ReleasedPermits::default();
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
            let unconfirmed = UnconfirmedPublication { item, caller: key, returned: None };
            let Publication { exchange, routing_key, .. } = unconfirmed.item.publication();
            if let Some(error) = self.rejected.error(exchange, routing_key, now) {
                self.answer(&unconfirmed, Err(error));
                released.publications += 1;
                released.bytes += unconfirmed.item.bytes;
                continue;
            }
            self.last_sequence += 1;
            let unconfirmed = Some(unconfirmed);
            self.slots.push_back(Slot { sequence: self.last_sequence, sent: None, unconfirmed });
        }
        released
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
        let publication = slot.unconfirmed.as_ref().expect("unsent slots are unconfirmed");
        let Publication { exchange, routing_key, .. } = publication.item.publication();
        let is_suspect = slot.sequence <= self.suspects_until || self.rejected.is_suspect(exchange, routing_key);
        if self.in_flight > 0 && (is_suspect || !self.proven || self.alone_in_flight) {
            return None;
        }
        self.alone_in_flight = is_suspect;
        slot.sent = Some(now);
        self.sent += 1;
        self.in_flight += 1;
        let publication = slot.unconfirmed.as_ref().expect("unsent slots are unconfirmed");
        Some(publication.item.publication())
    }

    /// Records that the broker returned this one. Its confirm follows.
    ///
    /// A return has no delivery tag, and an id in a header would enlarge every message for the sake of the few that are
    /// returned. So a return is matched by its content: of equal publications, either all are returned or, if a binding
    /// changed between them, one is reported in place of another.
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
        let Publication { exchange, routing_key, .. } = publication.item.publication();
        self.recovered |= self.rejected.answered(exchange, routing_key);
        let address = || {
            let Publication { exchange, routing_key, .. } = publication.item.publication();
            (Arc::clone(exchange), routing_key.clone())
        };
        let outcome = match (confirm, publication.returned.take()) {
            (Confirm::Nack, _) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Nacked { exchange, routing_key })
            }
            (Confirm::Ack, Some(reply)) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Unroutable { exchange, routing_key, reply })
            }
            (Confirm::Ack, None) => {
                self.recovered |= remove_destination(&mut self.refused, publication.item.publication());
                Ok(())
            }
        };
        if matches!(outcome, Err(PublishError::Unroutable { .. })) {
            add_destination(&mut self.refused, publication.item.publication());
        }
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
    /// caller gets the error. Otherwise all in flight are suspects, and the next channel sends them one at a time. All other
    /// publications to the same destination get the error too: each would close the channel.
    pub fn reject_in_flight(
        &mut self,
        now: Instant,
        error: impl FnOnce(&Arc<str>, &str) -> PublishError,
    ) -> ReleasedPermits {
        let mut released = ReleasedPermits::default();
        if self.in_flight > 1 {
            self.suspects_until = self.slots[self.sent - 1].sequence;
        } else if self.in_flight == 1 {
            let in_flight = self.slots.iter_mut().take(self.sent).find_map(|slot| slot.unconfirmed.take());
            let publication = in_flight.expect("one is in flight");
            let Publication { exchange, routing_key, .. } = publication.item.publication();
            let error = error(exchange, routing_key);
            self.rejected.record(&error, now);
            if !error.is_permanent() {
                add_destination(&mut self.refused, publication.item.publication());
            }
            self.answer(&publication, Err(error));
            self.in_flight = 0;
            self.remove_confirmed();
            released = ReleasedPermits { publications: 1, bytes: publication.item.bytes };
            released += self.answer_rejected(now);
        }
        released
    }

    /// Answers everything whose destination is rejected. To be called while nothing is in flight.
    fn answer_rejected(&mut self, now: Instant) -> ReleasedPermits {
        let mut released = ReleasedPermits::default();
        for slot in std::mem::take(&mut self.slots) {
            let publication = slot.unconfirmed.as_ref().expect("unsent slots are unconfirmed");
            let Publication { exchange, routing_key, .. } = publication.item.publication();
            match self.rejected.error(exchange, routing_key, now) {
                None => self.slots.push_back(slot),
                Some(error) => {
                    released += ReleasedPermits { publications: 1, bytes: publication.item.bytes };
                    self.answer(publication, Err(error));
                }
            }
        }
        released
    }

    /// The topology was declared again: what was rejected is tried with the next publication.
    pub fn try_rejected_again(&mut self) {
        self.rejected.try_again();
    }

    /// Whether the broker accepts again what was unroutable or not permitted, since the last call.
    pub fn take_recovered(&mut self) -> bool {
        std::mem::take(&mut self.recovered)
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
