//! What can be asked about stored messages, and the answers. Plain values.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::new::{LetterOrigin, LetterSource, LetterState};
use super::replayed::{LetterReplay, LetterRevision};
use crate::domain::ExactSum;

/// The most groups that are kept apart. Messages of further ones are counted, but not shown.
pub const MAX_GROUPS: usize = 10_000;

/// Which messages are meant. Every condition that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterFilter {
    /// In one of these states; in any, if there are none.
    pub states: Vec<LetterState>,
    /// Taken from this queue.
    pub source: Option<LetterSource>,
    /// With this reason.
    pub reason: Option<String>,
    /// With this failure code.
    pub code: Option<String>,
    /// That failed in this consumer.
    pub consumer: Option<String>,
    /// Orders with a line for this product.
    pub product: Option<String>,
    /// Orders of this customer.
    pub customer: Option<String>,
    /// This order, or about it, now or before it was edited.
    pub order: Option<String>,
    /// That failed at this time or later.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// That failed before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// That contain this text, in any case of letters.
    pub text: Option<String>,
    /// That failed after at least this many delayed retries.
    pub min_retries: Option<u32>,
    /// Orders in this currency, in any case of letters.
    pub currency: Option<String>,
    /// Orders that cost this much or more, in whatever currency unless one is given.
    pub min_total: Option<ExactSum>,
    /// Last published with this routing key.
    pub routing_key: Option<String>,
    /// Letters of this replay, also those that it has not published.
    pub replay: Option<i64>,
}

/// A page of messages, the latest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterQuery {
    /// Which messages.
    pub filter: DeadLetterFilter,
    /// Only those with a lower number: the end of the page before.
    pub before: Option<i64>,
    /// Only those with a higher number, the oldest first.
    pub after: Option<i64>,
    /// How many at most.
    pub limit: usize,
}

/// One stored message, without its content. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    /// Its number, which no other message gets.
    pub id: i64,
    /// What has become of it.
    pub state: LetterState,
    /// The queue that it was taken from.
    pub source: LetterSource,
    /// Who put it there.
    pub origin: LetterOrigin,
    /// Why.
    pub reason: String,
    /// Why the broker dead-lettered it, if it did.
    pub broker_reason: Option<String>,
    /// The failure's stable code.
    pub code: String,
    /// The failure's kind.
    pub failure_kind: Option<String>,
    /// The failure's text.
    pub failure_reason: Option<String>,
    /// The consumer that failed.
    pub consumer: Option<String>,
    /// Delayed retries before that.
    pub retries: u32,
    /// The message's identity, as in the log and in `orderd trace`.
    pub identity: Option<String>,
    /// The order that it is, or is about.
    pub order_id: Option<String>,
    /// The order that it was as it came, if it was edited to another one.
    pub former_order_id: Option<String>,
    /// The order's customer.
    pub customer_id: Option<String>,
    /// The product of the order's first line.
    pub product: Option<String>,
    /// The number of different products.
    pub products: u32,
    /// What the order costs.
    pub total: Option<ExactSum>,
    /// The currency of that.
    pub currency: Option<String>,
    /// The queue in which it first failed.
    pub origin_queue: Option<String>,
    /// The exchange that it was last published to.
    pub exchange: String,
    /// The routing key that it was last published with.
    pub routing_key: String,
    /// The property `message_id`.
    pub message_id: Option<String>,
    /// The property `user_id`, verified by the broker.
    pub user_id: Option<String>,
    /// The length of the body, in bytes.
    pub bytes: u64,
    /// When it failed last; if that is not known, when it was taken out of the queue.
    #[schema(value_type = String, format = DateTime)]
    pub failed_at: Timestamp,
    /// When it was taken out of the queue.
    #[schema(value_type = String, format = DateTime)]
    pub collected_at: Timestamp,
    /// What a person has noted.
    pub note: Option<String>,
    /// The message with the same content that it may be: the broker has delivered it before, and its ack may have been lost.
    pub maybe_duplicate_of: Option<i64>,
    /// Its content is erased.
    pub erased: bool,
    /// Its body was not read, because that has ended a process: what the order says is not known.
    pub unparsed: bool,
    /// The replay that the filter asks for; else the last one that has published it; else the last one that has not.
    pub last_replay: Option<LetterReplay>,
    /// The message that has become this one in a replay.
    pub came_back_from: Option<i64>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterPage {
    /// The messages.
    pub letters: Vec<DeadLetter>,
    /// Whether there are more.
    pub more: bool,
}

