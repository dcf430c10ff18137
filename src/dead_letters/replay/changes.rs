//! Holds, releases and discards letters, or says what that would do. However many they are, one call changes them for a few seconds
//! only, and answers how far it is.

use jiff::Timestamp;
use tokio::time::Instant;

use super::actions::{ANSWER_TIME, ActionError, LetterActions, PAGE, check_selection, only_states};
use super::plan::{Missing, last};
use super::requests::{ChangedLetters, LetterRequest};
use crate::ledger::{
    ChangeAnswer, GroupBuilder, LetterChange, LetterOperation, LetterSelection, LetterState, OperationAnswer,
    ReplayCandidate,
};

/// Letters that are changed in one transaction, so that orders never wait long for it.
const CHANGED_AT_ONCE: usize = 100;
/// The longest note, in bytes.
const MAX_NOTE_BYTES: usize = 1_024;

/// What is done with letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterChangeKind {
    /// They are held.
    Hold,
    /// They are opened again.
    Release,
    /// They are discarded.
    Discard,
}

impl LetterChangeKind {
    /// The states in which a filter may look for letters.
    pub fn states(self) -> &'static [LetterState] {
        match self {
            LetterChangeKind::Hold | LetterChangeKind::Discard => &[LetterState::Open, LetterState::Held],
            // Those whose replay goes on are left as they are.
            LetterChangeKind::Release => &[LetterState::Held, LetterState::Replaying],
        }
    }

    /// The state in which a selection looks for letters if it names none.
    pub fn default_state(self, selection: &LetterSelection) -> LetterState {
        match (self, selection) {
            // Those that the replay has left without an outcome.
            (LetterChangeKind::Release, LetterSelection::Filter { filter, .. }) if filter.replay.is_some() => {
                LetterState::Replaying
            }
            (LetterChangeKind::Hold | LetterChangeKind::Discard, _) => LetterState::Open,
            (LetterChangeKind::Release, _) => LetterState::Held,
        }
    }

    fn change(self, note: String) -> Result<LetterChange, ActionError> {
        let note = note.trim().to_owned();
        let has_note = (1..=MAX_NOTE_BYTES).contains(&note.len());
        match self {
            LetterChangeKind::Release if note.is_empty() => Ok(LetterChange::Release),
            LetterChangeKind::Release => Err(ActionError::Invalid("note: a release has none".to_owned())),
            LetterChangeKind::Hold if has_note => Ok(LetterChange::Hold { note }),
            LetterChangeKind::Discard if has_note => Ok(LetterChange::Discard { reason: note }),
            LetterChangeKind::Hold | LetterChangeKind::Discard => {
                Err(ActionError::Invalid(format!("note: must have 1 to {MAX_NOTE_BYTES} bytes, has {}", note.len())))
            }
        }
    }

    /// What a change would answer for a letter.
    fn answer(self, candidate: &ReplayCandidate) -> ChangeAnswer {
        use LetterState::{Discarded, Held, Open, Replayed, Replaying};
        match (self, candidate.state) {
            (LetterChangeKind::Release, Open) | (LetterChangeKind::Discard, Discarded) => ChangeAnswer::Unchanged,
            (LetterChangeKind::Hold | LetterChangeKind::Discard, Open | Held) | (LetterChangeKind::Release, Held) => {
                ChangeAnswer::Changed
            }
            (LetterChangeKind::Release, Replaying) if candidate.is_abandoned => ChangeAnswer::Changed,
            (LetterChangeKind::Hold, state @ (Replaying | Replayed | Discarded))
            | (LetterChangeKind::Release, state @ (Replaying | Replayed | Discarded))
            | (LetterChangeKind::Discard, state @ (Replaying | Replayed)) => ChangeAnswer::Refused(state),
        }
    }
}

impl LetterActions {
    /// Changes letters, or says what would be changed.
    ///
    /// # Errors
    /// [`ActionError`]. Some letters may be changed by then.
    pub async fn change_letters(
        &self,
        action: LetterChangeKind,
        request: LetterRequest,
        by: String,
    ) -> Result<ChangedLetters, ActionError> {
        let LetterRequest { selection, note, dry_run, after } = request;
        check_selection(&selection)?;
        let change = match (dry_run, note.is_empty()) {
            // The note is not needed yet.
            (true, true) => None,
            (_, _) => Some(action.change(note)?),
        };
        let mut states = vec![action.default_state(&selection)];
        if let LetterSelection::Filter { filter, .. } = &selection {
            only_states(filter, action.states())?;
            if !filter.states.is_empty() {
                states.clone_from(&filter.states);
            }
        }
        let selection = self.bounded(selection).await?;
        let mut changed = ChangedLetters { up_to: last(&selection), ..ChangedLetters::default() };
        let is_nothing = match change.filter(|_| !dry_run) {
            Some(change) => self.carry_out((&selection, &states), (&change, &by), after, &mut changed).await?,
            None => self.preview(action, (&selection, &states), after, &mut changed).await?,
        };
        if let LetterSelection::Filter { filter, .. } = &selection
            && is_nothing
            && after == 0
        {
            changed.nothing = Some(self.nothing(filter, &states).await?);
        }
        Ok(changed)
    }

