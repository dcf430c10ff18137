//! `[[consumers.<name>.steps]]`: reads and checks the steps of a consumer, and shows them.
//!
//! Each kind of service reads its own keys. Nothing is connected here.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::breaker_settings::BreakerSettings;
use super::command::CommandSettings;
use super::events;
use super::http::HttpSettings;
use super::when::When;
use crate::config::{Section, Value, duration, serialize_duration, value_parser};
use crate::topology::pattern;

/// Most steps of one consumer.
const MAX_STEPS: usize = 16;
/// Longest name of a step, in bytes: it is a metric label.
const MAX_NAME_BYTES: usize = 64;
const MAX_EMITS: usize = 16;
const MILLISECOND: Duration = Duration::from_millis(1);
/// The longest that all calls of one message may take together. RabbitMQ closes the channel of a consumer that does not settle a
/// delivery within 30 minutes.
const MAX_TOTAL: Duration = Duration::from_secs(15 * 60);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(86_400);
const DEFAULT_MAX_CONCURRENT: usize = 64;
const MAX_CONCURRENT: usize = 10_000;

/// The steps of a consumer, in order.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct StepsSettings(pub Vec<StepSettings>);

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepSettings {
    /// Unique among the consumer's steps.
    pub name: String,
    /// What performs it.
    #[serde(flatten)]
    pub service: ServiceSettings,
    /// How long one call may take; default 10 s.
    #[serde(serialize_with = "serialize_duration")]
    pub timeout: Duration,
    /// How it is undone, if it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoSettings>,
    /// When it is called; default: always.
    pub when: When,
    /// Patterns of the routing keys that its events may have; default: none.
    pub emits: Vec<String>,
    /// Calls that are made at the same time; default 64. Those of a command are also limited by the consumer's workers.
    pub max_concurrent: usize,
    /// When it is not called because its service fails; `None`, the default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<BreakerSettings>,
    /// The longest time that the service may ask to wait; default 5 min.
    #[serde(serialize_with = "serialize_duration")]
    pub retry_after_max: Duration,
}

/// How a step is undone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UndoSettings {
    /// What undoes it.
    #[serde(flatten)]
    pub service: ServiceSettings,
    /// How long one call may take; default: as long as the step.
    #[serde(serialize_with = "serialize_duration")]
    pub timeout: Duration,
}

/// What performs a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceSettings {
    /// An HTTP server.
    Http(HttpSettings),
    /// A program.
    #[serde(untagged)]
    Command(CommandSettings),
}

impl ServiceSettings {
    /// Reads the one key that says what performs the step; `None` if it is missing or wrong, which is reported.
    fn read(section: &mut Section<'_>) -> Option<Self> {
        match (section.optional_section("http"), CommandSettings::read(section)) {
            (Some(http), None) => HttpSettings::read(http).map(ServiceSettings::Http),
            (None, Some(command)) => command.map(ServiceSettings::Command),
            (Some(http), Some(_)) => {
                section.problem("command", "cannot be combined with http: a step has one of them");
                // For what else is wrong with it.
                HttpSettings::read(http);
                None
            }
            (None, None) => {
                let problem = "is missing: say what performs the step, http = { url = \"…\" } or command = [\"/path/to/program\"]";
                section.problem("http", problem);
                None
            }
        }
    }
}

