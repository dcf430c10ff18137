//! The OpenAPI document is a contract: each status of each operation is answered as it says, and it accepts the requests that the
//! handlers accept, and no others.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use futures_util::stream::pending;
use hyper::service::Service;
use serde_json::{Value, json};

use super::{OPERATOR, Server, VIEWER, actions, existing, operations, problems, server_of, server_with, strict};
use crate::admin::api::commands::VALID_UNTIL;
use crate::dead_letters::{LetterActionsHandle, ReplayRequest};
use crate::ledger::sqlite::SqliteReader;
use crate::ledger::{DeadLetterFilter, LedgerMaintenance, LetterSelection, LetterState, ReplayOptions};

const GROUPS: &str = "/api/v1/dead-letters/groups";
const EXPORT: &str = "/api/v1/dead-letters/export";
const LETTER: &str = "/api/v1/dead-letters/{id}";
const REPLAYS: &str = "/api/v1/dead-letters/replays";
const LETTERS: &str = "/api/v1/dead-letters/replays/{id}/letters";
const STOP: &str = "/api/v1/dead-letters/replays/{id}/stop";
const HOLD: &str = "/api/v1/dead-letters/hold";
const RELEASE: &str = "/api/v1/dead-letters/release";
const DISCARD: &str = "/api/v1/dead-letters/discard";
const EDIT: &str = "/api/v1/dead-letters/{id}/edit";
/// More bytes than the body of any request may have.
const TOO_LARGE: usize = (24 << 20) + 1;

/// What was seen of a server, and what was wrong with it by the document.
struct Contract {
    document: Value,
    seen: BTreeSet<(String, String, u16)>,
    problems: Vec<String>,
}

impl Contract {
    async fn new(server: &Server) -> Self {
        let document = strict(&server.document().await);
        Contract { document, seen: BTreeSet::new(), problems: Vec::new() }
    }

    /// Sends a request, and checks the status, the code of an error, and the answer by the document.
    async fn expect(&mut self, server: &Server, operation: (&str, &str), request: Request, expected: (u16, &str)) {
        let (status, body) = exchange(server, request).await;
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = json["error"].as_str().unwrap_or_default();
        if (status, code) != expected {
            let text = String::from_utf8_lossy(&body).into_owned();
            self.problems.push(format!("{operation:?}: {status} {text}, not {expected:?}"));
        }
        let described =
            &self.document["paths"][operation.1][operation.0.to_lowercase()]["responses"][status.to_string()];
        let described = described["description"].as_str().unwrap_or_default();
        if !code.is_empty() && !described.contains(&format!("`{code}`")) {
            self.problems.push(format!("{operation:?}: {status} is {code}, which its description lacks: {described}"));
        }
        self.problems.extend(problems(&self.document, operation, status, &body));
        self.seen.insert((operation.0.to_owned(), operation.1.to_owned(), status));
    }

    fn documents(&self, (method, path): (&str, &str), status: u16) -> bool {
        self.document["paths"][path][method.to_lowercase()]["responses"].get(status.to_string()).is_some()
    }
}

