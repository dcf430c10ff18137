//! Subscriptions that are lost, and safe mode.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_is_replaced_and_costs_no_attempt() {
    let stage = Stage::set(1, 10).await;
    stage.broker.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.broker.lose();
    stage.broker.subscribed.notified().await;
    stage.broker.deliver(1, "ok");
    assert_eq!(stage.broker.settled(2).await, [(1, RELEASE), (1, ACK)]);
    assert_eq!(stage.counters.counts().failed_attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_is_noticed_though_all_slots_are_taken() {
    let stage = Stage::set_with(1, 1, OnFailure::Hold).await;
    stage.book.failures.store(usize::MAX, Ordering::SeqCst);
    stage.broker.deliver(1, "emit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.broker.lose();
    stage.broker.subscribed.notified().await;
    assert_eq!(stage.broker.settled(1).await, [(1, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_keep_coming_back_turn_on_safe_mode() {
    let stage = Stage::set(2, 10).await;
    assert_eq!(*stage.broker.prefetches.lock().unwrap(), [20]);
    stage.broker.deliver_again(1, "ok", 3);
    assert_eq!(stage.broker.settled(1).await, [(1, RELEASE)], "given back, not started");
    stage.broker.subscribed.notified().await;
    assert_eq!(*stage.broker.prefetches.lock().unwrap(), [20, 1]);
    stage.broker.deliver_again(1, "ok", 4);
    for tag in 2..=21 {
        stage.broker.deliver(tag, "ok");
    }
    stage.broker.subscribed.notified().await;
    assert_eq!(*stage.broker.prefetches.lock().unwrap(), [20, 1, 20], "and it ends after a clear streak");
}

/// A message that kills its connection must come around some twenty times before the broker takes it out.
#[tokio::test(start_paused = true)]
async fn in_safe_mode_the_waits_between_subscriptions_stay_short() {
    let stage = Stage::set(1, 1).await;
    let begun = tokio::time::Instant::now();
    for _ in 0..21 {
        stage.broker.lose();
        stage.broker.subscribed.notified().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(stage.broker.prefetches.lock().unwrap().last(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_cannot_be_consumed_for_a_while_does_not_turn_on_safe_mode() {
    let stage = Stage::set(2, 10).await;
    stage.broker.refusals.store(3, Ordering::SeqCst);
    stage.broker.lose();
    stage.broker.subscribed.notified().await;
    assert_eq!(*stage.broker.prefetches.lock().unwrap(), [20, 20]);
}

#[tokio::test(start_paused = true)]
async fn safe_mode_is_told_while_work_begun_before_it_goes_on() {
    let stage = Stage::set(2, 10).await;
    stage.broker.deliver(1, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.broker.deliver_again(2, "ok", 3);
    stage.broker.settled(1).await;
    let reading = stage.counters.read();
    assert_eq!((reading.counts.in_flight, reading.pool.subscriptions, reading.pool.safe_mode), (1, 1, true));
}

#[tokio::test(start_paused = true)]
async fn the_pool_tells_its_workers_subscriptions_and_safe_mode() {
    let stage = Stage::set(2, 10).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let state = |subscriptions, workers_up, slots, safe_mode| PoolState {
        taking: 1,
        draining: 0,
        slots,
        subscriptions,
        workers_up,
        safe_mode,
    };
    assert_eq!(stage.counters.read().pool, state(1, 2, 20, false));
    stage.broker.deliver_again(1, "ok", 3);
    stage.broker.subscribed.notified().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(stage.counters.read().pool, state(2, 1, 1, true));
    let counters = Arc::clone(&stage.counters);
    stage.stop().await;
    let stopped = PoolState { subscriptions: 2, safe_mode: true, ..PoolState::default() };
    assert_eq!(counters.read().pool, stopped);
    assert_eq!(conservation::check(&counters.counts(), &stopped), Ok(()));
}
