//! Runs with services that are scripted, and the ledger in memory: what is called, in which order, and what is recorded before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::claim::claim;
use super::engine_step::EngineStep;
use super::*;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{
    AlertAnswer, AlertBook, CancelAnswer, ClaimAnswer, ClaimPurpose, LedgerEntry, LedgerError, LedgerWriter,
    NewCancellation, Recorded, RunClaim, RunFailure, RunKey, RunMessage, RunRecord, RunRecorded, RunState, StepAction,
    StepRun, StepStatus,
};
use crate::message::{ExchangeNames, Publication, PublishError};
use crate::metrics::StepCounters;
use crate::recovery::{ClaimNote, Failure, FailureKind};
use crate::wait_budget::WaitBudget;

/// What happened, in order: calls, and published events.
type Journal = Arc<Mutex<Vec<String>>>;

/// What a call of a scripted service ends with; after the script it answers `1`.
enum Scripted {
    Answer(&'static str),
    Fails(FailureKind, FailureCause),
    /// Never answers.
    Hangs,
}

struct ScriptedService {
    journal: Journal,
    script: Arc<Mutex<VecDeque<Scripted>>>,
}

impl StepService for ScriptedService {
    fn call<'a>(&'a self, call: StepCall<'a>) -> BoxFuture<'a, Result<StepAnswer, StepFailure>> {
        self.journal.lock().unwrap().push(format!("{} {}", call.idempotency_key, steps_of(call.body)));
        match self.script.lock().unwrap().pop_front() {
            None => ready(Ok(StepAnswer::read(b"1").unwrap())).boxed(),
            Some(Scripted::Answer(answer)) => ready(Ok(StepAnswer::read(answer.as_bytes()).unwrap())).boxed(),
            Some(Scripted::Fails(kind, cause)) => {
                let failure = StepFailure::new(Failure::new(kind, "scripted", "as the script says"), cause);
                ready(Err(StepFailure { retry_after: Some(Duration::from_secs(900)), ..failure })).boxed()
            }
            Some(Scripted::Hangs) => std::future::pending().boxed(),
        }
    }
}

/// The member `steps` of a request.
fn steps_of(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["steps"].to_string()
}

/// Takes this long.
struct JournalPublisher(Journal, Duration);

impl EventPublisher for JournalPublisher {
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        async move {
            if !self.1.is_zero() {
                tokio::time::sleep(self.1).await;
            }
            for event in events.iter() {
                let id = event.message.properties.message_id.as_deref().unwrap_or_default();
                self.0.lock().unwrap().push(format!("event {} {id}", event.routing_key));
            }
            Ok(())
        }
        .boxed()
    }
}

struct Env {
    ledger: MemoryLedger,
    journal: Journal,
    counters: StepCounters,
    engine: Engine,
    scripts: Vec<Arc<Mutex<VecDeque<Scripted>>>>,
    undo_scripts: Vec<Arc<Mutex<VecDeque<Scripted>>>>,
    key: RunKey,
    names: ExchangeNames,
    publish_time: Duration,
    max_hold: Duration,
}

const CONFIG: &str = r#"
    [[consumers.order.steps]]
    name = "charge"
    http = { url = "http://127.0.0.1:1/" }
    undo = { http = { url = "http://127.0.0.1:1/" } }
    emits = ["order.payment.*"]
    timeout = "100ms"
    [[consumers.order.steps]]
    name = "reserve"
    http = { url = "http://127.0.0.1:1/" }
    undo = { http = { url = "http://127.0.0.1:1/" } }
    timeout = "100ms"
    [[consumers.order.steps]]
    name = "wrap"
    http = { url = "http://127.0.0.1:1/" }
    when = { pointer = "/gift" }
    [[consumers.order.steps]]
    name = "ship"
    http = { url = "http://127.0.0.1:1/" }
    timeout = "100ms"
    retry_after_max = "2m"
"#;

/// Before a step's timeout.
const ONE_CALL: &str = "max_concurrent = 1\n    timeout";

