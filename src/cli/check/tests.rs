//! `orderd check`, from a configuration file to the output and the exit code.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::DEFAULT_FILE;
use crate::handlers;
use crate::recovery::RetryPolicy;

struct CheckOutput {
    code: Exit,
    out: String,
    err: String,
}

async fn check(args: CheckArgs, file: &str) -> CheckOutput {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orderd.toml");
    std::fs::write(&path, file).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let sources = Sources { file: Some(path), ..handlers::sources() };
    let code = run(args, &sources, &mut out, &mut err).await.unwrap();
    CheckOutput { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

fn printing(format: Format) -> CheckArgs {
    CheckArgs { formats: vec![CheckFormat::Output(format)], ..CheckArgs::default() }
}

fn schedule(immediate: u32, delays: &[&str], timeout: u64) -> RetrySchedule {
    let delays = delays.iter().map(|delay| delay.parse().unwrap()).collect();
    let policy = RetryPolicy { immediate, delays, max_age: Duration::from_secs(86_400) };
    RetrySchedule::new("q", &policy, Duration::from_secs(timeout))
}

#[test]
fn the_schedule_adds_delays_and_attempts() {
    for (immediate, delays, after, attempts, worst) in [
        (1, &["1s", "10s", "1m"][..], &[1, 11, 71][..], 8, 71 + 8 * 30),
        (0, &["1s"], &[1], 2, 1 + 2 * 30),
        (2, &[], &[], 3, 3 * 30),
        (0, &["5s", "5s"], &[5, 10], 3, 10 + 3 * 30),
    ] {
        let schedule = schedule(immediate, delays, 30);
        let found: Vec<u64> = schedule.delayed.iter().map(|retry| retry.after.as_secs()).collect();
        assert_eq!((found.as_slice(), schedule.attempts, schedule.worst_case.as_secs()), (after, attempts, worst));
    }
    assert_eq!(schedule(0, &["60s"], 1).delayed[0].queue, "q.retry.1m");
}

#[tokio::test]
async fn the_ledgers_retention_is_shown() {
    let output = check(printing(Format::Text), DEFAULT_FILE).await;
    assert!(output.out.contains("\nledger         /var/lib/orderd, retention forever\n"), "{}", output.out);
    let file = DEFAULT_FILE.replace("retention = \"forever\"", "retention = \"90d\"");
    assert!(check(printing(Format::Text), &file).await.out.contains(" retention 90d\n"));
    let json: Value = serde_json::from_str(&check(printing(Format::Json), &file).await.out).unwrap();
    assert_eq!(json["ledger"]["retention_ms"], 90 * 86_400_000_i64);
    let json: Value = serde_json::from_str(&check(printing(Format::Json), DEFAULT_FILE).await.out).unwrap();
    assert!(json["ledger"]["retention_ms"].is_null());
}

#[tokio::test]
async fn the_default_configuration_is_valid_and_shows_what_would_run() {
    // The default file uses the broker's default user.
    let output =
        check(printing(Format::Text), &DEFAULT_FILE.replacen("username = \"guest\"", "username = \"orderd\"", 1)).await;
    assert_eq!((output.code, output.err.as_str()), (Exit::Done, ""));
    let lines: Vec<String> =
        output.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "orders topic alternate-exchange=orders.unrouted",
        "queues (durable, all with x-overflow=reject-publish x-queue-type=quorum)",
        "dead_letter_queue x-delivery-limit=2147483647",
        "order_queue.retry.10s x-dead-letter-exchange=orders.requeue x-dead-letter-routing-key=order_queue \
         x-dead-letter-strategy=at-least-once x-message-ttl=10000",
        "orders order.normal.* order_queue",
        "order order_queue order 4 × 250 = 1000 30s",
        "order once +1s, +11s, +1m 11s 5m 11s = 1m 11s of delays + 8 attempts × 30s; max_age 1d",
        "failed – none: holds a delivery until it can be settled –",
    ] {
        assert!(lines.contains(&expected.to_owned()), "{expected}\n{}", output.out);
    }
    assert!(!output.out.contains("FAULT INJECTION"));
}

#[tokio::test]
async fn a_user_that_other_programs_share_causes_a_warning() {
    let output = check(printing(Format::Text), DEFAULT_FILE).await;
    assert!(output.err.starts_with("warning: ") && output.err.contains(": broker.username: "), "{}", output.err);
    assert_eq!((output.code, output.err.lines().count()), (Exit::Done, 1));
    let json: Value = serde_json::from_str(&check(printing(Format::Json), DEFAULT_FILE).await.out).unwrap();
    assert_eq!((&json["warnings"][0]["path"], &json["ok"]), (&json!("broker.username"), &json!(true)));
}

#[tokio::test]
async fn the_trigger_of_a_reload_is_shown() {
    let output = check(printing(Format::Text), DEFAULT_FILE).await;
    assert!(output.out.contains("\nreload         by `orderd reload` or SIGHUP\n"), "{}", output.out);
    let file = DEFAULT_FILE.replacen("watch = false", "watch = true", 1);
    assert!(check(printing(Format::Text), &file).await.out.contains("\nreload         when the file changes\n"));
    let json: Value = serde_json::from_str(&check(printing(Format::Json), &file).await.out).unwrap();
    assert_eq!(json["reload"]["watch"], true);
}

#[tokio::test]
async fn where_customers_notifications_go_is_shown_also_if_only_alerts_have_a_channel() {
    let operators = "[notify.operators]\ntype = \"webhook\"\nshop = \"Lamps\"\nhttp = { url = \"http://127.0.0.1:1/\" }\n\
        [alerts]\nchannel = \"operators\"\n";
    let sms = operators.replace("operators", "sms").replace("[alerts]\nchannel = \"sms\"\n", "");
    for (more, channels, file) in [
        ("", json!([]), "/var/lib/orderd/notifications.jsonl"),
        (operators, json!([]), "/var/lib/orderd/notifications.jsonl"),
        (&[&sms, operators].concat(), json!(["sms"]), ""),
    ] {
        let config = format!("{DEFAULT_FILE}\n{more}");
        let text = check(printing(Format::Text), &config).await.out;
        assert_eq!(text.contains("customers are not notified"), !file.is_empty(), "{text}");
        let json: Value = serde_json::from_str(&check(printing(Format::Json), &config).await.out).unwrap();
        assert_eq!(json["notifications"]["channels"], channels);
        assert_eq!(json["notifications"]["file"].as_str().unwrap_or_default(), file);
        assert_eq!(json["notifications"]["default_channel"], "email");
    }
}

#[tokio::test]
async fn an_order_that_chooses_the_channel_of_the_alerts_is_warned_of_and_not_previewed() {
    let operators = "[notify.operators]\ntype = \"webhook\"\nshop = \"Lamps\"\nhttp = { url = \"http://127.0.0.1:1/\" }\n\
        [alerts]\nchannel = \"operators\"\n";
    let directory = tempfile::tempdir().unwrap();
    let order = directory.path().join("order.json");
    let document = r#"{"id":"o-1","product":"Lamp","quantity":1,"price":"5.00","currency":"EUR","notify":"operators"}"#;
    std::fs::write(&order, document).unwrap();
    let args = CheckArgs { order: Some(order.clone()), ..printing(Format::Json) };
    let config = format!("{DEFAULT_FILE}\n{operators}");
    let report: Value = serde_json::from_str(&check(args, &config).await.out).unwrap();
    assert_eq!(report["warnings"][0]["code"], "unknown_channel", "{report}");
    let loaded = Config::from_bytes(config.as_bytes(), "orderd.toml".into(), &handlers::sources()).unwrap();
    let preview = crate::cli::notify::NotifyArgs {
        preview: Some("processed".to_owned()),
        order: Some(order),
        format: "orderd".to_owned(),
        language: None,
        channel: None,
        send_to: None,
        alert: false,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = crate::cli::notify::run(&preview, &loaded.config, &mut out, &mut err).await.unwrap();
    assert_eq!((exit, out.len()), (Exit::Refused, 0));
    // What operators get needs no order, and goes through their channel.
    let alerts = crate::cli::notify::NotifyArgs { preview: Some("operator".to_owned()), order: None, ..preview };
    let exit = crate::cli::notify::run(&alerts, &loaded.config, &mut out, &mut err).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(exit, Exit::Done, "{}", String::from_utf8_lossy(&err));
    for state in ["OPEN: ", "STILL OPEN: ", "ENDED: ", "RESOLVED: ", "virtual host /"] {
        assert!(text.contains(state), "{state}: {text}");
    }
}

#[tokio::test]
async fn injected_faults_are_shown_prominently() {
    let file = DEFAULT_FILE.replacen("transient = 0.0", "transient = 0.05", 1);
    let output = check(printing(Format::Text), &file).await;
    assert!(output.out.contains("!!! FAULT INJECTION in consumer \"order\": 5 % fail once"), "{}", output.out);
    assert!(output.err.starts_with("warning: ") && output.err.contains(": consumers.order.faults: "), "{}", output.err);
    assert_eq!(output.code, Exit::Done);
}

#[tokio::test]
async fn every_problem_goes_to_standard_error_and_the_exit_code_is_78() {
    let file = DEFAULT_FILE.replacen("prefetch = 250", "prefetch = 0", 1).replacen("keep = 14", "keep = 0\nkep = 1", 1);
    let expected = [
        "consumers.order.prefetch: must be at least 1, is 0",
        "log.keep: must be at least 1, is 0",
        "log.kep: unknown key; did you mean \"keep\"?",
    ];
    let output = check(printing(Format::Text), &file).await;
    assert_eq!((output.code, output.out.as_str()), (Exit::Config, ""));
    // Each line begins with `error: <file>:<line>:<column>: `.
    let errors = output.err.lines().filter(|line| line.starts_with("error: "));
    let lines: Vec<_> = errors.map(|line| line.splitn(5, ':').collect::<Vec<_>>()).collect();
    assert_eq!(lines.iter().map(|parts| parts[4].trim_start()).collect::<Vec<_>>(), expected, "{}", output.err);
    let line_of = |text: &str| file.lines().position(|line| line == text).unwrap() + 1;
    assert!(lines[1][1].ends_with("/orderd.toml"), "{}", output.err);
    assert_eq!((lines[1][2], lines[1][3]), (line_of("keep = 0").to_string().as_str(), "1"), "{}", output.err);
    let output = check(printing(Format::Json), &file).await;
    // The warning that a valid configuration would get too: the broker's default user.
    assert_eq!((output.code, output.err.lines().count()), (Exit::Config, 4));
    let report: Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!((&report["ok"], &report["warnings"][0]["path"]), (&false.into(), &"broker.username".into()));
    assert_eq!(report["problems"][0]["path"], "consumers.order.prefetch");
    assert!(report["problems"][0]["line"].is_u64());
}

#[tokio::test]
async fn a_syntax_error_names_the_file_and_the_line() {
    let output = check(printing(Format::Text), "[broker]\nusername = = 3\n").await;
    assert_eq!(output.code, Exit::Config);
    assert!(output.err.contains("/orderd.toml:2:12: "), "{}", output.err);
}

#[tokio::test]
async fn a_missing_file_is_a_configuration_error() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let sources = Sources { file: Some(PathBuf::from("/nowhere/orderd.toml")), ..handlers::sources() };
    let code = run(printing(Format::Json), &sources, &mut out, &mut err).await.unwrap();
    let err = String::from_utf8(err).unwrap();
    assert_eq!(code, Exit::Config);
    assert!(err.starts_with("orderd: cannot read configuration file \"/nowhere/orderd.toml\" "), "{err}");
    assert!(err.contains("--config FILE") && err.contains("No such file"), "{err}");
    let report: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(report["ok"], false);
}

#[tokio::test]
async fn json_has_the_documented_keys() {
    let output = check(printing(Format::Json), &DEFAULT_FILE.replacen("hang = 0.0", "hang = 0.5", 1)).await;
    let report: Value = serde_json::from_str(&output.out).unwrap();
    let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "alerts",
        "broker",
        "channel_servers",
        "config",
        "connected",
        "consumers",
        "ledger",
        "notifications",
        "ok",
        "permissions",
        "problems",
        "reload",
        "step_commands",
        "step_servers",
        "topology",
        "warnings",
    ];
    assert_eq!(keys, expected);
    let order = report["consumers"].as_array().unwrap().iter().find(|consumer| consumer["name"] == "order").unwrap();
    let keys: Vec<&str> = order.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "format",
        "handler",
        "name",
        "prefetch",
        "queue",
        "rate_limit",
        "retry",
        "settings",
        "slots",
        "timeout_ms",
        "workers",
    ];
    assert_eq!(keys, expected);
    assert_eq!(order["retry"]["delayed"][1]["after_ms"], 11_000);
    assert_eq!(order["retry"]["worst_case_ms"], 311_000);
    assert_eq!(order["settings"]["faults"]["hang"], 0.5);
    assert_eq!(report["topology"]["exchanges"][4]["arguments"]["alternate-exchange"], "orders.unrouted");
    assert_eq!(report["connected"], Value::Null);
}

