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

fn cause(id: &str) -> Cause {
    Cause {
        scope: SCOPE.to_owned(),
        id: id.to_owned(),
        title: format!("Cause {id}"),
        detail: String::new(),
        since: at(0),
        wait: Duration::ZERO,
    }
}

fn seen(ids: &[&str]) -> Observation {
    Observation { causes: ids.iter().map(|id| cause(id)).collect(), complete: [SCOPE.to_owned()].into() }
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
        tracker.observe(observation, now);
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
        shop.round(&mut tracker, &seen(&ids[..count.min(100)]), second);
    }
    assert_eq!(shop.sent, [(70, 100, 0)]);
    shop.rounds(&mut tracker, &seen(&ids), 600..1_000);
    assert_eq!(shop.sent[1..], [(660, MAX_ALERTS - 100, 0)], "further causes wait");
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
    let unknown = Observation::default();
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
    let other = Observation { causes: Vec::new(), complete: ["shop-2".to_owned()].into() };
    shop.rounds(&mut second, &other, 3_000..80_000);
    assert_eq!(shop.sent.len(), 1);
    shop.rounds(&mut second, &other, 80_000..100_000);
    assert_eq!(shop.sent[1..], [(89_340, 0, 1)], "{:?}", shop.sent);
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
    let times = AlertTimes { open_after: Duration::ZERO, ..TIMES };
    tracker.observe(&seen(&["a"]), at(0));
    let book = tracker.next(&empty, &seen(&["a"]), &times, "shop-1:7", at(0));
    let message = due(&book, &times, "me", at(0)).unwrap();
    // Meanwhile another instance records one more, and the end of the first.
    let mut changed = book.clone();
    changed.alerts[0].resolved_at = Some(at(1));
    changed.alerts.push(opened(&cause("b"), "shop-2:7", at(1)));
    let after = sent(&changed, &message, at(2));
    let next = due(&after, &times, "me", at(400)).unwrap();
    let states: Vec<(&str, bool)> =
        next.alerts.iter().map(|alert| (alert.cause.as_str(), alert.resolved_at.is_some())).collect();
    assert_eq!(states, [("b", false), ("a", true)]);
    // One that was reported as ended, and has come back, is reported as open again.
    let ended = Due { alerts: vec![AlertRecord { resolved_at: Some(at(1)), ..book.alerts[0].clone() }] };
    let after = sent(&AlertBook { sent_at: None, ..book }, &ended, at(2));
    assert_eq!(after.alerts[0].reported_at, None);
}
