//! The OpenAPI document and the answers agree: each route is in the document, and each answer is valid by its schema.

mod contract;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::access::tests::authenticator;
use super::guard::AccessGuard;
use super::routes;
use crate::config::{Config, Sources};
use crate::control::{
    CommandReceiver, ConfigChange, Control, ControlCommand, ControlError, Effect, PauseReport, ReloadOutcome,
    ReloadReport,
};
use crate::dead_letters::{
    KnownConsumer, LetterActions, LetterActionsHandle, QueueAccess, ReplayDeps, Replayer, WaitCause, Waiting,
};
use crate::formats::Format;
use crate::ledger::conformance::{accept, analytics, at, attempt, dead_letter, finish, order, sale, stored_letter};
use crate::ledger::memory::MemoryLedger;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    JournalAction, JournalWriter, Ledger, LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter, LetterSource,
    LetterState, LetterWriter, NewJournalEntry, NewOrder, NewStoredLetter, StepAction, UnresolvedDeadLetters,
    UnresolvedSum,
};
use crate::management::Alarm;
use crate::message::{ExchangeNames, Publication, Publisher, TrustedUsers, Unpublished};
use crate::reconcile::{BrokerView, Finding, FindingKind, QueueRole, QueueView};
use crate::shutdown::Shutdown;
use crate::status::{LastReload, RegisteredConsumer, StatusRegistry};
use crate::steps::{BreakerKind, BreakerSettings};
use crate::watchdog::Health;

/// Of an operator and of a viewer.
const OPERATOR: &str = "Bearer 0123456789abcdef";
const VIEWER: &str = "Bearer fedcba9876543210";

/// A whole admin server without its listener, with something of everything that it shows.
struct Server {
    routes: TowerToHyperService<axum::Router>,
    _breakers: Vec<Arc<dyn std::any::Any + Send + Sync>>,
    _daemon: AbortOnDropHandle<()>,
}

fn reload_report() -> ReloadReport {
    let change = |from: Option<&str>, effect| ConfigChange {
        key: "consumers.order.workers".to_owned(),
        from: from.map(str::to_owned),
        to: Some("8".to_owned()),
        effect,
    };
    ReloadReport {
        outcome: ReloadOutcome::Applied,
        generation: 2,
        changes: vec![change(Some("4"), Effect::Live), change(None, Effect::Restart)],
        applied_after_ms: Some(7),
        problems: vec!["x".to_owned()],
        temporary: false,
        notes: vec!["y".to_owned()],
    }
}

/// Answers like a daemon that knows the consumer `order`.
async fn answer_commands(mut commands: CommandReceiver) {
    while let Some(command) = commands.recv().await {
        match command {
            ControlCommand::Reload { answer, .. } => drop(answer.send(Ok(reload_report()))),
            ControlCommand::SetPaused { consumer, paused, answer, .. } if consumer == "order" => {
                let _ = answer.send(Ok(PauseReport { consumer, paused, changed: true }));
            }
            ControlCommand::SetPaused { consumer, answer, .. } if consumer == "busy" => {
                let _ = answer.send(Err(ControlError::Busy { consumer, draining: 8 }));
            }
            ControlCommand::SetPaused { consumer, answer, .. } if consumer == "stuck" => {
                let _ = answer.send(Err(ControlError::NotPersisted { reason: "full".to_owned() }));
            }
            ControlCommand::SetPaused { consumer, answer, .. } => {
                let _ = answer.send(Err(ControlError::UnknownConsumer { consumer, known: vec!["order".to_owned()] }));
            }
        }
    }
}

async fn ledger() -> MemoryLedger {
    let ledger = MemoryLedger::default();
    for id in ["ord-1", "ord-2"] {
        let now = jiff::Timestamp::now();
        ledger.record(accept(NewOrder { at: now, ..order(id) })).await.unwrap();
    }
    ledger.record(finish("ord-1")).await.unwrap();
    let sold = sale("Laptop", rust_decimal::Decimal::TEN, jiff::Timestamp::now());
    ledger.record(analytics("ord-1/analytics/processed", Some(sold))).await.unwrap();
    ledger.record(LedgerEntry::Attempt(Box::new(attempt("ord-2", "order", 0)))).await.unwrap();
    ledger.record(dead_letter(attempt("ord-2", "order", 1))).await.unwrap();
    ledger.store_letter(stored_letter("ord-2", 1)).await.unwrap();
    ledger.store_letter(NewStoredLetter { body: vec![0xff].into(), ..stored_letter("ord-3", 2) }).await.unwrap();
    let (subject, result) = (json!({ "consumer": "order" }), json!({ "changed": true }));
    let entry = NewJournalEntry::new(at(1_000), "ada", JournalAction::Pause, &subject, &result);
    ledger.record_action(entry).await.unwrap();
    ledger
}

