//! Loading: files, variables and settings in; configurations, problems and warnings out.

mod environment;
mod secrets;

use std::ffi::OsString;
use std::time::Duration;

use super::load::{ConfigErrors, parse};
use super::section::ReadContext;
use super::*;
use crate::formats::spec::Spec;
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
        Ok((config, warnings)) => Ok((config, lines(warnings))),
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
fn a_delivery_may_be_held_for_each_of_its_attempts_and_an_outage() {
    let holds = valid(&default_with("\nimmediate = 1\n", "\nimmediate = 4\n")).longest_holds();
    assert_eq!(holds["order_queue"], Duration::from_secs(5 * 30 + 300));
    assert_eq!(holds["failed_order_queue"], Duration::from_secs(600));
    let steps = "[[consumers.order.steps]]\nname = \"charge\"\nhttp = { url = \"http://127.0.0.1:1/\" }\ntimeout = \"20s\"\n\
                 undo = { http = { url = \"http://127.0.0.1:1/\" }, timeout = \"2m\" }\n";
    let holds = valid(&format!("{}\n{steps}", default_with("\nimmediate = 1\n", "\nimmediate = 4\n"))).longest_holds();
    assert_eq!(holds["order_queue"], Duration::from_secs(5 * (30 + 120) + 300), "with the undo, which is longer");
}

