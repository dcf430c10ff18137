//! How the history of an order is put together.

use super::*;

fn step(at: &str, message: TracedMessage, event: TraceEvent) -> TraceStep {
    let at = format!("2026-11-27T20:30:{at}Z").parse().unwrap();
    TraceStep { at, message, event }
}

fn failed() -> TraceEvent {
    let (consumer, kind, code) = ("order".to_owned(), "transient".to_owned(), "http_503".to_owned());
    TraceEvent::Failed { consumer, retries: 0, kind, code, reason: String::new(), delay: None, due_at: None }
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