async fn exchange(server: &Server, request: Request) -> (u16, Vec<u8>) {
    let answer = server.routes.call(request).await.unwrap();
    let status = answer.status().as_u16();
    (status, to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
}

/// A request of an operator, with the headers that its method needs.
fn request(method: &str, path: &str, body: Body) -> Request {
    let builder = Request::builder().method(method).uri(path).header(HOST, "localhost").header(AUTHORIZATION, OPERATOR);
    let builder = if method == "POST" { builder.header(CONTENT_TYPE, "application/json") } else { builder };
    builder.body(body).unwrap()
}

fn post(path: &str, body: &Value) -> Request {
    request("POST", path, Body::from(body.to_string()))
}

/// Without the header, or with another value.
fn with(mut request: Request, header: axum::http::HeaderName, value: Option<&str>) -> Request {
    match value {
        Some(value) => request.headers_mut().insert(header, HeaderValue::from_str(value).unwrap()),
        None => request.headers_mut().remove(header),
    };
    request
}

fn never() -> Body {
    Body::from_stream(pending::<Result<Bytes, std::io::Error>>())
}

/// What the access of any request needs, and what any body must not be.
async fn check_what_all_have_in_common(contract: &mut Contract, server: &Server) {
    for (method, path) in operations(&contract.document) {
        let operation = (method.as_str(), path.as_str());
        let request = || request(&method, &existing(&path), Body::empty());
        contract.expect(server, operation, with(request(), HOST, None), (400, "no_host")).await;
        contract.expect(server, operation, with(request(), HOST, Some("evil.example")), (421, "foreign_host")).await;
        contract.expect(server, operation, with(request(), AUTHORIZATION, None), (401, "no_token")).await;
        let foreign = with(request(), ORIGIN, Some("http://evil.example"));
        contract.expect(server, operation, foreign, (403, "foreign_origin")).await;
        if path.contains('{') {
            let invalid = path.replace("{id}", "%ff").replace("{name}", "%ff");
            contract.expect(server, operation, self::request(&method, &invalid, Body::empty()), (400, "query")).await;
        }
        if path.contains("{id}") && !path.contains("/orders/") {
            let invalid = path.replace("{id}", "x");
            contract.expect(server, operation, self::request(&method, &invalid, Body::empty()), (400, "query")).await;
        }
        if method == "GET" {
            let with_body = self::request(&method, &existing(&path), Body::from("x"));
            contract.expect(server, operation, with_body, (413, "body")).await;
            continue;
        }
        let by_viewer = with(request(), AUTHORIZATION, Some(VIEWER));
        contract.expect(server, operation, by_viewer, (403, "not_operator")).await;
        contract.expect(server, operation, with(request(), CONTENT_TYPE, None), (415, "content_type")).await;
        if contract.documents(operation, 413) {
            let large = self::request(&method, &existing(&path), Body::from(vec![b' '; TOO_LARGE]));
            contract.expect(server, operation, large, (413, "body_too_large")).await;
        }
    }
}

/// While all requests are being answered that may be, any other is refused.
async fn check_a_busy_server(contract: &mut Contract, server: &Server) {
    let waiting: Vec<_> = (0..super::routes::MAX_ANSWERS)
        .map(|_| tokio::spawn(server.routes.call(request("POST", HOLD, never()))))
        .collect();
    while exchange(server, request("GET", "/api/v1/status", Body::empty())).await.0 != 503 {
        tokio::task::yield_now().await;
    }
    for (method, path) in operations(&contract.document) {
        let request = request(&method, &existing(&path), Body::empty());
        contract.expect(server, (&method, &path), request, (503, "too_many_requests")).await;
    }
    for request in waiting {
        request.abort();
        let _ = request.await;
    }
}

async fn check_commands(contract: &mut Contract, server: &Server) {
    for path in ["/api/v1/reload", "/api/v1/consumers/{name}/pause", "/api/v1/consumers/{name}/resume"] {
        let operation = ("POST", path);
        let to = |consumer: &str| request("POST", &path.replace("{name}", consumer), Body::empty());
        let until = |time: &str| with(to("order"), VALID_UNTIL.parse().unwrap(), Some(time));
        contract.expect(server, operation, to("order"), (200, "")).await;
        contract.expect(server, operation, until("2026-11-22T08:00:00Z"), (504, "expired")).await;
        contract.expect(server, operation, until("soon"), (400, "valid_until")).await;
        if path.contains("{name}") {
            contract.expect(server, operation, to("nobody"), (404, "unknown_consumer")).await;
            contract.expect(server, operation, to("busy"), (409, "busy")).await;
            contract.expect(server, operation, to("stuck"), (500, "not_persisted")).await;
        }
    }
}

async fn check_actions(contract: &mut Contract, server: &Server) {
    let ids = |ids: &[i64]| json!({"selection": {"ids": ids}, "note": "SHOP-1"});
    let replay = json!({"selection": {"ids": [1]}});
    let body = "eyJpZCI6ICJvcmQtNCIsICJwcm9kdWN0IjogIkxhcHRvcCIsICJxdWFudGl0eSI6IDEsICJwcmljZSI6ICIxLjAwIn0=";
    let edit = json!({"revision": 0, "body_base64": body});
    let released = json!({"selection": {"ids": [3]}});
    for (operation, path, body, expected) in [
        (HOLD, HOLD, ids(&[3, 99]), (200, "")),
        (RELEASE, RELEASE, released, (200, "")),
        (DISCARD, DISCARD, ids(&[3]), (200, "")),
        (EDIT, "/api/v1/dead-letters/4/edit", json!({"dry_run": true}), (200, "")),
        (EDIT, "/api/v1/dead-letters/4/edit", edit.clone(), (200, "")),
        (EDIT, "/api/v1/dead-letters/4/edit", edit.clone(), (409, "conflict")),
        (EDIT, "/api/v1/dead-letters/99/edit", edit, (404, "missing")),
        (REPLAYS, REPLAYS, replay.clone(), (200, "")),
        (STOP, "/api/v1/dead-letters/replays/99/stop", json!({}), (404, "missing")),
    ] {
        contract.expect(server, ("POST", operation), post(path, &body), expected).await;
    }
    for _ in 1..crate::ledger::MAX_ACTIVE_REPLAYS {
        contract.expect(server, ("POST", REPLAYS), post(REPLAYS, &replay), (200, "")).await;
    }
    contract.expect(server, ("POST", REPLAYS), post(REPLAYS, &replay), (409, "conflict")).await;
    contract.expect(server, ("POST", STOP), post("/api/v1/dead-letters/replays/1/stop", &json!({})), (200, "")).await;
    for path in ["/api/v1/dead-letters/replays/{id}", LETTERS] {
        for (id, expected) in [("1", (200, "")), ("99", (404, "missing"))] {
            let request = request("GET", &path.replace("{id}", id), Body::empty());
            contract.expect(server, ("GET", path), request, expected).await;
        }
    }
}

#[tokio::test]
async fn each_status_of_each_operation_is_answered_as_the_document_says() {
    let directory = tempfile::tempdir().unwrap();
    let (actions, ledger) = actions(directory.path()).await;
    let server = server_with(directory.path(), actions).await;
    let mut contract = Contract::new(&server).await;
    check_what_all_have_in_common(&mut contract, &server).await;
    check_commands(&mut contract, &server).await;
    check_actions(&mut contract, &server).await;
    let nowhere = Arc::new(SqliteReader::new(directory.path().join("nowhere")));
    let broken = server_of(directory.path(), LetterActionsHandle::default(), nowhere);
    for (method, path) in operations(&contract.document) {
        let operation = (method.as_str(), path.as_str());
        if method == "GET" {
            contract.expect(&server, operation, request("GET", &existing(&path), Body::empty()), (200, "")).await;
            if contract.documents(operation, 500) {
                let request = request("GET", &existing(&path), Body::empty());
                contract.expect(&broken, operation, request, (500, "ledger")).await;
            }
        }
    }
    for (path, missing, code) in [
        (LETTER, "/api/v1/dead-letters/99", "unknown_dead_letter"),
        ("/api/v1/orders/{id}", "/api/v1/orders/nobody", "unknown_order"),
    ] {
        contract.expect(&server, ("GET", path), request("GET", missing, Body::empty()), (404, code)).await;
    }
    check_a_busy_server(&mut contract, &server).await;
    tokio::time::pause();
    for (method, path) in operations(&contract.document) {
        if contract.documents((&method, &path), 408) {
            let request = request(&method, &existing(&path), never());
            contract.expect(&server, (&method, &path), request, (408, "body_timeout")).await;
        }
    }
    tokio::time::resume();

    let document = &contract.document;
    let mut unseen = Vec::new();
    for (method, path) in operations(document) {
        let responses = document["paths"][&path][method.to_lowercase()]["responses"].as_object().unwrap();
        for (status, response) in responses {
            let description = response["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "OpenAPI requires a description: {method} {path} {status}");
            let seen = (method.clone(), path.clone(), status.parse().unwrap());
            if !contract.seen.contains(&seen) {
                unseen.push(seen);
            }
        }
    }
    assert!(unseen.is_empty() && contract.problems.is_empty(), "{unseen:#?} {:#?}", contract.problems);
    ledger.close().await;
}

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_errors_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with(directory.path(), LetterActionsHandle::default()).await;
    for (method, path, expected) in [
        ("GET", "/api/v1/nothing", (404, "no_such_path")),
        ("GET", "/api/v1/dead-letters/1/body", (404, "no_such_path")),
        ("POST", "/api/v1/status", (405, "wrong_method")),
        ("DELETE", "/api/v1/dead-letters/1", (405, "wrong_method")),
        ("GET", "/api/v1/reload", (405, "wrong_method")),
        ("GET", HOLD, (405, "wrong_method")),
    ] {
        let answer = server.routes.call(request(method, path, Body::empty())).await.unwrap();
        let (status, allow) = (answer.status().as_u16(), answer.headers().contains_key(ALLOW));
        let body: Value = serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 10).await.unwrap()).unwrap();
        assert_eq!((status, body["error"].as_str().unwrap()), expected, "{method} {path}");
        assert_eq!(allow, status == 405, "{method} {path}");
        let unknown = with(request(method, path, Body::empty()), AUTHORIZATION, None);
        assert_eq!(exchange(&server, unknown).await.0, 401, "only users learn which paths there are: {method} {path}");
    }
}

