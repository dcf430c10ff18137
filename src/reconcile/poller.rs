//! Polls the management API, and sends the broker's state to the readers of the view.
//!
//! An API that is absent, slow or refuses requests only makes the view stale. The poller never changes anything on the
//! broker, and processing never waits for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::broker_view::{ApiState, BrokerView, Finding, QueueView};
use super::findings::Moment;
use super::queue_roles::QueueRoles;
use super::reconciler::{Limits, LocalCounts, Reconciler};
use super::topology_check::TopologyCheck;
use super::topology_findings::TopologyFindings;
use crate::amqp::Redeclaration;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Config;
use crate::instance;
use crate::management::{Alarm, Detail, ManagementClient, ManagementError, ManagementErrorKind};
use crate::shutdown::Shutdown;
use crate::supervisor::{RestartPolicy, supervise};
use crate::topology::Topology;

/// The shortest pause between two requests for details.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between requests to an API that does not answer.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Polls the management API. Created with [`Poller::new`], run once with [`Poller::run`].
pub struct Poller {
    client: Result<ManagementClient, ManagementError>,
    poll_every: Option<Duration>,
    limits: Limits,
    roles: QueueRoles,
    reconciler: Reconciler,
    local_counts: Box<dyn Fn() -> LocalCounts + Send + Sync>,
    created_at: Instant,
    view: BrokerView,
    readers: watch::Sender<Arc<BrokerView>>,
    schedule: Schedule,
    /// A queue whose details could not be read, and the error. The next totals show whether the API answers at all.
    failed_detail: Option<(String, ManagementError)>,
    /// Queues whose details cannot be read although the API answers.
    unreadable: BTreeMap<String, ManagementErrorKind>,
    topology: Arc<Topology>,
    /// For how long a delivery from each queue may be held.
    longest_holds: BTreeMap<String, Duration>,
    /// Whether orderd declares what is missing.
    declare: bool,
    redeclaration: Redeclaration,
    /// Runs while the poller does.
    topology_check: Option<TopologyCheck>,
    topology_findings: TopologyFindings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// Alarms, and all queues' totals.
    Totals,
    /// One queue's details.
    Detail,
}

/// What is requested next, and when.
#[derive(Debug)]
struct Schedule {
    totals_at: Instant,
    detail_at: Instant,
    /// The queue whose details were requested last.
    last: Option<String>,
    /// Whether the details of all queues have been requested once; the first round has no pauses beyond the shortest.
    first_round_done: bool,
}

impl Schedule {
    /// The totals are requested at once. They come before any queue's details, however long ago those were due: after a request
    /// that was given up late, they would be due for ever.
    fn totals_next(&mut self) {
        self.totals_at = Instant::now();
        self.detail_at = self.detail_at.max(self.totals_at + MIN_PAUSE);
    }
}

impl Poller {
    /// Sends no request yet. `local_counts` reads orderd's own counts; it is called a few times a second.
    pub fn new(
        config: &Config,
        limits: Limits,
        local_counts: impl Fn() -> LocalCounts + Send + Sync + 'static,
    ) -> Self {
        let poll_every = config.management.poll_every;
        let roles = QueueRoles::new(config);
        let api = if poll_every.is_some() { ApiState::Pending } else { ApiState::Off };
        let view = BrokerView { api, ..BrokerView::default() };
        let now = Instant::now();
        Poller {
            client: ManagementClient::new(&config.management, &config.broker.virtual_host),
            poll_every,
            limits,
            reconciler: Reconciler::new(&roles, limits, instance::tag_prefix()),
            roles,
            local_counts: Box::new(local_counts),
            created_at: now,
            readers: watch::Sender::new(Arc::new(view.clone())),
            view,
            schedule: Schedule { totals_at: now, detail_at: now, last: None, first_round_done: false },
            failed_detail: None,
            unreadable: BTreeMap::new(),
            topology: Arc::new(config.topology()),
            longest_holds: config.longest_holds(),
            declare: config.topology.declare,
            redeclaration: Redeclaration::default(),
            topology_check: None,
            topology_findings: TopologyFindings::default(),
        }
    }