fn registry(view: BrokerView) -> (StatusRegistry, Vec<Arc<dyn std::any::Any + Send + Sync>>) {
    let sources = Sources {
        file: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/orderd.toml")),
        ..crate::handlers::sources()
    };
    let config = Config::load(&sources).unwrap().config;
    let (_, view) = tokio::sync::watch::channel(Arc::new(view));
    let registry =
        StatusRegistry::new(String::new(), Arc::new(OnceLock::new()), view, Shutdown::new(), Health::default());
    let consumers = config.consumers.iter();
    registry.set_consumers(
        consumers.map(|(name, settings)| RegisteredConsumer::new(name, settings, registry.counters(name))).collect(),
    );
    registry.counters("order").steps().add(&"charge".into(), StepAction::Do);
    registry.counters("notification").channels().configure([("email".into(), vec!["email".into()])].into());
    let money = [("EUR".to_owned(), "1.00".parse().unwrap())].into();
    let sums = vec![UnresolvedSum {
        source: LetterSource::UnroutedQueue,
        reason: "unrouted".to_owned(),
        state: LetterState::Open,
        messages: 1,
        money,
        oldest: at(1_000),
    }];
    registry.set_unresolved_dead_letters(Ok(UnresolvedDeadLetters { sums, stopped: Vec::new() }));
    registry.set_last_reload(LastReload { at: at(2_000), by: "admin".to_owned(), report: reload_report() });
    let settings = BreakerSettings { failures: 0.5, window: Duration::from_secs(30), open: Duration::from_secs(10) };
    let breaker = registry.breakers().breaker(&"order".into(), BreakerKind::Step, &"charge".into(), settings);
    (registry, vec![Arc::new(breaker)])
}

/// A server whose daemon has not opened its actions on dead letters: its answers are those of a daemon that is starting.
async fn server(directory: &Path) -> Server {
    server_with(directory, LetterActionsHandle::default()).await
}

async fn server_with(directory: &Path, actions: LetterActionsHandle) -> Server {
    server_of(directory, actions, Arc::new(ledger().await))
}

fn server_of(directory: &Path, actions: LetterActionsHandle, ledger: Arc<dyn LedgerReader>) -> Server {
    let mut queue = QueueView::unknown(QueueRole::Work { consumer: "order".to_owned() });
    (queue.ready, queue.detail_at) = (Some(1), Some(at(1_000)));
    let finding = Finding {
        queue: Some("order_queue".to_owned()),
        exchange: None,
        routing_key: None,
        policy: None,
        queues: Vec::new(),
        kind: FindingKind::QueueMissing,
        since: at(1_000),
        messages: None,
        detail: "x".to_owned(),
    };
    let view = BrokerView {
        queues: [
            ("order_queue".to_owned(), queue),
            ("unrouted_queue".to_owned(), QueueView::unknown(QueueRole::Unrouted)),
        ]
        .into(),
        alarms: Some(vec![Alarm { node: "rabbit@a".to_owned(), resource: "memory".to_owned() }]),
        findings: vec![finding],
        ..BrokerView::default()
    };
    let (registry, _breakers) = registry(view);
    let (control, commands) = Control::new();
    let guard = AccessGuard { loopback: true, hosts: Vec::new(), authenticator: authenticator(directory) };
    let commands_to = (control, actions);
    let router = routes::router(Arc::new(registry), ledger, commands_to, guard);
    let _daemon = AbortOnDropHandle::new(tokio::spawn(answer_commands(commands)));
    Server { routes: TowerToHyperService::new(router), _breakers, _daemon }
}

