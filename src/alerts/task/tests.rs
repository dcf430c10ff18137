//! The whole task with a ledger in memory and a file that can fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::*;
use crate::config::{Config, Sources};
use crate::handlers;
use crate::ledger::memory::MemoryLedger;
use crate::notify::{Channel, Notice};
use crate::pipeline::{HandlerError, Interruption};
use crate::reconcile::{ApiState, Finding, FindingKind};
use crate::steps::CircuitBreakers;

const CONFIG: &str = r#"
    [notify.operators]
    type = "log"
    [alerts]
    channel = "operators"
    open_after = "0s"
    resolved_after = "10s"
    interval = "0s"
"#;

#[derive(Default)]
struct FakeFile {
    lines: Mutex<Vec<(String, Value)>>,
    is_down: AtomicBool,
}

impl Channel for FakeFile {
    fn write<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            if self.is_down.load(Ordering::SeqCst) {
                return Err(HandlerError::Interrupted(Interruption::EventFileClosed));
            }
            let line = (notice.id.to_owned(), serde_json::from_str(notice.body).unwrap());
            self.lines.lock().unwrap().push(line);
            Ok(())
        })
    }
}

struct Env {
    file: Arc<FakeFile>,
    ledger: Arc<MemoryLedger>,
    state: Arc<Mutex<LocalState>>,
    status: watch::Sender<Option<AlertsStatus>>,
}

impl Env {
    fn new() -> Self {
        let state = LocalState { api: ApiState::Fresh, ..LocalState::default() };
        let state = Arc::new(Mutex::new(state));
        Env { file: Arc::default(), ledger: Arc::default(), state, status: watch::Sender::default() }
    }

    /// A process that has just started.
    fn start(&self, owner: &str) -> AlertTask {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let config = Config::load(&Sources { file: Some(file), ..handlers::sources() }).unwrap().config;
        let settings = config.alerts.constructor::<AlertSettings>().unwrap().clone();
        let log: Arc<dyn Channel> = self.file.clone();
        let state = Arc::clone(&self.state);
        let deps = AlertDeps {
            scopes: AlertScopes { broker: "virtual host /".to_owned(), instance: "shop-1, orderd.toml".to_owned() },
            state: Arc::new(move || state.lock().unwrap().clone()),
            ledger: self.ledger.clone(),
            channel: Arc::new(OperatorChannel::new(&settings.channel, &log, &CircuitBreakers::default())),
            status: self.status.clone(),
            shutdown: Shutdown::new(),
        };
        AlertTask { owner: owner.to_owned(), ..AlertTask::new(settings, deps) }
    }

    fn see(&self, queues: &[&str]) {
        let finding = |queue: &&str| -> Finding {
            serde_json::from_value(serde_json::json!({
                "queue": queue, "kind": FindingKind::QueueMissing, "since": at(0), "messages": null, "detail": "deleted"
            }))
            .unwrap()
        };
        self.state.lock().unwrap().findings = queues.iter().map(finding).collect();
    }

    /// `(open, resolved)` of each message.
    fn sent(&self) -> Vec<(usize, usize)> {
        let count = |body: &Value, state: &str| {
            body["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == state).count()
        };
        let lines = self.file.lines.lock().unwrap();
        lines.iter().map(|(_, body)| (count(body, "open"), count(body, "resolved"))).collect()
    }

    fn status(&self) -> AlertsStatus {
        self.status.borrow().clone().unwrap()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_sent_once_over_restarts_and_its_end_too() {
    let env = Env::new();
    env.see(&["a"]);
    let mut task = env.start("me");
    for second in 0..3 {
        task.round(at(second)).await;
    }
    assert_eq!(env.sent(), [(1, 0)]);
    let mut task = env.start("me again");
    for second in 3..30 {
        task.round(at(second)).await;
    }
    assert_eq!(env.sent(), [(1, 0)]);
    assert_eq!((env.status().open.len(), env.status().unsent), (1, 0));
    env.see(&[]);
    let mut task = env.start("me once more");
    for second in 30..60 {
        task.round(at(second)).await;
    }
    assert_eq!(env.sent(), [(1, 0), (0, 1)]);
    assert!(env.status().open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn while_the_channel_is_down_the_status_says_so_and_then_one_message_has_everything() {
    let env = Env::new();
    env.file.is_down.store(true, Ordering::SeqCst);
    let mut task = env.start("me");
    env.see(&["a"]);
    task.round(at(0)).await;
    env.see(&["b", "c"]);
    for second in 1..40 {
        tokio::time::advance(Duration::from_secs(1)).await;
        task.round(at(second)).await;
    }
    let status = env.status();
    assert_eq!((status.unsent, status.open.len(), status.sent), (3, 2, 0));
    assert!(status.problem.is_some() && (2..20).contains(&status.failed), "{status:?}");
    env.file.is_down.store(false, Ordering::SeqCst);
    tokio::time::advance(RETRY_BACKOFF.max).await;
    task.round(at(40)).await;
    assert_eq!(env.sent(), [(2, 1)]);
    let status = env.status();
    assert_eq!((status.unsent, status.sent, status.problem), (0, 1, None));
}

#[tokio::test(start_paused = true)]
async fn of_two_instances_with_one_ledger_one_sends() {
    let env = Env::new();
    env.see(&["a", "b"]);
    let (mut first, mut second) = (env.start("first"), env.start("second"));
    for time in 0..5 {
        tokio::join!(first.round(at(time)), second.round(at(time)));
    }
    assert_eq!(env.sent(), [(2, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_ledger_is_waited_for_and_shown() {
    let env = Env::new();
    env.see(&["a"]);
    let mut task = env.start("me");
    env.ledger.begin_outage(crate::ledger::OutageCause::DiskFull);
    let mut round = std::pin::pin!(task.round(at(0)));
    assert!(timeout(LEDGER_TIMEOUT * 3, &mut round).await.is_err());
    assert!(env.status().problem.is_some() && env.sent().is_empty());
    env.ledger.end_outage();
    round.await;
    assert_eq!((env.sent(), env.status().problem), (vec![(1, 0)], None));
}
