//! What operators ask to be done with dead letters, and the answers. Plain values; their JSON is a contract: see `docs/reference/http-api.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ledger::{
    DeadLetterGroup, LetterSelection, LetterState, Replay, ReplayLetter, ReplayOptions, SelectionSchema,
};

/// A replay is asked for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Which letters.
    #[schema(value_type = SelectionSchema)]
    pub selection: LetterSelection,
    /// How.
    #[serde(default)]
    pub options: ReplayOptions,
    /// Only says what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// With `dry_run`: only letters with a higher number; `next` of the answer before.
    #[serde(default)]
    pub after: i64,
}

/// What a replay would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ReplayPlan {
    /// The number of the last letter that is meant.
    pub up_to: i64,
    /// If there were too many to look at in one answer: `after` of the next request.
    pub next: Option<i64>,
    /// How many letters would be published, by queue.
    pub queues: BTreeMap<String, u64>,
    /// How many would be discarded instead, because their order was processed or cancelled meanwhile, by `order_processed` and
    /// `order_cancelled`.
    pub discarded: BTreeMap<String, u64>,
    /// How many would be left as they are, by the reason.
    pub skipped: BTreeMap<String, u64>,
    /// The first of those, at most 20 of each reason.
    pub not_replayed: Vec<NotReplayed>,
    /// Queues to which nothing is published now, and why.
    pub waiting: BTreeMap<String, String>,
    /// Those that would be published or discarded, by cause.
    pub groups: Vec<DeadLetterGroup>,
    /// What the selection finds, if it finds nothing that can be replayed.
    pub nothing: Option<NothingFound>,
}

impl ReplayPlan {
    /// How many would be published or discarded.
    pub fn letters(&self) -> u64 {
        self.queues.values().chain(self.discarded.values()).sum()
    }

    /// Adds the answer to the next request.
    pub fn add(&mut self, next: ReplayPlan) {
        let ReplayPlan { up_to: _, next: after, queues, discarded, skipped, not_replayed, waiting, groups, nothing: _ } =
            next;
        self.next = after;
        for (all, more) in [(&mut self.queues, queues), (&mut self.discarded, discarded), (&mut self.skipped, skipped)]
        {
            more.into_iter().for_each(|(name, letters)| *all.entry(name).or_default() += letters);
        }
        self.not_replayed.extend(not_replayed);
        self.waiting.extend(waiting);
        add_groups(&mut self.groups, groups);
    }
}

fn add_groups(all: &mut Vec<DeadLetterGroup>, more: Vec<DeadLetterGroup>) {
    for group in more {
        let is_same = |known: &&mut DeadLetterGroup| {
            (known.source, &known.reason, &known.consumer, &known.code, &known.routing_key)
                == (group.source, &group.reason, &group.consumer, &group.code, &group.routing_key)
        };
        let Some(known) = all.iter_mut().find(is_same) else {
            all.push(group);
            continue;
        };
        known.messages += group.messages;
        known.oldest = known.oldest.min(group.oldest);
        known.newest = known.newest.max(group.newest);
        known.example = known.example.max(group.example);
        group.money.into_iter().for_each(|(currency, sum)| known.money.entry(currency).or_default().add(sum));
    }
    all.sort_by_key(|group| std::cmp::Reverse(group.messages));
}

/// A letter that is not replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotReplayed {
    /// Its number.
    pub id: i64,
    /// Why.
    pub reason: String,
    /// The last replay that has taken it.
    pub replay: Option<i64>,
}

/// A filter finds no letter in a state that the action can be applied to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NothingFound {
    /// How many it finds in other states.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub other_states: BTreeMap<LetterState, u64>,
    /// Names in the filter that no stored letter has, with those that there are, or the replay in it that there is not: a sentence.
    pub hint: Option<String>,
}

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplayReport {
    /// The replay.
    #[serde(flatten)]
    pub replay: Replay,
    /// Why nothing is published now.
    pub waiting: Option<String>,
    /// Its letters that failed again, the first 20.
    pub failed_again: Vec<ReplayLetter>,
    /// Its letters that were not replayed, the first 20.
    pub not_replayed: Vec<ReplayLetter>,
}

/// A replay in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ListedReplay {
    /// The replay.
    #[serde(flatten)]
    pub replay: Replay,
    /// Why nothing is published now.
    pub waiting: Option<String>,
}

/// Some letters of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayLetters {
    /// The letters, by number.
    pub letters: Vec<ReplayLetter>,
    /// If there are more: `after` of the next request.
    pub next: Option<i64>,
}

/// Something is to be done with letters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterRequest {
    /// Which letters.
    #[schema(value_type = SelectionSchema)]
    pub selection: LetterSelection,
    /// Why; not for a release.
    #[serde(default)]
    pub note: String,
    /// Only says what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Only letters with a higher number; `next` of the answer before.
    #[serde(default)]
    pub after: i64,
}

/// What was done with letters, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct ChangedLetters {
    /// The number of the last letter that is meant.
    pub up_to: i64,
    /// If there were too many for one answer: `after` of the next request.
    pub next: Option<i64>,
    /// How many were changed.
    pub changed: u64,
    /// How many were so before.
    pub unchanged: u64,
    /// Those that were not changed, and why: `missing`, or their state.
    #[schema(value_type = BTreeMap<String, String>)]
    pub refused: BTreeMap<i64, String>,
    /// With `dry_run`: those that would be changed, by cause.
    pub groups: Vec<DeadLetterGroup>,
    /// What the filter finds, if it finds nothing that can be changed.
    pub nothing: Option<NothingFound>,
}

impl ChangedLetters {
    /// Adds the answer to the next request.
    pub fn add(&mut self, next: ChangedLetters) {
        let ChangedLetters { up_to: _, next: after, changed, unchanged, refused, groups, nothing: _ } = next;
        self.next = after;
        self.changed += changed;
        self.unchanged += unchanged;
        self.refused.extend(refused);
        add_groups(&mut self.groups, groups);
    }
}

/// A letter is edited.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EditRequest {
    /// Only asks whether the letter can be edited, and for its body. Then everything else is left out.
    pub dry_run: bool,
    /// The revision that was edited.
    pub revision: Option<i64>,
    /// The new body, in Base64, never compressed: orderd compresses it as the message's `content_encoding` says.
    pub body_base64: Option<String>,
    /// The new body may be another order than the present one.
    pub change_order_id: bool,
}

/// A letter that can be edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EditDraft {
    /// Its number.
    pub id: i64,
    /// The revision to edit.
    pub revision: i64,
    /// The body in Base64, decompressed.
    pub body_base64: String,
    /// The order that it is.
    pub order_id: Option<String>,
    /// The ledger has accepted this order before it failed: its lines, amounts, currency and customer must stay as they are.
    pub is_accepted: bool,
}

/// A letter was edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EditedLetter {
    /// Its number.
    pub id: i64,
    /// The revision that is valid now.
    pub revision: i64,
    /// The order that it is now.
    pub order_id: Option<String>,
    /// The order that it was before, if that is another one.
    #[schema(required = true)]
    pub former_order_id: Option<String>,
    /// The queue that a replay publishes it to; null: no consumer has the queue that it came from, or it came from none, so a replay must
    /// name one (`to`).
    #[schema(required = true)]
    pub queue: Option<String>,
}