/// What is wrong with a value by a schema of the document.
fn schema_problems(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect()
}

/// Why a handler refuses what the document cannot rule out.
type Reason = Option<&'static str>;

/// An action is refused for this reason; `None`: because it is not valid by the document.
const VALID: Result<(), Reason> = Ok(());
const INVALID: Result<(), Reason> = Err(None);

fn only_handlers_know(reason: &'static str) -> Result<(), Reason> {
    Err(Some(reason))
}

#[tokio::test]
async fn a_body_is_accepted_if_it_is_valid_by_the_document_or_it_is_listed_here_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let (actions, ledger) = actions(directory.path()).await;
    let server = server_with(directory.path(), actions).await;
    let document = server.document().await;
    let filter = DeadLetterFilter { states: vec![LetterState::Open], ..DeadLetterFilter::default() };
    let selection = LetterSelection::Filter { filter: Box::new(filter), up_to: 3 };
    let of_the_command = ReplayRequest { selection, options: ReplayOptions::default(), dry_run: true, after: 0 };
    let of_the_command = serde_json::to_value(of_the_command).unwrap();
    let named = |more: Value| {
        let mut request = json!({"selection": {"ids": [1]}});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let filtered = |filter: Value| json!({"selection": {"filter": filter}, "dry_run": true});
    let edit_4 = "/api/v1/dead-letters/4/edit";
    let body = "eyJpZCI6ICJvcmQtNCIsICJwcm9kdWN0IjogIkxhcHRvcCIsICJxdWFudGl0eSI6IDEsICJwcmljZSI6ICIxLjAwIn0=";
    for (operation, path, request, expected) in [
        (REPLAYS, REPLAYS, of_the_command, VALID),
        (REPLAYS, REPLAYS, named(json!({"dry_run": true})), VALID),
        (
            REPLAYS,
            REPLAYS,
            named(json!({"options": {"rate": 1000, "stop_at": 100, "canary": false, "to": null}})),
            VALID,
        ),
        (
            REPLAYS,
            REPLAYS,
            filtered(json!({"states": ["open"], "code": "http_402", "since": "2026-11-22T08:00:00Z"})),
            VALID,
        ),
        (REPLAYS, REPLAYS, json!({}), INVALID),
        (REPLAYS, REPLAYS, json!([]), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"ids": []}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"ids": (0..10_001).collect::<Vec<_>>()}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"ids": ["1"]}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"ids": [1], "filter": {}}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"ids": [1], "up_to": 3}}), INVALID),
        (REPLAYS, REPLAYS, json!({"selection": {"up_to": 3}}), INVALID),
        (REPLAYS, REPLAYS, filtered(json!({"colour": "red"})), INVALID),
        (REPLAYS, REPLAYS, filtered(json!({"states": ["lost"]})), INVALID),
        (REPLAYS, REPLAYS, filtered(json!({"states": "open"})), INVALID),
        (REPLAYS, REPLAYS, filtered(json!({"source": "order_queue"})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"colour": "red"})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"dry_run": "yes"})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"rate": 0}})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"rate": 1001}})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"stop_at": 101}})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"stop_at": -1}})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"colour": 1}})), INVALID),
        (REPLAYS, REPLAYS, named(json!({"options": {"to": "x"}})), only_handlers_know("queues are configured")),
        (REPLAYS, REPLAYS, filtered(json!({"states": ["held"]})), only_handlers_know("of one action")),
        (REPLAYS, REPLAYS, filtered(json!({"consumer": "x"})), VALID),
        (REPLAYS, REPLAYS, filtered(json!({"since": "yesterday"})), only_handlers_know("a format asserts nothing")),
        (HOLD, HOLD, named(json!({"note": "SHOP-1"})), VALID),
        (HOLD, HOLD, named(json!({"dry_run": true, "after": 1})), VALID),
        (HOLD, HOLD, named(json!({"note": 1})), INVALID),
        (HOLD, HOLD, json!({"note": "SHOP-1"}), INVALID),
        (HOLD, HOLD, named(json!({})), only_handlers_know("only a dry run needs no note")),
        (RELEASE, RELEASE, named(json!({})), VALID),
        (RELEASE, RELEASE, json!({"ids": [1]}), INVALID),
        (RELEASE, RELEASE, named(json!({"note": "SHOP-1"})), only_handlers_know("of one action")),
        (DISCARD, DISCARD, named(json!({"note": "SHOP-1"})), VALID),
        (DISCARD, DISCARD, named(json!({"after": "x"})), INVALID),
        (DISCARD, DISCARD, named(json!({"note": "x".repeat(5_000)})), only_handlers_know("bytes are not characters")),
        (EDIT, edit_4, json!({"dry_run": true}), VALID),
        (EDIT, edit_4, json!({"revision": 0, "body_base64": body}), VALID),
        (EDIT, edit_4, json!({"revision": "0", "body_base64": body}), INVALID),
        (EDIT, edit_4, json!({"colour": "red"}), INVALID),
        (EDIT, edit_4, json!({"revision": 1, "body_base64": "*"}), only_handlers_know("it is not Base64")),
        (EDIT, edit_4, json!({}), only_handlers_know("either a dry run or a body")),
        (EDIT, edit_4, json!({"dry_run": true, "revision": 1}), only_handlers_know("either a dry run or a body")),
    ] {
        let (status, answer) = exchange(&server, post(path, &request)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(status, if expected.is_ok() { 200 } else { 400 }, "{operation} {request:.200} {answer}");
        let schema = &document["paths"][operation]["post"]["requestBody"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{operation}");
        let problems = schema_problems(&document, schema, &request);
        assert_eq!(problems.is_empty(), expected != INVALID, "{operation} {request:.200} {expected:?} {problems:?}");
    }
    ledger.close().await;
}

/// What is wrong with a query by the document.
fn query_problems(document: &Value, path: &str, query: &str) -> Vec<String> {
    let parameters = document["paths"][path]["get"]["parameters"].as_array().cloned().unwrap_or_default();
    let problems = query.split('&').filter(|pair| !pair.is_empty()).flat_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        let known = parameters.iter().find(|parameter| parameter["in"] == "query" && parameter["name"] == name);
        let Some(known) = known else { return vec![format!("there is no parameter {name}")] };
        let as_text = schema_problems(document, &known["schema"], &json!(value));
        match value.parse::<i64>() {
            Ok(number) if !as_text.is_empty() => schema_problems(document, &known["schema"], &json!(number)),
            Ok(_) | Err(_) => as_text,
        }
    });
    problems.collect()
}

