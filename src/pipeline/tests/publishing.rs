//! What becomes of publications that the broker does not accept.

use super::*;

#[tokio::test(start_paused = true)]
async fn only_the_refused_event_of_an_order_is_published_again() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.refusals.store(8, Ordering::SeqCst);
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
    assert_eq!(env.handler.logged.load(Ordering::SeqCst), 1, "its line is not lost");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_logged_as_dead_lettered_before_its_copy_is_confirmed() {
    let env = TestEnv::start_with(1, 1, OnFailure::KeepRetrying).await;
    let logged = || env.handler.logged.load(Ordering::SeqCst);
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    while env.handler.calls.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(logged(), 0);
    env.publisher.gate.add_permits(1);
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    assert_eq!(logged(), 1);
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

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_published_again_at_once_after_the_topology_was_declared_again() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.refusals.store(usize::MAX, Ordering::SeqCst);
    env.queue.deliver(1, "emit");
    tokio::time::sleep(Duration::from_secs(200)).await;
    env.publisher.refusals.store(0, Ordering::SeqCst);
    let declared = tokio::time::Instant::now();
    env.publisher.acceptance.send_modify(|count| *count += 1);
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    assert!(declared.elapsed() < Duration::from_millis(100), "{:?}", declared.elapsed());
}

#[tokio::test(start_paused = true)]
async fn events_that_a_full_queue_rejected_are_published_within_seconds_of_its_having_room_and_do_not_flood_it_before()
{
    for deliveries in [1, 400] {
        let env = TestEnv::start(4, 100).await;
        let full = usize::MAX;
        env.publisher.gate.add_permits(1_000_000);
        env.publisher.nacks.store(true, Ordering::SeqCst);
        env.publisher.refusals.store(full, Ordering::SeqCst);
        for tag in 1..=deliveries {
            env.queue.deliver(tag, "emit");
        }
        tokio::time::sleep(Duration::from_secs(150)).await;
        let before = full - env.publisher.refusals.swap(full, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(100)).await;
        let attempts = full - env.publisher.refusals.load(Ordering::SeqCst);
        assert!((20..3_000).contains(&attempts), "{attempts} in 100 s after {before}");
        env.publisher.refusals.store(0, Ordering::SeqCst);
        let has_room = tokio::time::Instant::now();
        env.queue.settled(deliveries as usize).await;
        assert!(has_room.elapsed() < Duration::from_secs(6), "{:?}", has_room.elapsed());
        assert_eq!(env.publisher.sent.lock().unwrap().len(), deliveries as usize);
        env.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_a_full_queue_rejected_does_not_wait_for_the_permission_of_another_of_its_order() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.nacks.store(true, Ordering::SeqCst);
    env.publisher.refuses_all.store(true, Ordering::SeqCst);
    env.publisher.refusals.store(usize::MAX, Ordering::SeqCst);
    env.queue.deliver(1, "emit_both");
    tokio::time::sleep(Duration::from_secs(200)).await;
    env.publisher.refusals.store(0, Ordering::SeqCst);
    let has_room = tokio::time::Instant::now();
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    assert!(has_room.elapsed() < Duration::from_secs(6), "{:?}", has_room.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_lasts_is_shown_with_its_cause_and_its_age() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.refusals.store(usize::MAX, Ordering::SeqCst);
    env.queue.deliver(1, "emit");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(env.counters.read().broker_problems.publish_error, None, "not yet");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let error = env.counters.read().broker_problems.publish_error.unwrap();
    assert!(error.contains("\"orders\"") && error.contains("1 deliveries"), "{error}");
    env.publisher.refusals.store(0, Ordering::SeqCst);
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(env.counters.read().broker_problems.publish_error, None);
}

/// Publishing is out in two ways: nothing is confirmed, or everything is refused.
fn begin_outage(env: &TestEnv, refuse: bool) {
    if refuse {
        env.publisher.refusals.store(usize::MAX, Ordering::SeqCst);
    } else {
        env.publisher.gate.forget_permits(1_000);
    }
}

fn end_outage(env: &TestEnv, refuse: bool) {
    match refuse {
        true => env.publisher.refusals.store(0, Ordering::SeqCst),
        false => env.publisher.gate.add_permits(1_000),
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_that_is_out_for_hours_releases_each_delivery_once_and_consumes_again_when_it_is_possible() {
    for (refuse, on_failure) in [(false, forward_after(0)), (true, forward_after(0)), (true, OnFailure::KeepRetrying)] {
        let env = TestEnv::start_with(2, 1, on_failure).await;
        begin_outage(&env, refuse);
        env.queue.deliver(1, "emit");
        env.queue.deliver(2, "emit");
        tokio::time::sleep(Duration::from_secs(290)).await;
        assert_eq!(env.queue.settled(0).await, [], "held for some minutes");
        tokio::time::sleep(Duration::from_secs(4 * 3_600)).await;
        assert_eq!(env.queue.settled(2).await, [(1, RELEASE), (2, RELEASE)]);
        assert_eq!(env.queue.prefetches.lock().unwrap().len(), 1, "it does not subscribe during the outage");
        assert!(env.counters.read().subscribe_error.is_some(), "and says why");
        end_outage(&env, refuse);
        env.queue.subscribed.notified().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        env.queue.deliver(1, "emit");
        assert_eq!(env.queue.settled(3).await, [(1, RELEASE), (1, ACK), (2, RELEASE)]);
        let counts = env.counters.counts();
        assert_eq!((counts.failed_attempts, counts.forwarded), (0, 0), "an outage is not the order's failure");
        env.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_acknowledgement_timeout_of_the_broker_shortens_the_time_for_which_deliveries_wait() {
    let env = TestEnv::start(1, 1).await;
    env.counters.broker_problems().ack_timed_out("order_queue", Duration::from_secs(10), Duration::from_secs(30));
    begin_outage(&env, true);
    env.queue.deliver(1, "emit");
    let started = tokio::time::Instant::now();
    assert_eq!(env.queue.settled(1).await, [(1, RELEASE)]);
    assert_eq!(started.elapsed().as_secs(), 5);
    end_outage(&env, true);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_drains_or_stops_during_an_outage_of_publishing_ends() {
    for drain in [true, false] {
        let env = TestEnv::start(1, 1).await;
        begin_outage(&env, true);
        env.queue.deliver(1, "emit");
        env.queue.settled(1).await;
        match drain {
            true => env.drain.cancel(),
            false => env.shutdown.begin(),
        }
        env.pool.await.unwrap().unwrap();
        assert_eq!(*env.queue.settled.lock().unwrap(), [(1, RELEASE)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_published_is_rejected_so_that_the_broker_dead_letters_it() {
    for on_failure in [OnFailure::KeepRetrying, forward_after(0)] {
        let env = TestEnv::start_with(1, 1, on_failure).await;
        env.publisher.invalid.store(true, Ordering::SeqCst);
        env.queue.deliver(1, "emit");
        assert_eq!(env.queue.settled(1).await, [(1, Settlement::Reject)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_its_whole_body_goes_to_the_failed_order_queue_through_the_broker() {
    let env = TestEnv::start(1, 1).await;
    env.queue.deliver(1, "truncated");
    assert_eq!(env.queue.settled(1).await, [(1, Settlement::Reject)]);
    assert_eq!(env.failure_kinds(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acked_before_what_replaces_it_is_confirmed() {
    let env = TestEnv::start(1, 10).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    env.queue.deliver(2, "permanent");
    env.queue.deliver(3, "ok");
    assert_eq!(env.queue.settled(1).await, [(3, ACK)]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(env.queue.settled(1).await, [(3, ACK)]);
    assert_eq!(env.ledger.commits(), 0, "nor recorded");
    env.publisher.gate.add_permits(2);
    assert_eq!(env.queue.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!(env.ledger.commits(), 1);
}
