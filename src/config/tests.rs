//! Loading: files, variables and settings in; configurations, problems and warnings out.

mod environment;
mod formats;
mod secrets;
mod workload;

use std::ffi::OsString;
use std::time::Duration;

use super::load::{ConfigErrors, parse};
use super::section::ReadContext;
use super::*;
use crate::handlers;

fn load(file: &str, environment: &[(&str, &str)]) -> Result<(Config, Vec<String>), Vec<String>> {
    load_with(file, environment, &[])
}

fn load_with(file: &str, environment: &[(&str, &str)], set: &[&str]) -> Result<(Config, Vec<String>), Vec<String>> {
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
    let settings = set.iter().map(|setting| (*setting).to_owned()).collect();
    let sources = Sources { settings, environment, ..handlers::sources() };
    let lines = |problems: Vec<Problem>| problems.iter().map(Problem::to_string).collect::<Vec<_>>();
    match parse(file.as_bytes(), &sources, &ReadContext::default()) {
        Ok((config, warnings, _)) => Ok((config, lines(warnings))),
        Err(ConfigErrors { problems, .. }) => Err(lines(problems)),
    }
}

fn valid(file: &str) -> Config {
    load(file, &[]).expect("a valid configuration").0
}

fn problems(file: &str) -> Vec<String> {
    load(file, &[]).expect_err("an invalid configuration")
}

fn warnings(file: &str) -> Vec<String> {
    load(file, &[]).expect("a valid configuration").1
}

/// The default file with one part replaced.
fn default_with(from: &str, to: &str) -> String {
    assert!(DEFAULT_FILE.contains(from), "the default file has {from:?}");
    DEFAULT_FILE.replacen(from, to, 1)
}

#[test]
fn every_value_in_the_default_file_is_the_default() {
    let (config, warnings) = load(DEFAULT_FILE, &[]).expect("the default file is valid");
    assert_eq!(config, valid(""));
    assert_eq!(warnings, [""; 0]);
    // Leaving out any key changes nothing, so its value in the file is the default. Queues and consumers have no defaults.
    let workload =
        DEFAULT_FILE.find("[queues.order_queue]").expect("queues")..DEFAULT_FILE.find("[ledger]").expect("ledger");
    for (at, _) in DEFAULT_FILE.match_indices('\n') {
        let line = DEFAULT_FILE[at + 1..].lines().next().unwrap_or_default();
        if line.contains(" = ") && !line.starts_with('#') && !workload.contains(&at) {
            assert_eq!(valid(&DEFAULT_FILE.replacen(line, "", 1)), config, "{line}");
        }
    }
}

#[test]
fn the_order_consumer_in_the_default_file_has_the_default_of_every_consumer_key() {
    let config = valid(DEFAULT_FILE);
    for line in ["handler = \"order\"", "workers = 4", "prefetch = 250", "timeout = \"30s\"", "rate_limit = \"off\""] {
        assert_eq!(valid(&default_with(&format!("\n{line}\n"), "\n")), config, "{line}");
    }
    for line in ["immediate = 1", "delays = [\"1s\", \"10s\", \"1m\"]", "max_age = \"24h\""] {
        assert_eq!(valid(&default_with(&format!("\n{line}\n"), "\n")), config, "{line}");
    }
}

#[test]
fn a_consumer_without_retry_gets_the_delays_of_the_default_file() {
    let config = valid(DEFAULT_FILE);
    for (line, of) in [
        ("delays = [\"10s\", \"1m\", \"10m\", \"1h\"]", "notification"),
        ("delays = [\"10s\", \"1m\", \"10m\"]", "analytics"),
    ] {
        assert_eq!(valid(&default_with(&format!("\n{line}\n"), "\n")), config, "{of}");
        let renamed = default_with(&format!("[consumers.{of}]\n"), &format!("[consumers.other]\nhandler = {of:?}\n"));
        let renamed = renamed.replacen(&format!("\nhandler = {of:?}\n# The number"), "\n# The number", 1);
        let renamed = renamed.replacen(&format!("[consumers.{of}.retry]"), "[consumers.other.retry]", 1);
        let renamed = renamed.replacen(&format!("\n{line}\n"), "\n", 1);
        assert_eq!(valid(&renamed).consumers["other"].retry, config.consumers[of].retry, "{of}");
    }
}

