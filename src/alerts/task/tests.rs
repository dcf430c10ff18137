//! The whole task with a ledger in memory and a file that can fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{Config, Sources};
use crate::handlers;
use crate::ledger::memory::MemoryLedger;
use crate::metrics::DeadLettersOfCode;
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
    takes_seconds: AtomicU64,
}

impl Channel for FakeFile {
    fn write<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            sleep(Duration::from_secs(self.takes_seconds.load(Ordering::SeqCst))).await;
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
    history: Arc<AlertHistory>,
    status: watch::Sender<Option<AlertsStatus>>,
}

impl Env {
    fn new() -> Self {
        let state = LocalState { api: ApiState::Fresh, ..LocalState::default() };
        let state = Arc::new(Mutex::new(state));
        let (file, history) = (Arc::default(), Arc::default());
        Env { file, ledger: Arc::default(), state, history, status: watch::Sender::default() }
    }

    /// A process that has just started.
    fn start(&self, owner: &str) -> AlertTask {
        self.start_with(owner, CONFIG)
    }

    fn start_with(&self, owner: &str, config: &str) -> AlertTask {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        std::fs::write(&file, config).unwrap();
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
            clock,
            history: Arc::clone(&self.history),
            stop: CancellationToken::new(),
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

/// Follows the paused clock of the test, which has a thread of its own.
fn clock() -> Timestamp {
    thread_local!(static BEGUN: Instant = Instant::now());
    at(0) + jiff::SignedDuration::try_from(BEGUN.with(Instant::elapsed)).unwrap()
}

/// One round each second.
async fn rounds(task: &mut AlertTask, count: u32) {
    for _ in 0..count {
        task.round().await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_sent_once_over_restarts_and_its_end_too() {
    let env = Env::new();
    env.see(&["a"]);
    rounds(&mut env.start("me"), 3).await;
    assert_eq!(env.sent(), [(1, 0)]);
    rounds(&mut env.start("me again"), 200).await;
    assert_eq!(env.sent(), [(1, 0)]);
    assert_eq!((env.status().open.len(), env.status().unsent), (1, 0));
    env.see(&[]);
    rounds(&mut env.start("me once more"), 200).await;
    assert_eq!(env.sent(), [(1, 0), (0, 1)]);
    assert!(env.status().open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn while_the_channel_is_down_the_status_says_so_and_then_one_message_has_everything() {
    let env = Env::new();
    env.file.is_down.store(true, Ordering::SeqCst);
    let mut task = env.start("me");
    env.see(&["a"]);
    rounds(&mut task, 1).await;
    env.see(&["b", "c"]);
    rounds(&mut task, 200).await;
    let status = env.status();
    assert_eq!((status.unsent, status.open.len(), status.sent), (3, 2, 0));
    assert!(status.problem.is_some() && (2..20).contains(&status.failed), "{status:?}");
    env.file.is_down.store(false, Ordering::SeqCst);
    tokio::time::advance(RETRY_BACKOFF.max).await;
    task.round().await;
    assert_eq!(env.sent(), [(2, 1)]);
    let status = env.status();
    assert_eq!((status.unsent, status.sent, status.problem), (0, 1, None));
}

#[tokio::test(start_paused = true)]
async fn of_two_instances_with_one_ledger_one_sends() {
    let env = Env::new();
    env.see(&["a", "b"]);
    let (mut first, mut second) = (env.start("first"), env.start("second"));
    for _ in 0..5 {
        tokio::join!(first.round(), second.round());
    }
    assert_eq!(env.sent(), [(2, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_ledger_is_waited_for_and_shown() {
    let env = Env::new();
    env.see(&["a"]);
    let mut task = env.start("me");
    env.ledger.begin_outage(crate::ledger::OutageCause::DiskFull);
    let mut round = pin!(task.round());
    assert!(timeout(LEDGER_TIMEOUT * 3, &mut round).await.is_err());
    assert!(env.status().problem.is_some() && env.sent().is_empty());
    env.ledger.end_outage();
    round.await;
    assert_eq!((env.sent(), env.status().problem), (vec![(1, 0)], None));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_takes_minutes_neither_ends_what_lasts_nor_lets_another_instance_send_it() {
    let env = Env::new();
    env.file.takes_seconds.store(300, Ordering::SeqCst);
    env.see(&["a"]);
    let (mut first, mut second) = (env.start("first"), env.start("second"));
    let other = async {
        sleep(Duration::from_secs(1)).await;
        env.file.takes_seconds.store(0, Ordering::SeqCst);
        rounds(&mut second, 250).await;
    };
    tokio::join!(first.round(), other);
    assert_eq!(env.sent(), [(1, 0)]);
    assert_eq!(env.status().open.len(), 1);
    assert!(env.ledger.exchange_alerts(None).await.unwrap().book.sender.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_a_message_or_leaves_it_at_once_to_the_next_process() {
    for (seconds, sent) in [(2, 1), (300, 0)] {
        let env = Env::new();
        env.file.takes_seconds.store(seconds, Ordering::SeqCst);
        env.see(&["a"]);
        let task = env.start("me");
        let (settings, deps) = (task.settings, task.deps);
        let stop = deps.stop.clone();
        let running = tokio::spawn(run(settings, deps));
        sleep(Duration::from_secs(1)).await;
        stop.cancel();
        timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
        assert_eq!(env.sent().len(), sent);
        env.file.takes_seconds.store(0, Ordering::SeqCst);
        rounds(&mut env.start("next"), 1).await;
        assert_eq!(env.sent(), [(1, 0)], "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letters_shortly_before_a_stop_a_reload_or_the_first_observation_are_reported() {
    let env = Env::new();
    let dead_letters = |count| {
        let key = ("order".to_owned(), "permanent".to_owned(), "invalid_quantity".to_owned());
        let of_code = DeadLettersOfCode { count, last: "ord-1".to_owned() };
        env.state.lock().unwrap().dead_letters = [(key, of_code)].into();
    };
    let opened = || env.status().open.len();
    dead_letters(1);
    rounds(&mut env.start("me"), 1).await;
    assert_eq!((opened(), env.sent().len()), (1, 1), "before the first observation");
    // Another task of the same process, after a reload, and a time in which it ended.
    rounds(&mut env.start("me"), 700).await;
    assert_eq!((opened(), env.sent().len()), (0, 2));
    let mut task = env.start("me");
    task.round().await;
    dead_letters(2);
    task.last_record().await;
    assert_eq!((opened(), env.sent().len()), (1, 2), "recorded, and to be sent by the next process");
    rounds(&mut env.start("next"), 1).await;
    assert_eq!(env.sent().len(), 3);
}

/// An SMTP server, and what it has accepted: recipients with subjects.
#[derive(Default)]
struct FakeServer {
    accepted: Mutex<Vec<(String, String)>>,
    /// What it replies to a recipient instead of accepting it.
    refusals: Mutex<BTreeMap<String, &'static str>>,
}

impl FakeServer {
    /// Returns the configuration of alerts to these recipients through it, with these further keys of the channel.
    async fn start(self: &Arc<Self>, to: &[&str], more: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&server).serve(stream));
            }
        });
        format!(
            "[notify.operators]\ntype = \"smtp\"\ntls = \"none\"\naddress = \"{address}\"\nfrom = \"orderd@example.com\"\n{more}\n\
             [alerts]\nchannel = \"operators\"\nto = {to:?}\nopen_after = \"0s\"\nresolved_after = \"1s\"\ninterval = \"0s\"\n"
        )
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let (mut reply, mut to) = ("220 ready", String::new());
        loop {
            write.write_all(format!("{reply}\r\n").as_bytes()).await.unwrap();
            let Ok(Some(line)) = lines.next_line().await else { return };
            reply = "250 OK";
            if let Some(recipient) = line.strip_prefix("RCPT TO:") {
                to = recipient.trim_matches(['<', '>']).to_owned();
                reply = self.refusals.lock().unwrap().get(&to).copied().unwrap_or(reply);
            } else if line == "DATA" {
                write.write_all(b"354 more\r\n").await.unwrap();
                let mut subject = String::new();
                loop {
                    let line = lines.next_line().await.unwrap().unwrap();
                    if let Some(text) = line.strip_prefix("Subject: ") {
                        text.clone_into(&mut subject);
                    } else if line == "." {
                        break;
                    }
                }
                self.accepted.lock().unwrap().push((to.clone(), subject));
            }
        }
    }

    fn subjects_of(&self, to: &str) -> Vec<String> {
        let accepted = self.accepted.lock().unwrap();
        accepted.iter().filter(|(recipient, _)| recipient == to).map(|(_, subject)| subject.clone()).collect()
    }
}

/// Rounds until this holds.
async fn rounds_until(task: &mut AlertTask, what: &str, condition: impl Fn(&AlertTask) -> bool) {
    let rounds = async {
        while !condition(task) {
            task.next_attempt = Instant::now();
            task.late.iter_mut().for_each(|late| late.next_attempt = Instant::now());
            task.round().await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), rounds).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_recipient_that_lacks_an_alert_gets_it_before_its_end() {
    let (env, server) = (Env::new(), Arc::new(FakeServer::default()));
    let mut task = env.start_with("me", &server.start(&["ada@example.com", "bob@example.com"], "").await);
    server.refusals.lock().unwrap().insert("bob@example.com".to_owned(), "450 4.2.1 try again later");
    let report = crate::control::ReloadReport {
        outcome: crate::control::ReloadOutcome::Rejected,
        generation: 1,
        changes: Vec::new(),
        applied_after_ms: None,
        problems: Vec::new(),
        temporary: false,
        notes: Vec::new(),
    };
    env.state.lock().unwrap().last_reload = Some((at(0), report));
    rounds_until(&mut task, "one has the alert", |_| server.subjects_of("ada@example.com").len() == 1).await;
    env.state.lock().unwrap().last_reload = None;
    rounds_until(&mut task, "one has its end", |_| server.subjects_of("ada@example.com").len() == 2).await;
    assert!(server.subjects_of("bob@example.com").is_empty(), "the end has not overtaken the beginning");
    server.refusals.lock().unwrap().clear();
    rounds_until(&mut task, "the other one has both", |task| task.late.is_empty()).await;
    assert_eq!(server.subjects_of("bob@example.com"), server.subjects_of("ada@example.com"));
}

#[tokio::test]
async fn an_alert_that_a_server_refuses_for_every_recipient_is_sent_by_the_fallback() {
    let (env, server) = (Env::new(), Arc::new(FakeServer::default()));
    let fallback = "fallback = \"chat\"\n[notify.chat]\ntype = \"log\"";
    let mut task = env.start_with("me", &server.start(&["ada@example.com", "bob@example.com"], fallback).await);
    for (to, reply) in [("ada@example.com", "550 5.1.1 no such user"), ("bob@example.com", "452 4.2.2 mailbox full")] {
        server.refusals.lock().unwrap().insert(to.to_owned(), reply);
    }
    env.see(&["a"]);
    rounds_until(&mut task, "the fallback has it", |_| env.sent() == [(1, 0)]).await;
    rounds_until(&mut task, "it is sent", |_| env.status().unsent == 0).await;
    server.refusals.lock().unwrap().remove("bob@example.com");
    env.see(&["a", "b"]);
    rounds_until(&mut task, "one recipient is enough", |_| !server.subjects_of("bob@example.com").is_empty()).await;
    assert_eq!(env.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_nothing_changes_the_ledger_is_left_alone() {
    let env = Env::new();
    let mut task = env.start("me");
    task.round().await;
    env.ledger.begin_outage(crate::ledger::OutageCause::DiskFull);
    assert!(timeout(Duration::from_secs(1), task.round()).await.is_ok());
}