impl StepsSettings {
    /// Reads and checks `steps` of a consumer's section. `of_orders`: whether its messages are orders.
    pub fn read(section: &mut Section<'_>, of_orders: bool) -> Self {
        let mut names = BTreeSet::new();
        let mut steps = Vec::new();
        for step in section.sections("steps", MAX_STEPS) {
            steps.extend(StepSettings::read(step, of_orders, &mut names));
        }
        let steps = StepsSettings(steps);
        let total = steps.steps_time() + steps.undos_time();
        if total > MAX_TOTAL {
            let (total, most) = (duration::format(total), duration::format(MAX_TOTAL));
            let message =
                format!("have timeouts of {total} together, their undos included; at most {most} are possible");
            section.problem("steps", message);
        }
        steps
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long the calls of one attempt may take together: it calls steps, or undoes them.
    pub fn longest(&self) -> Duration {
        self.steps_time().max(self.undos_time())
    }

    fn steps_time(&self) -> Duration {
        self.0.iter().map(|step| step.timeout).sum()
    }

    fn undos_time(&self) -> Duration {
        self.0.iter().flat_map(|step| &step.undo).map(|undo| undo.timeout).sum()
    }

    /// Patterns of the routing keys that events of their answers may have.
    pub fn event_keys(&self) -> Vec<String> {
        self.0.iter().flat_map(|step| &step.emits).cloned().collect()
    }

    /// The limits of `Retry-After` that are given, each with its key.
    pub fn retry_limits(&self) -> Vec<(String, Duration)> {
        let limits = self.0.iter().enumerate().filter(|(_, step)| step.retry_after_max != DEFAULT_RETRY_AFTER_MAX);
        limits.map(|(index, step)| (format!("steps[{index}].retry_after_max"), step.retry_after_max)).collect()
    }
}

impl StepSettings {
    fn read(mut section: Section<'_>, of_orders: bool, names: &mut BTreeSet<String>) -> Option<Self> {
        let name = section.required("name", ": name the step", &name);
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            section.problem("name", format!("repeats {name:?}"));
        }
        let service = ServiceSettings::read(&mut section);
        let timeout = section.optional_or("timeout", DEFAULT_TIMEOUT, &value_parser::duration(MILLISECOND..=MAX_TOTAL));
        let undo = section.optional_section("undo").map(|undo| UndoSettings::read(undo, timeout));
        let when = section.optional_section("when").map(|when| When::read(when, of_orders)).unwrap_or_default();
        let max_concurrent =
            section.optional_or("max_concurrent", DEFAULT_MAX_CONCURRENT, &value_parser::number(1..=MAX_CONCURRENT));
        let circuit_breaker = section.optional_section("circuit_breaker").map(BreakerSettings::read);
        if let Some(breaker) = circuit_breaker {
            breaker.warn_of_short_window(&section, timeout, ("max_concurrent", max_concurrent));
        }
        let emits = section.list("emits", MAX_EMITS, &routing_pattern).unwrap_or_default();
        let retry_after_max = value_parser::duration(Duration::ZERO..=DAY);
        let retry_after_max = section.optional_or("retry_after_max", DEFAULT_RETRY_AFTER_MAX, &retry_after_max);
        // Before it is known whether the service is wrong: a person wants to see all problems at once.
        section.finish();
        Some(StepSettings {
            name: name.unwrap_or_default(),
            service: service?,
            timeout,
            undo: undo.flatten(),
            when,
            emits,
            max_concurrent,
            circuit_breaker,
            retry_after_max,
        })
    }

    /// How many of its calls are made at the same time in a consumer with so many workers.
    pub(super) fn calls_at_once(&self, workers: usize) -> usize {
        match &self.service {
            ServiceSettings::Http(_) => self.max_concurrent,
            ServiceSettings::Command(_) => self.max_concurrent.min(workers),
        }
    }

    /// Whether an event of its answers may have this routing key.
    pub(super) fn may_emit(&self, routing_key: &str) -> bool {
        self.emits.iter().any(|pattern| pattern::matches(pattern, routing_key))
    }
}

impl UndoSettings {
    fn read(mut section: Section<'_>, timeout: Duration) -> Option<Self> {
        let service = ServiceSettings::read(&mut section);
        let timeout = section.optional_or("timeout", timeout, &value_parser::duration(MILLISECOND..=MAX_TOTAL));
        section.finish();
        Some(UndoSettings { service: service?, timeout })
    }
}

fn name(value: &Value) -> Result<String, String> {
    let name = value_parser::text(MAX_NAME_BYTES)(value)?;
    match value_parser::name_problem(&name, MAX_NAME_BYTES) {
        Some(problem) => Err(format!("{problem}, is {value}")),
        // Idempotency keys end with the step, or with a number and "undo" after it.
        None if name == "undo" || !name.starts_with(|first: char| first.is_ascii_lowercase()) => {
            Err(format!("must begin with a letter and must not be \"undo\", is {value}"))
        }
        None => Ok(name),
    }
}

