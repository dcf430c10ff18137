//! The dashboard, the alert rules and the reference use only metrics, labels and finding kinds that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orderd::admin::exposition;
use orderd::config::{Config, Sources};
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{LedgerMaintenance, LetterSource, LetterState, StepAction, UnresolvedDeadLetters, UnresolvedSum};
use orderd::management::Alarm;
use orderd::reconcile::BrokerView;
use orderd::reconcile::{FindingKind, QueueRole, QueueView};
use orderd::shutdown::Shutdown;
use orderd::status::{RegisteredConsumer, StatusRegistry};
use orderd::steps::{BreakerKind, BreakerSettings};
use orderd::watchdog::Health;

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A scrape of a daemon with the default configuration that has just started.
async fn scrape() -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/orderd.toml");
    let sources = Sources { file: Some(path), ..orderd::handlers::sources() };
    let config = Config::load(&sources).unwrap().config;
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let mut queue = QueueView::unknown(QueueRole::Unrouted);
    (queue.ready, queue.unacked, queue.consumers, queue.dead_letters_held) = (Some(1), Some(2), Some(3), Some(4));
    let alarm = Alarm { node: "rabbit@a".to_owned(), resource: "memory".to_owned() };
    let queues = [("unrouted_queue".to_owned(), queue)].into();
    let view = BrokerView { queues, alarms: Some(vec![alarm]), ..BrokerView::default() };
    let (_sender, view) = tokio::sync::watch::channel(Arc::new(view));
    let registry =
        StatusRegistry::new(String::new(), Arc::new(OnceLock::new()), view, Shutdown::new(), Health::default());
    let consumers = config.consumers.iter();
    let consumers = consumers.map(|(name, settings)| RegisteredConsumer::new(name, settings, registry.counters(name)));
    registry.set_consumers(consumers.collect());
    registry.counters("order").steps().add(&"charge".into(), StepAction::Do);
    registry.counters("notification").channels().configure([("email".into(), vec!["email".into()])].into());
    registry.set_ledger(ledger.clone());
    let money = [("EUR".to_owned(), "1.00".parse().unwrap())].into();
    let (source, reason) = (LetterSource::UnroutedQueue, "unrouted".to_owned());
    let oldest = jiff::Timestamp::UNIX_EPOCH;
    let sums = vec![UnresolvedSum { source, reason, state: LetterState::Open, messages: 1, money, oldest }];
    registry.set_unresolved_dead_letters(Ok(UnresolvedDeadLetters { sums, stopped: Vec::new() }));
    let settings = BreakerSettings { failures: 0.5, window: Duration::from_secs(30), open: Duration::from_secs(10) };
    let of_step = (BreakerKind::Step, "order", "charge");
    let breaker = |(kind, consumer, name): (BreakerKind, &str, &str)| {
        registry.breakers().breaker(&consumer.into(), kind, &name.into(), settings)
    };
    let _breakers = [of_step, (BreakerKind::Channel, "notification", "email")].map(breaker);
    let text = exposition(&Arc::new(registry));
    ledger.close().await;
    text
}

/// The sample names of all metrics, derived from their `# TYPE` lines.
fn names(scrape: &str) -> BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let suffixes = |kind: &str| match kind {
        "counter" => vec!["_total"],
        "gauge" => vec![""],
        "histogram" => vec!["_bucket", "_sum", "_count"],
        other => panic!("a metric of type {other}"),
    };
    types.flat_map(|(name, kind)| suffixes(kind).into_iter().map(move |suffix| format!("{name}{suffix}"))).collect()
}

/// The label names of each metric's samples.
fn labels(scrape: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let of_name = labels.entry(name.to_owned()).or_default();
        of_name.extend(rest.split("=\"").filter_map(|part| {
            let label = part.rsplit([',', '{', '"']).next()?;
            label.chars().all(|c| c.is_ascii_lowercase() || c == '_').then(|| label.to_owned())
        }));
    }
    labels
}