impl Env {
    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn with(config: &str) -> Self {
        let settings = settings::tests::read(config).expect("it is valid");
        let journal = Journal::default();
        let mut engine = Engine::new("order", 4, &settings, &StepResources::default());
        let (mut scripts, mut undo_scripts) = (Vec::new(), Vec::new());
        for EngineStep { service, undo, .. } in &mut engine.steps {
            let scripted = |scripts: &mut Vec<_>| {
                let script = Arc::new(Mutex::new(VecDeque::new()));
                scripts.push(Arc::clone(&script));
                Arc::new(ScriptedService { journal: Arc::clone(&journal), script })
            };
            *service = scripted(&mut scripts);
            if let Some((undo, _)) = undo {
                *undo = scripted(&mut undo_scripts);
            }
        }
        let key = RunKey { scope: String::new(), identity: "o".to_owned() };
        let (ledger, counters) = (MemoryLedger::default(), StepCounters::default());
        let names = ExchangeNames::new("orders");
        let (publish_time, max_hold) = (Duration::ZERO, Duration::from_millis(300));
        Env { ledger, journal, counters, engine, scripts, undo_scripts, key, names, publish_time, max_hold }
    }

    fn script(&self, step: usize, scripted: Scripted) {
        self.scripts[step].lock().unwrap().push_back(scripted);
    }

    async fn run(&self) -> Result<RunOutcome, RunError> {
        self.run_with(&self.ledger).await
    }

    async fn run_with(&self, ledger: &dyn LedgerWriter) -> Result<RunOutcome, RunError> {
        self.run_key(&self.key, ledger).await
    }

    async fn run_key(&self, key: &RunKey, ledger: &dyn LedgerWriter) -> Result<RunOutcome, RunError> {
        let trace = TraceContext::default();
        let input = RunInput {
            key,
            message: &message(),
            is_new: true,
            replayed_at: None,
            text: "{}",
            order: None,
            trace,
            retries: 0,
        };
        let publisher = JournalPublisher(Arc::clone(&self.journal), self.publish_time);
        let access = RunAccess {
            ledger,
            publisher: &publisher,
            counters: &self.counters,
            note: &ClaimNote::default(),
            names: &self.names,
            waits: &WaitBudget::new(self.max_hold),
            max_hold: self.max_hold,
            may_take_over: &|queue| queue == "former_queue",
        };
        self.engine.run(input, None, access).await
    }

