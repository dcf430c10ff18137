//! How a pool ends: drained, aborted, or retired for another.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_was_started_and_gives_the_rest_back() {
    let stage = Stage::set(1, 1).await;
    stage.outbox.gate.forget_permits(1_000);
    stage.broker.deliver(1, "emit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.broker.deliver(2, "ok");
    stage.shutdown.begin();
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.outbox.gate.add_permits(1);
    let counters = Arc::clone(&stage.counters);
    assert_eq!(
        stage.stop().await.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        [(1, ACK), (2, RELEASE)].into()
    );
    assert_eq!(counters.counts().failed_attempts, 0, "a shutdown costs no attempt");
}

#[tokio::test(start_paused = true)]
async fn an_abort_gives_back_what_is_in_flight() {
    let stage = Stage::set(2, 1).await;
    stage.broker.deliver(1, "hang");
    stage.broker.deliver(2, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.shutdown.abort();
    let mut settled = stage.stop().await;
    settled.sort_by_key(|(tag, _)| *tag);
    assert_eq!(settled, [(1, RELEASE), (2, RELEASE)]);
}

/// Lets all tasks go as far as they can.
async fn calm() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_retired_pool_finishes_all_it_was_handed_and_gives_nothing_back() {
    let stage = Stage::set(1, 1).await;
    stage.outbox.gate.forget_permits(1_000);
    stage.broker.deliver(1, "emit");
    calm().await;
    // Handed out, though not started. That they came back before is no reason to give them back now.
    stage.broker.deliver_again(2, "ok", 7);
    stage.broker.deliver_again(3, "transient", 8);
    stage.retired.cancel();
    calm().await;
    let pool = stage.counters.pool();
    assert_eq!((pool.taking, pool.draining, pool.slots, pool.safe_mode), (0, 1, 1, false));
    stage.outbox.gate.add_permits(2);
    stage.pool.await.unwrap().unwrap();
    assert_eq!(stage.broker.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!((stage.counters.counts().forwarded, stage.counters.counts().released), (1, 0));
    let pool = stage.counters.pool();
    assert_eq!((pool.taking, pool.draining, pool.slots, pool.workers_up), (0, 0, 0, 0));
    assert_eq!(stage.broker.prefetches.lock().unwrap().len(), 1, "it subscribed again");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_drains_a_retired_pool_like_any_other() {
    let stage = Stage::set(1, 1).await;
    stage.outbox.gate.forget_permits(1_000);
    stage.broker.deliver(1, "emit");
    calm().await;
    stage.broker.deliver(2, "ok");
    stage.retired.cancel();
    calm().await;
    stage.shutdown.begin();
    calm().await;
    stage.outbox.gate.add_permits(1);
    assert_eq!(stage.stop().await, [(1, ACK), (2, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_a_retired_pool() {
    let stage = Stage::set(1, 1).await;
    stage.broker.deliver(1, "hang");
    calm().await;
    stage.retired.cancel();
    calm().await;
    stage.shutdown.abort();
    assert_eq!(stage.stop().await, [(1, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_ends_a_retired_pool() {
    let stage = Stage::set(1, 1).await;
    stage.broker.deliver(1, "hang");
    calm().await;
    stage.retired.cancel();
    calm().await;
    stage.broker.lose();
    stage.pool.await.unwrap().unwrap();
    assert_eq!(stage.broker.settled(1).await, [(1, RELEASE)]);
    assert_eq!(stage.broker.prefetches.lock().unwrap().len(), 1, "it subscribed again");
}

#[tokio::test(start_paused = true)]
async fn a_pool_retired_while_it_subscribes_finishes_what_it_was_handed_by_then() {
    let stage = Stage::set(1, 1).await;
    let door = Arc::new(Notify::new());
    *stage.broker.door.lock().unwrap() = Some(Arc::clone(&door));
    stage.broker.lose();
    stage.broker.subscribed.notified().await;
    stage.broker.deliver(1, "ok");
    stage.retired.cancel();
    calm().await;
    door.notify_one();
    stage.pool.await.unwrap().unwrap();
    assert_eq!(stage.broker.settled(1).await, [(1, ACK)]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_retired_while_it_waits_for_the_broker_ends_at_once() {
    let stage = Stage::set(1, 1).await;
    stage.broker.refusals.store(usize::MAX, Ordering::SeqCst);
    stage.broker.lose();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let begun = tokio::time::Instant::now();
    stage.retired.cancel();
    stage.pool.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_retired_pool_whose_worker_dies_still_finishes_the_rest() {
    let stage = Stage::set(1, 1).await;
    stage.outbox.gate.forget_permits(1_000);
    stage.broker.deliver(1, "emit");
    calm().await;
    stage.broker.deliver(2, "kill");
    stage.broker.deliver(3, "ok");
    stage.retired.cancel();
    stage.outbox.gate.add_permits(1);
    stage.pool.await.unwrap().unwrap();
    assert_eq!(stage.broker.settled(3).await, [(1, ACK), (2, RELEASE), (3, ACK)]);
}

#[tokio::test(start_paused = true)]
async fn safe_mode_is_handed_on_to_the_pool_that_takes_over() {
    let stage = Stage::set(2, 10).await;
    stage.broker.deliver_again(1, "ok", 3);
    stage.broker.subscribed.notified().await;
    stage.retired.cancel();
    stage.pool.await.unwrap().unwrap();
    let line = ConsumerContext {
        consumer: "order".into(),
        queue: "order_queue".into(),
        handler: Arc::clone(&stage.puppet) as Arc<dyn Handler>,
        publisher: Arc::new(OutboxPort(Arc::clone(&stage.outbox))),
        ledger: Arc::clone(&stage.book) as Arc<dyn Ledger>,
        names: Arc::new(ExchangeNames::new("orders")),
        timeout: Duration::from_secs(30),
        on_failure: OnFailure::Hold,
        counters: Arc::clone(&stage.counters),
    };
    let pool = Arc::new(Pool {
        line: Arc::new(line),
        consumer: Arc::clone(&stage.broker) as Arc<dyn Consumer>,
        workers: 2,
        prefetch: 10,
        reconnect_max: Duration::from_secs(30),
        shutdown: stage.shutdown.clone(),
        retired: CancellationToken::new(),
        intake_ended: CancellationToken::new(),
    });
    let pool = tokio::spawn(pool.run());
    for tag in 2..=21 {
        stage.broker.subscribed.notified().now_or_never();
        calm().await;
        stage.broker.deliver(tag, "ok");
    }
    stage.broker.subscribed.notified().await;
    assert_eq!(*stage.broker.prefetches.lock().unwrap(), [20, 1, 1, 20]);
    stage.shutdown.begin();
    pool.await.unwrap().unwrap();
}
