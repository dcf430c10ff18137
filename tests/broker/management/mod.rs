//! The poller and a real broker's management API: the view and the findings, also while the API does not answer.

mod http_proxy;
mod multiple_instances;
mod own_node;
mod reconciliation;
mod unavailable_api;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orderd::amqp::Connector;
use orderd::config::{Config, Sources};
use orderd::handlers;
use orderd::ledger::LedgerMaintenance;
use orderd::ledger::sqlite::SqliteLedger;
use orderd::management::ManagementErrorKind;
use orderd::message::ExchangeNames;
use orderd::metrics::Counters;
use orderd::pipeline::{
    ConsumerContext, DecompressedBytes, Handler, Intake, OnFailure, Pool, PoolError, PublishOutage,
};
use orderd::reconcile::{ApiState, FindingKind, QueueRole};
use orderd::reconcile::{BrokerView, Limits, LocalCounts, Poller};
use orderd::recovery::RetryPolicy;
use orderd::shutdown::Shutdown;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::raw_client::number;
use crate::support::test_env::environment_variable;
use crate::support::{Node, Vhost, with_deadline};

const QUEUE: &str = "order_queue";
/// The broker publishes some statistics only after ten seconds, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT_LIMITS: Limits = Limits {
    lag: Duration::from_secs(12),
    event_retention: Duration::from_secs(600),
    details_every: Duration::from_secs(2),
};

/// The default configuration for this virtual host, polled ten times a second, with additional settings as `key=value`.
fn config(vhost: &Vhost<'_>, settings: &[&str]) -> Config {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml"));
    let mut all = vec![
        format!("broker.addresses=127.0.0.1:{}", vhost.node.amqp_port),
        format!("broker.virtual_host={}", vhost.name),
        format!("management.url=http://127.0.0.1:{}", vhost.node.management_port),
        "management.poll_every=100ms".to_owned(),
    ];
    let key = |setting: &str| setting.split('=').next().unwrap().to_owned();
    all.retain(|default| settings.iter().all(|setting| key(setting) != key(default)));
    all.extend(settings.iter().map(|setting| (*setting).to_owned()));
    // In the environment, because passwords are refused on the command line.
    let environment = all.iter().map(|setting| {
        let (key, value) = setting.split_once('=').unwrap();
        (environment_variable(key).into(), value.into())
    });
    let sources = Sources { file: Some(file), environment: environment.collect(), ..handlers::sources() };
    Config::load(&sources).unwrap().config
}

/// Starts a pool of two workers, each with a prefetch of 5, on [`QUEUE`].
fn start_pool(
    connector: Connector,
    handler: Arc<dyn Handler>,
    ledger: &Path,
    counters: &Arc<Counters>,
    shutdown: &Shutdown,
) -> AbortOnDropHandle<Result<(), PoolError>> {
    let ledger = SqliteLedger::open(ledger).unwrap();
    let context = ConsumerContext {
        format: orderd::formats::Format::Own,
        consumer: "order".into(),
        queue: QUEUE.into(),
        handler,
        publisher: Arc::new(connector.publisher()),
        intake: Intake::new(ledger.state(), Vec::new(), Arc::default()),
        outage: PublishOutage::default(),
        ledger: Arc::new(ledger),
        names: Arc::new(ExchangeNames::new("orders")),
        bindings: Vec::new(),
        users: Arc::new(orderd::message::TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        decompressed: DecompressedBytes::new(1 << 20),
        unidentified: Arc::default(),
        timeout: Duration::from_secs(600),
        on_failure: OnFailure::Forward(RetryPolicy { immediate: 0, delays: Vec::new(), max_age: Duration::MAX }),
        counters: Arc::clone(counters),
    };
    let pool = Pool {
        context: Arc::new(context),
        consumer: Arc::new(connector),
        workers: 2,
        prefetch: 5,
        reconnect_max: Duration::from_millis(200),
        shutdown: shutdown.clone(),
        drain: CancellationToken::new(),
        intake_ended: CancellationToken::new(),
    };
    AbortOnDropHandle::new(tokio::spawn(Arc::new(pool).run()))
}

/// A running poller and the view that it publishes.
struct RunningPoller {
    view: watch::Receiver<Arc<BrokerView>>,
    _task: AbortOnDropHandle<()>,
}

fn poll(config: &Config, own: impl Fn() -> LocalCounts + Send + Sync + 'static) -> RunningPoller {
    let poller = Poller::new(config, SHORT_LIMITS, own);
    let view = poller.view();
    RunningPoller { view, _task: AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new()))) }
}

impl RunningPoller {
    /// Waits for a view that meets a condition.
    async fn until(&mut self, what: &str, condition: impl FnMut(&Arc<BrokerView>) -> bool) -> Arc<BrokerView> {
        let waited = tokio::time::timeout(PATIENCE, self.view.wait_for(condition)).await;
        let found = waited.map(|view| Arc::clone(&view.unwrap()));
        found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}: {:#?}", self.view.borrow()))
    }
}