fn routing_pattern(value: &Value) -> Result<String, String> {
    let text = value_parser::text(pattern::MAX_KEY_BYTES)(value)?;
    match pattern::problem(&text) {
        Some(message) => Err(format!("{message}, is {value}")),
        None if events::is_reserved(&text) => {
            Err(format!("must not be a key with which only orderd itself publishes, is {value}"))
        }
        None => Ok(text),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_FILE, HandlerSettings, HandlerSpec, LoadError, Loaded, MessageKind, Sources};
    use crate::handlers;

    /// Stands in for the handler "order", or for one whose messages are no orders.
    struct TestHandler {
        of_orders: bool,
    }

    impl HandlerSpec for TestHandler {
        fn name(&self) -> &'static str {
            "order"
        }

        fn messages(&self) -> MessageKind {
            MessageKind::Order
        }

        fn configure(&self, _consumer: &str, section: &mut Section<'_>) -> HandlerSettings {
            section.section("faults");
            section.optional("on_conflict", &value_parser::text(MAX_NAME_BYTES));
            let steps = StepsSettings::read(section, self.of_orders);
            HandlerSettings::new(&(), Vec::new(), steps)
        }
    }

    /// The steps of consumer `order` in the default file with these added, or the problems.
    pub(in crate::steps) fn read(steps: &str) -> Result<StepsSettings, Vec<String>> {
        read_of(steps, true)
    }

    fn read_of(steps: &str, of_orders: bool) -> Result<StepsSettings, Vec<String>> {
        let loaded = load(steps, of_orders)?;
        let settings = &loaded.config.consumers["order"].handler_settings;
        Ok(settings.constructor::<StepsSettings>().expect("it is the test's handler").clone())
    }

    fn load(steps: &str, of_orders: bool) -> Result<Loaded, Vec<String>> {
        let test: &'static TestHandler = Box::leak(Box::new(TestHandler { of_orders }));
        let others = handlers::REGISTRY.iter().copied().filter(|handler| handler.name() != "order");
        let all: Vec<&'static dyn HandlerSpec> = others.chain([test as &dyn HandlerSpec]).collect();
        let sources = Sources { handlers: Vec::leak(all), ..Sources::default() };
        let file = format!("{DEFAULT_FILE}\n{steps}");
        match Config::from_bytes(file.as_bytes(), "orderd.toml".into(), &sources) {
            Ok(loaded) => Ok(loaded),
            Err(LoadError::Invalid { problems, .. }) => Err(problems.iter().map(ToString::to_string).collect()),
            Err(other) => panic!("{other}"),
        }
    }

    const CHARGE: &str =
        "[[consumers.order.steps]]\nname = \"charge\"\nhttp = { url = \"http://127.0.0.1:8081/charge\" }\n";

    #[test]
    fn a_circuit_breaker_that_calls_without_an_answer_never_open_causes_a_warning() {
        let warnings = |keys: &str| -> Vec<String> {
            let loaded = load(&format!("{CHARGE}{keys}"), true).unwrap();
            loaded.warnings.iter().map(ToString::to_string).collect()
        };
        let breaker = |window: &str| format!("circuit_breaker = {{ window = \"{window}\" }}\n");
        for enough in
            [breaker("30s"), breaker("1s"), format!("max_concurrent = 1\ntimeout = \"3s\"\n{}", breaker("27s"))]
        {
            assert_eq!(warnings(&enough), [""; 0], "{enough}");
        }
        for short in ["max_concurrent = 9\n", "max_concurrent = 1\ntimeout = \"200ms\"\n"] {
            let found = warnings(&format!("{short}{}", breaker("1s")));
            let prefix = "consumers.order.steps[0].circuit_breaker: has a window of 1s";
            assert!(matches!(&found[..], [one] if one.starts_with(prefix)), "{short}: {found:?}");
        }
    }

    #[test]
    fn a_step_has_defaults_and_shows_itself() {
        let steps = read(CHARGE).unwrap();
        let step = &steps.0[0];
        assert_eq!((step.timeout, step.max_concurrent, &step.undo), (DEFAULT_TIMEOUT, 64, &None));
        let all = read(
            "[[consumers.order.steps]]\nname = \"charge\"\nhttp = { url = \"https://pay.example/charge?key=hidden\", headers = { X-Shop = \
             \"hidden\" } }\ntimeout = \"3s\"\nundo = { http = { url = \"https://pay.example/refund\" }, timeout = \"1m\" }\n\
             when = { priority = true, min_total = \"99.90\", currency = \"EUR\", pointer = \"/a\", equals = 1 }\n\
             emits = [\"order.payment.*\"]\nmax_concurrent = 2\nretry_after_max = \"1h\"\n",
        )
        .unwrap();
        let shown = serde_json::to_value(&all).unwrap();
        assert_eq!(shown[0]["undo"]["timeout"], "1m");
        assert_eq!(
            shown[0]["when"],
            serde_json::json!({"priority": true, "min_total": "99.90", "currency": "EUR", "pointer": "/a", "equals": 1})
        );
        let shown = format!("{shown} {all:?} {:?}", all.check_lines("order"));
        assert!(!shown.contains("hidden") && shown.contains("https://pay.example/charge"), "{shown}");
    }

    #[test]
    fn everything_that_is_wrong_with_a_step_is_reported_with_its_path() {
        let with = |more: &str| read(&format!("{CHARGE}{more}")).unwrap_err();
        let twice = format!("{CHARGE}{CHARGE}");
        for (found, expected) in [
            (read(&twice).unwrap_err(), "consumers.order.steps[1].name: repeats \"charge\""),
            (with("timeout = \"16m\""), "consumers.order.steps[0].timeout: must be at most 15m, is 16m"),
            (with("tiemout = \"1s\""), "consumers.order.steps[0].tiemout: unknown key; did you mean \"timeout\"?"),
            (with("emits = [\"order*\"]"), "consumers.order.steps[0].emits[0]: "),
            (with("emits = [\"order.failed.*\"]"), "consumers.order.steps[0].emits[0]: must not be a key"),
            (with("emits = [\"order.analytics.processed\"]"), "consumers.order.steps[0].emits[0]: must not be a key"),
            (with("when = { equals = 1 }"), "consumers.order.steps[0].when.equals: has no effect without pointer"),
            (with("when = { pointer = \"a\" }"), "consumers.order.steps[0].when.pointer: must be a JSON pointer"),
            (with("undo = { timeout = \"1s\" }"), "consumers.order.steps[0].undo.http: is missing"),
            (
                with("timeout = \"8m\"\nundo = { http = { url = \"http://127.0.0.1/\" } }"),
                "consumers.order.steps: have timeouts of 16m together",
            ),
            (
                read_of(&format!("{CHARGE}when = {{ priority = true }}"), false).unwrap_err(),
                "consumers.order.steps[0].when.priority: has no effect: the messages are not orders; use pointer",
            ),
            (
                read("[[consumers.order.steps]]\nname = \"undo\"\nhttp = { url = \"ftp://127.0.0.1/?key=hunter2\" }").unwrap_err(),
                "consumers.order.steps[0].name: must begin with a letter and must not be \"undo\"",
            ),
            (
                read("[[consumers.order.steps]]\nname = \"a\"\nhttp = { url = \"http://me:hunter2@127.0.0.1/\" }").unwrap_err(),
                "consumers.order.steps[0].http.url: must not contain a user name or a password",
            ),
            (
                read("[[consumers.order.steps]]\nname = \"a\"\nhttp = { url = \"http://a/\", headers = { Host = \"b\" } }").unwrap_err(),
                "consumers.order.steps[0].http.headers.Host: is set by orderd",
            ),
        ] {
            assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}: {found:?}");
            assert!(!found.concat().contains("hunter2"), "{found:?}");
        }
    }
    #[test]
    fn everything_that_is_wrong_with_a_step_is_reported_at_once_whatever_is_wrong_with_its_service() {
        for service in [
            "comand = [\"x\"]",
            "http = { url = \"ftp://x/\", bearer = 1 }",
            "command = []",
            "command = [\"x\"]\nhttp = { url = 1 }",
        ] {
            let rest = "emits = [\"order*\"]\nretry_after_max = \"2d\"\nmax_concurent = 3\ntimeout = \"16m\"";
            let found = read(&format!("[[consumers.order.steps]]\nname = \"ship\"\n{service}\n{rest}")).unwrap_err();
            let has = |part: &str| found.iter().any(|problem| problem.contains(part));
            for part in ["steps[0].emits[0]: ", "steps[0].retry_after_max: ", "steps[0].timeout: "] {
                assert!(has(part), "{service}: {part}: {found:?}");
            }
            assert!(has("steps[0].max_concurent: unknown key; did you mean \"max_concurrent\"?"), "{found:?}");
            assert!(has("steps[0].comand: unknown key; did you mean \"command\"?") == service.starts_with("comand"));
            assert!(has("steps[0].http.bearer: unknown key") == service.contains("bearer"), "{found:?}");
            assert!(has("steps[0].http.url: must be") == service.contains("url"), "{found:?}");
        }
    }
}