#[tokio::test]
async fn an_unreachable_broker_exits_with_69() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let file = DEFAULT_FILE.replacen("127.0.0.1:5672", &format!("127.0.0.1:{port}"), 1).replacen(
        "127.0.0.1:15672",
        &format!("127.0.0.1:{port}"),
        1,
    );
    let output = check(CheckArgs { connect: true, ..printing(Format::Text) }, &file).await;
    assert_eq!(output.code, Exit::Unavailable);
    assert!(output.err.contains(&format!("error: cannot connect to 127.0.0.1:{port}: ")), "{}", output.err);
    assert!(output.err.contains("error: cannot reach the management API at "), "{}", output.err);
    assert!(output.out.contains("consumers\n"), "what would run is shown nevertheless");
    let output = check(CheckArgs { connect: true, ..printing(Format::Json) }, &file).await;
    let report: Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["connected"]["missing"], Value::Null);
    assert!(report["connected"]["management"]["error"].is_string());
}

#[tokio::test]
async fn the_security_guide_shows_the_permissions_of_the_default_configuration() {
    let file = DEFAULT_FILE.replacen("declare = true", "declare = false", 1).replacen(
        "username = \"guest\"",
        "username = \"orderd\"",
        1,
    );
    let output = check(CheckArgs { permissions: true, ..printing(Format::Text) }, &file).await;
    assert_eq!(output.code, Exit::Done);
    let guide = include_str!("../../../docs/operations/security.md");
    let granted: Vec<&str> = output.out.lines().filter(|line| line.starts_with("rabbitmqctl set_")).collect();
    assert_eq!(granted.len(), 5, "{}", output.out);
    let without_quotes =
        |line: &str| line.replace("-p '/'", "-p /").replace("'shop' 'orders'", "shop orders").replace("'shop'", "shop");
    for command in granted {
        let is_shown = |line: &str| line == command || line == without_quotes(command);
        assert!(guide.lines().any(is_shown) || command.contains("set_user_tags"), "the guide lacks: {command}");
    }
}

