//! Causes that come, go and come again, seen by one instance or two.

use super::*;

const SCOPE: &str = "virtual host /";
const TIMES: AlertTimes = AlertTimes {
    open_after: Duration::from_secs(60),
    resolved_after: Duration::from_secs(300),
    interval: Duration::from_secs(300),
    repeat: None,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn moment(second: i64) -> Moment {
    Moment { wall: at(second), uptime: Duration::from_secs(second.unsigned_abs()) }
}

/// The id of a finding, unless it is a whole one.
fn id(name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { format!("finding/queue_missing/{name}") }
}

fn scopes() -> AlertScopes {
    AlertScopes { broker: SCOPE.to_owned(), instance: "shop-1, orderd.toml".to_owned() }
}

fn cause(name: &str) -> Cause {
    Cause {
        scope: SCOPE.to_owned(),
        id: id(name),
        title: format!("Cause {name}"),
        detail: String::new(),
        since: at(0),
        wait: TIMES.open_after,
    }
}

fn seen(ids: &[&str]) -> Observation {
    let causes = ids.iter().map(|id| cause(id)).collect();
    Observation { causes, scopes: scopes(), sees_findings: true, sees_store: true }
}

/// As [`seen`], without the management API.
fn seen_without_api(ids: &[&str]) -> Observation {
    Observation { sees_findings: false, ..seen(ids) }
}

/// What is recorded, and what was sent: `(second, alerts that opened, alerts that ended)`.
#[derive(Default)]
struct Shop {
    book: AlertBook,
    sent: Vec<(i64, usize, usize)>,
    is_down: bool,
}

impl Shop {
    fn round(&mut self, tracker: &mut Tracker, observation: &Observation, second: i64) {
        self.round_with(tracker, observation, second, TIMES);
    }

    fn round_with(&mut self, tracker: &mut Tracker, observation: &Observation, second: i64, times: AlertTimes) {
        let now = at(second);
        tracker.observe(observation, moment(second));
        self.book = tracker.next(&self.book, observation, &times, "shop-1:7", now);
        if let Some(due) = due(&self.book, &times, "me", now).filter(|_| !self.is_down) {
            let ended = due.alerts.iter().filter(|alert| alert.resolved_at.is_some()).count();
            self.sent.push((second, due.alerts.len() - ended, ended));
            self.book = sent(&self.book, &due, now);
        }
    }

    /// One round every ten seconds.
    fn rounds(&mut self, tracker: &mut Tracker, observation: &Observation, seconds: std::ops::Range<i64>) {
        for second in seconds.step_by(10) {
            self.round(tracker, observation, second);
        }
    }
}

#[test]
fn a_cause_that_lasts_is_one_message_and_its_end_another() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    shop.rounds(&mut tracker, &seen(&["a"]), 0..1_000);
    assert_eq!(shop.sent, [(60, 1, 0)]);
    shop.rounds(&mut tracker, &seen(&[]), 1_000..2_000);
    assert_eq!(shop.sent.len(), 2, "{:?}", shop.sent);
    let (second, opened, ended) = shop.sent[1];
    assert!((1_240..=1_300).contains(&second) && (opened, ended) == (0, 1), "{:?}", shop.sent);
    assert!(shop.book.alerts.is_empty());
}

#[test]
fn a_cause_that_comes_and_goes_is_no_stream_of_messages() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    for second in (0..3_600).step_by(10) {
        shop.round(&mut tracker, &seen(if second % 50 == 0 { &[] } else { &["a"] }), second);
    }
    assert!(shop.sent.is_empty(), "never long enough to open: {:?}", shop.sent);
    shop.rounds(&mut tracker, &seen(&["a"]), 3_600..3_700);
    for second in (3_700..7_200).step_by(10) {
        shop.round(&mut tracker, &seen(if second % 100 < 50 { &[] } else { &["a"] }), second);
    }
    assert_eq!(shop.sent.len(), 1, "open, and never gone for long enough: {:?}", shop.sent);
}

#[test]
fn a_storm_of_causes_is_one_message_and_those_that_follow_wait_for_the_next() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    let ids: Vec<String> = (0..300).map(|number| format!("{number:03}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for second in (0..600).step_by(10) {
        let count = usize::try_from(second).unwrap() * 10;
        shop.round(&mut tracker, &seen(&ids[..count.min(30)]), second);
    }
    assert_eq!(shop.sent, [(70, 30, 0)]);
    let all = [&ids[..], &["reload/", "dead_letters/order/permanent"]].concat();
    shop.rounds(&mut tracker, &seen(&all), 600..1_000);
    assert_eq!(shop.sent[1..], [(660, MAX_ALERTS_OF_KIND - 30 + 2, 0)], "further causes of the same kind wait");
    // One more each ten seconds.
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    for second in (0..3_600).step_by(10) {
        shop.round(&mut tracker, &seen(&ids[..usize::try_from(second / 10).unwrap().min(200)]), second);
    }
    assert!(shop.sent.len() <= 12, "at most one every five minutes: {:?}", shop.sent);
}

