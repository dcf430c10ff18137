//! Polling an API that answers in part, late or not at all.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::Sources;
use crate::handlers;

const QUICK: Limits = Limits { details_every: Duration::from_millis(100), ..Limits::DEFAULT };

/// An API with two queues; it can report the details of one of them.
fn answer(path: &str) -> Option<Value> {
    let queue = |name| json!({"name": name, "messages_ready": 1, "messages_unacknowledged": 0});
    match path.split('?').next()? {
        "/api/health/checks/alarms" => Some(json!({"status": "ok"})),
        "/api/queues/%2F" => Some(json!({"items": [queue("order_queue"), queue("unrouted_queue")]})),
        "/api/queues/%2F/unrouted_queue" => Some(json!({"consumers": 3})),
        _ => None,
    }
}

/// `fails`: answers with an error, after longer than the poller pauses between two queues' details.
async fn serve(mut stream: TcpStream, fails: Option<Arc<AtomicBool>>) -> std::io::Result<()> {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await?;
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut answer = answer(path);
    if let Some(fails) = fails {
        if fails.load(Ordering::SeqCst) {
            tokio::time::sleep(2 * MIN_PAUSE).await;
            answer = None;
        }
        fails.fetch_or(path.starts_with("/api/queues/"), Ordering::SeqCst);
    }
    let status = if answer.is_some() { "200 OK" } else { "500 Internal Server Error" };
    let body = answer.map_or_else(String::new, |answer| answer.to_string());
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await
}

async fn api() -> (Config, AbortOnDropHandle<()>) {
    api_that_fails(None).await
}

/// Once the flag is set: it sets that itself when it has answered a request about queues.
async fn api_that_fails(fails: Option<Arc<AtomicBool>>) -> (Config, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("management.url=http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, fails.clone()));
        }
    });
    let file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml").into());
    let settings = vec![url, "management.poll_every=100ms".to_owned()];
    let sources = Sources { file, settings, ..handlers::sources() };
    let config = Config::load(&sources);
    (config.unwrap().config, AbortOnDropHandle::new(serving))
}

#[tokio::test]
async fn a_queue_without_details_does_not_make_the_api_stale() {
    let (config, _serving) = api().await;
    let poller = Poller::new(&config, QUICK, LocalCounts::default);
    let mut view = poller.view();
    let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
    let round = |view: &BrokerView| {
        let queue = |name| view.queues.get(name).cloned();
        let (one, other) = (queue("order_queue")?, queue("unrouted_queue")?);
        (other.consumers == Some(3)).then_some(one.detail_error?)
    };
    let changed = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| round(view).is_some()));
    let changed = Arc::clone(&changed.await.expect("in time").unwrap());
    assert!(round(&changed).unwrap().contains("500"), "{changed:?}");
    assert_eq!((&changed.api, changed.queues["order_queue"].ready), (&ApiState::Fresh, Some(1)));
    for _ in 0..20 {
        view.changed().await.unwrap();
        assert_eq!(view.borrow_and_update().api, ApiState::Fresh);
    }
}

#[tokio::test]
async fn a_poller_that_panics_is_restarted() {
    let (config, _serving) = api().await;
    let panics = AtomicBool::new(true);
    let local_counts =
        move || if panics.swap(false, Ordering::SeqCst) { panic!("once") } else { LocalCounts::default() };
    let poller = Poller::new(&config, QUICK, local_counts);
    let mut view = poller.view();
    let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
    let changed = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| view.api == ApiState::Fresh));
    assert!(changed.await.expect("in time").is_ok(), "the poller was not restarted");
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_shown_as_stale_before_the_next_request() {
    let (mut config, _serving) = api().await;
    config.management.urls = vec!["http://127.0.0.1:1".to_owned()];
    config.management.poll_every = Some(Duration::from_secs(3600));
    let poller = Poller::new(&config, QUICK, LocalCounts::default);
    let mut view = poller.view();
    let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
    let stale = |view: &Arc<BrokerView>| matches!(view.api, ApiState::Stale { .. });
    // The first pause takes at least six seconds.
    let changed = tokio::time::timeout(Duration::from_secs(5), view.wait_for(stale)).await;
    assert!(changed.expect("in time").is_ok());
}

#[tokio::test]
async fn an_api_whose_details_fail_late_is_asked_for_the_totals_and_shown_as_stale() {
    let (config, _serving) = api_that_fails(Some(Arc::default())).await;
    let poller = Poller::new(&config, QUICK, LocalCounts::default);
    let mut view = poller.view();
    let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
    for is_reached in [
        |view: &BrokerView| view.api == ApiState::Fresh,
        |view: &BrokerView| matches!(view.api, ApiState::Stale { .. }),
    ] {
        let changed = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| is_reached(view)));
        assert!(changed.await.expect("in time").is_ok());
    }
}
