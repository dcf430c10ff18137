//! Edits letters: says whether one can be edited, and with which body; checks the new body, and records it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::actions::{ActionError, LetterActions};
use super::edit::{EditError, Edited, MAX_EDITED_BYTES, edited, present_body};
use super::message::target;
use super::requests::{EditDraft, EditedLetter};
use crate::chain::chain;
use crate::ledger::{
    ChangeAnswer, DeadLetterDetail, LetterEdit, LetterOperation, LetterOrigin, LetterSelection, LetterState,
    OperationAnswer,
};

/// A new body, as it was requested.
pub struct NewBody {
    /// The revision that was edited.
    pub revision: i64,
    /// The text.
    pub body: Vec<u8>,
    /// Whether it may be another order.
    pub change_order_id: bool,
}

impl LetterActions {
    /// The body to edit, if the letter can be edited.
    ///
    /// # Errors
    /// [`ActionError`]: it cannot.
    pub async fn draft(&self, id: i64) -> Result<EditDraft, ActionError> {
        let detail = self.editable(id).await?;
        let named = LetterSelection::Ids(vec![id]);
        let candidates = self.0.deps.ledger.replay_candidates(named, Vec::new(), 0, 1).await?;
        let is_accepted = candidates.iter().any(|candidate| candidate.order_status.is_some());
        let (revision, order_id) = (detail.content.revision, detail.letter.order_id.clone());
        let max_body = self.0.deps.max_body;
        let body = spawn_blocking(move || present_body(detail, max_body)).await;
        let body = body.map_err(|died| unreadable(&died))?.map_err(|error| refused(&error))?;
        if body.len() > MAX_EDITED_BYTES {
            return Err(refused(&EditError::TooLarge));
        }
        Ok(EditDraft { id, revision, body_base64: STANDARD.encode(body), order_id, is_accepted })
    }

    /// The letter, if its state and its steps allow it to be edited.
    async fn editable(&self, id: i64) -> Result<DeadLetterDetail, ActionError> {
        let detail = self.0.deps.ledger.dead_letter(id).await?;
        let detail = detail.ok_or_else(|| ActionError::Missing(format!("dead letter {id}")))?;
        let letter = &detail.letter;
        match letter.state {
            LetterState::Open | LetterState::Held => {}
            LetterState::Replaying | LetterState::Replayed | LetterState::Discarded => {
                return Err(wrong_state(id, letter.state));
            }
        }
        let consumers = self.0.deps.consumers.borrow();
        let consumer = target(&consumers, None, letter.origin_queue.as_deref(), letter.consumer.as_deref());
        let is_order = consumer.is_none_or(|(_, consumer)| consumer.format.is_some());
        if !is_order && !detail.steps.is_empty() && letter.origin != LetterOrigin::Orderd {
            return Err(ActionError::Conflict(format!(
                "steps were called for dead letter {id}, which orderd itself has not dead-lettered: another body would be refused \
                 (id_conflict)"
            )));
        }
        Ok(detail)
    }

    /// Replaces the body of a letter, if its consumer can read the new one. The former bodies are kept.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn edit(&self, id: i64, new: NewBody, by: String) -> Result<EditedLetter, ActionError> {
        let NewBody { revision, body, change_order_id } = new;
        let detail = self.editable(id).await?;
        if detail.content.revision != revision {
            let by = detail.edits.last().and_then(|edit| edit.by.as_deref());
            return Err(outdated(id, by));
        }
        let (max_body, former) = (self.0.deps.max_body, detail.letter.order_id.clone());
        let (consumers, users) = (self.0.deps.consumers.borrow().clone(), Arc::clone(&self.0.deps.users));
        // It may be large once it is decompressed.
        let reading = spawn_blocking(move || edited(detail, body, &consumers, &users, max_body)).await;
        let edited: Edited = reading.map_err(|died| unreadable(&died))?.map_err(|error| refused(&error))?;
        let (order_id, queue) = (edited.order.id.clone(), edited.queue);
        let former_order_id = former.filter(|former| order_id.as_ref() != Some(former));
        if let Some(order) = edited.order_of_steps.filter(|_| former_order_id.is_some())
            && order_id.as_ref() != Some(&order)
        {
            return Err(ActionError::Conflict(format!(
                "the steps of order {order:?} were called for dead letter {id} and are still to be undone, so its replays are about that \
                 order, whatever id the body has: replay it with its id first, and once the steps are undone, edit the dead letter that \
                 comes back; or undo them by hand, discard it, and publish the new order"
            )));
        }
        if let Some(former) = former_order_id.as_ref().filter(|_| !change_order_id) {
            let now = order_id.as_ref().map_or_else(|| "none".to_owned(), |id| format!("{id:?}"));
            return Err(ActionError::Conflict(format!(
                "the order's id would change from {former:?} to {now}, and the dead letter would become another order: if you mean that, add \
                 --change-order-id (`change_order_id`)"
            )));
        }
        let edit = LetterEdit {
            letter: id,
            base: revision,
            body: edited.body,
            properties: edited.properties,
            order: edited.order,
            identity: edited.identity,
            search: edited.search,
            whole_order: edited.whole,
            by,
            at: Timestamp::now(),
        };
        let OperationAnswer::Letters(answers) = self.change(LetterOperation::Edit(Box::new(edit))).await? else {
            unreachable!("an edit has an answer for its letter")
        };
        match answers.first() {
            Some(ChangeAnswer::Changed | ChangeAnswer::Unchanged) => {
                Ok(EditedLetter { id, revision: revision + 1, order_id, former_order_id, queue })
            }
            Some(ChangeAnswer::Outdated) => Err(outdated(id, None)),
            Some(ChangeAnswer::OtherOrder) => {
                let order = order_id.unwrap_or_default();
                Err(ActionError::Conflict(format!(
                    "the ledger has accepted order {order:?} with other lines, amounts, another currency or customer, so this content \
                     would be refused (id_conflict): give the corrected order another id (--change-order-id), or change other fields only"
                )))
            }
            Some(ChangeAnswer::Refused(state)) => Err(wrong_state(id, *state)),
            Some(ChangeAnswer::Missing) | None => Err(ActionError::Missing(format!("dead letter {id}"))),
        }
    }
}

fn wrong_state(id: i64, state: LetterState) -> ActionError {
    let state = state.as_str();
    ActionError::Conflict(format!("dead letter {id} is {state}; only open and held ones can be edited"))
}

fn outdated(id: i64, by: Option<&str>) -> ActionError {
    let by = by.map_or_else(String::new, |by| format!(" by {by}"));
    ActionError::Conflict(format!(
        "dead letter {id} was edited meanwhile{by}: look at what it is now (`orderd dead-letters show {id}`), and edit that"
    ))
}

fn unreadable(died: &tokio::task::JoinError) -> ActionError {
    ActionError::Invalid(format!("the body cannot be read: {died}"))
}

fn refused(error: &EditError) -> ActionError {
    ActionError::Invalid(chain(error))
}