    /// Whether there is nothing to change.
    async fn preview(
        &self,
        action: LetterChangeKind,
        (selection, states): (&LetterSelection, &[LetterState]),
        after: i64,
        changed: &mut ChangedLetters,
    ) -> Result<bool, ActionError> {
        let is_named = matches!(selection, LetterSelection::Ids(_));
        let (mut groups, mut missing) = (GroupBuilder::default(), Missing::new(selection, after));
        let found = self
            .look_at(selection, states.to_vec(), after, |candidate| {
                missing.found(candidate.id);
                let answer = action.answer(candidate);
                if answer == ChangeAnswer::Changed {
                    groups.add(candidate.counted.clone());
                }
                if is_named || answer == ChangeAnswer::Changed {
                    changed.count(candidate.id, answer);
                }
            })
            .await?;
        missing.up_to(found.next).into_iter().for_each(|id| changed.count(id, ChangeAnswer::Missing));
        changed.groups = groups.finish().groups;
        changed.next = found.next;
        Ok(found.is_nothing(after))
    }

    /// Whether there is nothing to change.
    async fn carry_out(
        &self,
        (selection, states): (&LetterSelection, &[LetterState]),
        (change, by): (&LetterChange, &str),
        mut after: i64,
        changed: &mut ChangedLetters,
    ) -> Result<bool, ActionError> {
        let (began, mut is_nothing) = (Instant::now(), true);
        // A letter that is named is meant in whatever state it is.
        let found_in = match selection {
            LetterSelection::Ids(_) => &[],
            LetterSelection::Filter { .. } => states,
        };
        loop {
            let (page, is_last) = match selection {
                LetterSelection::Ids(ids) => {
                    let page: Vec<i64> = ids.iter().copied().filter(|id| *id > after).take(PAGE).collect();
                    let is_last = page.len() < PAGE;
                    (page, is_last)
                }
                LetterSelection::Filter { .. } => {
                    let ledger = &self.0.deps.ledger;
                    let page = ledger.replay_candidates(selection.clone(), states.to_vec(), after, PAGE).await?;
                    let is_last = page.len() < PAGE;
                    after = page.last().map_or(after, |last| last.id);
                    // A letter whose replay goes on is not what the filter means.
                    let page =
                        page.iter().filter(|letter| letter.state != LetterState::Replaying || letter.is_abandoned);
                    (page.map(|letter| letter.id).collect(), is_last)
                }
            };
            after = page.last().map_or(after, |last| after.max(*last));
            for ids in page.chunks(CHANGED_AT_ONCE) {
                is_nothing = false;
                self.change_some(ids.to_vec(), (change, found_in), by, changed).await?;
            }
            if is_last {
                return Ok(is_nothing);
            }
            if began.elapsed() >= ANSWER_TIME {
                changed.next = Some(after);
                return Ok(is_nothing);
            }
        }
    }

    async fn change_some(
        &self,
        ids: Vec<i64>,
        (change, states): (&LetterChange, &[LetterState]),
        by: &str,
        changed: &mut ChangedLetters,
    ) -> Result<(), ActionError> {
        let (change, states, by, at) = (change.clone(), states.to_vec(), by.to_owned(), Timestamp::now());
        let OperationAnswer::Letters(answers) =
            self.change(LetterOperation::Letters { ids: ids.clone(), change, states, by, at }).await?
        else {
            unreachable!("a change of letters has an answer for each")
        };
        ids.into_iter().zip(answers).for_each(|(id, answer)| changed.count(id, answer));
        Ok(())
    }
}

impl ChangedLetters {
    fn count(&mut self, id: i64, answer: ChangeAnswer) {
        let reason = match answer {
            ChangeAnswer::Changed => {
                self.changed += 1;
                return;
            }
            ChangeAnswer::Unchanged => {
                self.unchanged += 1;
                return;
            }
            ChangeAnswer::Missing => "missing",
            ChangeAnswer::OtherOrder | ChangeAnswer::Outdated => unreachable!("only edits have these answers"),
            ChangeAnswer::Refused(state) => state.as_str(),
        };
        self.refused.insert(id, reason.to_owned());
    }
}
