//! The publications that the broker has not confirmed, in the order they are sent.
//!
//! Pure: no I/O, and the clock comes in as an argument. It survives connections: each new epoch sends all of
//! it again, numbered from 1.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::amqp::decode::{Returned, Word};
use crate::message::{Publication, PublishError};

/// One of a caller's publications, and its bytes as counted against the limit.
pub(super) struct Sized {
    pub all: Arc<[Publication]>,
    pub index: usize,
    pub bytes: usize,
}

impl Sized {
    fn publication(&self) -> &Publication {
        &self.all[self.index]
    }
}

/// What one caller publishes together, and where it hears of it.
pub(super) struct Batch {
    pub publications: Vec<Sized>,
    pub reply: oneshot::Sender<Result<(), PublishError>>,
}

/// A batch's caller, counted down.
struct Caller {
    left: usize,
    reply: Option<oneshot::Sender<Result<(), PublishError>>>,
}

struct Slot {
    /// Ascending over all epochs.
    sequence: u64,
    /// When it was sent in this epoch.
    sent: Option<Instant>,
    /// `None` once the broker has given its word.
    entry: Option<Entry>,
}

struct Entry {
    item: Sized,
    /// Key in `callers`.
    caller: usize,
    /// The broker's reply, when it found no queue.
    returned: Option<String>,
}

/// What the broker's words set free: permits to give back to callers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    pub publications: usize,
    pub bytes: usize,
}

/// Slots sent at most. Those with the broker's word stay behind one without until it has its own, or its
/// connection is given up.
const MOST_SENT: usize = 1 << 16;

/// See the module. In each epoch, the slot at index `i` has delivery tag `first_tag + i`, because slots are
/// sent in order and leave only from the front.
pub(super) struct Outstanding {
    slots: VecDeque<Slot>,
    callers: Vec<Caller>,
    free_callers: Vec<usize>,
    first_tag: u64,
    /// Slots sent in this epoch, from the front.
    sent: usize,
    /// Of those, the ones without the broker's word.
    in_flight: usize,
    last_sequence: u64,
    /// Whether this epoch has proved itself by a confirm.
    proven: bool,
    /// Publications up to this one are sent one at a time, to find the one that the broker closes channels over.
    suspects: u64,
}

impl Outstanding {
    pub fn new() -> Self {
        Outstanding {
            slots: VecDeque::new(),
            callers: Vec::new(),
            free_callers: Vec::new(),
            first_tag: 1,
            sent: 0,
            in_flight: 0,
            last_sequence: 0,
            proven: false,
            suspects: 0,
        }
    }

