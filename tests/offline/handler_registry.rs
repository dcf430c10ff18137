//! A handler that only this test registers. Its configuration keys are checked, shown by `orderd check`, and compared and
//! applied by a reload, although no other code knows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orderd::cli::check::{self, CheckArgs, CheckFormat};
use orderd::cli::{Exit, Format};
use orderd::config::{
    self, Config, DEFAULT_FILE, HandlerRegistry, HandlerSettings, LoadError, MessageKind, Section, Sources,
    value_parser,
};
use orderd::config_watcher;
use orderd::control::Effect;
use orderd::files::{FILE_MODE, Rolling, Rotation};
use orderd::handlers::{self, EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, LogChannel};
use orderd::ledger::sqlite::SqliteLedger;
use orderd::message::{Delivery, DeliveryId, ExchangeNames, Message, TrustedUsers};
use orderd::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, LedgerAccess, StepAccess};
use orderd::recovery::{Failure, FailureKind};
use orderd::steps::StepResources;
use serde::Serialize;
use tokio::sync::watch;

/// The handler of consumers with `handler = "greeter"`.
struct GreeterFactory;

#[derive(Serialize)]
struct GreeterSettings {
    greeting: Greeting,
}

/// The section `[consumers.<name>.greeting]`.
#[derive(Clone, Serialize)]
struct Greeting {
    text: String,
    times: u32,
}

impl HandlerFactory for GreeterFactory {
    type Settings = GreeterSettings;

    const NAME: &'static str = "greeter";

    const MESSAGES: MessageKind = MessageKind::Other;

    fn read(section: &mut Section<'_>) -> GreeterSettings {
        let mut section = section.section("greeting");
        let greeting = Greeting {
            text: section.required("text", ": say hello", &value_parser::text(16)).unwrap_or_default(),
            times: section.optional_or("times", 1, &value_parser::number(1..=3)),
        };
        if greeting.text.contains("goodbye") {
            section.problem("text", "must be a greeting");
        }
        section.finish();
        GreeterSettings { greeting }
    }

    fn check_lines(consumer: &str, settings: &GreeterSettings) -> Vec<String> {
        let Greeting { text, times } = &settings.greeting;
        vec![format!("consumer {consumer:?} says {text:?}, {times} times")]
    }

    fn build(_consumer: HandlerConsumer<'_>, settings: &GreeterSettings, _deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(Greeter(settings.greeting.clone()))
    }
}

/// Fails every delivery, with the greeting as the reason.
struct Greeter(Greeting);

impl Handler for Greeter {
    fn handle<'a>(&'a self, _input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        let reason = self.0.text.repeat(self.0.times as usize);
        Box::pin(async { Err(Failure::new(FailureKind::Permanent, "greeting", reason).into()) })
    }
}

/// The registered handlers and the greeter.
fn handlers_with_greeter() -> HandlerRegistry {
    let all = handlers::REGISTRY.iter().copied().chain([&GreeterFactory as _]);
    Vec::leak(all.collect())
}

/// The default configuration plus consumer `visitor`, whose handler is the greeter.
fn file_with(greeting: &str) -> String {
    format!(
        "{DEFAULT_FILE}\n[queues.visitor_queue]\nbindings = [\"visitor.#\"]\n\
         [consumers.visitor]\nqueue = \"visitor_queue\"\nhandler = \"greeter\"\n[consumers.visitor.greeting]\n{greeting}\n"
    )
}

fn sources(directory: &Path, file: &str) -> Sources {
    let path = directory.join("orderd.toml");
    fs::write(&path, file).unwrap();
    Sources { file: Some(path), handlers: handlers_with_greeter(), ..Sources::default() }
}

async fn check(directory: &Path, format: Format, file: &str) -> (Exit, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = CheckArgs { formats: vec![CheckFormat::Output(format)], ..CheckArgs::default() };
    let exit = check::run(args, &sources(directory, file), &mut out, &mut err).await.unwrap();
    (exit, String::from_utf8(out).unwrap())
}

/// The reason with which the handler of consumer `visitor` fails.
async fn greeting(config: &Config, directory: &Path) -> String {
    let (name, suffix, rotation) = ("events", "jsonl", Rotation::Never);
    let files = Rolling { directory: directory.to_owned(), name, suffix, rotation, keep: 1, mode: FILE_MODE };
    let log = EventLog::start(files).await.unwrap().0;
    let deps = HandlerDeps {
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        format: orderd::formats::Format::Own,
        event_log: log.clone(),
        notification_log: Arc::new(LogChannel { log }),
        notify: HandlerSettings::none(),
        default_channel: "email".into(),
        claims: Arc::default(),
        deliveries: orderd::notify::Deliveries::default(),
        steps: StepResources::default(),
        origin_consumers: watch::channel(BTreeMap::new()).1,
    };
    let handler = handlers::build(
        HandlerConsumer { name: "visitor", workers: 1 },
        &config.consumers["visitor"].handler_settings,
        &deps,
    );
    let delivery = Delivery {
        id: DeliveryId { connection: 1, tag: 1 },
        exchange: "orders".to_owned(),
        routing_key: "visitor.new".to_owned(),
        redelivered: false,
        message: Message::default(),
    };
    let provenance = delivery.provenance(&deps.names, &deps.users, None);
    let ledger = SqliteLedger::open(directory).unwrap();
    let input = HandlerInput {
        delivery: &delivery,
        provenance: &provenance,
        consumer: &"visitor".into(),
        bindings: &[],
        retries: 0,
        ledger: LedgerAccess::without_deadline(&ledger),
        steps: StepAccess::default(),
    };
    handler.handle(input).await.unwrap_err().failure().unwrap().reason
}

