//! Comparisons as tables over time: second, orderd's counter, the counter that the broker reports.

use super::*;

const LAG: u64 = 10;

struct History {
    comparison: CountComparison,
    found: Vec<(u64, Gap)>,
}

impl History {
    fn new() -> Self {
        History { comparison: CountComparison::new(Duration::from_secs(LAG), CountRelation::Equal), found: Vec::new() }
    }

    /// Adds a sample with orderd's counter and the count that the broker reports for this connection.
    fn report(&mut self, at: u64, own: u64, connection: &str, count: u64) {
        self.sample(at, own, Some((connection.to_owned(), count)));
    }

    fn sample(&mut self, at: u64, own: u64, broker: Option<(String, u64)>) {
        let at_second = Duration::from_secs(at);
        if let Some(gap) = self.comparison.add(CountSample { asked_at: at_second, read_at: at_second, own, broker }) {
            self.found.push((at, gap));
        }
    }
}

/// The gaps found when `own` is orderd's counter at each second and `broker` is what the broker reports.
fn found(seconds: u64, own: impl Fn(u64) -> u64, broker: impl Fn(u64) -> u64) -> Vec<(u64, Gap)> {
    let mut history = History::new();
    (0..seconds).for_each(|second| history.report(second, own(second), "c1", broker(second)));
    history.found
}

fn amounts(found: &[(u64, Gap)]) -> Vec<Gap> {
    found.iter().map(|(_, gap)| *gap).collect()
}

#[test]
fn counters_that_grow_together_have_no_gap() {
    assert_eq!(found(300, |s| 100 * s, |s| 100 * s), []);
}

#[test]
fn a_broker_that_reports_late_causes_no_gap_at_any_rate() {
    for lag in [0, 1, 5, 9, 10] {
        for speed in [1, 7, 15_000] {
            let own = |s: u64| speed * s;
            assert_eq!(found(300, own, |s| own(s.saturating_sub(lag))), [], "lag {lag}, {speed}/s");
        }
    }
}

#[test]
fn a_broker_whose_lag_varies_between_bursts_causes_no_gap() {
    // Bursts of 5,000 in every seventh second; reported every 5 s, and at times only every 10 s.
    let own = |s: u64| 5_000 * (s / 7);
    let broker = |s: u64| own(if s % 20 < 10 { s / 10 * 10 } else { s / 5 * 5 }.saturating_sub(1));
    assert_eq!(found(1000, own, broker), []);
}

#[test]
fn deliveries_counted_before_they_arrive_are_no_gap() {
    let broker = |s: u64| 100 * s;
    assert_eq!(found(300, |s| broker(s.saturating_sub(8)), broker), []);
}

#[test]
fn counts_from_before_orderd_started_are_no_gap() {
    assert_eq!(found(300, |s| s, |s| s + 1_000_000), []);
}

#[test]
fn one_extra_message_is_reported_once_after_traffic_pauses() {
    let own = |s: u64| 100 * s.min(50);
    let found = found(300, own, |s| own(s) + u64::from(s >= 120));
    assert_eq!(amounts(&found), [Gap::More(1)]);
    assert!(found[0].0 <= 120 + LAG + 2, "{found:?}");
}

#[test]
fn one_missing_message_is_reported_once_after_traffic_pauses() {
    let own = |s: u64| 100 * s.min(50) + s.saturating_sub(100).min(20);
    let found = found(300, own, |s| own(s).min(5_019));
    assert_eq!(amounts(&found), [Gap::Fewer(1)]);
}

#[test]
fn under_steady_load_a_growing_gap_is_reported_and_complete_when_traffic_pauses() {
    // A tenth of 100 a second is missing, for 1,000 s.
    let own = |s: u64| 100 * s.min(1_000);
    let gaps = found(1_100, own, |s| own(s) - own(s) / 10);
    let missing = |gap: &Gap| if let Gap::Fewer(n) = gap { *n } else { panic!("{gap:?}") };
    let total: u64 = gaps.iter().map(|(_, gap)| missing(gap)).sum();
    // The first sample cannot attribute the traffic of one lag, because the broker may have counted it before orderd did.
    assert!((9_000..=10_000).contains(&total), "{total}");
    assert!(gaps[0].0 < 300, "reported under load: {:?}", gaps[0]);
}

#[test]
fn publishes_of_other_clients_are_no_gap_where_the_broker_may_count_more() {
    let mut history = History {
        comparison: CountComparison::new(Duration::from_secs(LAG), CountRelation::AtLeast),
        found: Vec::new(),
    };
    for second in 0..200 {
        history.report(second, second, "c1", 5 * second);
    }
    for second in 200..300 {
        history.report(second, 199, "c1", 995);
    }
    assert_eq!(history.found, []);
    for second in 300..400 {
        history.report(second, 202, "c1", 996);
    }
    assert_eq!(amounts(&history.found), [Gap::Fewer(2)], "three were confirmed, and one arrived");
}

#[test]
fn a_lost_connection_starts_the_comparison_over() {
    let mut history = History::new();
    for second in 0..100 {
        history.report(second, 100, "c1", 100);
    }
    // 40 acks were in transit when the connection was lost: orderd counts them, the broker redelivers.
    for second in 100..300 {
        history.report(second, 140, if second < 104 { "c1" } else { "c2" }, 100);
    }
    assert_eq!(history.found, []);
    for second in 300..400 {
        history.report(second, 140, "c2", 103);
    }
    assert_eq!(amounts(&history.found), [Gap::More(3)], "the new connection's counters are compared");
}

#[test]
fn reset_statistics_are_no_gap_even_if_no_sample_shows_a_small_counter() {
    let own = |s: u64| 10 * s;
    // The statistics are reset at 100 s, at a count of 1,000.
    let broker = |s: u64| if s < 100 { own(s) } else { own(s) - 1_000 };
    assert_eq!(found(400, own, broker), []);
    let mut sparse = History::new();
    for second in (0..1000).step_by(45) {
        sparse.report(second, own(second), "c1", broker(second));
    }
    assert_eq!(sparse.found, [], "sampled every 45 s, the counter never appears to go back");
}

#[test]
fn a_node_that_temporarily_omits_its_share_causes_no_gap() {
    let own = |s: u64| 1_000 + 10 * s.min(60);
    for dip in [15, 40] {
        let broker = |s: u64| if (100..100 + dip).contains(&s) { 700 } else { own(s) };
        assert_eq!(found(400, own, broker), [], "{dip} s");
    }
}

#[test]
fn without_answers_of_the_broker_nothing_is_found_and_samples_stay_bounded() {
    let mut history = History::new();
    for second in 0..10_000 {
        history.sample(second, second, None);
    }
    assert_eq!(history.found, []);
    assert!(history.comparison.samples.len() <= 64, "{}", history.comparison.samples.len());
    for second in 10_000..20_000 {
        history.report(second, second, "c1", second);
    }
    assert!(history.comparison.samples.len() <= 64, "{}", history.comparison.samples.len());
}
