//! The poller: asks the management API again and again, and tells the broker's view to whoever reads it.
//!
//! An API that is absent, slow or refuses only makes the view stale. It never touches the broker, and nothing waits for
//! it; orderd processes as well without.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::findings::Moment;
use super::reconciler::{Limits, LocalCounts, Reconciler};
use super::roles::Roles;
use super::view::{ApiState, BrokerView, Finding, QueueView};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Config;
use crate::instance;
use crate::management::{Alarm, Detail, ManagementClient, ManagementError, Trouble};
use crate::shutdown::Shutdown;
use crate::supervisor::{RestartPolicy, supervise};

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
    reconciler: Reconciler,
    own: Box<dyn Fn() -> LocalCounts + Send + Sync>,
    begun: Instant,
    view: BrokerView,
    readers: watch::Sender<Arc<BrokerView>>,
    schedule: Schedule,
    /// Details that were not told, and why. The next totals show whether it is that queue's trouble or the API's.
    doubt: Option<(String, ManagementError)>,
    /// Queues whose details are not told though the API answers.
    untold: BTreeMap<String, Trouble>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Alarms, and all queues' totals.
    Totals,
    /// One queue's details.
    Detail,
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
    pub fn new(config: &Config, limits: Limits, own: impl Fn() -> LocalCounts + Send + Sync + 'static) -> Self {
        let poll_every = config.management.poll_every;
        let roles = Roles::new(config);
        let api = if poll_every.is_some() { ApiState::Unasked } else { ApiState::Off };
        let view = BrokerView { api, ..BrokerView::default() };
        let now = Instant::now();
        Poller {
            client: ManagementClient::new(&config.management, &config.broker.virtual_host),
            poll_every,
            limits,
            reconciler: Reconciler::new(&roles, limits, instance::tag_prefix()),
            roles,
            own: Box::new(own),
            begun: now,
            readers: watch::Sender::new(Arc::new(view.clone())),
            view,
            schedule: Schedule { totals_at: now, detail_at: now, last: None, been_round: false },
            doubt: None,
            untold: BTreeMap::new(),
        }
    }

    /// Takes over from a former poller: its readers go on reading, and see what it was told last until there is more.
    pub fn telling(mut self, readers: watch::Sender<Arc<BrokerView>>) -> Self {
        let former = BrokerView::clone(&readers.borrow());
        let role = |name: &String| self.roles.of(name);
        let queues = former.queues.into_iter().filter_map(|(name, queue)| {
            let role = role(&name)?;
            Some((name, QueueView { role, ..queue }))
        });
        let api = match (self.poll_every.is_some(), former.api) {
            (false, _) => ApiState::Off,
            (true, ApiState::Off) => ApiState::Unasked,
            (true, api) => api,
        };
        self.view = BrokerView { api, queues: queues.collect(), ..former };
        self.readers = readers;
        self.readers.send_replace(Arc::new(self.view.clone()));
        self
    }

    /// The view as it is, and as it will be.
    pub fn view(&self) -> watch::Receiver<Arc<BrokerView>> {
        self.readers.subscribe()
    }

    /// Polls until a shutdown begins, at once if `management.poll_every` is `"off"`. What consumers do in a shutdown is
    /// not for judging. A panic costs what was remembered for judging, and a moment.
    pub async fn run(self, shutdown: Shutdown) {
        let Some(every) = self.poll_every else { return };
        let poller = Arc::new(Mutex::new(self));
        let start = || {
            let (poller, shutdown) = (Arc::clone(&poller), shutdown.clone());
            async move {
                let mut poller = poller.lock().await;
                poller.begin();
                // Cancel-safe: it only asks.
                tokio::select! {
                    never = poller.poll(every) => match never {},
                    () = shutdown.begun() => Ok::<(), Infallible>(()),
                }
            }
        };
        let polled = supervise("poller of the management API", RestartPolicy::DEFAULT, &shutdown, || {}, start).await;
        if let Err(exceeded) = polled {
            error!(error = %exceeded, "the poller keeps dying: the broker's side is not shown until orderd restarts");
            poller.lock().await.give_up();
        }
    }

    /// What was remembered may be what it died of.
    fn begin(&mut self) {
        self.reconciler = Reconciler::new(&self.roles, self.limits, instance::tag_prefix());
        self.doubt = None;
        self.schedule.totals_at = Instant::now();
    }

    fn give_up(&mut self) {
        let reason = "orderd's own poller keeps dying: a bug; report it with the log".to_owned();
        self.view.api = ApiState::Stale { since: Timestamp::now(), cause: Trouble::Malformed, reason };
        self.readers.send_replace(Arc::new(self.view.clone()));
    }

    /// Whether the API answers is told by the totals alone: one queue may have no details to tell, for its leader is
    /// away, say.
    async fn poll(&mut self, every: Duration) -> Infallible {
        let patience = Backoff { first: every.clamp(Duration::from_secs(1), LONGEST_WAIT), max: LONGEST_WAIT };
        let mut failures = 0;
        loop {
            let pause = match self.next_question().await {
                Question::Totals => match self.ask_totals(every).await {
                    Ok(()) => {
                        failures = 0;
                        self.answers();
                        None
                    }
                    Err(error) => {
                        self.does_not_answer(&error);
                        failures += 1;
                        Some(patience.wait(failures - 1, fastrand::f64()))
                    }
                },
                Question::Detail => {
                    self.ask_detail().await;
                    None
                }
            };
            self.tell();
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                self.schedule.totals_at = Instant::now();
            }
        }
    }

    /// Waits until something is to be asked.
    async fn next_question(&mut self) -> Question {
        let queues = self.view.queues.len();
        if queues == 0 || self.schedule.totals_at <= self.schedule.detail_at {
            tokio::time::sleep_until(self.schedule.totals_at).await;
            Question::Totals
        } else {
            tokio::time::sleep_until(self.schedule.detail_at).await;
            let share = self.limits.details_every / u32::try_from(queues).unwrap_or(u32::MAX);
            let pause = if self.schedule.been_round { share.max(LEAST_PAUSE) } else { LEAST_PAUSE };
            self.schedule.detail_at = Instant::now() + pause;
            Question::Detail
        }
    }

    fn client(&self) -> Result<&ManagementClient, ManagementError> {
        self.client.as_ref().map_err(|error| ManagementError::Setup { url: String::new(), source: chain(error).into() })
    }

    async fn ask_totals(&mut self, every: Duration) -> Result<(), ManagementError> {
        self.schedule.totals_at = Instant::now() + every;
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
            for name in gone.keys() {
                self.reconciler.gone(name);
                self.untold.remove(name);
            }
        } else {
            self.view.queues.extend(gone);
        }
        let now = self.now();
        self.view.taken_at = Some(now.wall);
        self.reconciler.own(now, &(self.own)());
        self.reconciler.totals(asked, now, &self.view, &self.roles);
        Ok(())
    }

    async fn ask_detail(&mut self) {
        let Some(name) = self.next_queue() else { return };
        // Also if it fails: the others are asked about as well.
        self.schedule.last = Some(name.clone());
        let asked = self.begun.elapsed();
        let answer = match self.client() {
            Ok(client) => client.detail(&name).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => self.detail_is(asked, &name, answer),
            Err(error) => {
                self.doubt = Some((name, error));
                self.schedule.totals_at = Instant::now();
            }
        }
    }

    fn detail_is(&mut self, asked: Duration, name: &str, answer: Option<Detail>) {
        if self.untold.remove(name).is_some() {
            info!(queue = name, "the management API tells the queue's details again");
        }
        let (now, own) = (self.now(), (self.own)());
        self.reconciler.own(now, &own);
        // One that is not there any more is missing from the next totals.
        if let (Some(detail), Some(queue)) = (answer, self.view.queues.get_mut(name)) {
            self.reconciler.detail(asked, now, name, &queue.role, &detail, &own);
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
        if let Some((name, error)) = self.doubt.take() {
            self.details_untold(&name, &error);
        }
    }

    /// One queue's details are not told, though the API answers. Logged as [`Poller::does_not_answer`] is.
    fn details_untold(&mut self, name: &str, error: &ManagementError) {
        let Some(queue) = self.view.queues.get_mut(name) else { return };
        let (cause, reason) = (error.trouble(), chain(error));
        if self.untold.insert(name.to_owned(), cause) != Some(cause) {
            warn!(queue = name, error = reason, "the management API does not tell the queue's details");
        }
        queue.detail_error = Some(reason);
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
        self.doubt = None;
        self.reconciler.interrupted();
    }

    /// Logs what the reconciler has found, and sends the view to its readers.
    fn tell(&mut self) {
        let changes = self.reconciler.changes(self.now());
        changes.begun.iter().for_each(tell_begun);
        for Finding { queue, kind, since, .. } in &changes.ended {
            info!(queue, kind = kind.as_str(), %since, "no longer found on the broker");
        }
        self.view.findings = self.reconciler.findings();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::Sources;

    const QUICK: Limits = Limits { details_every: Duration::from_millis(100), ..Limits::DEFAULT };

    /// An API with two queues, of which it can tell one's details.
    fn answer(path: &str) -> Option<Value> {
        let queue = |name| json!({"name": name, "messages_ready": 1, "messages_unacknowledged": 0});
        match path.split('?').next()? {
            "/api/health/checks/alarms" => Some(json!({"status": "ok"})),
            "/api/queues/%2F" => Some(json!({"items": [queue("order_queue"), queue("unrouted_queue")]})),
            "/api/queues/%2F/unrouted_queue" => Some(json!({"consumers": 3})),
            _ => None,
        }
    }

    async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await?;
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let answer = answer(request.split(' ').nth(1).unwrap_or_default());
        let status = if answer.is_some() { "200 OK" } else { "500 Internal Server Error" };
        let body = answer.map_or_else(String::new, |answer| answer.to_string());
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await
    }

    async fn api() -> (Config, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("management.url=http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        let file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml").into());
        let settings = vec![url, "management.poll_every=100ms".to_owned()];
        let sources = Sources { file, settings, ..Sources::default() };
        let config = Config::load(&sources, &["order", "priority", "notification", "analytics", "failed"]);
        (config.unwrap().config, AbortOnDropHandle::new(serving))
    }

    #[tokio::test]
    async fn one_queue_without_details_does_not_make_the_api_come_and_go() {
        let (config, _serving) = api().await;
        let poller = Poller::new(&config, QUICK, LocalCounts::default);
        let mut view = poller.view();
        let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
        let round = |view: &BrokerView| {
            let queue = |name| view.queues.get(name).cloned();
            let (one, other) = (queue("order_queue")?, queue("unrouted_queue")?);
            (other.consumers == Some(3)).then_some(one.detail_error?)
        };
        let told = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| round(view).is_some()));
        let told = Arc::clone(&told.await.expect("in time").unwrap());
        assert!(round(&told).unwrap().contains("500"), "{told:?}");
        assert_eq!((&told.api, told.queues["order_queue"].ready), (&ApiState::Fresh, Some(1)));
        for _ in 0..20 {
            view.changed().await.unwrap();
            assert_eq!(view.borrow_and_update().api, ApiState::Fresh);
        }
    }

    #[tokio::test]
    async fn a_poller_that_panics_goes_on() {
        let (config, _serving) = api().await;
        let panics = AtomicBool::new(true);
        let own = move || if panics.swap(false, Ordering::SeqCst) { panic!("once") } else { LocalCounts::default() };
        let poller = Poller::new(&config, QUICK, own);
        let mut view = poller.view();
        let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
        let told = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| view.api == ApiState::Fresh));
        assert!(told.await.expect("in time").is_ok(), "nobody polls any more");
    }

    #[tokio::test]
    async fn an_api_that_does_not_answer_is_shown_before_it_is_asked_again() {
        let (mut config, _serving) = api().await;
        config.management.url = "http://127.0.0.1:1".to_owned();
        config.management.poll_every = Some(Duration::from_secs(3600));
        let poller = Poller::new(&config, QUICK, LocalCounts::default);
        let mut view = poller.view();
        let _polling = AbortOnDropHandle::new(tokio::spawn(poller.run(Shutdown::new())));
        let stale = |view: &Arc<BrokerView>| matches!(view.api, ApiState::Stale { .. });
        // The first pause takes six seconds at least.
        let told = tokio::time::timeout(Duration::from_secs(5), view.wait_for(stale)).await;
        assert!(told.expect("in time").is_ok());
    }
}