#[test]
fn a_restart_repeats_nothing_and_reports_what_ended_meanwhile() {
    let mut shop = Shop::default();
    shop.rounds(&mut Tracker::default(), &seen(&["a", "b"]), 0..100);
    assert_eq!(shop.sent, [(60, 2, 0)]);
    let mut tracker = Tracker::default();
    // The management API answers only after a while.
    let unknown = seen_without_api(&[]);
    shop.rounds(&mut tracker, &unknown, 5_000..5_400);
    shop.rounds(&mut tracker, &seen(&["a"]), 5_400..9_000);
    assert_eq!(shop.sent.len(), 2, "{:?}", shop.sent);
    assert_eq!(shop.sent[1], (5_700, 0, 1), "a is open still, and b ended");
    assert_eq!(shop.book.alerts.len(), 1);
}

#[test]
fn while_the_channel_is_down_messages_wait_and_are_one_when_it_is_back() {
    let (mut shop, mut tracker) = (Shop { is_down: true, ..Shop::default() }, Tracker::default());
    shop.rounds(&mut tracker, &seen(&["a"]), 0..500);
    shop.rounds(&mut tracker, &seen(&["a", "b"]), 500..1_000);
    shop.rounds(&mut tracker, &seen(&["b"]), 1_000..2_000);
    shop.is_down = false;
    shop.rounds(&mut tracker, &seen(&["b"]), 2_000..3_000);
    assert_eq!(shop.sent, [(2_000, 1, 1)]);
}

#[test]
fn a_cause_that_returns_before_its_end_is_reported_stays_open() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    shop.rounds(&mut tracker, &seen(&["a"]), 0..100);
    shop.is_down = true;
    shop.rounds(&mut tracker, &seen(&[]), 100..800);
    assert!(shop.book.alerts[0].resolved_at.is_some());
    shop.rounds(&mut tracker, &seen(&["a"]), 800..820);
    shop.is_down = false;
    shop.rounds(&mut tracker, &seen(&["a"]), 820..2_000);
    assert_eq!(shop.sent, [(60, 1, 0)]);
}

#[test]
fn a_cause_that_another_instance_sees_does_not_end_and_one_of_a_stopped_instance_ends_after_a_day() {
    let (mut shop, mut first, mut second) = (Shop::default(), Tracker::default(), Tracker::default());
    for time in (0..3_000).step_by(10) {
        shop.round(&mut first, &seen(&["a"]), time);
        shop.round(&mut second, &seen(&[]), time + 1);
    }
    assert_eq!(shop.sent, [(60, 1, 0)]);
    let other = Observation {
        scopes: AlertScopes { broker: "virtual host /other".to_owned(), ..scopes() },
        ..seen_without_api(&[])
    };
    shop.rounds(&mut second, &other, 3_000..80_000);
    assert_eq!(shop.sent.len(), 1);
    shop.rounds(&mut second, &other, 80_000..100_000);
    assert_eq!(shop.sent[1..], [(89_340, 0, 1)], "{:?}", shop.sent);
}

#[test]
fn what_has_happened_is_an_alert_at_once_even_if_it_is_seen_only_once() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    let mut burst = seen(&["dead_letters/order/permanent"]);
    burst.causes[0].wait = Duration::ZERO;
    shop.round(&mut tracker, &burst, 0);
    shop.rounds(&mut tracker, &seen(&[]), 10..200);
    assert_eq!(shop.sent, [(0, 1, 0)]);
}

#[test]
fn without_the_management_api_a_second_burst_of_dead_letters_is_reported_too() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    let burst = seen_without_api(&["dead_letters/order/permanent"]);
    for begin in [0, 3_600] {
        shop.rounds(&mut tracker, &burst, begin..begin + 600);
        shop.rounds(&mut tracker, &seen_without_api(&[]), begin + 600..begin + 3_600);
    }
    let opened: usize = shop.sent.iter().map(|(_, opened, _)| opened).sum();
    assert_eq!((shop.sent.len(), opened), (4, 2), "{:?}", shop.sent);
}

