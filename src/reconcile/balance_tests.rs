//! The balance as a table of histories: seconds, orderd's count, what the broker tells.

use super::*;

const LAG: u64 = 10;

struct History {
    balance: Balance,
    found: Vec<(u64, Gap)>,
}

impl History {
    fn new() -> Self {
        History { balance: Balance::new(Duration::from_secs(LAG), Rule::Equal), found: Vec::new() }
    }

    /// At a second: orderd's count, and the broker's in this connection's time.
    fn tells(&mut self, at: u64, own: u64, connection: &str, count: u64) {
        self.reads(at, own, Some((connection.to_owned(), count)));
    }

    fn reads(&mut self, at: u64, own: u64, broker: Option<(String, u64)>) {
        let at_second = Duration::from_secs(at);
        if let Some(gap) = self.balance.read(Reading { from: at_second, at: at_second, own, broker }) {
            self.found.push((at, gap));
        }
    }
}

/// What is found when orderd's count at a second is `own`, and the broker tells `told` of it.
fn found(seconds: u64, own: impl Fn(u64) -> u64, told: impl Fn(u64) -> u64) -> Vec<(u64, Gap)> {
    let mut history = History::new();
    (0..seconds).for_each(|second| history.tells(second, own(second), "c1", told(second)));
    history.found
}

fn amounts(found: &[(u64, Gap)]) -> Vec<Gap> {
    found.iter().map(|(_, gap)| *gap).collect()
}

#[test]
fn counts_that_grow_together_balance() {
    assert_eq!(found(300, |s| 100 * s, |s| 100 * s), []);
}

#[test]
fn a_broker_that_tells_everything_late_balances_at_any_speed() {
    for lag in [0, 1, 5, 9, 10] {
        for speed in [1, 7, 15_000] {
            let own = |s: u64| speed * s;
            assert_eq!(found(300, own, |s| own(s.saturating_sub(lag))), [], "lag {lag}, {speed}/s");
        }
    }
}

#[test]
fn a_broker_whose_lag_swings_between_bursts_balances() {
    // Bursts of 5,000 in every seventh second; told every 5 s, and now and then only every 10 s.
    let own = |s: u64| 5_000 * (s / 7);
    let told = |s: u64| own(if s % 20 < 10 { s / 10 * 10 } else { s / 5 * 5 }.saturating_sub(1));
    assert_eq!(found(1000, own, told), []);
}

#[test]
fn deliveries_that_the_broker_counts_before_they_arrive_balance() {
    let broker = |s: u64| 100 * s;
    assert_eq!(found(300, |s| broker(s.saturating_sub(8)), broker), []);
}

#[test]
fn history_from_before_orderd_started_balances() {
    assert_eq!(found(300, |s| s, |s| s + 1_000_000), []);
}

#[test]
fn one_message_too_many_shows_once_traffic_pauses_and_only_once() {
    let own = |s: u64| 100 * s.min(50);
    let found = found(300, own, |s| own(s) + u64::from(s >= 120));
    assert_eq!(amounts(&found), [Gap::More(1)]);
    assert!(found[0].0 <= 120 + LAG + 2, "{found:?}");
}

#[test]
fn one_message_too_few_shows_likewise() {
    let own = |s: u64| 100 * s.min(50) + s.saturating_sub(100).min(20);
    let found = found(300, own, |s| own(s).min(5_019));
    assert_eq!(amounts(&found), [Gap::Fewer(1)]);
}

#[test]
fn under_steady_load_a_growing_gap_shows_and_is_complete_when_traffic_pauses() {
    // A tenth of 100 a second is missing, for 1,000 s.
    let own = |s: u64| 100 * s.min(1_000);
    let gaps = found(1_100, own, |s| own(s) - own(s) / 10);
    let missing = |gap: &Gap| if let Gap::Fewer(n) = gap { *n } else { panic!("{gap:?}") };
    let total: u64 = gaps.iter().map(|(_, gap)| missing(gap)).sum();
    // The first reading leaves open what one lag's traffic had brought, for the broker may have counted before orderd did.
    assert!((9_000..=10_000).contains(&total), "{total}");
    assert!(gaps[0].0 < 300, "it shows under load: {:?}", gaps[0]);
}

#[test]
fn what_others_add_is_no_gap_where_the_broker_may_count_more() {
    let mut history = History { balance: Balance::new(Duration::from_secs(LAG), Rule::AtLeast), found: Vec::new() };
    for second in 0..200 {
        history.tells(second, second, "c1", 5 * second);
    }
    for second in 200..300 {
        history.tells(second, 199, "c1", 995);
    }
    assert_eq!(history.found, []);
    for second in 300..400 {
        history.tells(second, 202, "c1", 996);
    }
    assert_eq!(amounts(&history.found), [Gap::Fewer(2)], "three were confirmed, and one is there");
}

#[test]
fn a_lost_connection_starts_the_comparison_anew() {
    let mut history = History::new();
    for second in 0..100 {
        history.tells(second, 100, "c1", 100);
    }
    // 40 acks were on their way when the connection was lost: orderd counts them, the broker hands out again.
    for second in 100..300 {
        history.tells(second, 140, if second < 104 { "c1" } else { "c2" }, 100);
    }
    assert_eq!(history.found, []);
    for second in 300..400 {
        history.tells(second, 140, "c2", 103);
    }
    assert_eq!(amounts(&history.found), [Gap::More(3)], "the new connection's counts are compared");
}

#[test]
fn a_broker_that_counts_anew_balances_even_if_nobody_saw_it_small() {
    let own = |s: u64| 10 * s;
    // Statistics are lost at 100 s, when they said 1,000.
    let told = |s: u64| if s < 100 { own(s) } else { own(s) - 1_000 };
    assert_eq!(found(400, own, told), []);
    let mut seldom = History::new();
    for second in (0..1000).step_by(45) {
        seldom.tells(second, own(second), "c1", told(second));
    }
    assert_eq!(seldom.found, [], "read once in 45 s, it never seems to go back");
}

#[test]
fn a_node_that_does_not_tell_its_share_for_a_while_is_no_gap() {
    let own = |s: u64| 1_000 + 10 * s.min(60);
    for dip in [15, 40] {
        let told = |s: u64| if (100..100 + dip).contains(&s) { 700 } else { own(s) };
        assert_eq!(found(400, own, told), [], "{dip} s");
    }
}

#[test]
fn without_readings_of_the_broker_nothing_is_found_and_nothing_piles_up() {
    let mut history = History::new();
    for second in 0..10_000 {
        history.reads(second, second, None);
    }
    assert_eq!(history.found, []);
    assert!(history.balance.readings.len() <= 64, "{}", history.balance.readings.len());
    for second in 10_000..20_000 {
        history.tells(second, second, "c1", second);
    }
    assert!(history.balance.readings.len() <= 64, "{}", history.balance.readings.len());
}