/// Messages that failed for the same cause. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterGroup {
    /// The queue that they were taken from.
    pub source: LetterSource,
    /// Why they were there.
    pub reason: String,
    /// The consumer that failed.
    pub consumer: Option<String>,
    /// The failure's stable code.
    pub code: String,
    /// The routing key, which is the cause if they are from `unrouted_queue`; else null.
    pub routing_key: Option<String>,
    /// How many.
    pub messages: u64,
    /// When the first of them failed.
    #[schema(value_type = String, format = DateTime)]
    pub oldest: Timestamp,
    /// When the last of them failed.
    #[schema(value_type = String, format = DateTime)]
    pub newest: Timestamp,
    /// What the orders cost, by currency.
    pub money: BTreeMap<String, ExactSum>,
    /// The number of one of them, the latest.
    pub example: i64,
    /// What a person has noted about that one.
    pub note: Option<String>,
}

/// Groups, those with the most messages first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterGroups {
    /// The groups.
    pub groups: Vec<DeadLetterGroup>,
    /// All messages, those of groups that are not shown included.
    pub messages: u64,
    /// How many groups are not shown, because of a limit.
    pub hidden: usize,
}

impl DeadLetterGroups {
    /// Keeps at most this many groups.
    pub fn shorten(&mut self, limit: usize) {
        self.hidden += self.groups.len().saturating_sub(limit);
        self.groups.truncate(limit);
    }
}

/// What a message contains.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterContent {
    /// 0: as it came.
    pub revision: i64,
    /// The properties.
    pub properties: Value,
    /// The headers with their types.
    pub headers: Value,
    /// The payload.
    pub body: Vec<u8>,
}

/// One failed attempt: one delivery to the consumer, with its immediate retries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterAttempt {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The replay after which it was made; `None`: the message was not replayed before, or the replay is not known any more.
    pub replay: Option<i64>,
    /// Delayed retries before it, since the replay.
    pub retries: i64,
    /// The failure's kind.
    pub kind: String,
    /// The failure's stable code.
    pub code: String,
    /// The failure's text, that of its last immediate retry.
    pub reason: String,
    /// The delay before the next attempt.
    pub delay: Option<String>,
}

/// One delivery of a notification that a provider of its channel did not accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterDelivery {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The channel.
    pub channel: String,
    /// The provider: the channel itself, or a fallback.
    pub provider: String,
    /// The recipient, shortened so that it names nobody.
    pub recipient: Option<String>,
    /// The failure's kind.
    pub kind: String,
    /// The failure's stable code.
    pub code: String,
    /// The failure's text.
    pub reason: String,
}

/// One step, or one undo, as far as it was called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LetterStep {
    /// When it was called last.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Its name.
    pub name: String,
    /// `do` or `undo`.
    pub action: String,
    /// 1, and one more each time that a replayed message begins anew with its steps.
    pub round: i64,
    /// `called`, `done` or `failed`.
    pub status: String,
    /// Calls so far.
    pub attempts: i64,
    /// How long the last call took; `None` if it is not recorded how it ended.
    pub duration_ms: Option<i64>,
    /// What it answered.
    pub result: Option<Value>,
    /// The last failure's stable code.
    pub code: Option<String>,
    /// The last failure's text.
    pub reason: Option<String>,
}

