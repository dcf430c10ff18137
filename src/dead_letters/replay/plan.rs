//! What a replay, or another action, would do with the selected letters, and why it would leave some out. It changes nothing.
//!
//! However many letters are selected, one call looks at them for a few seconds only, and answers how far it is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::time::Instant;

use super::super::reading::{KnownConsumer, KnownConsumers, consumer_of};
use super::actions::{ANSWER_TIME, ActionError, LetterActions, PAGE};
use super::message::{NO_ORDER_QUEUE, NO_QUEUE, is_misdirected, target};
use super::recorded::MAX_NAMED;
use super::requests::{NotReplayed, NothingFound, ReplayPlan, ReplayRequest};
use super::waiting::QueueAccess;
use crate::ledger::{
    DeadLetterFilter, DeadLetterGroup, GroupBuilder, LetterSelection, LetterState, MAYBE_DUPLICATE, ReplayCandidate,
};

/// Letters that are looked at at a time: nothing is changed, so nothing waits for it.
const LOOKED_AT: usize = 5_000;
/// Names that a hint lists.
const MAX_HINTED: usize = 30;

/// What would become of a letter.
enum Fate {
    /// It would be published to this queue.
    Published(String),
    /// It would be discarded.
    Discarded(&'static str),
    /// It would be left as it is.
    Skipped(&'static str),
}

impl LetterActions {
    /// Says what a replay would do now. The order of a letter is compared with the ledger exactly only when it is about to be
    /// published.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn plan(&self, request: &ReplayRequest) -> Result<ReplayPlan, ActionError> {
        self.check(request)?;
        let selection = self.bounded(request.selection.clone()).await?;
        let is_named = matches!(selection, LetterSelection::Ids(_));
        let consumers = self.0.deps.consumers.borrow().clone();
        let mut plan = ReplayPlan { up_to: last(&selection), ..ReplayPlan::default() };
        let (mut groups, mut missing) = (GroupBuilder::default(), Missing::new(&selection, request.after));
        let found = self
            .look_at(&selection, vec![LetterState::Open], request.after, |candidate| {
                missing.found(candidate.id);
                match fate(candidate, is_named, request.options.to.as_deref(), &consumers) {
                    Fate::Published(queue) => *plan.queues.entry(queue).or_default() += 1,
                    Fate::Discarded(code) => *plan.discarded.entry(code.to_owned()).or_default() += 1,
                    Fate::Skipped(reason) => {
                        plan.skip(candidate.id, reason, candidate.replay);
                        return;
                    }
                }
                groups.add(candidate.counted.clone());
            })
            .await?;
        plan.next = found.next;
        missing.up_to(found.next).into_iter().for_each(|id| plan.skip(id, "missing", None));
        plan.groups = groups.finish().groups;
        let closed = |queue: &String| match (self.0.deps.access)(queue) {
            QueueAccess::Closed(waiting) => Some((queue.clone(), waiting.text)),
            QueueAccess::Open | QueueAccess::Trial(_) => None,
        };
        plan.waiting = plan.queues.keys().filter_map(closed).collect();
        if let LetterSelection::Filter { filter, .. } = &selection
            && found.is_nothing(request.after)
        {
            plan.nothing = Some(self.nothing(filter, &[LetterState::Open]).await?);
            plan.name_others(self, &selection).await?;
        }
        Ok(plan)
    }

    /// So that no empty replay is left behind. Who starts one has seen the plan, so this finds something only seldom.
    pub(super) async fn refuse_if_nothing_can_be_replayed(&self, request: &ReplayRequest) -> Result<(), ActionError> {
        let selection = self.bounded(request.selection.clone()).await?;
        let open = vec![LetterState::Open];
        let first = self.0.deps.ledger.replay_candidates(selection.clone(), open, 0, PAGE).await?;
        let is_named = matches!(selection, LetterSelection::Ids(_));
        let consumers = self.0.deps.consumers.borrow().clone();
        let can_be =
            |candidate: &ReplayCandidate| match fate(candidate, is_named, request.options.to.as_deref(), &consumers) {
                Fate::Published(_) | Fate::Discarded(_) => true,
                Fate::Skipped(_) => false,
            };
        if first.iter().any(can_be) {
            return Ok(());
        }
        let plan = self.plan(&ReplayRequest { after: 0, ..request.clone() }).await?;
        if plan.letters() > 0 || plan.next.is_some() {
            return Ok(());
        }
        let others = plan.nothing.unwrap_or_default().other_states.into_iter();
        let others = others.map(|(state, letters)| (state.as_str().to_owned(), letters));
        let reasons: Vec<String> =
            plan.skipped.into_iter().chain(others).map(|(reason, letters)| format!("{letters} {reason}")).collect();
        let reasons = if reasons.is_empty() { "none matches".to_owned() } else { reasons.join(", ") };
        Err(ActionError::Conflict(format!("no dead letter of this selection can be replayed: {reasons}")))
    }

    /// Calls `visit` for the selected letters after this one, by number, until the time of an answer is over.
    pub(super) async fn look_at(
        &self,
        selection: &LetterSelection,
        states: Vec<LetterState>,
        mut after: i64,
        mut visit: impl FnMut(&ReplayCandidate),
    ) -> Result<LookedAt, ActionError> {
        let (began, mut letters) = (Instant::now(), 0);
        loop {
            // Some of those that are named may be missing.
            let (part, last) = match selection {
                LetterSelection::Ids(ids) => {
                    let part: Vec<i64> = ids.iter().copied().filter(|id| *id > after).take(LOOKED_AT).collect();
                    let last = part.last().copied().filter(|_| part.len() == LOOKED_AT);
                    (LetterSelection::Ids(part), last)
                }
                LetterSelection::Filter { .. } => (selection.clone(), None),
            };
            let page = self.0.deps.ledger.replay_candidates(part, states.clone(), after, LOOKED_AT).await?;
            page.iter().for_each(&mut visit);
            letters += page.len();
            let last_found = page.last().map(|candidate| candidate.id).filter(|_| page.len() == LOOKED_AT);
            let Some(last) = last.or(last_found) else { return Ok(LookedAt { letters, next: None }) };
            after = last;
            if began.elapsed() >= ANSWER_TIME {
                return Ok(LookedAt { letters, next: Some(after) });
            }
        }
    }

    /// Why a filter finds nothing in these states.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) async fn nothing(
        &self,
        filter: &DeadLetterFilter,
        states: &[LetterState],
    ) -> Result<NothingFound, ActionError> {
        let ledger = &self.0.deps.ledger;
        let mut nothing = NothingFound::default();
        for state in LetterState::ALL.iter().filter(|state| !states.contains(state)) {
            let others = DeadLetterFilter { states: vec![*state], ..filter.clone() };
            let found = ledger.dead_letter_groups(others).await?.messages;
            if found > 0 {
                nothing.other_states.insert(*state, found);
            }
        }
        if nothing.other_states.is_empty() && has_names(filter) {
            let stored = ledger.dead_letter_groups(DeadLetterFilter::default()).await?.groups;
            let has_replay = match filter.replay {
                Some(replay) => ledger.replay(replay, Timestamp::now()).await?.is_some(),
                None => true,
            };
            nothing.hint = unknown_names(filter, &stored, has_replay);
        }
        Ok(nothing)
    }
}

