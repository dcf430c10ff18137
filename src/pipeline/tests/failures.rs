//! Handlers that fail, panic or take too long, and workers that die.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_delivery() {
    let env = TestEnv::start(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "panic"), (3, "ok")] {
        env.queue.deliver(tag, body);
    }
    assert_eq!(env.queue.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!(env.failure_kinds(), ["panicked"]);
    assert_eq!(env.counters.counts().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_past_its_deadline_times_out_and_does_not_delay_others() {
    let env = TestEnv::start(1, 2).await;
    env.queue.deliver(1, "hang");
    env.queue.deliver(2, "ok");
    assert_eq!(env.queue.settled(1).await, [(2, ACK)]);
    assert_eq!(env.queue.settled(2).await, [(1, ACK), (2, ACK)]);
    assert_eq!(env.failure_kinds(), ["timed_out"]);
}

#[tokio::test(start_paused = true)]
async fn only_transient_failures_are_retried_immediately() {
    let env = TestEnv::start(1, 1).await;
    env.queue.deliver(1, "transient");
    env.queue.settled(1).await;
    assert_eq!(env.handler.calls.load(Ordering::SeqCst), 3, "one attempt and two immediate retries");
    env.queue.deliver(2, "permanent");
    env.queue.settled(2).await;
    assert_eq!(env.handler.calls.load(Ordering::SeqCst), 4);
    assert_eq!(env.failure_kinds(), ["transient", "permanent"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_is_restarted_and_its_deliveries_are_released() {
    let env = TestEnv::start(1, 10).await;
    env.queue.deliver(1, "hang");
    env.queue.deliver(2, "kill");
    let settled = env.queue.settled(2).await;
    assert_eq!(settled, [(1, RELEASE), (2, RELEASE)]);
    env.queue.deliver(3, "ok");
    assert_eq!(env.queue.settled(3).await[2], (3, ACK));
    assert_eq!(env.counters.counts().restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn deliveries_finished_just_before_their_worker_dies_stay_acked() {
    let env = TestEnv::start(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "permanent"), (3, "kill"), (4, "ok")] {
        env.queue.deliver(tag, body);
    }
    assert_eq!(env.queue.settled(4).await, [(1, ACK), (2, ACK), (3, RELEASE), (4, RELEASE)]);
    assert_eq!(env.failure_kinds(), ["permanent"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_keeps_dying_ends_its_pool() {
    let env = TestEnv::start(1, 1).await;
    for tag in 1..=11 {
        env.queue.deliver(tag, "kill");
    }
    let error = env.pool.await.unwrap().unwrap_err();
    assert!(matches!(error, crate::pipeline::PoolError::Worker { .. }), "{error}");
}
