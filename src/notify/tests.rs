//! Which servers stop the intake, and how many notifications may wait for one.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::*;
use crate::config::{Config, Sources};
use crate::files::FileState;
use crate::handlers;
use crate::steps::{BreakerKind, BreakerSettings};

struct File(watch::Receiver<FileState>);

impl Channel for File {
    fn write<'a>(&'a self, _: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        async { Ok(()) }.boxed()
    }

    fn event_file(&self) -> Option<watch::Receiver<FileState>> {
        Some(self.0.clone())
    }
}

fn channels(breakers: &CircuitBreakers) -> Channels {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("orderd.toml");
    let smtp = |name: &str, more: &str| {
        format!(
            "[notify.{name}]\ntype = \"smtp\"\ntls = \"none\"\naddress = \"localhost\"\nfrom = \"a@{name}.example\"\n{more}\n"
        )
    };
    let text = [smtp("email", "fallback = \"backup\""), smtp("backup", ""), smtp("news", "max_connections = 2")];
    fs::write(&file, [&text.concat(), "[notify.file]\ntype = \"log\"\n"].concat()).unwrap();
    let loaded = Config::load(&Sources { file: Some(file), ..handlers::sources() }).unwrap();
    let settings = loaded.config.notify.constructor::<NotifySettings>().unwrap();
    let state = FileState { path: "/notifications.jsonl".into(), outages: 0, outage: None };
    Channels::new("notification", settings, Arc::new(File(watch::channel(state).1)), breakers)
}

async fn open(breakers: &CircuitBreakers, name: &str) {
    let settings = BreakerSettings { open: Duration::from_secs(60), ..BreakerSettings::default() };
    let breaker = breakers.breaker(&"notification".into(), BreakerKind::Channel, &name.into(), settings);
    for _ in 0..10 {
        let failure = Failure::new(FailureKind::Transient, "unreachable", "down");
        breaker.begin().await.ended(Some(&StepFailure::new(failure, FailureCause::NotReached)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_intake_stops_only_for_a_channel_that_is_used_and_has_no_server_left() {
    let breakers = CircuitBreakers::default();
    let channels = channels(&breakers);
    let is_stopped = || channels.gates().iter().any(|gate| !gate.is_passable());
    channels.routes["email"].used();
    open(&breakers, "backup").await;
    assert!(!is_stopped(), "the channel's own server works, and nobody uses its fallback directly");
    open(&breakers, "news").await;
    assert!(!is_stopped(), "nobody uses it");
    open(&breakers, "email").await;
    assert!(is_stopped(), "neither the server nor its fallback works");
}

#[tokio::test]
async fn a_file_that_nobody_uses_is_not_needed() {
    let channels = channels(&CircuitBreakers::default());
    let gate = channels.event_file().unwrap();
    assert!(gate.unneeded.as_ref().unwrap().is_passable());
    channels.file_unneeded.set(GateState::Closed(None));
    assert!(!gate.unneeded.unwrap().is_passable());
}

#[tokio::test]
async fn a_slow_server_gets_no_more_notifications_than_it_can_deliver_before_they_are_released() {
    let channels = channels(&CircuitBreakers::default());
    // "news": two connections, 20 s for each e-mail.
    assert_eq!(channels.max_in_flight(Duration::from_secs(300)), Some(30));
    assert_eq!(channels.max_in_flight(Duration::from_secs(10)), Some(2), "each has a connection at once");
}

#[tokio::test(start_paused = true)]
async fn notifications_that_wait_for_a_server_occupy_nothing_of_a_fallback_that_others_use() {
    let breakers = CircuitBreakers::default();
    let channels = channels(&breakers);
    let backup = &channels.routes["backup"].providers()[0];
    open(&breakers, "backup").await;
    let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(backup.slot())).collect();
    assert!(waiting.iter_mut().all(|slot| slot.as_mut().now_or_never().is_none()));
    assert_eq!(backup.free_permits(), backup.max_connections());
}

// Not with paused time: tasks that wake each other without end would never let it pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_many_notifications_that_waited_for_a_server_are_delivered_when_it_is_back() {
    let breakers = CircuitBreakers::default();
    let channels = channels(&breakers);
    let news = &channels.routes["news"].providers()[0];
    open(&breakers, "news").await;
    let waiting: Vec<_> = (0..500)
        .map(|_| {
            let news = Arc::clone(news);
            tokio::spawn(async move {
                let slot = news.slot().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                slot.ended(None);
            })
        })
        .collect();
    let settings = BreakerSettings { open: Duration::from_millis(200), ..BreakerSettings::default() };
    let _breaker = breakers.breaker(&"notification".into(), BreakerKind::Channel, &"news".into(), settings);
    let all = futures_util::future::join_all(waiting);
    let ended =
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("they pass their permits on to each other");
    assert!(ended.iter().all(Result::is_ok));
}

#[tokio::test]
async fn an_e_mail_has_the_same_message_id_whichever_server_of_its_channel_sends_it() {
    let channels = channels(&CircuitBreakers::default());
    assert_eq!(channels.routes["email"].mail_domain(), "email.example");
    assert_eq!(channels.routes["backup"].mail_domain(), "backup.example");
}