    /// Requests declarations of the topology here.
    pub fn with_redeclaration(mut self, redeclaration: Redeclaration) -> Self {
        self.redeclaration = redeclaration;
        self
    }

    /// Takes over the readers of the previous poller. They keep its view until there is a new one.
    pub fn with_readers(mut self, readers: watch::Sender<Arc<BrokerView>>) -> Self {
        let former = BrokerView::clone(&readers.borrow());
        let role = |name: &String| self.roles.role_of(name);
        let queues = former.queues.into_iter().filter_map(|(name, queue)| {
            let role = role(&name)?;
            Some((name, QueueView { role, ..queue }))
        });
        let api = match (self.poll_every.is_some(), former.api) {
            (false, _) => ApiState::Off,
            (true, ApiState::Off) => ApiState::Pending,
            (true, api) => api,
        };
        self.view = BrokerView { api, queues: queues.collect(), ..former };
        self.readers = readers;
        self.readers.send_replace(Arc::new(self.view.clone()));
        self
    }

    /// Subscribes to the view.
    pub fn view(&self) -> watch::Receiver<Arc<BrokerView>> {
        self.readers.subscribe()
    }

    /// Polls until a shutdown begins; returns at once if `management.poll_every` is `"off"`. It does not poll during a
    /// shutdown, because a drain looks like missing consumers. After a panic it is restarted without its history.
    pub async fn run(self, shutdown: Shutdown) {
        let Some(every) = self.poll_every else { return };
        let poller = Arc::new(Mutex::new(self));
        let start = || {
            let (poller, shutdown) = (Arc::clone(&poller), shutdown.clone());
            async move {
                let mut poller = poller.lock().await;
                poller.start_over();
                // Cancel-safe: polling only reads.
                tokio::select! {
                    never = poller.poll(every) => match never {},
                    () = shutdown.begun() => Ok::<(), Infallible>(()),
                }
            }
        };
        let polled = supervise("poller of the management API", RestartPolicy::DEFAULT, &shutdown, || {}, start).await;
        if let Err(exceeded) = polled {
            error!(error = %exceeded, "the poller keeps failing: no broker state is shown until orderd restarts");
            poller.lock().await.give_up();
        }
    }

    /// Discards the history, which may have caused a panic.
    fn start_over(&mut self) {
        self.reconciler = Reconciler::new(&self.roles, self.limits, instance::tag_prefix());
        self.failed_detail = None;
        self.schedule.totals_at = Instant::now();
        self.topology_findings = TopologyFindings::default();
        self.topology_check = self.client.as_ref().ok().map(|client| {
            let (client, topology) = (client.clone(), Arc::clone(&self.topology));
            let holds = self.longest_holds.clone();
            TopologyCheck::start(client, topology, holds, self.limits.details_every, self.redeclaration.clone())
        });
    }

    fn give_up(&mut self) {
        let reason = "orderd's poller keeps failing, which is a bug; report it with the log".to_owned();
        self.view.api = ApiState::Stale { since: Timestamp::now(), cause: ManagementErrorKind::PollerFailed, reason };
        self.readers.send_replace(Arc::new(self.view.clone()));
    }

