//! The poller: asks the management API again and again, and tells the broker's view to whoever reads it.
//!
//! An API that is absent, slow or refuses only makes the view stale. It never touches the broker, and nothing waits for
//! it; orderd processes as well without.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::findings::Moment;
use super::judge::{Judge, Limits, Own};
use super::roles::Roles;
use super::view::{Alarm, ApiState, BrokerView, Finding, QueueView};
use super::{ManagementClient, ManagementError};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Config;
use crate::shutdown::Shutdown;

/// Least pause between two questions about details.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// The longest wait for an API that does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Polls the management API. Made with [`Poller::new`], run once with [`Poller::run`].
pub struct Poller {
    client: Result<ManagementClient, ManagementError>,
    poll_every: Option<Duration>,
    limits: Limits,
    roles: Roles,
    judge: Judge,
    own: Box<dyn Fn() -> Own + Send + Sync>,
    begun: Instant,
    view: BrokerView,
    readers: watch::Sender<Arc<BrokerView>>,
    schedule: Schedule,
}

/// What is asked next, and when.
#[derive(Debug)]
struct Schedule {
    totals_at: Instant,
    detail_at: Instant,
    /// The queue whose details were asked for last.
    last: Option<String>,
    /// Whether all queues have been asked about once; the first round is a fast one.
    been_round: bool,
}

impl Poller {
    /// Asks nothing yet. `own` reads orderd's own counts; it is called a few times a second at the most.
    pub fn new(config: &Config, limits: Limits, own: impl Fn() -> Own + Send + Sync + 'static) -> Self {
        let poll_every = config.management.poll_every;
        let roles = Roles::new(config);
        let api = if poll_every.is_some() { ApiState::Unasked } else { ApiState::Off };
        let view = BrokerView { api, ..BrokerView::default() };
        let now = Instant::now();
        Poller {
            client: ManagementClient::new(&config.management, &config.broker.virtual_host),
            poll_every,
            limits,
            judge: Judge::new(&roles, limits),
            roles,
            own: Box::new(own),
            begun: now,
            readers: watch::Sender::new(Arc::new(view.clone())),
            view,
            schedule: Schedule { totals_at: now, detail_at: now, last: None, been_round: false },
        }
    }

    /// The view as it is, and as it will be.
    pub fn view(&self) -> watch::Receiver<Arc<BrokerView>> {
        self.readers.subscribe()
    }

    /// Polls until a shutdown begins, at once if `management.poll_every` is `"off"`. What consumers do in a shutdown is
    /// not for judging.
    pub async fn run(mut self, shutdown: Shutdown) {
        let Some(every) = self.poll_every else { return };
        // Cancel-safe: it only asks.
        tokio::select! {
            never = self.poll(every) => match never {},
            () = shutdown.begun() => {}
        }
    }

    async fn poll(&mut self, every: Duration) -> Infallible {
        let patience = Backoff { first: every.clamp(Duration::from_secs(1), LONGEST_WAIT), max: LONGEST_WAIT };
        let mut failures = 0;
        loop {
            match self.ask_next(every).await {
                Ok(()) => {
                    failures = 0;
                    self.answers();
                }
                Err(error) => {
                    self.does_not_answer(&error);
                    tokio::time::sleep(patience.wait(failures, fastrand::f64())).await;
                    failures += 1;
                    // Whatever failed, the cheap question comes first again.
                    self.schedule.totals_at = Instant::now();
                }
            }
            self.tell();
        }
    }

    /// Waits until something is to be asked, and asks it.
    async fn ask_next(&mut self, every: Duration) -> Result<(), ManagementError> {
        let queues = self.view.queues.len();
        if queues == 0 || self.schedule.totals_at <= self.schedule.detail_at {
            tokio::time::sleep_until(self.schedule.totals_at).await;
            self.schedule.totals_at = Instant::now() + every;
            self.ask_totals().await
        } else {
            tokio::time::sleep_until(self.schedule.detail_at).await;
            let share = self.limits.details_every / u32::try_from(queues).unwrap_or(u32::MAX);
            let pause = if self.schedule.been_round { share.max(LEAST_PAUSE) } else { LEAST_PAUSE };
            self.schedule.detail_at = Instant::now() + pause;
            self.ask_detail().await
        }
    }

    fn client(&self) -> Result<&ManagementClient, ManagementError> {
        self.client.as_ref().map_err(|error| ManagementError::Setup { url: String::new(), source: chain(error).into() })
    }