impl Server {
    async fn send(&self, method: &str, path: &str, token: Option<&str>) -> (u16, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = token.into_iter().fold(request, |request, token| request.header(AUTHORIZATION, token));
        let request = if method == "GET" { request } else { request.header(CONTENT_TYPE, "application/json") };
        let answer = self.routes.call(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        (status, to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Vec<u8>) {
        let request = Request::post(path).header(HOST, "localhost").header(AUTHORIZATION, OPERATOR);
        let request = request.header(CONTENT_TYPE, "application/json").body(Body::from(body.to_string())).unwrap();
        let answer = self.routes.call(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    async fn document(&self) -> Value {
        let (status, body) = self.send("GET", "/api/v1/openapi.json", Some(VIEWER)).await;
        assert_eq!(status, 200);
        serde_json::from_slice(&body).unwrap()
    }
}

/// The methods and paths of a document.
fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

/// A path with something in place of its parameters that is there.
fn existing(path: &str) -> String {
    let id = if path.contains("/orders/") { "ord-2" } else { "1" };
    path.replace("{name}", "order").replace("{id}", id)
}

/// Makes unknown fields invalid wherever a schema is not a part of another one.
fn strict(document: &Value) -> Value {
    let mut document = document.clone();
    let schemas = document["components"]["schemas"].as_object_mut().unwrap();
    let parts: BTreeSet<String> = schemas
        .values()
        .filter_map(|schema| schema["allOf"].as_array())
        .flatten()
        .filter_map(|part| part["$ref"].as_str()?.rsplit('/').next().map(str::to_owned))
        .collect();
    for (name, schema) in schemas.iter_mut() {
        if schema.get("allOf").is_some() {
            schema["unevaluatedProperties"] = json!(false);
        } else if schema.get("properties").is_some() && !parts.contains(name) && name != "ApiError" {
            schema["additionalProperties"] = json!(false);
        }
    }
    document
}

/// What is wrong with an answer by the document.
fn problems(document: &Value, (method, path): (&str, &str), status: u16, body: &[u8]) -> Vec<String> {
    let what = format!("{method} {path} {status}");
    let answer = &document["paths"][path][method.to_lowercase()]["responses"][status.to_string()];
    let Some((kind, content)) = answer["content"].as_object().and_then(|content| content.iter().next()) else {
        return vec![format!("{what} is not in the document")];
    };
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let bodies: Vec<&[u8]> = match kind.as_str() {
        "application/x-ndjson" => body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect(),
        _ => vec![body],
    };
    assert!(!bodies.is_empty(), "{what}");
    let problems = bodies.into_iter().flat_map(|body| {
        let value: Value = serde_json::from_slice(body).unwrap();
        let errors = validator.iter_errors(&value).map(|error| format!("{what}: {error} at {}", error.instance_path()));
        errors.collect::<Vec<_>>()
    });
    problems.collect()
}

#[tokio::test]
async fn each_answer_is_valid_by_the_openapi_document() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path()).await;
    let document = strict(&server.document().await);
    let operations = operations(&document);
    assert!(operations.len() >= 11, "{operations:?}");
    let mut found = Vec::new();
    for (method, path) in &operations {
        let operation = (method.as_str(), path.as_str());
        let is_action = ["/replays", "/hold", "/release", "/discard", "/edit"].iter().any(|part| path.contains(part));
        for (token, expected) in [(Some(OPERATOR), if is_action { 503 } else { 200 }), (None, 401)] {
            let (status, body) = server.send(method, &existing(path), token).await;
            assert_eq!(status, expected, "{operation:?} {}", String::from_utf8_lossy(&body));
            found.extend(problems(&document, operation, status, &body));
        }
    }
    let reading = |path| ("GET", path);
    for (operation, path, expected) in [
        (reading("/api/v1/report"), "/api/v1/report?by=colour", 400),
        (reading("/api/v1/report"), "/api/v1/report?by=status&since=9999d", 200),
        (reading("/api/v1/report"), "/api/v1/report?by=product", 200),
        (reading("/api/v1/journal"), "/api/v1/journal?limit=0", 400),
        (reading("/api/v1/journal"), "/api/v1/journal?actor=nobody", 200),
        (reading("/api/v1/dead-letters"), "/api/v1/dead-letters?state=lost", 400),
        (reading("/api/v1/dead-letters"), "/api/v1/dead-letters?code=none", 200),
        (reading("/api/v1/dead-letters"), "/api/v1/dead-letters?colour=red", 400),
        (reading("/api/v1/dead-letters/{id}"), "/api/v1/dead-letters/99", 404),
        (reading("/api/v1/dead-letters/{id}"), "/api/v1/dead-letters/2", 200),
        (reading("/api/v1/dead-letters/{id}"), "/api/v1/dead-letters/x", 400),
        (reading("/api/v1/orders/{id}"), "/api/v1/orders/ord-1", 200),
        (reading("/api/v1/orders/{id}"), "/api/v1/orders/nobody%2F1", 404),
        (("POST", "/api/v1/consumers/{name}/pause"), "/api/v1/consumers/nobody/pause", 404),
    ] {
        let (status, body) = server.send(operation.0, path, Some(OPERATOR)).await;
        assert_eq!(status, expected, "{path} {}", String::from_utf8_lossy(&body));
        found.extend(problems(&document, operation, status, &body));
    }
    let (status, body) = server.send("POST", "/api/v1/reload", Some(VIEWER)).await;
    assert_eq!(status, 403);
    found.extend(problems(&document, ("POST", "/api/v1/reload"), status, &body));
    assert!(found.is_empty(), "{found:#?}");
}

struct NoPublisher;

impl Publisher for NoPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        async move { panic!("publishes {}", publications.len()) }.boxed()
    }
}