#[test]
fn every_key_is_in_the_default_file_with_a_comment() {
    let context = ReadContext::default();
    parse(DEFAULT_FILE.as_bytes(), &handlers::sources(), &context).expect("the default file is valid");
    let mut section = String::new();
    let mut documented = std::collections::BTreeSet::new();
    let mut above = "";
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.trim_start_matches('#').strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
            && !line.starts_with("# ")
        {
            assert!(above.starts_with("# "), "no comment above {section}.{key}");
            documented.insert(format!("{section}.{key}"));
        }
        above = line;
    }
    for path in context.known_paths.take() {
        let section = documented.iter().any(|key| key.starts_with(&format!("{path}.")));
        let optional = path.starts_with("consumers.") && (path.contains(".faults") || path.contains(".steps"));
        let rejected = path == "consumers.failed.retry";
        assert!(section || documented.contains(&path) || optional || rejected, "{path} is not in the default file");
    }
    assert!(documented.contains("consumers.order.faults.hang"));
    for key in ["name", "http", "timeout", "undo", "when", "emits", "max_concurrent", "retry_after_max"] {
        assert!(documented.contains(&format!("consumers.order.steps.{key}")), "{key}");
    }
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_the_file() {
    let file = default_with("heartbeat = \"10s\"", "heartbeat = 10\nhartbeat = \"1s\"")
        .replacen("addresses = [\"127.0.0.1:5672\"]", "addresses = [\"a\", 5, \"b:x\"]", 1)
        .replacen("prefetch = 250", "prefetch = 0", 1)
        .replacen("workers = 4", "workers = \"four\"", 1)
        .replacen("bindings = [\"order.analytics.*\"]", "bindings = \"order.analytics.*\"", 1)
        .replacen("rotation = \"daily\"", "rotation = \"dayly\"", 1)
        .replacen("[admin]", "[admn]", 1)
        .replacen("drain_timeout = \"30s\"", "drain_timeout = \"0s\"", 1);
    let expected = [
        "broker.addresses[1]: must be text in quotes, is 5",
        "broker.addresses[2]: must be host or host:port (a port from 1 to 65535, IPv6 in brackets), is \"b:x\"",
        "broker.heartbeat: must be a duration with a unit, such as \"30s\" or \"1m 30s\", is 10",
        "broker.hartbeat: unknown key; did you mean \"heartbeat\"?",
        "queues.analytics_queue.bindings: must be a list, such as [\"order.analytics.*\"], is \"order.analytics.*\"",
        "consumers.order.workers: must be a whole number, is \"four\"",
        "consumers.order.prefetch: must be at least 1, is 0",
        "log.rotation: must be one of \"minutely\", \"hourly\", \"daily\" and \"never\", is \"dayly\"; did you mean \"daily\"?",
        "admn: unknown key; did you mean \"admin\"?",
        "shutdown.drain_timeout: must be at least 1ms, is 0s",
    ];
    assert_eq!(problems(&file), expected);
}

#[test]
fn a_missing_value_and_text_without_quotes_are_named_as_such_and_not_shown() {
    for (value, part) in [
        ("", "a value is missing after \"=\""),
        (" # many", "a value is missing after \"=\""),
        (" secret", "must be text in quotes"),
        (" true4", "must be text in quotes"),
    ] {
        let found = problems(&format!("[runtime]\nthreads ={value}\n"));
        assert!(found[0].contains(part) && !found[0].contains("secret"), "{value:?}: {found:?}");
    }
}