#[tokio::test]
async fn the_commands_never_restrict_the_default_user_and_include_those_for_a_producer() {
    let args = CheckArgs { permissions: true, ..printing(Format::Text) };
    let output = check(args, DEFAULT_FILE).await;
    let commands: Vec<&str> = output.out.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert!(commands.iter().all(|line| line.starts_with("rabbitmqctl ") && !line.contains("guest")), "{}", output.out);
    for part in ["add_user 'orderd'", "set_user_tags 'orderd' monitoring", "add_user 'shop'"] {
        assert!(commands.iter().any(|line| line.contains(part)), "no {part}: {}", output.out);
    }
    assert_eq!(commands.iter().filter(|line| line.contains("'shop'")).count(), 3, "{}", output.out);
    let output = check(printing(Format::Json), DEFAULT_FILE).await;
    let permissions = serde_json::from_str::<Value>(&output.out).unwrap()["permissions"].clone();
    assert_eq!((&permissions["user"], &permissions["producer"]["user"]), (&"orderd".into(), &"shop".into()));
    assert_eq!(permissions["producer"]["commands"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn the_commands_never_restrict_a_user_that_orderd_uses_and_give_no_tag_to_an_existing_user() {
    let args = || CheckArgs { permissions: true, ..printing(Format::Text) };
    let with = |broker: &str, management: &str, poll_every: &str| {
        let lines = DEFAULT_FILE.lines().map(|line| match line {
            line if line.starts_with("username = ") => format!("username = {broker:?}\n"),
            line if line.starts_with("poll_every = ") => {
                format!("poll_every = {poll_every:?}\nusername = {management:?}\npassword = \"x\"\n")
            }
            line => format!("{line}\n"),
        });
        lines.collect::<String>()
    };
    let commands = async |file: &str| {
        let output = check(args(), file).await;
        assert_eq!(output.code, Exit::Done, "{}", output.err);
        assert!(output.out.starts_with("# Run the lines one by one"), "{}", output.out);
        let (comments, commands): (Vec<String>, Vec<String>) =
            output.out.lines().map(str::to_owned).partition(|line| line.starts_with('#'));
        (comments.join("\n"), commands.join("\n"))
    };
    for (broker, management, producer) in
        [("shop", "shop", "'shop-2'"), ("orderd", "shop", "'shop-2'"), ("shop", "shop-2", "'shop-3'")]
    {
        let (_, commands) = commands(&with(broker, management, "5s")).await;
        let of_producer = commands.lines().filter(|line| line.contains(producer)).count();
        assert_eq!(of_producer, 3, "{broker} {management}: {commands}");
        assert_eq!(commands.matches(&format!("set_permissions -p '/' '{broker}'")).count(), 1, "{commands}");
    }
    let (comments, listed) = commands(&with("orderd", "admin", "5s")).await;
    assert!(!listed.contains("admin") && !listed.contains("set_user_tags"), "{listed}");
    assert!(comments.contains("set_user_tags 'admin' monitoring"), "{comments}");
    for management in ["orderd", "admin"] {
        let (comments, listed) = commands(&with("orderd", management, "off")).await;
        assert!(!comments.contains("set_user_tags") && !listed.contains("set_user_tags"), "{comments} {listed}");
    }
}

#[tokio::test]
async fn a_ledger_in_memory_is_a_warning() {
    let file = DEFAULT_FILE.replacen("directory = \"/var/lib/orderd\"", "directory = \"/dev/shm/orderd-check\"", 1);
    let output = check(printing(Format::Json), &file).await;
    assert_eq!(output.code, Exit::Done);
    let report: Value = serde_json::from_str(&output.out).unwrap();
    let warned = report["warnings"].as_array().unwrap().iter().any(|warning| warning["path"] == "ledger.directory");
    assert!(warned && output.err.contains("tmpfs"), "{}", output.err);
}