/// Creates a user with this tag. If `may_read`, the user may read everything in the virtual host.
fn create_user(vhost: &Vhost<'_>, tag: &str, may_read: bool) -> String {
    let name = format!("u{:016x}", fastrand::u64(..));
    let body = format!(r#"{{"password":"let me in","tags":"{tag}"}}"#);
    assert_eq!(vhost.node.management("PUT", &format!("/users/{name}"), &body).0, 201);
    if may_read {
        let body = r#"{"configure":"^$","write":"^$","read":".*"}"#;
        assert_eq!(vhost.node.management("PUT", &format!("/permissions/{}/{name}", vhost.name), body).0, 201);
    }
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitoring_user_sees_known_numbers_of_messages_in_their_queues() {
    let node = Node::shared();
    let vhost = node.vhost();
    let user = create_user(&vhost, "monitoring", true);
    let config = config(&vhost, &[&format!("management.username={user}"), "management.password=let me in"]);
    with_deadline("declared", Connector::new(vhost.broker()).declare(config.topology().declarations())).await.unwrap();
    let mut raw = vhost.raw();
    raw.declare_quorum("order_queue.retry.7h", &[number("x-message-ttl", 25_200_000)]);
    raw.declare_quorum("mine", &[]);
    let messages = [
        ("order_queue", 7),
        ("dead_letter_queue", 3),
        ("unrouted_queue", 4),
        ("notification_queue.retry.1h", 2),
        ("order_queue.retry.7h", 1),
        ("priority_order_queue", 0),
    ];
    for (queue, count) in messages {
        raw.publish_many(queue, (0..count).map(|n| vec![n]));
    }
    raw.publish_many("mine", [vec![0]]);
    let mut poller = poll(&config, LocalCounts::default);
    let counts = |view: &BrokerView| messages.map(|(queue, _)| view.queues.get(queue).and_then(|queue| queue.ready));
    let expected = messages.map(|(_, count)| Some(u64::from(count)));
    let view = poller.until("the counts are shown", |view| counts(view) == expected).await;
    assert_eq!((&view.api, view.missing_queues.len()), (&ApiState::Fresh, 0));
    assert_eq!((view.queues.len(), view.alarms.as_deref()), (config.topology().queues().count() + 1, Some(&[][..])));
    let unconfigured = QueueRole::Retry { of: "order_queue".into(), delay: "7h".into(), configured: false };
    assert_eq!(view.queues["order_queue.retry.7h"].role, unconfigured);

    let published = |view: &BrokerView, queue: &str| view.queues[queue].counted.published;
    let view = poller
        .until("the details are shown", |view| {
            published(view, "order_queue") == Some(7) && view.queues["order_queue"].consumers == Some(0)
        })
        .await;
    assert!(view.queues["order_queue"].detail_at.is_some());
    let found = |view: &BrokerView, queue: &str, kind: FindingKind| {
        view.findings
            .iter()
            .find(|found| found.queue.as_deref() == Some(queue) && found.kind == kind)
            .map(|found| found.messages)
    };
    poller.until("nobody consumes", |view| found(view, "order_queue", FindingKind::NoConsumer) == Some(Some(7))).await;
    raw.delete("analytics_queue");
    let missing = |view: &BrokerView| found(view, "analytics_queue", FindingKind::QueueMissing).is_some();
    poller.until("a queue is missing", |view| missing(view) && view.missing_queues == ["analytics_queue"]).await;
    vhost.node.management("DELETE", &format!("/users/{user}"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_reported_with_its_reason_and_never_its_password() {
    let node = Node::shared();
    let vhost = node.vhost();
    let users = [create_user(&vhost, "", true), create_user(&vhost, "monitoring", false)];
    // RabbitMQ 4.3 gives the same answer for a virtual host that the user may not read and one that does not exist.
    let unreadable =
        if node.version() < (4, 3) { ManagementErrorKind::Refused } else { ManagementErrorKind::NoVirtualHost };
    let logins = [
        (format!("management.username={}", users[0]), "let me in", ManagementErrorKind::Refused, "no tag"),
        (format!("management.username={}", users[1]), "let me in", unreadable, "no permission"),
        ("management.username=guest".to_owned(), "hunter2", ManagementErrorKind::Refused, "a wrong password"),
        ("broker.virtual_host=nosuch".to_owned(), "guest", ManagementErrorKind::NoVirtualHost, "no virtual host"),
    ];
    for (setting, password, expected, what) in logins {
        let config = config(&vhost, &[&setting, &format!("management.password={password}")]);
        let mut poller = poll(&config, LocalCounts::default);
        let view = poller.until(what, |view| matches!(view.api, ApiState::Stale { .. })).await;
        let ApiState::Stale { cause, reason, .. } = &view.api else { panic!("{view:?}") };
        assert_eq!(*cause, expected, "{what}: {reason}");
        assert!(!reason.contains(password) || password == "guest", "{reason}");
        assert_eq!((view.taken_at, view.queues.len()), (None, 0), "{what}");
    }
    for user in users {
        vhost.node.management("DELETE", &format!("/users/{user}"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_on_later_pages_are_seen() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    // A page holds 500 queues, sorted by name.
    (0..505).for_each(|n| raw.declare(&format!("mine_{n}"), &[]));
    for queue in ["dead_letter_queue", "unrouted_queue"] {
        raw.declare_quorum(queue, &[]);
        raw.publish_many(queue, (0..2).map(|n| vec![n]));
    }
    let mut poller = poll(&config(&vhost, &[]), LocalCounts::default);
    let ready = |view: &BrokerView| view.queues.values().map(|queue| queue.ready).collect::<Vec<_>>();
    let view = poller.until("both are seen", |view| ready(view) == [Some(2), Some(2)]).await;
    let names = |view: &BrokerView| view.queues.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&view), ["dead_letter_queue", "unrouted_queue"]);
    assert!(!view.missing_queues.contains(&"unrouted_queue".to_owned()));
}

#[tokio::test]
async fn a_poller_that_is_off_says_so_and_sends_no_request() {
    let node = Node::shared();
    let vhost = node.vhost();
    let config = config(&vhost, &["management.poll_every=off", "management.url=http://127.0.0.1:1"]);
    let poller = Poller::new(&config, SHORT_LIMITS, LocalCounts::default);
    let view = poller.view();
    with_deadline("the poller ends at once", poller.run(Shutdown::new())).await;
    assert_eq!(view.borrow().api, ApiState::Off);
}