#[test]
fn a_syntax_error_has_line_and_column_and_does_not_show_the_line() {
    let found = problems("[broker]\nusername = \"me\"\npassword = \"hunter2\nvirtual_host = =\n");
    assert!(found[0].starts_with("line 3, column "), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("line 4, column ")), "{found:?}");
    assert!(!found.concat().contains("hunter2"), "{found:?}");
}

#[test]
fn a_valid_setting_that_is_probably_wrong_causes_a_warning() {
    for (from, to, expected) in [
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = [\"order.normal.*\", \"order.analytics.processed\"]",
            "queues.order_queue.bindings[1]: \"order.analytics.processed\" overlaps \"order.analytics.*\" of queue \"analytics_queue\": a message that matches both is delivered to both queues",
        ),
        (
            "max_age = \"24h\"",
            "max_age = \"1m\"",
            "consumers.order.retry.max_age: is 1m, less than the sum of all delays, 1m 11s: the last retries never happen",
        ),
        (
            "transient = 0.0",
            "transient = 0.05",
            "consumers.order.faults: faults are injected on purpose into 5.0 % of its orders",
        ),
        (
            "workers = 4\n",
            "workers = 240\n",
            "consumers: workers × prefetch add up to 62300: that many orders are in memory, and are delivered again after a crash",
        ),
        (
            "bindings = [\"order.notification.*\"]",
            "bindings = [\"x\"]",
            "queues: none is bound to \"order.notification.email\", which orderd publishes: such events end up in unrouted_queue",
        ),
    ] {
        assert_eq!(warnings(&default_with(from, to)), [expected]);
    }
}

#[test]
fn a_value_outside_its_limits_is_a_problem() {
    for (from, to, expected) in [
        ("workers = 4", "workers = 1025", "consumers.order.workers: must be at most 1024, is 1025"),
        (
            "workers = 4",
            "workers = 1024",
            "consumers.order.prefetch: workers × prefetch must be at most 65535, is 1024 × 250 = 256000",
        ),
        ("heartbeat = \"10s\"", "heartbeat = \"2500ms\"", "broker.heartbeat: must be whole seconds, is \"2500ms\""),
        ("heartbeat = \"10s\"", "heartbeat = \"1s\"", "broker.heartbeat: must be at least 2s, is 1s"),
        (
            "rate_limit = \"off\"",
            "rate_limit = \"200\"",
            "consumers.order.rate_limit: must be a rate such as \"200/s\" or \"30/m\", is \"200\"; or \"off\"",
        ),
        ("immediate = 1", "immediate = 11", "consumers.order.retry.immediate: must be at most 10, is 11"),
        ("immediate = 1", "immediate = true", "consumers.order.retry.immediate: must be a whole number, is true"),
        ("delays = [\"1s\",", "delays = [\"0s\",", "consumers.order.retry.delays[0]: must be at least 1ms, is 0s"),
        (
            "delays = [\"1s\",",
            "delays = [\"50d\",",
            "consumers.order.retry.delays[0]: must be at most 49d 17h 2m 47s 294ms, is 50d",
        ),
        (
            "delays = [\"1s\",",
            "delays = [\"1.0005s\",",
            "consumers.order.retry.delays[0]: must be whole milliseconds, is \"1.0005s\"",
        ),
        ("hang = 0.0", "hang = 1.5", "consumers.order.faults.hang: must be a number from 0 to 1, is 1.5"),
        ("permanent = 0.0\n", "permanent = 0.6\n#\n", ""),
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = []",
            "queues.order_queue.bindings: must have at least one topic pattern, such as \"order.normal.*\"",
        ),
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = [\"a\", \"a\"]",
            "queues.order_queue.bindings[1]: repeats \"a\"",
        ),
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = [\"a*\"]",
            "queues.order_queue.bindings[0]: must use \"*\" and \"#\" as whole words only, has \"a*\", is \"a*\"",
        ),
        ("addresses = [\"127.0.0.1:5672\"]", "addresses = []", "broker.addresses: must have at least one address"),
        (
            "exchange = \"orders\"",
            "exchange = \"amq.x\"",
            "topology.exchange: must not begin with \"amq.\": the broker reserves such names",
        ),
        (
            "url = \"http://127.0.0.1:15672\"",
            "url = \"ftp://a\"",
            "management.url: must be a URL such as \"http://127.0.0.1:15672\"",
        ),
        (
            "listen = \"127.0.0.1:9640\"",
            "listen = \"here\"",
            "admin.listen: must be an IP address and port such as \"127.0.0.1:9640\", or \"off\", is \"here\"",
        ),
        (
            "mechanism = \"plain\"",
            "mechanism = \"external\"",
            "broker.mechanism: \"external\" needs a client certificate: give tls.certificate_file and tls.key_file",
        ),
        (
            "[management]",
            "[broker.tls]\nkey_file = \"/k\"\n[management]",
            "broker.tls.certificate_file: is missing: key_file has no effect without it",
        ),
        (
            "[management]",
            "[broker.tls]\nca_file = \"/nowhere/ca.pem\"\n[management]",
            "broker.tls.ca_file: cannot use \"/nowhere/ca.pem\": No such file or directory (os error 2)",
        ),
        (
            "[management]",
            "[broker.tls]\nserver_name = \"a b\"\n[management]",
            "broker.tls.server_name: must be a host name or an IP address, is \"a b\"",
        ),
        ("[topology]", "[management.tls]\n[topology]", "management.tls: has no effect: url begins with http://"),
    ] {
        match load(&default_with(from, to), &[]) {
            Ok(_) => assert_eq!(expected, "", "{to} was accepted"),
            Err(found) => assert_eq!(found, [expected]),
        }
    }
    let both = default_with("permanent = 0.0", "permanent = 0.6").replacen("panic = 0.0", "panic = 0.6", 1);
    assert_eq!(problems(&both), ["consumers.order.faults: must add up to at most 1, is 1.2"]);
}