#[tokio::test]
async fn a_query_is_accepted_if_it_is_valid_by_the_document_or_it_is_listed_here_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let (actions, ledger) = actions(directory.path()).await;
    let server = server_with(directory.path(), actions).await;
    let (status, _) = exchange(&server, post(REPLAYS, &json!({"selection": {"ids": [1]}}))).await;
    assert_eq!(status, 200);
    let document = server.document().await;
    let list = "/api/v1/dead-letters";
    let states = LetterState::ALL.iter().map(|state| state.as_str()).chain(["any"]);
    let mut cases: Vec<_> = states.map(|state| (list, format!("state={state}"), VALID)).collect();
    cases.extend(
        [
            (list, "since=24h&until=2026-11-22&source=unrouted_queue&replay=1&limit=1000&after=0", VALID),
            (list, "reason=a&code=b&consumer=c&product=d&customer=e&order=f&text=g&routing_key=h&before=3", VALID),
            (list, "state=lost", INVALID),
            (list, "source=order_queue", INVALID),
            (list, "colour=red", INVALID),
            (list, "limit=0", INVALID),
            (list, "limit=many", INVALID),
            (list, "before=x", INVALID),
            (list, "replay=x", INVALID),
            (list, "limit=1001", only_handlers_know("groups can have a higher limit")),
            (list, "since=yesterday", only_handlers_know("a time has many forms")),
            (list, "before=1&after=1", only_handlers_know("one excludes the other")),
            (GROUPS, "limit=10000", VALID),
            (GROUPS, "limit=10001", INVALID),
            (GROUPS, "before=3", INVALID),
            (GROUPS, "after=3", INVALID),
            (EXPORT, "state=any&text=Laptop", VALID),
            (EXPORT, "state=lost", INVALID),
            (EXPORT, "limit=5", INVALID),
            (EXPORT, "before=3", INVALID),
            (EXPORT, "after=3", INVALID),
            (LETTER, "revision=0", VALID),
            (LETTER, "revision=x", INVALID),
            (LETTERS, "progress=processed&after=0&limit=1000", VALID),
            (LETTERS, "progress=lost", INVALID),
            (LETTERS, "limit=1001", INVALID),
            (LETTERS, "after=x", INVALID),
            ("/api/v1/journal", "since=1h&until=now&actor=ada&action=pause&before=9&limit=1", VALID),
            ("/api/v1/journal", "action=laugh", INVALID),
            ("/api/v1/journal", "limit=0", INVALID),
            ("/api/v1/report", "since=7d&until=now&by=product", VALID),
            ("/api/v1/report", "by=colour", INVALID),
            ("/api/v1/report", "since=soon", only_handlers_know("a time has many forms")),
        ]
        .map(|(path, query, expected)| (path, query.to_owned(), expected)),
    );
    for (path, query, expected) in cases {
        let request = request("GET", &format!("{}?{query}", existing(path)), Body::empty());
        let (status, answer) = exchange(&server, request).await;
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(status, if expected.is_ok() { 200 } else { 400 }, "{path} {query} {answer}");
        assert!(!answer.contains("deserialize"), "{query}: {answer}");
        let problems = query_problems(&document, path, &query);
        assert_eq!(problems.is_empty(), expected != INVALID, "{path} {query} {expected:?} {problems:?}");
    }
    ledger.close().await;
}

