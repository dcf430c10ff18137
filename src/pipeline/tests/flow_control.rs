//! Rate limits, and services that are unavailable.

use super::*;
use crate::config::{DEFAULT_FILE, Rate, Sources};
use crate::gate::{GateControl, GateState};

const SECOND: Duration = Duration::from_secs(1);

/// A rate as the configuration has it.
fn rate(text: &str) -> Option<Rate> {
    let setting = format!("consumers.order.rate_limit={text}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("orderd.toml");
    std::fs::write(&file, DEFAULT_FILE).unwrap();
    let sources = Sources { file: Some(file), settings: vec![setting], ..crate::handlers::sources() };
    crate::config::Config::load(&sources).unwrap().config.consumers["order"].rate_limit
}

async fn limited(workers: usize, prefetch: u16, limit: &str) -> (TestEnv, Arc<RateLimiter>) {
    let rate_limiter = Arc::new(RateLimiter::default());
    rate_limiter.set(rate(limit));
    let handler = ScriptedHandler::default();
    let env = TestEnv::start_limited(workers, prefetch, forward_after(0), handler, Arc::clone(&rate_limiter)).await;
    (env, rate_limiter)
}

#[tokio::test(start_paused = true)]
async fn deliveries_are_started_at_the_limited_rate_and_those_that_wait_are_not_in_flight() {
    let (env, _) = limited(3, 20, "10/s").await;
    let begun = tokio::time::Instant::now();
    (1..=31).for_each(|tag| env.queue.deliver(tag, "ok"));
    tokio::time::sleep(SECOND).await;
    let counts = env.counters.counts();
    assert!((10..=11).contains(&counts.completed) && counts.in_flight == 0, "{counts:?}");
    env.queue.settled(31).await;
    // One at once, then ten a second.
    let elapsed = begun.elapsed();
    assert!((Duration::from_millis(2_950)..=Duration::from_millis(3_200)).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_comes_after_a_quiet_minute_is_started_at_once_and_no_burst_follows() {
    let (env, _) = limited(1, 50, "20/s").await;
    tokio::time::sleep(60 * SECOND).await;
    (1..=50).for_each(|tag| env.queue.deliver(tag, "ok"));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(env.counters.counts().completed, 2, "a tenth of a second's deliveries");
    tokio::time::sleep(SECOND).await;
    assert!((21..=23).contains(&env.counters.counts().completed), "{:?}", env.counters.counts());
    env.queue.settled(50).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_limit_holds_for_deliveries_that_wait_already() {
    let (env, rate_limiter) = limited(1, 2, "1/m").await;
    assert_eq!(env.queue.prefetches.lock().unwrap()[0], 1, "no more than can be started within a minute");
    (1..=3).for_each(|tag| env.queue.deliver(tag, "ok"));
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(env.counters.counts().completed, 1);
    rate_limiter.set(None);
    env.queue.settled(3).await;
    rate_limiter.set(rate("1/m"));
    (4..=5).for_each(|tag| env.queue.deliver(tag, "ok"));
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(env.counters.counts().completed, 4);
    let begun = tokio::time::Instant::now();
    rate_limiter.set(rate("1/s"));
    env.queue.settled(5).await;
    assert!(begun.elapsed() <= 2 * SECOND, "{:?}", begun.elapsed());
    let (env, _) = limited(4, 250, "90/m").await;
    assert_eq!(env.queue.prefetches.lock().unwrap()[0], 88, "4 × 22");
    let (env, _) = limited(4, 250, "1000/s").await;
    assert_eq!(env.queue.prefetches.lock().unwrap()[0], 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_drain_and_a_shutdown_do_not_wait_for_the_rate_limit_without_a_delivery() {
    let (env, _) = limited(2, 10, "1/m").await;
    env.queue.deliver(1, "ok");
    env.queue.settled(1).await;
    let begun = tokio::time::Instant::now();
    env.drain.cancel();
    env.pool.await.unwrap().unwrap();
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
    let (env, _) = limited(2, 10, "1/m").await;
    (1..=2).for_each(|tag| env.queue.deliver(tag, "ok"));
    env.queue.settled(1).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(env.stop().await, [(1, ACK), (2, RELEASE)]);
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_former_pool_cannot_start_in_time_because_the_limit_was_lowered_returns_to_the_queue() {
    let (env, rate_limiter) = limited(1, 30, "1000/s").await;
    rate_limiter.set(rate("1/m"));
    (1..=30).for_each(|tag| env.queue.deliver(tag, "ok"));
    let begun = tokio::time::Instant::now();
    env.drain.cancel();
    env.pool.await.unwrap().unwrap();
    assert!(begun.elapsed() < 400 * SECOND, "well before the broker wants an ack: {:?}", begun.elapsed());
    let counts = env.counters.counts();
    assert_eq!((counts.completed + counts.released, counts.failed_attempts), (30, 0), "{counts:?}");
    assert!((5..=8).contains(&counts.completed), "one a minute: {counts:?}");
}

async fn with_service(workers: usize, prefetch: u16) -> (TestEnv, GateControl) {
    let control = GateControl::open("the service of step \"charge\"");
    let handler = ScriptedHandler { service: Some(control.gate()), ..ScriptedHandler::default() };
    let env = TestEnv::start_limited(workers, prefetch, forward_after(0), handler, Arc::default()).await;
    (env, control)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_away_for_long_costs_no_attempt_and_each_delivery_one_release() {
    let (env, service) = with_service(2, 2).await;
    service.set(GateState::Trial);
    env.queue.deliver(1, "call");
    tokio::time::sleep(SECOND).await;
    service.set(GateState::Closed(None));
    (2..=4).for_each(|tag| env.queue.deliver(tag, "call"));
    // Longer than the handler's deadline.
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(env.handler.calls.load(Ordering::SeqCst), 1, "nothing more is started");
    assert_eq!(env.queue.settled(0).await, [], "what is in flight waits");
    tokio::time::sleep(300 * SECOND).await;
    let released = env.queue.settled(4).await;
    assert!(released.iter().all(|(_, settlement)| *settlement == RELEASE), "{released:?}");
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [4, 1], "it stays subscribed, for one delivery");
    env.queue.deliver(1, "ok");
    tokio::time::sleep(1_200 * SECOND).await;
    assert_eq!(env.queue.settled(0).await.len(), 4, "the delivery waits, and is not released again and again");
    service.set(GateState::Closed(Some(tokio::time::Instant::now() + 10 * SECOND)));
    assert_eq!(env.queue.settled(5).await[1], (1, ACK), "the trial");
    service.set(GateState::Open);
    env.queue.subscribed.notified().await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(*env.queue.prefetches.lock().unwrap(), [4, 1, 4]);
    (2..=4).for_each(|tag| env.queue.deliver(tag, "call"));
    env.queue.settled(8).await;
    let counts = env.counters.counts();
    assert_eq!((counts.failed_attempts, counts.released, counts.completed), (0, 4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_away_for_a_moment_releases_nothing() {
    let (env, service) = with_service(1, 4).await;
    service.set(GateState::Trial);
    env.queue.deliver(1, "call");
    tokio::time::sleep(SECOND).await;
    service.set(GateState::Closed(None));
    env.queue.deliver(2, "call");
    tokio::time::sleep(100 * SECOND).await;
    service.set(GateState::Open);
    assert_eq!(env.queue.settled(2).await, [(1, ACK), (2, ACK)]);
    assert_eq!(env.queue.prefetches.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_or_a_shutdown_while_a_service_is_away_releases_what_waits() {
    for is_shutdown in [false, true] {
        let (env, service) = with_service(1, 4).await;
        service.set(GateState::Trial);
        env.queue.deliver(1, "call");
        tokio::time::sleep(SECOND).await;
        service.set(GateState::Closed(None));
        if is_shutdown {
            env.shutdown.begin()
        } else {
            env.drain.cancel()
        }
        assert_eq!(env.queue.settled(1).await, [(1, RELEASE)]);
        env.pool.await.unwrap().unwrap();
    }
}