/// One stored message with everything that is recorded about it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterDetail {
    /// The message.
    pub letter: DeadLetter,
    /// All products.
    pub products: Vec<String>,
    /// Its content, as it is now or was in the revision that was asked for.
    pub content: DeadLetterContent,
    /// What persons have edited, oldest first.
    pub edits: Vec<LetterRevision>,
    /// Its replays, oldest first.
    pub replays: Vec<LetterReplay>,
    /// Its latest failed attempts, also those before a replay, oldest first.
    pub attempts: Vec<LetterAttempt>,
    /// Of a notification, its latest deliveries that failed, oldest first.
    pub deliveries: Vec<LetterDelivery>,
    /// What was called for it, oldest first.
    pub steps: Vec<LetterStep>,
}

/// A page of whole messages.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WholeDeadLetters {
    /// The messages.
    pub letters: Vec<DeadLetterDetail>,
    /// Whether there are more.
    pub more: bool,
}

/// Messages that are neither replayed nor discarded, of one source, reason and state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnresolvedSum {
    /// The queue that they were taken from.
    pub source: LetterSource,
    /// Why they were there.
    pub reason: String,
    /// Open, held or replaying.
    pub state: LetterState,
    /// How many.
    pub messages: u64,
    /// What the orders cost, by currency.
    pub money: BTreeMap<String, ExactSum>,
    /// When the first of them failed.
    pub oldest: Timestamp,
}

/// All messages that are neither replayed nor discarded, and the replays that did not come to their end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnresolvedDeadLetters {
    /// By source, reason and state, in order.
    pub sums: Vec<UnresolvedSum>,
    /// The latest replays that stopped by themselves, at most [`MAX_STOPPED_REPLAYS`], the latest first.
    pub stopped: Vec<StoppedReplay>,
}

/// The most replays of [`UnresolvedDeadLetters::stopped`].
pub const MAX_STOPPED_REPLAYS: usize = 20;
/// Why replays stop by themselves: stable codes.
pub const STOP_CODES: [&str; 2] = ["too_many_failed", "refused"];
/// How long it is shown that a replay stopped by itself.
const STOPPED_FOR: SignedDuration = SignedDuration::from_hours(24);

/// A replay that stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedReplay {
    /// Its number.
    pub id: i64,
    /// Why: a stable code, as `too_many_failed`.
    pub reason: String,
    /// What the broker said, if it refused what was published.
    pub detail: Option<String>,
    /// When it ended; `None` while it is stopping.
    pub at: Option<Timestamp>,
}

impl UnresolvedDeadLetters {
    /// When the first of those failed that are in the state `open`: one that is held has been put aside.
    pub fn oldest(&self) -> Option<Timestamp> {
        LetterSource::ALL.iter().filter_map(|source| self.oldest_of(*source)).min()
    }

    /// The same of those that were taken from one queue.
    pub fn oldest_of(&self, source: LetterSource) -> Option<Timestamp> {
        let open = self.sums.iter().filter(|sum| sum.source == source && sum.state == LetterState::Open);
        open.map(|sum| sum.oldest).min()
    }

    /// The replays that stopped by themselves within a day.
    pub fn stopped_lately(&self, now: Timestamp) -> impl Iterator<Item = &StoppedReplay> {
        // It is still stopping, if the time is not known.
        let is_late = move |replay: &&StoppedReplay| replay.at.is_none_or(|at| now.duration_since(at) < STOPPED_FOR);
        self.stopped.iter().filter(is_late)
    }

    /// What all of the orders cost, by currency.
    pub fn money(&self) -> BTreeMap<String, ExactSum> {
        let mut money: BTreeMap<String, ExactSum> = BTreeMap::new();
        for (currency, sum) in self.sums.iter().flat_map(|sum| &sum.money) {
            money.entry(currency.clone()).or_default().add(*sum);
        }
        money
    }
}