#[test]
fn the_alerts_of_a_host_that_is_gone_end_after_minutes_and_those_of_one_that_runs_last() {
    let (mut shop, mut first, mut second) = (Shop::default(), Tracker::default(), Tracker::default());
    let mut broken = seen(&["breaker/step/order/charge"]);
    broken.causes[0].scope = "shop-2, orderd.toml".to_owned();
    broken.scopes.instance = "shop-2, orderd.toml".to_owned();
    for time in (0..3_000).step_by(10) {
        shop.round(&mut first, &broken, time);
        shop.round(&mut second, &seen(&[]), time + 1);
    }
    assert_eq!(shop.sent, [(60, 1, 0)]);
    shop.rounds(&mut second, &seen(&[]), 3_000..6_000);
    assert!(shop.sent.len() == 2 && shop.sent[1].0 < 3_000 + 1_000, "{:?}", shop.sent);
}

#[test]
fn findings_that_a_restart_has_to_find_again_do_not_end_however_short_resolved_after_is() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    let times = AlertTimes { resolved_after: Duration::from_secs(10), ..TIMES };
    for second in (0..500).step_by(10) {
        shop.round_with(&mut tracker, &seen(&["a"]), second, times);
    }
    let mut tracker = Tracker::default();
    for second in (500..1_000).step_by(10) {
        shop.round_with(&mut tracker, &seen(if second < 600 { &[] } else { &["a"] }), second, times);
    }
    assert_eq!(shop.sent, [(60, 1, 0)]);
}

#[test]
fn a_clock_that_is_set_back_neither_delays_an_alert_nor_its_end_nor_any_message() {
    let (mut book, mut tracker, day) = (AlertBook::default(), Tracker::default(), 86_400);
    let mut round = |book: &mut AlertBook, observation: &Observation, second: i64, wall: i64| {
        tracker.observe(observation, moment(second));
        *book = tracker.next(book, observation, &TIMES, "shop-1:7", at(wall));
    };
    round(&mut book, &seen(&["a"]), 0, day);
    round(&mut book, &seen(&["a"]), 60, 60);
    round(&mut book, &seen(&[]), 70, 70);
    book.alerts[0].observed_at = at(day);
    for second in (80..1_000).step_by(10) {
        round(&mut book, &seen(&[]), second, second);
    }
    assert!(book.alerts.len() == 1 && book.alerts[0].resolved_at.is_some(), "{book:?}");
    let book = AlertBook { sender: Some(("other".to_owned(), at(365 * day))), sent_at: Some(at(day)), ..book };
    assert!(due(&book, &TIMES, "me", at(1_000)).is_some());
}

#[test]
fn of_two_instances_one_sends_until_its_time_is_over() {
    let book = AlertBook {
        sender: Some(("other".to_owned(), at(30))),
        alerts: vec![opened(&cause("a"), "shop-1:7", at(0))],
        ..AlertBook::default()
    };
    assert_eq!(due(&book, &TIMES, "me", at(29)), None);
    assert!(due(&book, &TIMES, "other", at(29)).is_some() && due(&book, &TIMES, "me", at(30)).is_some());
}

#[test]
fn an_alert_that_stays_open_is_repeated_only_if_that_is_configured() {
    let (mut shop, mut tracker) = (Shop::default(), Tracker::default());
    let times = AlertTimes { repeat: Some(Duration::from_secs(86_400)), ..TIMES };
    for second in (0..3 * 86_400).step_by(100) {
        shop.round_with(&mut tracker, &seen(&["a"]), second, times);
    }
    assert_eq!(shop.sent, [(100, 1, 0), (86_500, 1, 0), (172_900, 1, 0)]);
}

#[test]
fn what_changes_while_a_message_is_sent_is_not_lost() {
    let (mut tracker, empty) = (Tracker::default(), AlertBook::default());
    let mut now = seen(&["a"]);
    now.causes[0].wait = Duration::ZERO;
    let times = TIMES;
    tracker.observe(&now, moment(0));
    let book = tracker.next(&empty, &now, &times, "shop-1:7", at(0));
    let message = due(&book, &times, "me", at(0)).unwrap();
    // Meanwhile another instance records one more, and the end of the first.
    let mut changed = book.clone();
    changed.alerts[0].resolved_at = Some(at(1));
    changed.alerts.push(opened(&cause("b"), "shop-2:7", at(1)));
    let after = sent(&changed, &message, at(2));
    let next = due(&after, &times, "me", at(400)).unwrap();
    let states: Vec<(&str, bool)> =
        next.alerts.iter().map(|alert| (alert.cause.as_str(), alert.resolved_at.is_some())).collect();
    assert_eq!(states, [(&*id("b"), false), (&*id("a"), true)]);
    // One that was reported as ended, and has come back, is reported as open again.
    let ended = Due { alerts: vec![AlertRecord { resolved_at: Some(at(1)), ..book.alerts[0].clone() }] };
    let after = sent(&AlertBook { sent_at: None, ..book }, &ended, at(2));
    assert_eq!(after.alerts[0].reported_at, None);
}
