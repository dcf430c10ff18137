//! What a run calls next: the first step that is not done, or the last one that is still to be undone.
//!
//! Pure: the recorded steps and the configured ones in, the next call out.

use crate::ledger::{RecordedStep, RunKey, StepAction, StepStatus};

fn find<'r>(recorded: &'r [RecordedStep], step: &str, action: StepAction) -> Option<&'r RecordedStep> {
    recorded.iter().find(|found| found.step == step && found.action == action)
}

fn is_done(recorded: &[RecordedStep], step: &str, action: StepAction) -> bool {
    find(recorded, step, action).is_some_and(|found| found.status == StepStatus::Done)
}

/// The index of the first of these steps that is not done; `None` if all are. `steps` are the names of the configured steps, and
/// whether each one's condition holds.
pub fn next_step<'s>(steps: impl IntoIterator<Item = (&'s str, bool)>, recorded: &[RecordedStep]) -> Option<usize> {
    steps.into_iter().position(|(name, applies)| applies && !is_done(recorded, name, StepAction::Do))
}

/// The step that is undone next: of those that have an undo and may have had an effect, the last that is not undone. `None` if
/// nothing is left to undo.
pub fn next_undo(recorded: &[RecordedStep]) -> Option<&RecordedStep> {
    left_to_undo(recorded).next()
}

/// All steps that are still to be undone, the next one first.
pub fn left_to_undo(recorded: &[RecordedStep]) -> impl Iterator<Item = &RecordedStep> {
    let steps = recorded.iter().rev().filter(|step| step.action == StepAction::Do);
    steps
        .filter(|step| step.undoable && step.may_have_effect())
        .filter(|step| !is_done(recorded, &step.step, StepAction::Undo))
}

/// The key of a step's calls: the same for every call of one step of one message, and different for all others. `scope` is the
/// consumer of a message that is not an order, else empty. In visible ASCII; other bytes are percent-encoded, and so is a slash
/// in the identity. A step that starts again, because the message was replayed after the step was undone, has
/// a key other than before, and so has its undo.
pub fn idempotency_key(key: &RunKey, step: &str, action: StepAction, round: u32) -> String {
    let RunKey { scope, identity } = key;
    let mut key = String::with_capacity(scope.len() + identity.len() + step.len() + 8);
    if !scope.is_empty() {
        key.push_str(scope);
        key.push('/');
    }
    for byte in identity.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' && byte != b'/' {
            key.push(char::from(byte));
        } else {
            key.push_str(&format!("%{byte:02X}"));
        }
    }
    key.push('/');
    key.push_str(step);
    if round > 1 {
        key.push_str(&format!("/{round}"));
    }
    if action == StepAction::Undo {
        key.push_str("/undo");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(step: &str, action: StepAction, status: StepStatus) -> RecordedStep {
        let position = ["charge", "reserve", "mail", "ship"].iter().position(|name| *name == step).unwrap();
        RecordedStep {
            step: step.to_owned(),
            action,
            round: 1,
            position: u32::try_from(position).unwrap(),
            undoable: step != "mail",
            status,
            attempts: 1,
            first_retry: 0,
            uncertain: false,
            result: None,
        }
    }

    use StepAction::{Do, Undo};
    use StepStatus::{Called, Done, Failed};

    #[test]
    fn the_first_step_that_is_not_done_is_next() {
        let steps = |mail| [("charge", true), ("reserve", true), ("mail", mail), ("ship", true)];
        let next = |recorded: &[RecordedStep]| next_step(steps(true), recorded);
        assert_eq!(next(&[]), Some(0));
        let mut all = vec![recorded("charge", Do, Called)];
        assert_eq!(next(&all), Some(0));
        all[0].status = Done;
        all.push(recorded("reserve", Do, Failed));
        assert_eq!(next(&all), Some(1));
        all[1].status = Done;
        assert_eq!((next(&all), next_step(steps(false), &all)), (Some(2), Some(3)));
        all.extend([recorded("mail", Do, Done), recorded("ship", Do, Done)]);
        assert_eq!(next(&all), None);
        assert_eq!(next_step([("new", true), ("charge", true)], &all), Some(0), "a reload has added it");
    }

    #[test]
    fn what_may_have_had_an_effect_is_undone_in_reverse_order() {
        let names = |recorded: &[RecordedStep]| -> Vec<String> {
            left_to_undo(recorded).map(|step| step.step.clone()).collect()
        };
        let mut all = vec![
            recorded("charge", Do, Done),
            recorded("reserve", Do, Done),
            recorded("mail", Do, Done),
            recorded("ship", Do, Failed),
        ];
        assert_eq!(names(&all), ["reserve", "charge"], "mail has no undo, and ship had no effect");
        all[3].uncertain = true;
        assert_eq!(names(&all), ["ship", "reserve", "charge"]);
        all[3] = recorded("ship", Do, Called);
        assert_eq!(names(&all), ["ship", "reserve", "charge"]);
        all.extend([recorded("ship", Undo, Done), recorded("reserve", Undo, Failed)]);
        assert_eq!(names(&all), ["reserve", "charge"]);
        all.retain(|step| step.action == Do || step.step != "reserve");
        all.push(recorded("reserve", Undo, Done));
        assert_eq!(next_undo(&all).map(|step| &*step.step), Some("charge"));
        all.push(recorded("charge", Undo, Done));
        assert_eq!(next_undo(&all), None);
    }

    #[test]
    fn a_key_names_order_step_round_and_undo_in_visible_ascii() {
        for (scope, identity, action, round, expected) in [
            ("", "ord-2", Do, 1, "ord-2/charge"),
            ("", "ord-2", Undo, 1, "ord-2/charge/undo"),
            ("", "ord-2", Do, 2, "ord-2/charge/2"),
            ("", "ord-2", Undo, 2, "ord-2/charge/2/undo"),
            ("", "a b%ü\n/c", Do, 1, "a%20b%25%C3%BC%0A%2Fc/charge"),
            ("invoices", "m-1", Do, 1, "invoices/m-1/charge"),
        ] {
            let key = RunKey { scope: scope.to_owned(), identity: identity.to_owned() };
            assert_eq!(idempotency_key(&key, "charge", action, round), expected);
        }
    }
}
