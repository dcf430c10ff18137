//! What becomes of publications that the broker does not accept.

use super::*;

#[tokio::test(start_paused = true)]
async fn only_the_refused_event_of_an_order_is_published_again() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.refusals.store(20, Ordering::SeqCst);
    env.queue.deliver(1, "emit_both");
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    let sent = env.publisher.sent.lock().unwrap().iter().map(|sent| sent.routing_key.clone()).collect::<Vec<_>>();
    assert_eq!(sent, ["order.notification.x", "order.analytics.x"], "the confirmed one was published once");
    assert_eq!(env.handler.calls.load(Ordering::SeqCst), 1);
    assert_eq!(env.counters.counts().failed_attempts, 0, "a refusal is not the order's failure");
    env.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_publication_is_published_again_until_the_broker_confirms_it() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.refusals.store(5, Ordering::SeqCst);
    env.queue.deliver(1, "emit");
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    assert_eq!(env.publisher.sent.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_the_ledger_refuses_is_left_to_the_broker_and_not_retried_for_ever() {
    let env = TestEnv::start_with(1, 1, OnFailure::KeepRetrying).await;
    env.publisher.invalid.store(true, Ordering::SeqCst);
    env.queue.deliver(1, "without_copy");
    assert_eq!(env.queue.settled(1).await, [(1, Settlement::Reject)]);
    assert_eq!((env.handler.calls.load(Ordering::SeqCst), env.counters.counts().failed_attempts), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_about_a_dead_letter_does_not_dead_letter_the_message_twice() {
    let env = TestEnv::start_with(1, 1, OnFailure::KeepRetrying).await;
    env.publisher.refusals.store(3, Ordering::SeqCst);
    env.queue.deliver(1, "report");
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    let sent = || env.publisher.sent.lock().unwrap().iter().map(|sent| sent.routing_key.clone()).collect::<Vec<_>>();
    assert_eq!(sent(), ["report", "order.analytics.x"], "only the event was refused, and published again");
    env.queue.deliver(2, "invalid_report");
    assert_eq!(env.queue.settled(2).await, [(1, ACK), (2, ACK)]);
    assert_eq!(sent(), ["report", "order.analytics.x", "order.analytics.x"], "an invalid event is left out");
    assert_eq!((env.handler.calls.load(Ordering::SeqCst), env.counters.counts().failed_attempts), (2, 0));
}