/// Actions on four dead letters, the task of which does not run.
async fn actions(directory: &Path) -> (LetterActionsHandle, Arc<SqliteLedger>) {
    let ledger = Arc::new(SqliteLedger::open(directory).unwrap());
    for n in 1..=4 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    let consumer = KnownConsumer { name: "order".into(), format: Some(Format::Own), check: |_, _, _| Ok(()) };
    let consumers = watch::Sender::new([("order_queue".to_owned(), consumer)].into());
    let deps = ReplayDeps {
        ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
        publisher: Arc::new(NoPublisher),
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        consumers: consumers.subscribe(),
        access: Arc::new(|queue| {
            let (cause, text) = (WaitCause::Paused, format!("{queue} is paused"));
            QueueAccess::Closed(Waiting { cause, text })
        }),
        pause: watch::Sender::new(None).subscribe(),
        shutdown: Shutdown::new(),
    };
    let handle = LetterActionsHandle::default();
    handle.open(LetterActions::new(Arc::new(Replayer::new(deps))));
    (handle, ledger)
}

#[tokio::test]
async fn each_answer_about_replays_and_changes_is_valid_by_the_openapi_document() {
    let directory = tempfile::tempdir().unwrap();
    let (actions, ledger) = actions(directory.path()).await;
    let server = server_with(directory.path(), actions).await;
    let document = strict(&server.document().await);
    let replays = "/api/v1/dead-letters/replays";
    let ids = |ids: &[i64]| json!({ "selection": { "ids": ids } });
    let with_note = |mut request: Value| {
        request["note"] = json!("SHOP-1");
        request
    };
    let dry_run = json!({"selection": {"ids": [1, 99]}, "dry_run": true});
    let body = STANDARD.encode(r#"{"id": "ord-4", "product": "Laptop", "quantity": 1, "price": "1.00"}"#);
    let mut found = Vec::new();
    for (operation, path, request, expected) in [
        (replays, "", dry_run, 200),
        (replays, "", ids(&[]), 400),
        (replays, "", ids(&[1, 2, 99]), 200),
        ("/api/v1/dead-letters/replays/{id}/stop", "/api/v1/dead-letters/replays/1/stop", json!({}), 200),
        ("/api/v1/dead-letters/replays/{id}/stop", "/api/v1/dead-letters/replays/9/stop", json!({}), 404),
        ("/api/v1/dead-letters/hold", "", with_note(ids(&[3, 99])), 200),
        ("/api/v1/dead-letters/hold", "", ids(&[3]), 400),
        ("/api/v1/dead-letters/release", "", ids(&[3]), 200),
        (
            "/api/v1/dead-letters/{id}/edit",
            "/api/v1/dead-letters/4/edit",
            json!({"revision": 0, "body_base64": body}),
            200,
        ),
        (
            "/api/v1/dead-letters/{id}/edit",
            "/api/v1/dead-letters/4/edit",
            json!({"revision": 0, "body_base64": body}),
            409,
        ),
        ("/api/v1/dead-letters/discard", "", with_note(ids(&[3, 4])), 200),
        ("/api/v1/dead-letters/discard", "", json!({"colour": "red"}), 400),
    ] {
        let (status, body) = server.post(if path.is_empty() { operation } else { path }, &request).await;
        assert_eq!(status, expected, "{operation} {request} {}", String::from_utf8_lossy(&body));
        found.extend(problems(&document, ("POST", operation), status, &body));
    }
    // With everything that a replay may say.
    let connection = rusqlite::Connection::open(directory.path().join("orderd.db")).unwrap();
    let failed = "INSERT INTO replay_letters (replay_id, letter_id, key, state, code, changed_at, came_back_as)
                  VALUES (1, 1, 'a', 'failed_again', 'http_402', 1, 4), (1, 2, 'b', 'skipped', 'no_queue', 1, NULL)";
    connection.execute(failed, []).unwrap();
    for (operation, path) in
        [(replays, replays), ("/api/v1/dead-letters/replays/{id}", "/api/v1/dead-letters/replays/1")]
    {
        let (status, body) = server.send("GET", path, Some(OPERATOR)).await;
        assert_eq!(status, 200, "{path} {}", String::from_utf8_lossy(&body));
        found.extend(problems(&document, ("GET", operation), status, &body));
    }
    assert!(found.is_empty(), "{found:#?}");
    ledger.close().await;
}

#[tokio::test]
async fn each_route_is_in_the_openapi_document_and_in_the_reference() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path()).await;
    let document = server.document().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = std::fs::read_to_string(root.join("docs/reference/http-api.md")).unwrap();
    let (_, index) = server.send("GET", "/", Some(VIEWER)).await;
    let index = String::from_utf8(index).unwrap();
    for (method, path) in operations(&document) {
        let shown = path.replace('{', "<").replace('}', ">");
        assert!(reference.contains(&format!("`{method} {shown}`")), "the reference lacks {method} {shown}");
        let line = if method == "GET" { shown } else { format!("{method} {shown}") };
        let is_listed = index.lines().any(|listed| listed.split('?').next() == Some(&line));
        assert!(is_listed, "the index lacks {line}");
    }
    // A route that is not added with `routes!` would not be in the document.
    let mut folders = vec![root.join("src/admin")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if !entry.ends_with("tests.rs") {
                let source = std::fs::read_to_string(&entry).unwrap();
                assert!(!source.contains(".route(\"/api"), "{}", entry.display());
            }
        }
    }
}