/// Every orderd metric in a PromQL expression, with the labels in its matchers.
fn metrics_in(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("orderd_") {
        if expression[..at].ends_with(is_name) {
            continue;
        }
        let rest = &expression[at..];
        let name = rest.split(|c| !is_name(c)).next().unwrap_or_default().to_owned();
        let matchers = rest[name.len()..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matched = matchers.map_or_else(Vec::new, |(matchers, _)| {
            let labels = matchers.split(',').filter_map(|matcher| matcher.split(['=', '!']).next());
            labels.map(|label| label.trim().to_owned()).collect()
        });
        found.push((name, matched));
    }
    found
}

fn dashboard_expressions() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(&file("config/grafana/orderd.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    expressions.extend(variables.iter().filter_map(|variable| variable["query"].as_str().map(str::to_owned)));
    expressions
}

fn rule_expressions() -> Vec<String> {
    let rules = file("config/prometheus/orderd.rules.yml");
    rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect()
}

/// Texts of alerts that ask for a metric.
fn rule_annotations() -> Vec<String> {
    let rules = file("config/prometheus/orderd.rules.yml");
    rules.lines().filter(|line| line.contains("query") && line.contains("orderd_")).map(str::to_owned).collect()
}

#[test]
fn the_alert_about_dead_letters_that_wait_says_how_much_money_is_at_stake() {
    let annotations = rule_annotations();
    assert!(annotations.iter().any(|text| text.contains("orderd_dead_letters_money")), "{annotations:?}");
}

#[tokio::test]
async fn every_metric_on_the_dashboard_and_in_the_rules_exists_with_its_labels() {
    let scrape = scrape().await;
    let (names, labels) = (names(&scrape), labels(&scrape));
    let expressions = [dashboard_expressions(), rule_expressions(), rule_annotations()].concat();
    assert!(expressions.len() > 30, "{expressions:?}");
    for expression in &expressions {
        for (name, matched) in metrics_in(expression) {
            assert!(names.contains(&name), "there is no {name}: {expression}");
            for label in matched.iter().filter(|label| *label != "instance") {
                assert!(labels[&name].contains(label), "{name} has no label {label}: {expression}");
            }
        }
        for label in grouping_labels(expression).filter(|label| !["instance", "le"].contains(label)) {
            // Counts of what has not happened yet have no samples.
            let has = |(name, _): &(String, Vec<String>)| labels.get(name).is_none_or(|labels| labels.contains(label));
            assert!(metrics_in(expression).iter().any(has), "no metric has the label {label}: {expression}");
        }
    }
}

/// The labels in `by (…)` and `on (…)`.
fn grouping_labels(expression: &str) -> impl Iterator<Item = &str> {
    let groups = ["by (", "on ("].into_iter().flat_map(|word| expression.split(word).skip(1));
    groups.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(',')).map(str::trim)
}

/// Each instance exports the same values of the broker, and of the alerts in the ledger that they share.
#[test]
fn no_panel_adds_up_over_instances_what_all_of_them_read_from_the_broker() {
    for expression in dashboard_expressions() {
        let is_of_broker = |name: &str| {
            // Or all read it from the ledger.
            let of_all = [
                "orderd_findings",
                "orderd_broker_alarm",
                "orderd_dead_letters_unresolved",
                "orderd_dead_letters_oldest_seconds",
                "orderd_dead_letters_money",
                "orderd_dead_letters_counted_timestamp_seconds",
                "orderd_replays",
                "orderd_replays_waiting",
                "orderd_replays_stopped",
                "orderd_replay_letters",
                "orderd_alerts_open",
                "orderd_alerts_unsent",
            ];
            name.starts_with("orderd_queue_") || of_all.contains(&name)
        };
        let of_broker = metrics_in(&expression).iter().filter(|(name, _)| is_of_broker(name)).count();
        assert_eq!(expression.matches("max").count(), of_broker, "{expression}");
    }
}

#[test]
fn every_alert_that_an_operator_relies_on_exists() {
    let rules = file("config/prometheus/orderd.rules.yml");
    for alert in [
        "DeadLettersGrowing",
        "UndoFailed",
        "NoConsumer",
        "RetriesOverdue",
        "UnroutedMessages",
        "DeadLettersNotCollected",
        "DeadLettersWaiting",
        "DeadLettersNotCounted",
        "ReplayStopped",
        "ConservationBroken",
        "NotReady",
        "ConfigRejected",
        "ConsumerPaused",
        "ChannelUnavailable",
    ] {
        assert!(rules.contains(&format!("- alert: Orderd{alert}\n")), "{alert}");
    }
    assert_eq!(
        rules.matches("- alert: ").count(),
        rule_expressions().len(),
        "an alert has no expression, or one of several lines"
    );
    let kinds = rules.split("kind=~\"").skip(1).chain(rules.split("kind=\"").skip(1));
    let kinds: Vec<_> = kinds.flat_map(|rest| rest.split('"').next().unwrap_or_default().split('|')).collect();
    assert!(kinds.len() > 5);
    for kind in kinds {
        assert!(FindingKind::ALL.iter().any(|known| known.as_str() == kind), "there is no kind {kind}");
    }
}

#[test]
fn every_alert_has_a_row_in_the_runbook() {
    let (rules, guide) = (file("config/prometheus/orderd.rules.yml"), file("docs/operations/runbook.md"));
    let alerts: BTreeSet<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let rows = guide.lines().filter(|line| line.starts_with("| `Orderd"));
    let explained: BTreeSet<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(alerts.len() > 10);
    assert_eq!(alerts, explained);
}

#[tokio::test]
async fn the_metrics_reference_lists_every_metric_and_no_other() {
    let reference = file("docs/reference/metrics.md");
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `orderd_")?.split('`').next());
    let listed: BTreeSet<_> = rows.map(|name| format!("orderd_{name}")).collect();
    let suffixes = ["_bucket", "_sum", "_count"];
    let family =
        |name: &String| suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name).to_owned();
    let exist: BTreeSet<_> = names(&scrape().await).iter().map(family).collect();
    assert_eq!(listed, exist);
}

#[tokio::test]
async fn a_scrape_is_well_formed() {
    let scrape = scrape().await;
    assert!(scrape.ends_with("# EOF\n"));
    let mut seen = BTreeSet::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(sample.starts_with("orderd_"), "{line}");
        assert!(seen.insert(sample.to_owned()), "duplicate sample: {line}");
    }
    // Present from the first scrape on, so that Prometheus sees the first dead letter as an increase.
    let first = r#"orderd_dead_letters_total{consumer="order",reason="malformed"} 0"#;
    assert!(scrape.contains(first), "{scrape}");
    for metric in names(&scrape) {
        assert!(metric.starts_with("orderd_"), "{metric}");
    }
}

#[test]
fn expressions_are_parsed_as_written() {
    let found = metrics_in("sum by (x) (rate(orderd_a_total{k=~\"a|b\",l!=\"c\"}[5m])) / orderd_b > my_orderd_c");
    let labels = vec!["k".to_owned(), "l".to_owned()];
    assert_eq!(found, [("orderd_a_total".to_owned(), labels), ("orderd_b".to_owned(), vec![])]);
}