#[test]
fn events_of_steps_that_no_queue_is_bound_for_are_warned_of() {
    let with = |emits: &str| {
        let step = "[[consumers.order.steps]]\nname = \"ship\"\nhttp = { url = \"http://127.0.0.1:1/\" }";
        warnings(&format!("{DEFAULT_FILE}\n{step}\nemits = [{emits}]\n"))
    };
    assert_eq!(with("\"order.#\", \"order.notification.sms\""), [""; 0]);
    let found = with("\"order.notification.sms\", \"shop.labels.*\"");
    assert!(
        found.len() == 1 && found[0].contains("consumers.order.steps: a step emits \"shop.labels.*\""),
        "{found:?}"
    );
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
        "broker.addresses[2]: must be host or host:port (IPv6 in brackets), is \"b:x\"",
        "broker.heartbeat: must be a duration with a unit, such as \"30s\" or \"1m 30s\", is 10",
        "broker.hartbeat: unknown key; did you mean \"heartbeat\"?",
        "queues.analytics_queue.bindings: must be a list, is \"order.analytics.*\"",
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
fn every_queue_has_one_consumer_and_every_consumer_a_queue() {
    for (from, to, expected) in [
        (
            "queue = \"order_queue\"",
            "queue = \"oder_queue\"",
            "consumers.order.queue: must be one of [queues], is \"oder_queue\"; did you mean \"order_queue\"?",
        ),
        ("queue = \"order_queue\"\n", "", "consumers.order.queue: is missing: name one of [queues]"),
        (
            "[queues.order_queue]",
            "[queues.other]\n# x\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.other: has no consumer, so its orders would never be processed",
        ),
        (
            "[queues.order_queue]",
            "[queues.Order-Queue]\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.Order-Queue: must be named in lower-case letters, digits and underscores",
        ),
        (
            "[queues.order_queue]",
            "[queues.dead_letter_queue]\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.dead_letter_queue: must have another name: orderd itself declares a queue of this name",
        ),
    ] {
        let found = problems(&default_with(from, to));
        assert_eq!(found[0], expected);
    }
    let shared = default_with("queue = \"notification_queue\"", "queue = \"analytics_queue\"");
    assert!(problems(&shared)[0].contains("is already the queue of consumer \"analytics\""), "{:?}", problems(&shared));
}

#[test]
fn failures_reach_exactly_one_queue() {
    for (from, to, expected) in [
        (
            "handler = \"failed\"",
            "handler = \"order\"",
            "consumers: one must have the handler \"failed\", which retries or dead-letters failed messages",
        ),
        (
            "handler = \"analytics\"",
            "handler = \"failed\"",
            "consumers.failed.handler: \"failed\" is already the handler of consumer \"analytics\"; exactly one consumer may have it",
        ),
        (
            "bindings = [\"order.failed.#\"]",
            "bindings = [\"order.failed.order\"]",
            "queues.failed_order_queue.bindings: must match \"order.failed.analytics\", the routing key of failures: add \"order.failed.#\"",
        ),
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = [\"order.*.*\"]",
            "queues.order_queue.bindings[0]: must not match \"order.failed.analytics\", is \"order.*.*\": failures must reach queue \"failed_order_queue\" only",
        ),
        (
            "[ledger]",
            "[consumers.failed.retry]\n[ledger]",
            "consumers.failed.retry: has no effect on the failed-order consumer: remove it",
        ),
        (
            "handler = \"analytics\"",
            "handler = \"analytic\"",
            "consumers.analytics.handler: must be one of \"order\", \"notification\", \"analytics\", \"failed\" and \"steps\", is \"analytic\"; did you mean \"analytics\"?",
        ),
    ] {
        let found = problems(&default_with(from, to));
        assert!(found.contains(&expected.to_owned()), "{found:#?}");
    }
}

#[test]
fn an_unknown_handler_does_not_hide_unknown_keys() {
    let file = default_with("\nhandler = \"order\"\n", "\nhandler = \"ordr\"\nwrokers = 4\nfauls = 3\n");
    let problems = problems(&file);
    let expected = [
        "consumers.order.handler: must be one of \"order\", \"notification\", \"analytics\", \"failed\" and \"steps\", is \"ordr\"; did you mean \"order\"?",
        "consumers.order.wrokers: unknown key; did you mean \"workers\"?",
        "consumers.order.fauls: unknown key; did you mean \"faults\"?",
    ];
    assert_eq!(problems, expected, "faults is a key of some handler, so it is not reported");
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
fn a_file_with_only_queues_or_only_consumers_does_not_get_the_default_ones() {
    let found = problems("[queues.a]\nbindings = [\"a\"]\n");
    assert!(found[0].starts_with("consumers: is missing"), "{found:?}");
    let found = problems("[consumers.order]\nworkers = 3\n");
    assert!(found.iter().any(|problem| problem.starts_with("queues: is missing")), "{found:?}");
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
fn attempts_that_could_exceed_the_brokers_ack_timeout_cause_a_warning() {
    let text = default_with("\ntimeout = \"30s\"\n", "\ntimeout = \"15m\"\n");
    let (_, warnings) = load(&text, &[]).expect("15 minutes are allowed");
    assert!(
        warnings.iter().any(|warning| warning.contains("retry.immediate: allows 2 attempts of 15m")),
        "{warnings:?}"
    );
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
fn an_admin_listener_on_a_non_loopback_address_needs_a_token() {
    let exposed = "[admin]\nlisten = \"0.0.0.0:9640\"\n";
    let found = problems(exposed);
    assert!(matches!(&found[..], [one] if one.starts_with("admin.listen: must be a loopback address")), "{found:?}");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let with_token = |token: &str| {
        std::fs::write(&file, token).expect("a token file");
        load(&format!("{exposed}token_file = {:?}\nhosts = [\"Orderd.Internal\"]\n", file.display().to_string()), &[])
    };
    let admin = with_token("0123456789abcdef\n").expect("a valid configuration").0.admin;
    assert_eq!(admin.token.expect("a token").expose(), "0123456789abcdef");
    assert_eq!(admin.hosts, ["orderd.internal"]);
    for token in ["short", "0123456789 abcdef", "0123456789abcdéf", ""] {
        let found = with_token(token).expect_err("a bad token");
        assert!(matches!(&found[..], [one] if one.starts_with("admin.token_file: ")), "{token:?}: {found:?}");
        assert!(token.is_empty() || !found[0].contains(token), "{found:?}");
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

/// The default file with this section.
fn with_format(section: &str) -> String {
    format!("{DEFAULT_FILE}\n[formats.shop]\n{section}\n")
}

const ITEMS: &str = "[formats.shop.items]\nlist = \"/lines\"\nproduct = \"name\"\nquantity = \"n\"\nprice = \"p\"";

#[test]
fn everything_that_is_wrong_with_a_format_is_reported() {
    let file = with_format(&format!(
        "id = \"id\"\ncustomer_id = {{ pointer = \"/c\", nil = \"0\" }}\ncurrency = {{ value = 1.5 }}\ntotal = [\"/a\", \"/b\"]\n\
         shipping = []\ntax = \"/a/*\"\nemail = \"/a/*\"\nrounding = 0.01\nunit = \"cents\"\nprice = \"/p\"\nidd = \"/x\"\n{}",
        ITEMS.replace("\"p\"", "\"/p\"").replace("quantity", "qantity")
    ));
    let problems = problems(&file);
    let expected = [
        "formats.shop.id: must begin with \"/\", such as \"/order/id\", is \"id\"",
        "formats.shop.customer_id: must have no key but \"pointer\", \"none\" and \"value\", has \"nil\"",
        "formats.shop.currency: must be a text, a whole number or a boolean, is 1.5",
        "formats.shop.total: must be one pointer",
        "formats.shop.shipping: must have 1 to 16 pointers, has 0",
        "formats.shop.email: must not contain \"*\" here",
        "formats.shop.rounding: must be a decimal in quotes",
        "formats.shop.unit: must be one of \"major\" and \"minor\"",
        "formats.shop.product: is missing",
        "formats.shop.quantity: is missing",
        "formats.shop.idd: unknown key",
        "formats.shop.items.price: must not begin with \"/\"",
        "formats.shop.items.quantity: is missing",
        "formats.shop.items.qantity: unknown key",
    ];
    for expected in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn a_format_of_another_shop_is_a_built_in_one_with_a_prefix() {
    let spec = |keys: &str| valid(&with_format(keys)).formats["shop"].spec().unwrap().clone();
    let woocommerce = Spec::built_in("woocommerce").unwrap();
    assert_eq!(spec("base = \"woocommerce\""), woocommerce);
    let id_prefix = "shop-b-".to_owned();
    assert_eq!(
        spec("base = \"woocommerce\"\nid = { prefix = \"shop-b-\" }"),
        Spec { id_prefix: id_prefix.clone(), ..woocommerce.clone() }
    );
    let numbered =
        spec("base = \"woocommerce\"\nid = { pointer = \"/number\", prefix = \"shop-b-\" }\nemail = \"/mail\"");
    assert_eq!((numbered.id_prefix, numbered.total), (id_prefix, woocommerce.total));
    assert_ne!((numbered.id, numbered.email), (woocommerce.id, woocommerce.email));
    let problem = |keys: &str| problems(&with_format(&format!("{keys}\n{ITEMS}")));
    assert!(problem("base = \"magento\"\nid = \"/id\"")[0].starts_with("formats.shop.base: must be one of"));
    let without = problem("id = { prefix = \"b\" }");
    assert!(without[0].starts_with("formats.shop.id: must have the key \"pointer\""), "{without:?}");
    let long = format!("id = {{ pointer = \"/id\", prefix = \"{}\" }}", "x".repeat(65));
    assert!(problem(&long)[0].starts_with("formats.shop.id: prefix must"), "{:?}", problem(&long));
}

#[test]
fn consumers_of_different_formats_whose_order_ids_may_be_the_same_cause_a_warning() {
    let file =
        |format: &str, keys: &str| with_format(keys).replacen("format = \"orderd\"", &format!("format = {format}"), 1);
    let base = "base = \"woocommerce\"";
    let found = warnings(&file("\"shop\"", base));
    assert!(
        found.len() == 1 && found[0].starts_with("consumers.priority.format: has the format \"orderd\""),
        "{found:?}"
    );
    assert_eq!(warnings(&file("\"shop\"", &format!("{base}\nid = {{ prefix = \"b-\" }}"))), [""; 0]);
    assert_eq!(warnings(&file("\"orderd\"", base)), [""; 0]);
}

#[test]
fn a_consumer_of_orders_has_a_format_and_others_have_none() {
    let file = |section: &str, format: &str| {
        with_format(section).replacen("format = \"orderd\"", &format!("format = {format}"), 1)
    };
    let shop = format!("id = \"/id\"\n{ITEMS}");
    let named = |format: &str| valid(&file(&shop, format)).consumers["order"].format.clone().unwrap();
    assert_eq!((named("\"shop\"").name(), named("\"woocommerce\"").name()), ("shop", "woocommerce"));
    let unknown = problems(&file(&shop, "\"shopfy\""));
    assert!(unknown[0].contains("did you mean \"shopify\"?"), "{unknown:?}");
    assert_eq!(
        problems(&file("id = \"/id\"", "\"shop\"")).len(),
        1,
        "a consumer of a wrong format is not a second problem"
    );
    let analytics =
        DEFAULT_FILE.replacen("queue = \"analytics_queue\"", "queue = \"analytics_queue\"\nformat = \"orderd\"", 1);
    assert_eq!(problems(&analytics), ["consumers.analytics.format: unknown key"]);
    for name in ["shopify", "json"] {
        let named = with_format(&shop).replace("formats.shop", &format!("formats.{name}"));
        assert!(problems(&named)[0].contains("must have another name"), "{name}");
    }
}