#[test]
fn problems_with_its_keys_are_reported_with_their_paths_together_with_all_others() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        file_with("text = \"a much too long greeting\"\ntimes = 0\ntmies = 2").replacen("keep = 14", "keep = 0", 1);
    let error = Config::load(&sources(directory.path(), &file)).unwrap_err();
    let LoadError::Invalid { problems, .. } = error else { panic!("{error}") };
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected = [
        "log.keep: must be at least 1, is 0",
        "consumers.visitor.greeting.text: must be at most 16 bytes, is 24",
        "consumers.visitor.greeting.times: must be at least 1, is 0",
        "consumers.visitor.greeting.tmies: unknown key; did you mean \"times\"?",
    ];
    assert_eq!(problems, expected);
    for (greeting, expected) in [
        ("", "consumers.visitor.greeting.text: is missing: say hello"),
        ("text = \"goodbye\"", "consumers.visitor.greeting.text: must be a greeting"),
    ] {
        let error = Config::load(&sources(directory.path(), &file_with(greeting))).unwrap_err();
        let LoadError::Invalid { problems, .. } = error else { panic!("{error}") };
        assert_eq!(problems[0].to_string(), expected);
    }
}

#[test]
fn only_the_consumers_of_a_handler_have_its_keys() {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("{}[consumers.order.greeting]\ntext = \"hello\"\n", file_with("text = \"hello\""));
    let error = Config::load(&sources(directory.path(), &file)).unwrap_err();
    assert!(error.to_string().ends_with(": consumers.order.greeting: unknown key"), "{error}");
}

#[test]
fn its_keys_can_be_set_on_the_command_line_and_in_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let mut sources = sources(directory.path(), &file_with("text = \"hello\""));
    sources.settings.push("consumers.visitor.greeting.text=welcome".to_owned());
    sources.environment.push(("ORDERD_CONSUMERS__VISITOR__GREETING__TIMES".into(), "3".into()));
    let keys = Config::load(&sources).unwrap().config.consumers["visitor"].handler_settings.keys();
    assert_eq!((keys["greeting"]["text"].as_str(), keys["greeting"]["times"].as_u64()), (Some("welcome"), Some(3)));
}

#[tokio::test]
async fn check_shows_its_settings() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with("text = \"hello\"");
    let (exit, text) = check(directory.path(), Format::Text, &file).await;
    assert_eq!(exit, Exit::Done);
    assert!(text.contains("\nconsumer \"visitor\" says \"hello\", 1 times\n"), "{text}");
    let (exit, json) = check(directory.path(), Format::Json, &file).await;
    assert_eq!(exit, Exit::Done);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let consumers = report["consumers"].as_array().unwrap();
    let visitor = consumers.iter().find(|consumer| consumer["name"] == "visitor").unwrap();
    assert_eq!(visitor["settings"]["greeting"], serde_json::json!({"text": "hello", "times": 1}));
}

#[tokio::test]
async fn a_reload_reports_each_changed_key_and_the_new_handler_has_the_new_values() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().into();
    let sources = sources(&path, &file_with("text = \"hello\""));
    let old = Config::load(&sources).unwrap().config;
    assert_eq!(greeting(&old, &path).await, "hello");
    fs::write(sources.path(), file_with("text = \"welcome\"\ntimes = 2")).unwrap();
    let loaded = config_watcher::reread(&sources, &old).await.unwrap();
    let new = loaded.config;
    let changes = config::changes(&old, &new, &loaded.written);
    let changes: Vec<_> = changes
        .iter()
        .map(|change| (change.key.as_str(), change.from.as_deref(), change.to.as_deref(), change.effect))
        .collect();
    let expected = [
        ("consumers.visitor.greeting.text", Some("\"hello\""), Some("\"welcome\""), Effect::Live),
        ("consumers.visitor.greeting.times", Some("1"), Some("2"), Effect::Live),
    ];
    assert_eq!(changes, expected);
    let applied = config::applicable(&old, &new);
    assert_ne!(applied.consumers["visitor"], old.consumers["visitor"], "the pool would not be replaced");
    assert_eq!(greeting(&applied, &path).await, "welcomewelcome");
}