    async fn failure(&self) -> Failure {
        match self.run().await {
            Err(RunError::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// What happened since the last call of this.
    fn happened(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    /// Claims the run as the failed-order handler does.
    async fn claim(&self) -> StepRun {
        let waits = WaitBudget::new(Duration::ZERO);
        let claim = claim(
            &self.ledger,
            &self.key,
            ClaimPurpose::Failure { message: message(), failed_at: jiff::Timestamp::now(), round: None },
            None,
            Duration::ZERO,
            &waits,
            || {},
        );
        match claim.await {
            Ok(Claimed::Run(run, _)) => *run,
            Ok(_) | Err(_) => panic!("not claimed"),
        }
    }

    async fn record(&self, state: Option<RunState>, failure: Option<RunFailure>, dead_lettered: bool) {
        let fence = self.claim().await.fence;
        let key = self.key.clone();
        let at = jiff::Timestamp::now();
        let record = RunRecord { key, fence, at, until: None, ended: None, next: None, state, failure, dead_lettered };
        self.ledger.record_run(record).await.unwrap();
    }
}

fn message() -> RunMessage {
    RunMessage { queue: "order_queue".into(), hash: [1; 32] }
}

fn run_failure() -> RunFailure {
    RunFailure {
        kind: "permanent".to_owned(),
        code: "http_404".to_owned(),
        reason: "no such address".to_owned(),
        dead_letter_reason: "permanent".to_owned(),
        retries: 0,
        failed_at: jiff::Timestamp::now(),
        undo_from: jiff::Timestamp::now(),
    }
}

use FailureCause::{Refused, Unanswered};
use FailureKind::{Permanent, TimedOut, Transient};

#[tokio::test]
async fn steps_are_called_in_order_with_the_results_before_them_and_never_again_once_done() {
    let env = Env::new();
    let with_event = r#"{"id":7,"events":[{"routing_key":"order.payment.received","body":{}}]}"#;
    env.script(0, Scripted::Answer(with_event));
    env.script(1, Scripted::Fails(Transient, Unanswered));
    let failure = env.failure().await;
    assert_eq!((failure.kind, failure.code.as_str()), (Transient, "scripted"));
    let charged = format!("{{\"charge\":{with_event}}}");
    let parsed: serde_json::Value = serde_json::from_str(&charged).unwrap();
    let reserve = format!("o/reserve {parsed}");
    assert_eq!(env.happened(), ["o/charge {}", "event order.payment.received o/charge/event/1", &*reserve]);
    assert_eq!(env.run().await.unwrap(), RunOutcome::Done);
    let mut all = parsed;
    all["reserve"] = 1.into();
    assert_eq!(env.happened(), [reserve, format!("o/ship {all}")], "the condition of wrap does not hold");
    assert_eq!(env.run().await.unwrap(), RunOutcome::WasDone);
    assert!(env.happened().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_step_that_does_not_answer_times_out_and_its_effect_is_uncertain() {
    let env = Env::new();
    env.script(0, Scripted::Hangs);
    let failure = env.failure().await;
    assert_eq!((failure.kind, failure.code.as_str()), (TimedOut, "step_timeout"));
    let run = env.claim().await;
    assert_eq!((run.steps[0].status, run.steps[0].uncertain), (StepStatus::Failed, true));
}

#[tokio::test]
async fn a_service_that_asks_for_a_later_call_is_respected_within_the_limit() {
    let env = Env::new();
    env.script(0, Scripted::Fails(Transient, Refused));
    assert_eq!(env.failure().await.retry_after, Some(Duration::from_secs(300)));
    env.script(3, Scripted::Fails(Transient, Refused));
    assert_eq!(env.failure().await.retry_after, Some(Duration::from_secs(120)));
}

#[tokio::test]
async fn a_call_that_was_dropped_is_repeated_with_the_same_key_and_counts_as_an_attempt() {
    let env = Env::new();
    env.script(0, Scripted::Hangs);
    assert!(env.run().now_or_never().is_none(), "dropped while it waits for the answer");
    assert_eq!(env.run().await.unwrap(), RunOutcome::Done);
    let keys: Vec<String> = env.happened().iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(keys, ["o/charge", "o/charge", "o/reserve", "o/ship"]);
    let run = env.claim().await;
    assert_eq!((run.steps[0].attempts, run.steps[0].uncertain), (2, true));
}

#[tokio::test]
async fn an_event_with_another_key_fails_the_step_for_good_and_is_not_published() {
    for key in ["order.shipping.sent", "order.analytics.processed"] {
        let env = Env::new();
        let answer = format!("{{\"events\":[{{\"routing_key\":\"{key}\",\"body\":1}}]}}");
        env.script(0, Scripted::Answer(Box::leak(answer.into_boxed_str())));
        let failure = env.failure().await;
        assert_eq!((failure.kind, failure.code.as_str()), (Permanent, "event_not_allowed"));
        assert_eq!(env.happened(), ["o/charge {}"]);
        assert!(env.claim().await.steps[0].may_have_effect(), "it is undone");
    }
}

#[tokio::test]
async fn steps_are_undone_in_reverse_order_each_once_and_a_replay_begins_anew_with_other_keys() {
    let env = Env::new();
    env.script(3, Scripted::Fails(Permanent, Refused));
    env.failure().await;
    env.happened();
    env.record(Some(RunState::Undoing), Some(run_failure()), false).await;
    env.undo_scripts[0].lock().unwrap().push_back(Scripted::Fails(Transient, Unanswered));
    assert_eq!(env.failure().await.code, "scripted");
    let results = "{\"charge\":1,\"reserve\":1}";
    let undos = [format!("o/reserve/undo {results}"), format!("o/charge/undo {results}")];
    assert_eq!(env.happened(), undos);
    assert_eq!(env.failure().await.code, "undone");
    assert_eq!(env.happened(), undos[1..]);
    assert_eq!(env.failure().await.code, "undone");
    assert!(env.happened().is_empty(), "nothing is undone twice");
    env.record(None, None, true).await;
    assert_eq!(env.run().await.unwrap(), RunOutcome::Done);
    let calls = env.happened();
    assert_eq!(calls[..2], ["o/charge/2 {}", "o/reserve/2 {\"charge\":1}"]);
    let counted = env.counters.read();
    assert_eq!(counted.values().map(|step| step.in_flight).sum::<u64>(), 0);
    assert!(counted.contains_key(&("charge".into(), StepAction::Undo)));
}

/// Takes long for each claim and for each record of a call. Journals each renewal of a lease.
struct SlowLedger(MemoryLedger, Journal);

impl LedgerWriter for SlowLedger {
    fn exchange_alerts(&self, replacement: Option<AlertBook>) -> BoxFuture<'static, Result<AlertAnswer, LedgerError>> {
        self.0.exchange_alerts(replacement)
    }

    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        self.0.record(entry)
    }

    fn cancel_order(&self, cancellation: NewCancellation) -> BoxFuture<'static, Result<CancelAnswer, LedgerError>> {
        self.0.cancel_order(cancellation)
    }

    fn claim_run(&self, claim: RunClaim) -> BoxFuture<'static, Result<ClaimAnswer, LedgerError>> {
        let answer = self.0.claim_run(claim);
        async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            answer.await
        }
        .boxed()
    }

    fn record_run(&self, record: RunRecord) -> BoxFuture<'static, Result<RunRecorded, LedgerError>> {
        let is_renewal = record.next.is_none() && record.ended.is_none() && record.state.is_none();
        if is_renewal {
            let left = record.until.unwrap().duration_since(record.at);
            self.1.lock().unwrap().push(format!("renewed for {} ms", left.as_millis()));
        }
        let delay = if record.next.is_some() { Duration::from_secs(60) } else { Duration::ZERO };
        let answer = self.0.record_run(record);
        async move {
            tokio::time::sleep(delay).await;
            answer.await
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_covers_the_whole_call_after_an_outage_of_the_ledger_and_the_publishing_of_its_events() {
    let env = Env::new();
    env.script(0, Scripted::Answer(r#"{"result":1,"events":[{"routing_key":"order.payment.done","body":{}}]}"#));
    assert_eq!(
        env.run_with(&SlowLedger(MemoryLedger::default(), Arc::clone(&env.journal))).await.unwrap(),
        RunOutcome::Done
    );
    let happened = env.happened();
    let kinds: Vec<&str> =
        happened.iter().map(|line| if line.starts_with("renewed") { line } else { &line[..7] }).collect();
    let call = "renewed for 5100 ms";
    let expected = [call, "o/charg", "renewed for 15000 ms", "event o", call, "o/reser", call, "o/ship "];
    assert_eq!(kinds, expected, "{happened:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_short_and_renewed_while_the_broker_confirms_no_event_so_that_nobody_waits_long_after_a_crash() {
    let env = Env { publish_time: Duration::from_secs(22), ..Env::new() };
    env.script(0, Scripted::Answer(r#"{"result":1,"events":[{"routing_key":"order.payment.done","body":{}}]}"#));
    let ledger = SlowLedger(MemoryLedger::default(), Arc::clone(&env.journal));
    assert_eq!(env.run_with(&ledger).await.unwrap(), RunOutcome::Done);
    let renewed = |line: &&String| line.contains("renewed for 15000 ms");
    assert_eq!(env.happened().iter().filter(renewed).count(), 5, "at once, and each five seconds");
}

#[tokio::test]
async fn steps_that_a_reload_has_reordered_are_undone_in_the_reverse_order_of_their_calls() {
    let mut env = Env::new();
    env.script(0, Scripted::Fails(Transient, Refused));
    env.failure().await;
    env.engine.steps.swap(0, 1);
    env.script(3, Scripted::Fails(Permanent, Refused));
    env.failure().await;
    assert_eq!(
        env.happened(),
        ["o/charge {}", "o/reserve {}", "o/charge {\"reserve\":1}", "o/ship {\"charge\":1,\"reserve\":1}"]
    );
    env.record(Some(RunState::Undoing), Some(run_failure()), false).await;
    env.failure().await;
    let keys: Vec<String> = env.happened().iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(keys, ["o/charge/undo", "o/reserve/undo"]);
}

#[tokio::test]
async fn an_undo_that_is_not_configured_any_more_fails_for_good() {
    let mut env = Env::new();
    env.script(3, Scripted::Fails(Permanent, Refused));
    env.failure().await;
    env.record(Some(RunState::Undoing), Some(run_failure()), false).await;
    env.engine.steps.remove(1);
    let failure = env.failure().await;
    assert_eq!((failure.kind, failure.code.as_str()), (Permanent, "undo_not_configured"));
}

#[tokio::test]
async fn what_another_instance_works_on_is_waited_for_and_then_released() {
    let env = Env::new();
    claim_as_another(&env.ledger, &env.key).await;
    assert!(matches!(env.run().await, Err(RunError::WaitedTooLong)));
    assert!(env.happened().is_empty());
}

/// For ten minutes.
async fn claim_as_another(ledger: &MemoryLedger, key: &RunKey) {
    let at = jiff::Timestamp::now();
    let until = at.checked_add(Duration::from_secs(600)).unwrap();
    let purpose =
        ClaimPurpose::Work { message: message(), is_new: true, replayed_at: None, takes_over: false, first: None };
    let other = RunClaim { key: key.clone(), purpose, owner: "other".into(), at, until, order: None };
    ledger.claim_run(other).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn orders_that_wait_for_another_instance_keep_no_place_of_a_step_with_one_call_at_a_time() {
    let mut env = Env { max_hold: Duration::from_secs(300), ..Env::with(&CONFIG.replace("timeout", ONE_CALL)) };
    env.key.identity = "free".to_owned();
    let keys: Vec<RunKey> = (0..10).map(|n| RunKey { scope: String::new(), identity: format!("held-{n}") }).collect();
    for key in &keys {
        claim_as_another(&env.ledger, key).await;
    }
    let waiting = futures_util::future::join_all(keys.iter().map(|key| env.run_key(key, &env.ledger)));
    let free = async {
        // All others have asked for their claims by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = tokio::time::Instant::now();
        env.run().await.map(|outcome| (outcome, begun.elapsed() < Duration::from_secs(1)))
    };
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => panic!("they wait"),
        done = free => assert_eq!(done.unwrap(), (RunOutcome::Done, true)),
    }
}

#[tokio::test]
async fn steps_that_the_consumer_of_another_queue_has_called_are_continued_only_once_that_queue_has_no_consumer() {
    for (queue, expected) in
        [("former_queue", RunOutcome::Done), ("priority_order_queue", RunOutcome::NotAccepted(Recorded::InProgress))]
    {
        let env = Env::new();
        let at = jiff::Timestamp::now();
        let message = RunMessage { queue: queue.into(), ..message() };
        let purpose = ClaimPurpose::Work { message, is_new: true, replayed_at: None, takes_over: false, first: None };
        let claim = RunClaim { key: env.key.clone(), purpose, owner: "other".into(), at, until: at, order: None };
        env.ledger.claim_run(claim).await.unwrap();
        assert_eq!(env.run().await.unwrap(), expected);
        assert_eq!(env.happened().is_empty(), expected != RunOutcome::Done, "{queue}");
    }
}
