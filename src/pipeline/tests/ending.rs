//! How a pool ends: by a shutdown, by an abort, or by a drain when another pool replaces it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_what_was_started_and_releases_the_rest() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.queue.deliver(2, "ok");
    env.shutdown.begin();
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.publisher.gate.add_permits(1);
    let counters = Arc::clone(&env.counters);
    assert_eq!(
        env.stop().await.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        [(1, ACK), (2, RELEASE)].into()
    );
    assert_eq!(counters.counts().failed_attempts, 0, "a shutdown costs no attempt");
}

#[tokio::test(start_paused = true)]
async fn an_abort_releases_what_is_in_flight() {
    let env = TestEnv::start(2, 1).await;
    env.queue.deliver(1, "hang");
    env.queue.deliver(2, "hang");
    tokio::time::sleep(Duration::from_millis(10)).await;
    env.shutdown.abort();
    let mut settled = env.stop().await;
    settled.sort_by_key(|(tag, _)| *tag);
    assert_eq!(settled, [(1, RELEASE), (2, RELEASE)]);
}

/// Lets all tasks run until they wait.
async fn settle_down() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_pool_finishes_everything_delivered_and_releases_nothing() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    settle_down().await;
    // Delivered but not started. Their high delivery counts are no reason to release them now.
    env.queue.deliver_again(2, "ok", 7);
    env.queue.deliver_again(3, "transient", 8);
    env.drain.cancel();
    settle_down().await;
    let pool = env.counters.pool();
    assert_eq!(
        (pool.active_subscriptions, pool.draining_subscriptions, pool.capacity, pool.safe_mode),
        (0, 1, 1, false)
    );
    env.publisher.gate.add_permits(2);
    env.pool.await.unwrap().unwrap();
    assert_eq!(env.queue.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!((env.counters.counts().forwarded, env.counters.counts().released), (1, 0));
    let pool = env.counters.pool();
    assert_eq!(
        (pool.active_subscriptions, pool.draining_subscriptions, pool.capacity, pool.workers_running),
        (0, 0, 0, 0)
    );
    assert_eq!(env.queue.prefetches.lock().unwrap().len(), 1, "it subscribed again");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_releases_what_a_draining_pool_has_not_started() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    settle_down().await;
    env.queue.deliver(2, "ok");
    env.drain.cancel();
    settle_down().await;
    env.shutdown.begin();
    settle_down().await;
    env.publisher.gate.add_permits(1);
    assert_eq!(env.stop().await, [(1, ACK), (2, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_a_draining_pool() {
    let env = TestEnv::start(1, 1).await;
    env.queue.deliver(1, "hang");
    settle_down().await;
    env.drain.cancel();
    settle_down().await;
    env.shutdown.abort();
    assert_eq!(env.stop().await, [(1, RELEASE)]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_subscription_ends_a_draining_pool() {
    let env = TestEnv::start(1, 1).await;
    env.queue.deliver(1, "hang");
    settle_down().await;
    env.drain.cancel();
    settle_down().await;
    env.queue.lose();
    env.pool.await.unwrap().unwrap();
    assert_eq!(env.queue.settled(1).await, [(1, RELEASE)]);
    assert_eq!(env.queue.prefetches.lock().unwrap().len(), 1, "it subscribed again");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_drained_while_it_subscribes_finishes_what_was_delivered_by_then() {
    let env = TestEnv::start(1, 1).await;
    let subscribe_gate = Arc::new(Notify::new());
    *env.queue.subscribe_gate.lock().unwrap() = Some(Arc::clone(&subscribe_gate));
    env.queue.lose();
    env.queue.subscribed.notified().await;
    env.queue.deliver(1, "ok");
    env.drain.cancel();
    settle_down().await;
    subscribe_gate.notify_one();
    env.pool.await.unwrap().unwrap();
    assert_eq!(env.queue.settled(1).await, [(1, ACK)]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_drained_while_it_waits_for_the_broker_ends_at_once() {
    let env = TestEnv::start(1, 1).await;
    env.queue.refusals.store(usize::MAX, Ordering::SeqCst);
    env.queue.lose();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let begun = tokio::time::Instant::now();
    env.drain.cancel();
    env.pool.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_draining_pool_whose_worker_dies_still_finishes_the_rest() {
    let env = TestEnv::start(1, 1).await;
    env.publisher.gate.forget_permits(1_000);
    env.queue.deliver(1, "emit");
    settle_down().await;
    env.queue.deliver(2, "kill");
    env.queue.deliver(3, "ok");
    env.drain.cancel();
    env.publisher.gate.add_permits(1);
    env.pool.await.unwrap().unwrap();
    assert_eq!(env.queue.settled(3).await, [(1, ACK), (2, RELEASE), (3, ACK)]);
}

#[tokio::test(start_paused = true)]
async fn safe_mode_continues_in_the_pool_that_replaces_a_drained_one() {
    let env = TestEnv::start(2, 10).await;
    env.queue.deliver_again(1, "ok", 3);
    env.queue.subscribed.notified().await;
    env.drain.cancel();
    env.pool.await.unwrap().unwrap();
    let context = ConsumerContext {
        consumer: "order".into(),
        queue: "order_queue".into(),
        handler: Arc::clone(&env.handler) as Arc<dyn Handler>,
        publisher: Arc::new(SharedPublisher(Arc::clone(&env.publisher))),
        ledger: Arc::clone(&env.ledger) as Arc<dyn LedgerWriter>,
        intake: Intake::new(env.ledger.state(), Vec::new(), Arc::default()),
        outage: PublishOutage::default(),
        names: Arc::new(ExchangeNames::new("orders")),
        bindings: Vec::new(),
        users: Arc::new(crate::message::TrustedUsers::known("orderd")),
        unidentified: Arc::default(),
        format: crate::formats::Format::Own,
        max_body: 1 << 20,
        decompressed: DecompressedBytes::new(1 << 20),
        timeout: Duration::from_secs(30),
        on_failure: OnFailure::KeepRetrying,
        counters: Arc::clone(&env.counters),
    };
    let pool = Arc::new(Pool {
        context: Arc::new(context),
        consumer: Arc::clone(&env.queue) as Arc<dyn Consumer>,
        workers: 2,
        prefetch: 10,
        reconnect_max: Duration::from_secs(30),
        shutdown: env.shutdown.clone(),
        drain: CancellationToken::new(),
        intake_ended: CancellationToken::new(),
    });
    let pool = tokio::spawn(pool.run());
    for tag in 2..=21 {
        env.queue.subscribed.notified().now_or_never();
        settle_down().await;
        env.queue.deliver(tag, "ok");
    }
    env.queue.subscribed.notified().await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [20, 1, 1, 20]);
    env.shutdown.begin();
    pool.await.unwrap().unwrap();
}