#[test]
fn the_error_for_an_unreadable_file_names_it() {
    let sources = Sources { file: Some("/nowhere/orderd.toml".into()), ..Sources::default() };
    let error = Config::load(&sources).unwrap_err();
    assert!(error.to_string().starts_with("cannot read configuration file \"/nowhere/orderd.toml\""), "{error}");
    assert_eq!(Sources::default().path(), std::path::Path::new(DEFAULT_PATH));
    let environment = vec![(OsString::from("ORDERD_CONFIG"), OsString::from("/x"))];
    assert_eq!(Sources { environment, ..Sources::default() }.path(), std::path::Path::new("/x"));
}

#[test]
fn the_retention_must_be_longer_than_the_longest_retry() {
    let keep = |text: &str| default_with("retention = \"forever\"", &format!("retention = \"{text}\""));
    assert_eq!(valid("").ledger.retention, None);
    assert_eq!(valid(&keep("90d")).ledger.retention, Some(Duration::from_secs(90 * 86_400)));
    assert_eq!(problems(&keep("2d")), ["ledger.retention: must be at least 3d, is 2d; or \"forever\""]);
    let too_short = problems(&keep("1d"));
    assert!(too_short[0].contains("is 1d; or \"forever\""), "{too_short:?}");
    assert!(problems(&keep("for ever"))[0].ends_with("or \"forever\""));
    let too_short = keep("3d").replacen("max_age = \"24h\"", "max_age = \"48h\"", 1);
    let found = problems(&too_short);
    assert!(found[0].starts_with("ledger.retention: must be at least 3d 1m, is 3d: consumer \"order\""), "{found:?}");
}

