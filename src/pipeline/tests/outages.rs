//! Outages of the ledger: nothing counts as an attempt, intake stops, and everything continues by itself.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_ledger_locked_for_a_minute_uses_up_no_retry_and_publishes_nothing_twice() {
    for on_failure in [forward_after(0), OnFailure::KeepRetrying] {
        let env = TestEnv::start_with(1, 2, on_failure).await;
        env.publisher.gate.forget_permits(1_000);
        env.queue.deliver(1, "emit");
        env.queue.deliver(2, "look_up");
        assert_eq!(env.queue.settled(1).await, [(2, ACK)]);
        env.ledger.begin_outage(OutageCause::Locked);
        env.publisher.gate.add_permits(1);
        env.queue.deliver(3, "look_up");
        // Twice the handler's deadline.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(env.queue.settled(1).await, [(2, ACK)], "nothing is settled during the outage");
        assert_eq!(env.handler.calls.load(Ordering::SeqCst), 2, "and nothing is started");
        env.ledger.end_outage();
        assert_eq!(env.queue.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
        assert_eq!(env.publisher.sent.lock().unwrap().len(), 1);
        let counts = env.counters.counts();
        assert_eq!((counts.failed_attempts, counts.forwarded, counts.released), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_the_ledger_does_not_time_out() {
    let env = TestEnv::start(1, 1).await;
    env.queue.deliver(1, "look_up");
    env.ledger.begin_outage(OutageCause::Hung);
    // The delivery may have been started before the outage or wait for its end.
    tokio::time::sleep(Duration::from_secs(200)).await;
    env.ledger.end_outage();
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
    assert_eq!(env.counters.counts().failed_attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_hours_releases_each_delivery_once_and_closes_the_subscription_until_it_ends() {
    let env = TestEnv::start(1, 2).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.ledger.begin_outage(OutageCause::DiskFull);
    env.publisher.gate.add_permits(1_000);
    env.queue.deliver(2, "ok");
    tokio::time::sleep(Duration::from_secs(4 * 3_600)).await;
    assert_eq!(env.queue.settled(2).await, [(1, RELEASE), (2, RELEASE)]);
    assert_eq!(env.queue.prefetches.lock().unwrap().len(), 1, "it does not subscribe during the outage");
    env.ledger.end_outage();
    env.queue.subscribed.notified().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.deliver(1, "emit");
    assert_eq!(env.queue.settled(3).await, [(1, RELEASE), (1, ACK), (2, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_during_an_outage_releases_what_waits_for_the_ledger() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.ledger.begin_outage(OutageCause::ReadOnly);
    env.publisher.gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(env.stop().await, [(1, RELEASE)]);
}