    /// Only the request for the totals decides whether the API counts as answering: a single queue's details may be
    /// unavailable, for instance while the queue has no leader.
    async fn poll(&mut self, every: Duration) -> Infallible {
        let backoff = Backoff { first: every.clamp(Duration::from_secs(1), MAX_PAUSE), max: MAX_PAUSE };
        let mut failures = 0;
        loop {
            let pause = match self.next_request().await {
                Request::Totals => match self.request_totals(every).await {
                    Ok(()) => {
                        failures = 0;
                        self.record_answer();
                        None
                    }
                    Err(error) => {
                        self.record_no_answer(&error);
                        failures += 1;
                        Some(backoff.wait(failures - 1, fastrand::f64()))
                    }
                },
                Request::Detail => {
                    self.request_detail().await;
                    None
                }
            };
            self.publish_view();
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                self.schedule.totals_next();
            }
        }
    }

    /// Waits until the next request is due.
    async fn next_request(&mut self) -> Request {
        if self.view.queues.is_empty() || self.schedule.totals_at <= self.schedule.detail_at {
            tokio::time::sleep_until(self.schedule.totals_at).await;
            Request::Totals
        } else {
            tokio::time::sleep_until(self.schedule.detail_at).await;
            Request::Detail
        }
    }

    fn client(&self) -> Result<&ManagementClient, ManagementError> {
        self.client.as_ref().map_err(|error| ManagementError::Setup { url: String::new(), source: chain(error).into() })
    }

    async fn request_totals(&mut self, every: Duration) -> Result<(), ManagementError> {
        self.schedule.totals_at = Instant::now() + every;
        let asked_at = self.created_at.elapsed();
        let client = self.client()?;
        let alarms = client.alarms().await?;
        let all = client.totals().await?;
        self.record_alarms(alarms);
        let mut found = BTreeMap::new();
        for totals in all.queues {
            let Some(role) = self.roles.role_of(&totals.name) else { continue };
            let known = self.view.queues.remove(&totals.name).filter(|known| known.role == role);
            let mut queue = known.unwrap_or_else(|| QueueView::unknown(role));
            (queue.ready, queue.unacked) = (totals.ready, totals.unacked);
            found.insert(totals.name, queue);
        }
        let gone = std::mem::replace(&mut self.view.queues, found);
        let missing = self.roles.declared().filter(|name| !self.view.queues.contains_key(*name)).map(str::to_owned);
        if all.complete {
            self.view.missing_queues = missing.collect();
            for name in gone.keys() {
                self.reconciler.forget_queue(name);
                self.unreadable.remove(name);
            }
        } else {
            self.view.queues.extend(gone);
        }
        let now = self.now();
        self.view.taken_at = Some(now.wall);
        self.reconciler.record_local_counts(now, &(self.local_counts)());
        self.reconciler.compare_totals(asked_at, now, &self.view);
        Ok(())
    }

    async fn request_detail(&mut self) {
        let Some(name) = self.next_queue() else { return };
        // Even if this request fails, the next one is for the next queue.
        self.schedule.last = Some(name.clone());
        let share = self.limits.details_every / u32::try_from(self.view.queues.len()).unwrap_or(u32::MAX);
        let pause = if self.schedule.first_round_done { share.max(MIN_PAUSE) } else { MIN_PAUSE };
        self.schedule.detail_at = Instant::now() + pause;
        let asked_at = self.created_at.elapsed();
        let answer = match self.client() {
            Ok(client) => client.detail(&name).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => self.record_detail(asked_at, &name, answer),
            Err(error) => {
                self.failed_detail = Some((name, error));
                self.schedule.totals_next();
            }
        }
    }

    fn record_detail(&mut self, asked_at: Duration, name: &str, answer: Option<Detail>) {
        if self.unreadable.remove(name).is_some() {
            info!(queue = name, "the management API reports the queue's details again");
        }
        let (now, local) = (self.now(), (self.local_counts)());
        self.reconciler.record_local_counts(now, &local);
        // A queue that no longer exists will be missing from the next totals.
        if let (Some(detail), Some(queue)) = (answer, self.view.queues.get_mut(name)) {
            self.reconciler.compare_detail(asked_at, now, name, &queue.role, &detail, &local);
            queue.detail_at = Some(now.wall);
            queue.detail_error = None;
            queue.consumers = detail.consumers;
            queue.dead_letters_held = detail.dead_letters_held;
            queue.policy = detail.policy;
            queue.in_rate = detail.stats.map(|stats| stats.in_rate);
            queue.out_rate = detail.stats.map(|stats| stats.out_rate);
            queue.counted = detail.stats.map(|stats| stats.counted).unwrap_or_default();
        }
    }

    /// The next queue in the order of names, starting over after the last.
    fn next_queue(&mut self) -> Option<String> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = self.schedule.last.as_ref().map_or(Unbounded, Excluded);
        if let Some((name, _)) = self.view.queues.range::<String, _>((after, Unbounded)).next() {
            return Some(name.clone());
        }
        self.schedule.first_round_done = true;
        self.view.queues.keys().next().cloned()
    }

    fn now(&self) -> Moment {
        Moment { elapsed: self.created_at.elapsed(), wall: Timestamp::now() }
    }

    fn record_alarms(&mut self, alarms: Option<Vec<Alarm>>) {
        let none = Vec::new();
        let (before, after) = (self.view.alarms.as_ref().unwrap_or(&none), alarms.as_ref().unwrap_or(&none));
        for Alarm { node, resource } in after.iter().filter(|alarm| !before.contains(alarm)) {
            warn!(node, resource, "the broker has an alarm: publishing is blocked");
        }
        for Alarm { node, resource } in before.iter().filter(|alarm| !after.contains(alarm)) {
            info!(node, resource, "the broker's alarm has ended");
        }
        self.view.alarms = alarms;
    }

    fn record_answer(&mut self) {
        let address = self.client.as_ref().ok().map(ManagementClient::address);
        if let (Some(before), Some(after)) = (&self.view.api_address, &address)
            && before != after
        {
            info!(%before, %after, "the management API answers at another address");
        }
        self.view.api_address = address;
        match std::mem::replace(&mut self.view.api, ApiState::Fresh) {
            ApiState::Fresh => {}
            ApiState::Stale { since, .. } => info!(%since, "the management API answers again"),
            ApiState::Pending | ApiState::Off => info!("the management API answers"),
        }
        if let Some((name, error)) = self.failed_detail.take() {
            self.record_unreadable_detail(&name, &error);
        }
    }

    /// Records that one queue's details cannot be read although the API answers. Logs each cause once.
    fn record_unreadable_detail(&mut self, name: &str, error: &ManagementError) {
        let Some(queue) = self.view.queues.get_mut(name) else { return };
        let (cause, reason) = (error.kind(), chain(error));
        if self.unreadable.insert(name.to_owned(), cause) != Some(cause) {
            warn!(queue = name, error = reason, "cannot read the queue's details from the management API");
        }
        queue.detail_error = Some(reason);
    }

    /// Records that the API does not answer. Logs when that begins and when its cause changes.
    fn record_no_answer(&mut self, error: &ManagementError) {
        let (cause, reason) = (error.kind(), chain(error));
        let (since, known) = match &self.view.api {
            ApiState::Stale { since, cause, .. } => (*since, Some(*cause)),
            ApiState::Off | ApiState::Pending | ApiState::Fresh => (Timestamp::now(), None),
        };
        if known != Some(cause) {
            warn!(error = reason, "the management API does not answer: the broker state is stale");
        }
        self.view.api = ApiState::Stale { since, cause, reason };
        self.failed_detail = None;
        self.reconciler.record_interruption();
    }

    fn update_topology_findings(&mut self) {
        let now = self.now();
        let restored = self.redeclaration.take_restored();
        self.topology_findings.record_restored(restored, now, self.limits.event_retention);
        if self.redeclaration.take_complete() {
            self.topology_findings.record_complete();
        }
        if let Some(audit) = self.topology_check.as_mut().and_then(TopologyCheck::take) {
            self.topology_findings.record(&audit, self.declare, now);
        }
    }

    /// Logs changed findings and sends the view to its readers.
    fn publish_view(&mut self) {
        self.update_topology_findings();
        let now = self.now();
        for changes in [self.topology_findings.take_changes(now), self.reconciler.take_changes(now)] {
            changes.begun.iter().for_each(log_new_finding);
            for Finding { queue, exchange, policy, kind, since, .. } in &changes.ended {
                info!(queue, exchange, policy, kind = kind.as_str(), %since, "finding ended");
            }
        }
        self.view.findings = self.topology_findings.all().chain(self.reconciler.findings()).collect();
        self.readers.send_replace(Arc::new(self.view.clone()));
    }
}

fn log_new_finding(finding: &Finding) {
    let Finding { queue, exchange, routing_key: _, policy, queues: _, kind, since, messages, detail } = finding;
    if kind.requires_action() {
        error!(queue, exchange, policy, kind = kind.as_str(), messages, %since, detail, "new finding");
    } else {
        warn!(queue, exchange, policy, kind = kind.as_str(), messages, %since, detail, "new finding");
    }
}

#[cfg(test)]
mod tests;
