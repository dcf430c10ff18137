//! Settings in environment variables: their precedence, their values, and what is wrong with them.

use super::*;

#[test]
fn the_command_line_overrides_the_environment_and_the_environment_overrides_the_file() {
    let variable = [("ORDERD_CONSUMERS__ORDER__WORKERS", "8")];
    assert_eq!(valid(DEFAULT_FILE).consumers["order"].workers, 4);
    assert_eq!(load(DEFAULT_FILE, &variable).unwrap().0.consumers["order"].workers, 8);
    let all = load_with(DEFAULT_FILE, &variable, &["consumers.order.workers=9"]);
    assert_eq!(all.unwrap().0.consumers["order"].workers, 9);
    assert_eq!(load("", &variable).unwrap().0.consumers["order"].workers, 8);
}

#[test]
fn a_variable_can_set_a_value_of_any_type() {
    let (config, _) = load(
        DEFAULT_FILE,
        &[
            ("orderd_broker__addresses", "a:1, [::1],c"),
            ("ORDERD_QUEUES__ORDER_QUEUE__BINDINGS", "[\"order.normal.*\", 'x.y']"),
            ("ORDERD_CONSUMERS__ORDER__RETRY__DELAYS", ""),
            ("Orderd_Consumers__Order__Faults__Panic", "0.25"),
            ("ORDERD_BROKER__PASSWORD", "12345"),
            ("ORDERD_TOPOLOGY__DECLARE", "false"),
            ("ORDERD_SHUTDOWN__DRAIN_TIMEOUT", "1m"),
            ("ORDERD_CONFIG", "/somewhere"),
            ("ORDERD_TEST_THING", "1"),
            ("ORDERDX", "1"),
        ],
    )
    .unwrap();
    let addresses: Vec<String> = config.broker.addresses.iter().map(Address::to_string).collect();
    assert_eq!(addresses, ["a:1", "[::1]:5672", "c:5672"]);
    assert_eq!(config.queues["order_queue"].bindings, ["order.normal.*", "x.y"]);
    assert_eq!(config.consumers["order"].retry.delays, []);
    assert_eq!(config.consumers["order"].handler_settings.keys()["faults"]["panic"], 0.25);
    assert_eq!(config.broker.password.expose(), "12345");
    assert!(!config.topology.declare);
    assert_eq!(config.shutdown.drain_timeout, Duration::from_secs(60));
}

#[test]
fn an_ipv6_address_in_brackets_is_not_taken_for_a_toml_array() {
    let address = |text| load(DEFAULT_FILE, &[("ORDERD_BROKER__ADDRESSES", text)]).unwrap().0.broker.addresses;
    assert_eq!(address("[::1]")[0].to_string(), "[::1]:5672");
    assert_eq!(address("[::1]:5673,[::2]:5674").len(), 2);
    assert_eq!(address("[\"x\"]")[0].to_string(), "x:5672");
}

#[test]
fn a_variable_can_set_a_key_of_a_queue_whose_name_has_two_underscores() {
    let file = DEFAULT_FILE.replace("order_queue]", "order__queue_]").replace("\"order_queue\"", "\"order__queue_\"");
    let file = file
        .replace("failed_order__queue_]", "failed_order_queue]")
        .replace("priority_order__queue_]", "priority_order_queue]");
    let (config, _) = load(&file, &[("ORDERD_QUEUES__ORDER__QUEUE___BINDINGS", "a.b")]).unwrap();
    assert_eq!(config.queues["order__queue_"].bindings, ["a.b"]);
}

#[test]
fn a_stray_variable_is_no_problem_and_one_that_looks_like_a_setting_causes_a_warning() {
    let stray = [("ORDERD_PORT", "tcp://10.0.0.1:9640"), ("ORDERD_NONSENSE", "1")];
    assert_eq!(load(DEFAULT_FILE, &stray).unwrap().1, Vec::<String>::new());
    for name in ["ORDERD_CONSUMER__ORDER__PREFETCH", "ORDERD_BROKER", "ORDERD_LOG_LEVEL"] {
        let warnings = load(DEFAULT_FILE, &[(name, "hunter2")]).unwrap().1;
        assert!(
            matches!(warnings.as_slice(), [one] if one.starts_with(&format!("{name}: sets nothing"))),
            "{warnings:?}"
        );
        assert!(!warnings[0].contains("hunter2"), "{warnings:?}");
    }
}

#[test]
fn a_misspelt_consumer_in_a_variable_is_one_problem_with_a_suggestion() {
    let problems = load(DEFAULT_FILE, &[("ORDERD_CONSUMERS__ORDR__WORKERS", "8")]).unwrap_err();
    let expected = "consumers.ordr: is not in the configuration file; did you mean \"order\"? (set by ORDERD_CONSUMERS__ORDR__WORKERS)";
    assert_eq!(problems, [expected]);
}

#[test]
fn a_problem_with_a_variable_names_it_and_comes_after_those_of_the_file() {
    let found = load(
        &default_with("\ntimeout = \"30s\"", "\ntimeout = \"16m\""),
        &[("ORDERD_CONSUMERS__ORDER__PREFETCH", "0")],
    );
    assert_eq!(
        found.unwrap_err(),
        [
            "consumers.order.timeout: must be at most 15m, is 16m: the broker requeues a delivery that is not settled within 30m",
            "consumers.order.prefetch: must be at least 1, is 0 (set by ORDERD_CONSUMERS__ORDER__PREFETCH)",
        ]
    );
    let twice = load(DEFAULT_FILE, &[("ORDERD_LOG__LEVEL", "info"), ("orderd_log__level", "warn")]);
    assert_eq!(
        twice.unwrap_err(),
        ["log.level: is set twice, the first time by ORDERD_LOG__LEVEL (set by orderd_log__level)"]
    );
}

#[test]
fn a_setting_that_does_not_fit_the_file_is_at_fault_and_not_the_line_of_the_file() {
    for setting in ["broker=5", "broker.addresses.x=5", "consumers.order.retry=once", "log.level.x=1"] {
        let sources = Sources { settings: vec![setting.to_owned()], ..handlers::sources() };
        let found = parse(DEFAULT_FILE.as_bytes(), &sources, &ReadContext::default()).unwrap_err().problems;
        let [problem] = &found[..] else { panic!("{found:?}") };
        let key = setting.split('=').next().unwrap();
        assert_eq!(
            (problem.line, problem.set_by.as_deref()),
            (None, Some(format!("--set {key}").as_str())),
            "{problem:?}"
        );
    }
}

#[test]
fn a_variable_that_treats_a_value_as_a_section_is_a_problem() {
    let problems = load(DEFAULT_FILE, &[("ORDERD_CONSUMERS__ORDER__WORKERS__X", "8")]).unwrap_err();
    assert!(problems.iter().any(|problem| problem.contains("is not a section")), "{problems:?}");
}