#[tokio::test]
async fn no_operation_has_the_code_of_a_limit_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let document = server_with(directory.path(), LetterActionsHandle::default()).await.document().await;
    for (code, expected) in [
        ("too_many_exports", &[("GET", EXPORT)][..]),
        ("too_many_large_answers", &[("GET", EXPORT), ("GET", LETTER)]),
        ("too_many_edits", &[("POST", EDIT)]),
    ] {
        let named = operations(&document).into_iter().filter(|(method, path)| {
            let busy = &document["paths"][path][method.to_lowercase()]["responses"]["503"]["description"];
            busy.as_str().unwrap().contains(&format!("`{code}`"))
        });
        let named: BTreeSet<_> = named.collect();
        assert_eq!(named, expected.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect());
    }
}

#[test]
fn each_operation_of_the_document_has_a_name_of_its_own() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let document = runtime.block_on(async {
        server_with(Path::new(directory.path()), LetterActionsHandle::default()).await.document().await
    });
    let mut names = BTreeSet::new();
    for (method, path) in operations(&document) {
        let name = document["paths"][&path][method.to_lowercase()]["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name), "{method} {path}");
    }
}

#[tokio::test]
async fn what_an_edit_answers_is_either_a_draft_or_an_edited_letter_by_the_document() {
    let directory = tempfile::tempdir().unwrap();
    let document = server_with(directory.path(), LetterActionsHandle::default()).await.document().await;
    let schema = json!({"$ref": "#/components/schemas/EditAnswer"});
    let draft = json!({"id": 7, "revision": 0, "body_base64": "e30=", "order_id": "ord-1", "is_accepted": false});
    let edited = json!({"id": 7, "revision": 1, "order_id": "ord-1", "former_order_id": null, "queue": null});
    for answer in [draft, edited] {
        assert_eq!(schema_problems(&document, &schema, &answer), [""; 0], "{answer}");
    }
}