#[tokio::test]
async fn an_export_has_all_dead_letters_and_only_so_many_are_sent_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path()).await;
    let export = "/api/v1/dead-letters/export?state=any";
    let (_, body) = server.send("GET", export, Some(VIEWER)).await;
    let ids: Vec<_> = String::from_utf8(body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
        .collect();
    assert_eq!(ids, [1, 2]);
    let begin = || {
        let request = Request::get(export).header(HOST, "localhost").header(AUTHORIZATION, VIEWER);
        call(&server, request.body(Body::empty()).unwrap())
    };
    let (first, second) = (begin().await, begin().await);
    assert_eq!((first.status().as_u16(), second.status().as_u16(), begin().await.status().as_u16()), (200, 200, 503));
    drop(first);
    assert_eq!(begin().await.status().as_u16(), 200, "the first one has ended");
}

async fn call(server: &Server, request: Request) -> axum::response::Response {
    server.routes.call(request).await.unwrap()
}

#[tokio::test]
async fn an_edit_waits_some_seconds_for_two_others_and_is_refused_then() {
    let directory = tempfile::tempdir().unwrap();
    let (actions, ledger) = actions(directory.path()).await;
    let server = server_with(directory.path(), actions).await;
    let edit = |body| {
        let request = Request::post("/api/v1/dead-letters/1/edit").header(HOST, "localhost");
        let request = request.header(AUTHORIZATION, OPERATOR).header(CONTENT_TYPE, "application/json");
        call(&server, request.body(body).unwrap())
    };
    let never = || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    tokio::time::pause();
    let (_, _, refused) = tokio::join!(edit(never()), edit(never()), edit(never()));
    assert_eq!(refused.status().as_u16(), 503);
    let refused: Value = serde_json::from_slice(&to_bytes(refused.into_body(), 1 << 20).await.unwrap()).unwrap();
    assert_eq!(refused["error"], "too_many_edits");
    tokio::time::resume();
    let draft = edit(Body::from(json!({"dry_run": true}).to_string())).await;
    assert_eq!(draft.status().as_u16(), 200, "the others have ended");
    ledger.close().await;
}
