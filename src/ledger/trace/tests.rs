//! How the history of an order is put together.

use super::*;

fn step(at: &str, message: TracedMessage, event: TraceEvent) -> TraceStep {
    let at = format!("2026-11-27T20:30:{at}Z").parse().unwrap();
    TraceStep { at, message, event }
}

fn failed() -> TraceEvent {
    let (consumer, kind, code) = ("order".to_owned(), "transient".to_owned(), "http_503".to_owned());
    TraceEvent::Failed {
        consumer,
        replay: None,
        retries: 0,
        kind,
        code,
        reason: String::new(),
        delay: None,
        due_at: None,
    }
}

#[test]
fn a_failure_that_is_known_to_the_second_comes_after_what_preceded_it_and_before_the_end() {
    let trace = |steps: &[TraceStep]| -> Vec<TraceEvent> {
        Trace::new("o", None, steps.to_vec()).steps.into_iter().map(|step| step.event).collect()
    };
    let accepted = TraceEvent::Accepted { consumer: "order".to_owned() };
    let skipped = TraceEvent::Skipped { channel: "email".to_owned(), code: "no_address".to_owned() };
    let (order, notification) = (TracedMessage::Order, TracedMessage::Notification);
    let steps = [step("22", order, failed()), step("22.467", order, accepted.clone())];
    assert_eq!(trace(&steps), [accepted.clone(), failed()]);
    let steps = [
        step("22", notification, failed()),
        step("22.467", order, TraceEvent::Processed),
        step("22.900", notification, skipped.clone()),
        step("21.100", order, accepted.clone()),
    ];
    assert_eq!(trace(&steps), [accepted, TraceEvent::Processed, failed(), skipped]);
}

#[test]
fn an_orders_failure_comes_before_the_event_about_it() {
    let steps = [
        step("22", TracedMessage::Order, failed()),
        step("22.467", TracedMessage::AnalyticsFailed, TraceEvent::Counted),
    ];
    let events: Vec<_> = Trace::new("o", None, steps.to_vec()).steps.into_iter().map(|step| step.event).collect();
    assert_eq!(events, [failed(), TraceEvent::Counted]);
}

#[test]
fn a_failure_after_a_replay_comes_after_it_also_in_the_second_of_the_first_dead_lettering() {
    let order = TracedMessage::Order;
    let dead_lettered = |letter| TraceEvent::DeadLettered {
        consumer: "order".to_owned(),
        reason: "permanent".to_owned(),
        retries: 0,
        code: "http_402".to_owned(),
        origin_queue: None,
        letter: Some(letter),
    };
    let replayed = |replay, letter, outcome| TraceEvent::Replayed {
        replay,
        by: "ada".to_owned(),
        letter,
        consumer: Some("order".to_owned()),
        outcome,
        code: None,
        came_back_as: None,
    };
    let failed_in = |number| {
        let mut event = failed();
        let TraceEvent::Failed { replay, delay, due_at, .. } = &mut event else { unreachable!() };
        *replay = number;
        if number == Some(2) {
            *delay = Some("10s".to_owned());
            *due_at = Some("2026-11-27T20:30:32Z".parse().unwrap());
        }
        event
    };
    // Everything happens within one second. Of the failures, only that second is known.
    let steps = [
        step("22", order, failed_in(None)),
        step("22", order, failed_in(Some(1))),
        step("22", order, failed_in(Some(2))),
        step("22.100", order, dead_lettered(1)),
        step("22.200", order, replayed(1, 1, LetterProgress::FailedAgain)),
        step("22.300", order, dead_lettered(2)),
        step("22.400", order, replayed(2, 2, LetterProgress::Retrying)),
    ];
    let trace = Trace::new("o", None, steps.to_vec());
    let events: Vec<_> = trace.steps.iter().map(|step| step.event.clone()).collect();
    let expected = [
        failed_in(None),
        dead_lettered(1),
        replayed(1, 1, LetterProgress::FailedAgain),
        failed_in(Some(1)),
        dead_lettered(2),
        replayed(2, 2, LetterProgress::Retrying),
        failed_in(Some(2)),
    ];
    assert_eq!(events, expected);
    let (_, state) = &trace.message_states("2026-11-27T20:30:30Z".parse().unwrap())[0];
    assert!(matches!(state, MessageState::Waiting { delay, .. } if delay == "10s"), "{state:?}");
}
