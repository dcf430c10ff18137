//! Subscriptions that are lost, and safe mode.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_is_replaced_and_costs_no_attempt() {
    let env = TestEnv::start(1, 10).await;
    env.queue.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.lose();
    env.queue.subscribed.notified().await;
    env.queue.deliver(1, "ok");
    assert_eq!(env.queue.settled(2).await, [(1, RELEASE), (1, ACK)]);
    assert_eq!(env.counters.counts().failed_attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_is_noticed_while_all_slots_are_taken() {
    let env = TestEnv::start_with(1, 1, OnFailure::KeepRetrying).await;
    env.queue.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.lose();
    env.queue.subscribed.notified().await;
    assert_eq!(env.queue.settled(1).await, [(1, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_are_redelivered_again_and_again_turn_on_safe_mode() {
    let env = TestEnv::start(2, 10).await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [20]);
    env.queue.deliver_again(1, "ok", 3);
    assert_eq!(env.queue.settled(1).await, [(1, RELEASE)], "released, not started");
    env.queue.subscribed.notified().await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [20, 1]);
    env.queue.deliver_again(1, "ok", 4);
    for tag in 2..=21 {
        env.queue.deliver(tag, "ok");
    }
    env.queue.subscribed.notified().await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [20, 1, 20], "and it ends after a clear streak");
}

/// A message that kills its connection has to be delivered some twenty times before the broker removes it.
#[tokio::test(start_paused = true)]
async fn in_safe_mode_the_waits_between_subscriptions_stay_short() {
    let env = TestEnv::start(1, 1).await;
    let begun = tokio::time::Instant::now();
    for _ in 0..21 {
        env.queue.lose();
        env.queue.subscribed.notified().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(env.queue.prefetches.lock().unwrap().last(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_cannot_be_consumed_for_a_while_does_not_turn_on_safe_mode() {
    let env = TestEnv::start(2, 10).await;
    env.queue.refusals.store(3, Ordering::SeqCst);
    env.queue.lose();
    env.queue.subscribed.notified().await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [20, 20]);
}

#[tokio::test(start_paused = true)]
async fn safe_mode_is_shown_while_earlier_deliveries_are_still_in_flight() {
    let env = TestEnv::start(2, 10).await;
    env.queue.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.deliver_again(2, "ok", 3);
    env.queue.settled(1).await;
    let reading = env.counters.read();
    assert_eq!((reading.counts.in_flight, reading.pool.subscriptions, reading.pool.safe_mode), (1, 1, true));
}

#[tokio::test(start_paused = true)]
async fn the_pool_counts_its_workers_and_subscriptions_and_shows_safe_mode() {
    let env = TestEnv::start(2, 10).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let state = |subscriptions, workers_running, slots, safe_mode| PoolState {
        active_subscriptions: 1,
        draining_subscriptions: 0,
        capacity: slots,
        subscriptions,
        workers_running,
        safe_mode,
        unanswered: Duration::ZERO,
    };
    assert_eq!(env.counters.read().pool, state(1, 2, 20, false));
    env.queue.deliver_again(1, "ok", 3);
    env.queue.subscribed.notified().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(env.counters.read().pool, state(2, 1, 1, true));
    let counters = Arc::clone(&env.counters);
    env.stop().await;
    let stopped = PoolState { subscriptions: 2, safe_mode: true, ..PoolState::default() };
    assert_eq!(counters.read().pool, stopped);
    assert_eq!(conservation::check(&counters.counts(), &stopped), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_past_the_brokers_consumer_timeout_is_named_as_the_cause_with_both_numbers() {
    let env = TestEnv::start(1, 1).await;
    let limit = Duration::from_secs(20);
    *env.queue.loss_cause.lock().unwrap() = Some(LossCause::AckTimeout(limit));
    env.queue.lose();
    env.queue.subscribed.notified().await;
    assert_eq!(env.counters.read().broker_problems.ack_timeout, None);
    env.queue.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.lose();
    env.queue.subscribed.notified().await;
    let reading = env.counters.read();
    assert_eq!(reading.broker_problems.ack_timeouts, 1);
    let problem = reading.broker_problems.ack_timeout.unwrap();
    assert!(problem.contains("20s") && problem.contains("30s") && problem.contains("order_queue"), "{problem}");
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(env.counters.read().broker_problems.ack_timeout, None, "long ago");
    env.stop().await;
}

#[test]
fn a_draining_subscription_does_not_hide_that_the_broker_does_not_answer_another_one() {
    let counters = Arc::new(Counters::default());
    let open = || counters.subscription_opened(1, "node".into(), Arc::default());
    let (mut former, current) = (open(), open());
    former.start_draining();
    current.set_unanswered(Duration::from_secs(7));
    former.set_unanswered(Duration::ZERO);
    assert_eq!(counters.read().pool.unanswered, Duration::from_secs(7));
    drop(former);
    assert_eq!(counters.read().pool.unanswered, Duration::from_secs(7));
    drop(current);
    assert_eq!(counters.read().pool.unanswered, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_on_which_the_broker_does_not_answer_shows_for_how_long() {
    let env = TestEnv::start(1, 1).await;
    *env.queue.unanswered.lock().unwrap() = Duration::from_secs(7);
    env.queue.lose();
    env.queue.subscribed.notified().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(env.counters.read().pool.unanswered, Duration::from_secs(7));
    *env.queue.unanswered.lock().unwrap() = Duration::ZERO;
    env.queue.lose();
    env.queue.subscribed.notified().await;
    assert_eq!(env.counters.read().pool.unanswered, Duration::ZERO, "a new connection");
    env.stop().await;
}