    /// Queues a batch for sending.
    pub fn push(&mut self, batch: Batch) {
        let caller = Caller { left: batch.publications.len(), reply: Some(batch.reply) };
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
            let entry = Some(Entry { item, caller: key, returned: None });
            self.slots.push_back(Slot { sequence: self.last_sequence, sent: None, entry });
        }
    }

    /// A new channel, whose first publication will have tag 1: everything is to be sent again.
    ///
    /// One that nothing was confirmed in may have failed over its first publication, to a queue that is stuck:
    /// another one goes first now, so that one queue does not stop all publishing.
    pub fn begin_epoch(&mut self) {
        if !self.proven
            && self.sent > 0
            && let Some(first) = self.slots.pop_front()
        {
            self.slots.push_back(first);
        }
        self.slots.retain_mut(|slot| {
            slot.sent = None;
            slot.entry.as_mut().is_some_and(|entry| {
                entry.returned = None;
                true
            })
        });
        (self.first_tag, self.sent, self.in_flight, self.proven) = (1, 0, 0, false);
    }

    /// The next publication to send, if there is one that may be sent now.
    ///
    /// A new epoch sends one and waits for its confirm: a broker with an alarm stops reading, and all that
    /// were sent into such a connection would stay in memory until the alarm is over.
    pub fn next_to_send(&mut self, now: Instant) -> Option<&Publication> {
        if self.sent >= MOST_SENT {
            return None;
        }
        let slot = self.slots.get_mut(self.sent)?;
        let one_at_a_time = !self.proven || slot.sequence <= self.suspects;
        if one_at_a_time && self.in_flight > 0 {
            return None;
        }
        slot.sent = Some(now);
        self.sent += 1;
        self.in_flight += 1;
        let entry = slot.entry.as_ref().expect("unsent slots keep their entry");
        Some(entry.item.publication())
    }

    /// The broker has no queue for this one. Its confirm follows.
    ///
    /// A return bears no number, and one in a header would burden every message for the sake of the few that
    /// come back. So it is matched by what it is: of publications that are alike, all are returned or, if a
    /// binding changed between them, one that arrived stands for the other.
    pub fn returned(&mut self, returned: Returned) {
        let sent = self.slots.iter_mut().take(self.sent).filter_map(|slot| slot.entry.as_mut());
        let alike = |entry: &&mut Entry| {
            let Publication { exchange, routing_key, message } = entry.item.publication();
            entry.returned.is_none()
                && **exchange == *returned.exchange
                && *routing_key == returned.routing_key
                && message.properties.message_id == returned.message.properties.message_id
                && message.body == returned.message.body
        };
        if let Some(entry) = sent.into_iter().find(alike) {
            entry.returned = Some(returned.reply);
        }
    }

    /// Whether a publication has been sent under this tag in this epoch.
    pub fn has_sent(&self, tag: u64) -> bool {
        (1..self.first_tag + self.sent as u64).contains(&tag)
    }

    /// The broker's word on the publication with this tag, or on all up to it. They come in any order.
    pub fn confirmed(&mut self, tag: u64, multiple: bool, word: Word) -> Freed {
        let mut freed = Freed::default();
        let Some(index) = tag.checked_sub(self.first_tag).and_then(|index| usize::try_from(index).ok()) else {
            return freed;
        };
        let first = if multiple { 0 } else { index };
        for index in first..index.saturating_add(1).min(self.sent) {
            if self.conclude(index, word, &mut freed) {
                self.in_flight -= 1;
                self.proven = true;
            }
        }
        self.shrink();
        freed
    }

    /// Takes an entry out and answers its caller if it was the last, or the first to fail.
    fn conclude(&mut self, index: usize, word: Word, freed: &mut Freed) -> bool {
        let Some(entry) = self.slots[index].entry.take() else { return false };
        let address = || {
            let Publication { exchange, routing_key, .. } = entry.item.publication();
            (Arc::clone(exchange), routing_key.clone())
        };
        let outcome = match (word, entry.returned) {
            (Word::Refused, _) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Refused { exchange, routing_key })
            }
            (Word::Taken, Some(reply)) => {
                let (exchange, routing_key) = address();
                Err(PublishError::Unroutable { exchange, routing_key, reply })
            }
            (Word::Taken, None) => Ok(()),
        };
        self.answer(entry.caller, outcome);
        freed.publications += 1;
        freed.bytes += entry.item.bytes;
        true
    }

    fn answer(&mut self, key: usize, outcome: Result<(), PublishError>) {
        let caller = &mut self.callers[key];
        caller.left -= 1;
        if (outcome.is_err() || caller.left == 0)
            && let Some(reply) = caller.reply.take()
        {
            // The caller may have given up waiting.
            let _ = reply.send(outcome);
        }
        if caller.left == 0 {
            self.free_callers.push(key);
        }
    }

    fn shrink(&mut self) {
        while self.sent > 0 && self.slots.front().is_some_and(|slot| slot.entry.is_none()) {
            self.slots.pop_front();
            self.sent -= 1;
            self.first_tag += 1;
        }
    }

    /// When the publication that has waited longest in this epoch was sent.
    pub fn oldest_sent(&self) -> Option<Instant> {
        // Whatever is at the front has no word yet: `shrink` sees to that.
        self.slots.front()?.sent
    }

    /// The broker closed the channel over a publication, saying `text`. If only one was in flight, it was
    /// that one, and its caller hears of it; else all that were in flight are suspects, and the next epoch
    /// sends them one at a time. Returns what became free.
    pub fn blame(&mut self, error: impl FnOnce(&Arc<str>, &str) -> PublishError) -> Freed {
        let mut freed = Freed::default();
        if self.in_flight > 1 {
            self.suspects = self.slots[self.sent - 1].sequence;
        } else if self.in_flight == 1 {
            let flying = self.slots.iter_mut().take(self.sent).find_map(|slot| slot.entry.take());
            let entry = flying.expect("one is in flight");
            let Publication { exchange, routing_key, .. } = entry.item.publication();
            let error = error(exchange, routing_key);
            self.answer(entry.caller, Err(error));
            self.in_flight = 0;
            self.shrink();
            freed = Freed { publications: 1, bytes: entry.item.bytes };
        }
        freed
    }

    /// Whether this epoch has had a confirm.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// How many have no word yet.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.entry.is_some()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    type Answer = oneshot::Receiver<Result<(), PublishError>>;

    fn batch(keys: &[&str]) -> (Batch, Answer) {
        let to = |key: &&str| Publication {
            exchange: "orders".into(),
            routing_key: (*key).to_owned(),
            message: Message::default(),
        };
        let all: Arc<[Publication]> = keys.iter().map(to).collect();
        let publications = (0..all.len()).map(|index| Sized { all: Arc::clone(&all), index, bytes: 10 });
        let (reply, answer) = oneshot::channel();
        (Batch { publications: publications.collect(), reply }, answer)
    }

    /// In epoch 1, proven by a first publication.
    fn proven() -> Outstanding {
        let mut outstanding = Outstanding::new();
        outstanding.begin_epoch();
        outstanding.push(batch(&["canary"]).0);
        assert_eq!(send_all(&mut outstanding), ["canary"]);
        outstanding.confirmed(1, false, Word::Taken);
        outstanding
    }

    fn send_all(outstanding: &mut Outstanding) -> Vec<String> {
        let now = Instant::now();
        std::iter::from_fn(|| outstanding.next_to_send(now).map(|p| p.routing_key.clone())).collect()
    }

    #[test]
    fn confirms_in_any_order_answer_when_the_last_is_in() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b", "c"]);
        outstanding.push(one);
        assert_eq!(send_all(&mut outstanding), ["a", "b", "c"]);
        outstanding.confirmed(4, false, Word::Taken);
        outstanding.confirmed(2, false, Word::Taken);
        assert!(answer.try_recv().is_err());
        let freed = outstanding.confirmed(3, false, Word::Taken);
        assert_eq!(freed, Freed { publications: 1, bytes: 10 });
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_multiple_confirm_covers_what_is_left_up_to_it() {
        let mut outstanding = proven();
        let (one, mut first) = batch(&["a", "b"]);
        let (two, mut second) = batch(&["c", "d"]);
        outstanding.push(one);
        outstanding.push(two);
        send_all(&mut outstanding);
        outstanding.confirmed(3, false, Word::Taken);
        assert_eq!(outstanding.confirmed(4, true, Word::Taken).publications, 2);
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert!(second.try_recv().is_err());
        outstanding.confirmed(5, true, Word::Refused);
        assert!(matches!(second.try_recv(), Ok(Err(PublishError::Refused { routing_key, .. })) if routing_key == "d"));
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
        outstanding.confirmed(3, true, Word::Taken);
        let expected = PublishError::Unroutable {
            exchange: "orders".into(),
            routing_key: "b".into(),
            reply: "312 NO_ROUTE".into(),
        };
        assert_eq!(answer.try_recv(), Ok(Err(expected)));
    }

    #[test]
    fn a_new_epoch_sends_everything_unconfirmed_again_in_order() {
        let mut outstanding = proven();
        let (one, mut answer) = batch(&["a", "b", "c", "d"]);
        outstanding.push(one);
        send_all(&mut outstanding);
        outstanding.confirmed(3, false, Word::Taken);
        outstanding.begin_epoch();
        assert_eq!(send_all(&mut outstanding), ["a"], "one to prove the connection");
        assert_eq!(outstanding.confirmed(1, false, Word::Taken).publications, 1);
        assert_eq!(send_all(&mut outstanding), ["c", "d"]);
        outstanding.confirmed(3, true, Word::Taken);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn the_one_that_the_broker_closes_channels_over_is_found() {
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
        assert_eq!(outstanding.blame(error), Freed::default(), "any of four may be it");
        outstanding.begin_epoch();
        for (tag, key) in [(1, "a"), (2, "b")] {
            assert_eq!(send_all(&mut outstanding), [key]);
            outstanding.confirmed(tag, false, Word::Taken);
        }
        assert_eq!(send_all(&mut outstanding), ["bad"]);
        assert_eq!(outstanding.blame(error).publications, 1);
        outstanding.begin_epoch();
        assert_eq!(send_all(&mut outstanding), ["c"]);
        outstanding.confirmed(1, false, Word::Taken);
        assert_eq!(taken.try_recv(), Ok(Ok(())));
        assert!(matches!(refused.try_recv(), Ok(Err(PublishError::Invalid { problem, .. })) if problem == "bad"));
        assert_eq!(later.try_recv(), Ok(Ok(())));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn nothing_is_left_to_connect_for_once_the_last_one_has_its_blame() {
        let mut outstanding = proven();
        let (bad, mut answer) = batch(&["bad"]);
        outstanding.push(bad);
        assert_eq!(send_all(&mut outstanding), ["bad"]);
        let error =
            |exchange: &Arc<str>, _: &str| PublishError::Invalid { exchange: exchange.clone(), problem: "406".into() };
        assert_eq!(outstanding.blame(error).publications, 1);
        assert!(answer.try_recv().unwrap().is_err());
        assert!(outstanding.is_empty());
    }

    #[test]
    fn only_what_was_sent_in_this_epoch_has_a_tag() {
        let mut outstanding = proven();
        outstanding.push(batch(&["a", "b"]).0);
        assert!(outstanding.has_sent(1) && !outstanding.has_sent(0) && !outstanding.has_sent(2));
        send_all(&mut outstanding);
        assert!(outstanding.has_sent(3) && !outstanding.has_sent(4) && !outstanding.has_sent(u64::MAX));
        outstanding.begin_epoch();
        assert!(!outstanding.has_sent(1), "a word on an earlier channel");
    }

    #[test]
    fn words_on_tags_never_used_are_passed_over() {
        let mut outstanding = proven();
        assert_eq!(outstanding.confirmed(0, false, Word::Taken), Freed::default());
        assert_eq!(outstanding.confirmed(1, true, Word::Taken), Freed::default());
        let (one, _answer) = batch(&["a"]);
        outstanding.push(one);
        assert_eq!(outstanding.confirmed(9, false, Word::Taken), Freed::default(), "not sent yet");
        assert_eq!(send_all(&mut outstanding), ["a"]);
        assert_eq!(outstanding.confirmed(9, false, Word::Taken), Freed::default(), "another tag");
        assert_eq!(outstanding.confirmed(9, true, Word::Taken).publications, 1);
    }
}