/// What was looked at.
pub(super) struct LookedAt {
    letters: usize,
    /// The last one, if there may be more.
    pub next: Option<i64>,
}

impl LookedAt {
    /// Whether a selection finds nothing at all.
    pub fn is_nothing(&self, after: i64) -> bool {
        self.letters == 0 && after == 0
    }
}

impl ReplayPlan {
    fn skip(&mut self, id: i64, reason: &str, replay: Option<i64>) {
        let count = self.skipped.entry(reason.to_owned()).or_default();
        *count += 1;
        if *count <= MAX_NAMED as u64 {
            self.not_replayed.push(NotReplayed { id, reason: reason.to_owned(), replay });
        }
    }

    /// Names some of those that are in other states.
    async fn name_others(&mut self, actions: &LetterActions, selection: &LetterSelection) -> Result<(), ActionError> {
        let Some(nothing) = &self.nothing else { return Ok(()) };
        for state in nothing.other_states.keys().copied().collect::<Vec<_>>() {
            let ledger = &actions.0.deps.ledger;
            let some = ledger.replay_candidates(selection.clone(), vec![state], 0, MAX_NAMED).await?;
            self.not_replayed.extend(some.into_iter().map(|candidate| NotReplayed {
                id: candidate.id,
                reason: state.as_str().to_owned(),
                replay: candidate.replay,
            }));
        }
        Ok(())
    }
}