    async fn ask_totals(&mut self) -> Result<(), ManagementError> {
        let asked = self.begun.elapsed();
        let client = self.client()?;
        let alarms = client.alarms().await?;
        let all = client.totals().await?;
        self.alarms_are(alarms);
        let mut found = BTreeMap::new();
        for totals in all.queues {
            let Some(role) = self.roles.of(&totals.name) else { continue };
            let known = self.view.queues.remove(&totals.name).filter(|known| known.role == role);
            let mut queue = known.unwrap_or_else(|| QueueView::unknown(role));
            (queue.ready, queue.unacked) = (totals.ready, totals.unacked);
            found.insert(totals.name, queue);
        }
        let gone = std::mem::replace(&mut self.view.queues, found);
        let missing = self.roles.declared().filter(|name| !self.view.queues.contains_key(*name)).map(str::to_owned);
        if all.complete {
            self.view.missing_queues = missing.collect();
            gone.keys().for_each(|name| self.judge.gone(name));
        } else {
            self.view.queues.extend(gone);
        }
        let now = self.now();
        self.view.taken_at = Some(now.wall);
        self.judge.own(now, &(self.own)());
        self.judge.totals(asked, now, &self.view, &self.roles);
        Ok(())
    }

    async fn ask_detail(&mut self) -> Result<(), ManagementError> {
        let Some(name) = self.next_queue() else { return Ok(()) };
        // Also if it fails: the others are asked about as well.
        self.schedule.last = Some(name.clone());
        let asked = self.begun.elapsed();
        let answer = self.client()?.detail(&name).await?;
        let (now, own) = (self.now(), (self.own)());
        self.judge.own(now, &own);
        // One that is not there any more is missing from the next totals.
        if let (Some(detail), Some(queue)) = (answer, self.view.queues.get_mut(&name)) {
            self.judge.detail(asked, now, &name, &queue.role, &detail, &own);
            queue.detail_at = Some(now.wall);
            queue.consumers = detail.consumers;
            queue.dead_letters_held = detail.dead_letters_held;
            queue.policy = detail.policy;
            queue.in_rate = detail.stats.map(|stats| stats.in_rate);
            queue.out_rate = detail.stats.map(|stats| stats.out_rate);
            queue.counted = detail.stats.map(|stats| stats.counted).unwrap_or_default();
        }
        Ok(())
    }

    /// The queues in the order of their names, round and round.
    fn next_queue(&mut self) -> Option<String> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = self.schedule.last.as_ref().map_or(Unbounded, Excluded);
        if let Some((name, _)) = self.view.queues.range::<String, _>((after, Unbounded)).next() {
            return Some(name.clone());
        }
        self.schedule.been_round = true;
        self.view.queues.keys().next().cloned()
    }

    fn now(&self) -> Moment {
        Moment { elapsed: self.begun.elapsed(), wall: Timestamp::now() }
    }

    fn alarms_are(&mut self, alarms: Option<Vec<Alarm>>) {
        let none = Vec::new();
        let (before, after) = (self.view.alarms.as_ref().unwrap_or(&none), alarms.as_ref().unwrap_or(&none));
        for Alarm { node, resource } in after.iter().filter(|alarm| !before.contains(alarm)) {
            warn!(node, resource, "the broker has an alarm: publishing is blocked");
        }
        for Alarm { node, resource } in before.iter().filter(|alarm| !after.contains(alarm)) {
            info!(node, resource, "the broker's alarm is over");
        }
        self.view.alarms = alarms;
    }

    fn answers(&mut self) {
        match std::mem::replace(&mut self.view.api, ApiState::Fresh) {
            ApiState::Fresh => {}
            ApiState::Stale { since, .. } => info!(%since, "the management API answers again"),
            ApiState::Unasked | ApiState::Off => info!("the management API answers"),
        }
    }

    /// Logged when it begins and when its cause changes.
    fn does_not_answer(&mut self, error: &ManagementError) {
        let (cause, reason) = (error.trouble(), chain(error));
        let (since, known) = match &self.view.api {
            ApiState::Stale { since, cause, .. } => (*since, Some(*cause)),
            ApiState::Off | ApiState::Unasked | ApiState::Fresh => (Timestamp::now(), None),
        };
        if known != Some(cause) {
            warn!(error = reason, "the management API does not answer: the broker's side is not shown");
        }
        self.view.api = ApiState::Stale { since, cause, reason };
        self.judge.interrupted();
    }

    /// Logs what the judge has found, and sends the view to its readers.
    fn tell(&mut self) {
        let changes = self.judge.changes(self.now());
        changes.begun.iter().for_each(tell_begun);
        for Finding { queue, kind, since, .. } in &changes.ended {
            info!(queue, kind = kind.as_str(), %since, "no longer found on the broker");
        }
        self.view.findings = self.judge.findings();
        self.readers.send_replace(Arc::new(self.view.clone()));
    }
}

fn tell_begun(finding: &Finding) {
    let Finding { queue, kind, since, messages, detail } = finding;
    if kind.needs_a_person() {
        error!(queue, kind = kind.as_str(), messages, %since, detail, "found on the broker");
    } else {
        warn!(queue, kind = kind.as_str(), messages, %since, detail, "found on the broker");
    }
}