#[test]
fn an_admin_listener_on_a_non_loopback_address_needs_users() {
    let exposed = "[admin]\nlisten = \"0.0.0.0:9640\"\n";
    let found = problems(exposed);
    assert!(matches!(&found[..], [one] if one.starts_with("admin.listen: must be a loopback address")), "{found:?}");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let path = file.display().to_string();
    let with_token = |token: &str| {
        std::fs::write(&file, token).expect("a token file");
        let user = format!("[[admin.users]]\nname = \"ada\"\nrole = \"operator\"\ntoken_file = {path:?}\n");
        load(&format!("{exposed}hosts = [\"Orderd.Internal\"]\n{user}"), &[])
    };
    let admin = with_token("0123456789abcdef\n").expect("a valid configuration").0.admin;
    let [AdminUser { name, role, token }] = &admin.users[..] else { panic!("{admin:?}") };
    assert_eq!((name.as_str(), *role, token.expose()), ("ada", Role::Operator, "0123456789abcdef"));
    assert_eq!(admin.hosts, ["orderd.internal"]);
    for token in ["short", "0123456789 abcdef", "0123456789abcdéf", ""] {
        let found = with_token(token).expect_err("a bad token");
        assert!(matches!(&found[..], [one] if one.starts_with("admin.users[0].token_file: ")), "{token:?}: {found:?}");
        assert!(token.is_empty() || !found[0].contains(token), "{found:?}");
    }
}

#[test]
fn each_problem_with_a_user_of_the_admin_listener_is_reported() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = |name: &str, token: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, token).expect("a token file");
        path.display().to_string()
    };
    let (one, two) = (token("one", "0123456789abcdef"), token("two", "fedcba9876543210"));
    let user =
        |name: &str, role: &str, file: &str| format!("{{name = {name:?}, role = {role:?}, token_file = {file:?}}}");
    let found = |users: &[String]| problems(&format!("[admin]\nusers = [{}]\n", users.join(", ")));
    let ada = || user("ada", "viewer", &one);
    let two_users = valid(&format!("[admin]\nusers = [{}, {}]\n", ada(), user("bob@shop", "operator", &two)));
    assert_eq!(two_users.admin.users.len(), 2);
    for (users, expected) in [
        (vec![ada(), user("ada", "viewer", &two)], "admin.users[1].name: must be unique"),
        (vec![ada(), user("bob", "viewer", &one)], "admin.users[1].token_file: has the same token as that of \"ada\""),
        (vec![user("local", "viewer", &one)], "admin.users[0].name: must not be \"local\""),
        (vec![user("a/b", "viewer", &one)], "admin.users[0].name: must consist of letters"),
        (vec![user("ada", "admin", &one)], "admin.users[0].role: must be "),
        (vec!["{name = \"ada\", role = \"viewer\"}".to_owned()], "admin.users[0].token_file: is missing"),
        (vec![format!("{{name = \"ada\", token_file = {one:?}}}")], "admin.users[0].role: is missing"),
        (
            vec!["{name = \"ada\", role = \"viewer\", token = \"0123456789abcdef\"}".to_owned()],
            "admin.users[0].token: unknown key",
        ),
    ] {
        let found = found(&users);
        assert!(found.iter().any(|problem| problem.starts_with(expected)), "{expected}: {found:?}");
        assert!(!found.concat().contains("0123456789abcdef"), "{found:?}");
    }
}

#[test]
fn the_admin_listener_can_be_off() {
    assert_eq!(valid("[admin]\nlisten = \"off\"\n").admin.listen, None);
    let address = valid("[admin]\nlisten = \"[::1]:9640\"\n").admin.listen.expect("an address");
    assert_eq!(address.to_string(), "[::1]:9640");
    assert!(problems("[admin]\nlisten = \"\"\n")[0].starts_with("admin.listen: must not be empty"));
    assert!(problems("[admin]\nhosts = [\"a:80\"]\n")[0].starts_with("admin.hosts[0]: must be a host name"));
}