fn fate(candidate: &ReplayCandidate, is_named: bool, to: Option<&str>, consumers: &KnownConsumers) -> Fate {
    let consumer = Some(&*candidate.counted.cause.consumer);
    let origin_queue = candidate.origin_queue.as_deref();
    let queue = target(consumers, to, origin_queue, consumer);
    let is_misdirected = |target: &KnownConsumer| {
        let came_from = consumer_of(consumers, origin_queue, consumer).map(|(_, consumer)| consumer);
        is_misdirected(target, came_from, candidate.counted.total.is_some())
    };
    match (candidate.state, candidate.order_status.as_deref(), queue) {
        (LetterState::Open, ..) if candidate.maybe_duplicate && !is_named => Fate::Skipped(MAYBE_DUPLICATE),
        (LetterState::Open, _, None) => Fate::Skipped(NO_QUEUE),
        (LetterState::Open, Some("processed"), _) => Fate::Discarded("order_processed"),
        (LetterState::Open, Some("cancelled"), _) => Fate::Discarded("order_cancelled"),
        (LetterState::Open, _, Some((_, target))) if is_misdirected(target) => Fate::Skipped(NO_ORDER_QUEUE),
        (LetterState::Open, _, Some((queue, _))) => Fate::Published(queue.clone()),
        (state @ (LetterState::Held | LetterState::Replaying | LetterState::Replayed | LetterState::Discarded), ..) => {
            Fate::Skipped(state.as_str())
        }
    }
}

/// The highest number that is meant.
pub(super) fn last(selection: &LetterSelection) -> i64 {
    match selection {
        LetterSelection::Ids(ids) => ids.last().copied().unwrap_or(0),
        LetterSelection::Filter { up_to, .. } => *up_to,
    }
}

/// Whether a filter has a name that may be unknown.
pub fn has_names(filter: &DeadLetterFilter) -> bool {
    filter.reason.is_some() || filter.consumer.is_some() || filter.code.is_some() || filter.replay.is_some()
}

/// The names in a filter that there are not, with those that there are: a sentence. `stored`: all stored letters, in any state;
/// `has_replay`: whether there is the replay in the filter.
pub fn unknown_names(filter: &DeadLetterFilter, stored: &[DeadLetterGroup], has_replay: bool) -> Option<String> {
    let names = |name: fn(&DeadLetterGroup) -> Option<&String>| {
        stored.iter().filter_map(name).cloned().collect::<BTreeSet<String>>()
    };
    let hints = [
        unknown("reason", filter.reason.as_ref(), &names(|group| Some(&group.reason))),
        unknown("code", filter.code.as_ref(), &names(|group| Some(&group.code))),
        unknown("consumer", filter.consumer.as_ref(), &names(|group| group.consumer.as_ref())),
        filter.replay.filter(|_| !has_replay).map(|replay| format!("there is no replay {replay}")),
    ];
    let hints: Vec<String> = hints.into_iter().flatten().collect();
    (!hints.is_empty()).then(|| hints.join("; "))
}

fn unknown(what: &str, name: Option<&String>, known: &BTreeSet<String>) -> Option<String> {
    let name = name.filter(|name| !known.contains(*name))?;
    let more = if known.len() > MAX_HINTED { ", …" } else { "" };
    let known: Vec<&str> = known.iter().take(MAX_HINTED).map(String::as_str).collect();
    let known = if known.is_empty() { "there are none".to_owned() } else { format!("known: {}", known.join(", ")) };
    Some(format!("no dead letter in any state has {what} {name}; {known}{more}"))
}

/// Named letters that there are not.
pub(super) struct Missing(BTreeMap<i64, bool>);

impl Missing {
    /// Of a selection whose numbers are sorted, those after this one.
    pub fn new(selection: &LetterSelection, after: i64) -> Self {
        match selection {
            LetterSelection::Ids(ids) => Missing(ids.iter().filter(|id| **id > after).map(|id| (*id, false)).collect()),
            LetterSelection::Filter { .. } => Missing(BTreeMap::new()),
        }
    }

    pub fn found(&mut self, id: i64) {
        self.0.insert(id, true);
    }

    /// The missing ones up to this number; all if there is none.
    pub fn up_to(&self, next: Option<i64>) -> Vec<i64> {
        let looked_at = self.0.iter().filter(|(id, _)| next.is_none_or(|next| **id <= next));
        looked_at.filter(|(_, found)| !**found).map(|(id, _)| *id).collect()
    }
}
