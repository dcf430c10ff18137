//! Changes of keys, each made as if the file had been edited.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::super::load::{DEFAULT_FILE, Sources, parse};
use super::super::model::{AdminUser, Role, Tls};
use super::super::redaction::Secret;
use super::super::section::ReadContext;
use super::*;
use crate::handlers;
use crate::tls::{CertificateFiles, TlsFiles};

fn with(settings: &[&str]) -> Config {
    // In the environment, since passwords are rejected on the command line.
    let variable = |setting: &&str| {
        let (key, value) = setting.split_once('=').expect("key=value");
        (OsString::from(format!("ORDERD_{}", key.to_uppercase().replace('.', "__"))), OsString::from(value))
    };
    let environment = settings.iter().map(variable).collect();
    let sources = Sources { environment, ..handlers::sources() };
    parse(DEFAULT_FILE.as_bytes(), &sources, &ReadContext::default()).expect("a valid configuration").0
}

/// Each change as `key: from → to, effect`.
fn described(old: &Config, new: &Config) -> Vec<String> {
    let value = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    changes(old, new, &WrittenKeys::default())
        .into_iter()
        .map(|change| format!("{}: {} → {}, {:?}", change.key, value(change.from), value(change.to), change.effect))
        .collect()
}

/// Changes one key at a time.
#[test]
fn each_changed_key_is_reported_with_its_values_and_its_effect() {
    let old = with(&[]);
    for (setting, expected) in [
        ("consumers.order.workers=64", "consumers.order.workers: 4 → 64, Live"),
        ("consumers.order.prefetch=9", "consumers.order.prefetch: 250 → 9, Live"),
        ("consumers.order.timeout=1m 30s", "consumers.order.timeout: \"30s\" → \"1m 30s\", Live"),
        ("consumers.order.retry.immediate=0", "consumers.order.retry.immediate: 1 → 0, Live"),
        (
            "consumers.order.retry.delays=2s,1h",
            r#"consumers.order.retry.delays: ["1s", "10s", "1m"] → ["2s", "1h"], Live"#,
        ),
        ("consumers.order.retry.max_age=7d", "consumers.order.retry.max_age: \"1d\" → \"7d\", Live"),
        ("consumers.order.faults.hang=0.25", "consumers.order.faults.hang: 0.0 → 0.25, Live"),
        (
            "queues.order_queue.bindings=order.normal.*,order.plain",
            r#"queues.order_queue.bindings: ["order.normal.*"] → ["order.normal.*", "order.plain"], Live"#,
        ),
        (
            "queues.order_queue.bindings=order.usual.*",
            r#"queues.order_queue.bindings: ["order.normal.*"] → ["order.usual.*"], Broker"#,
        ),
        ("management.url=http://b:1", "management.url: [\"http://127.0.0.1:15672\"] → [\"http://b:1\"], Live"),
        ("management.username=m", "management.username: \"guest\" → \"m\", Live"),
        ("management.password=hunter2", "management.password: [redacted] → [redacted], Live"),
        ("management.poll_every=off", "management.poll_every: \"5s\" → \"off\", Live"),
        ("topology.declare=false", "topology.declare: true → false, Live"),
        ("topology.exchange=o", "topology.exchange: \"orders\" → \"o\", Restart"),
        (
            "consumers.notification.default_channel=sms",
            "consumers.notification.default_channel: \"email\" → \"sms\", Live",
        ),
        ("ledger.retention=90d", "ledger.retention: \"forever\" → \"90d\", Live"),
        ("ledger.directory=/d", "ledger.directory: \"/var/lib/orderd\" → \"/d\", Restart"),
        ("log.level=debug", "log.level: \"info\" → \"debug\", Live"),
        ("log.format=json", "log.format: \"text\" → \"json\", Restart"),
        ("log.directory=/l", "log.directory: none → \"/l\", Restart"),
        ("log.rotation=never", "log.rotation: \"daily\" → \"never\", Restart"),
        ("log.keep=1", "log.keep: 14 → 1, Restart"),
        ("log.mode=600", "log.mode: \"0640\" → \"0600\", Restart"),
        ("admin.listen=off", "admin.listen: \"127.0.0.1:9640\" → \"off\", Restart"),
        ("admin.hosts=a.b", r#"admin.hosts: [] → ["a.b"], Restart"#),
        ("reload.watch=true", "reload.watch: false → true, Restart"),
        ("shutdown.drain_timeout=5s", "shutdown.drain_timeout: \"30s\" → \"5s\", Live"),
        ("runtime.threads=2", "runtime.threads: 1 → 2, Restart"),
        ("broker.addresses=a:1,b", r#"broker.addresses: ["127.0.0.1:5672"] → ["a:1", "b:5672"], Restart"#),
        ("broker.virtual_host=v", "broker.virtual_host: \"/\" → \"v\", Restart"),
        ("broker.heartbeat=20s", "broker.heartbeat: \"10s\" → \"20s\", Restart"),
        ("broker.connect_timeout=1s", "broker.connect_timeout: \"10s\" → \"1s\", Restart"),
        ("broker.confirm_timeout=1s", "broker.confirm_timeout: \"30s\" → \"1s\", Restart"),
        ("broker.max_unconfirmed=7", "broker.max_unconfirmed: 4096 → 7, Restart"),
        ("broker.max_unconfirmed_bytes=2097152", "broker.max_unconfirmed_bytes: 16777216 → 2097152, Restart"),
        ("broker.max_body=2097152", "broker.max_body: 16777216 → 2097152, Restart"),
        ("broker.max_unsettled_bytes=2097152", "broker.max_unsettled_bytes: 33554432 → 2097152, Restart"),
        ("broker.reconnect_max=1s", "broker.reconnect_max: \"30s\" → \"1s\", Restart"),
    ] {
        let new = with(&[setting]);
        assert_eq!(described(&old, &new), [expected]);
        let change = changes(&old, &new, &WrittenKeys::default()).remove(0);
        let (applied, pending) = (applicable(&old, &new), change.effect == Effect::Restart);
        assert_eq!(applied, if pending { old.clone() } else { new.clone() }, "{setting}");
    }
    assert_eq!(described(&old, &old), [""; 0]);
}

#[test]
fn the_management_api_uses_the_brokers_login_unless_it_has_its_own() {
    let changes = described(&with(&[]), &with(&["broker.username=u", "broker.password=hunter2"]));
    let expected = [
        "broker.password: [redacted] → [redacted], Restart",
        "broker.username: \"guest\" → \"u\", Restart",
        "management.password: [redacted] → [redacted], Live",
        "management.username: \"guest\" → \"u\", Live",
    ];
    assert_eq!(changes, expected);
}

#[test]
fn a_new_section_is_reported_with_the_keys_that_are_written_and_a_removed_one_by_its_name() {
    let old = with(&[]);
    let text = format!(
        "{DEFAULT_FILE}\n[queues.vip_queue]\nbindings = [\"order.vip.#\"]\n[consumers.vip]\nqueue = \"vip_queue\"\n\
         handler = \"order\"\nretry.delays = [\"5s\"]\n\
         steps = [{{ name = \"charge\", http = {{ url = \"http://127.0.0.1:1/\" }} }}]\n"
    );
    let (new, _, written) = parse(text.as_bytes(), &handlers::sources(), &ReadContext::default()).unwrap();
    let added = changes(&old, &new, &written);
    let shown: Vec<_> = added.iter().map(|change| (change.key.as_str(), change.to.as_deref())).collect();
    let keys: Vec<_> = shown.iter().map(|(key, _)| *key).collect();
    let expected = [
        "consumers.vip",
        "consumers.vip.handler",
        "consumers.vip.queue",
        "consumers.vip.retry.delays",
        "consumers.vip.steps",
        "queues.vip_queue",
        "queues.vip_queue.bindings",
    ];
    assert_eq!(keys, expected);
    assert_eq!((shown[0].1, shown[3].1), (Some(SECTION), Some("[\"5s\"]")));
    assert!(added.iter().all(|change| change.from.is_none() && change.effect == Effect::Live));
    let removed = described(&new, &old);
    assert_eq!(removed, ["consumers.vip: (section) → none, Live", "queues.vip_queue: (section) → none, Live"]);
    assert_eq!((applicable(&old, &new), applicable(&new, &old)), (new, old));
}

#[test]
fn a_change_of_handler_removes_the_old_handlers_keys_and_adds_those_of_the_new_one() {
    let (old, new) = (with(&[]), with(&["consumers.analytics.handler=order"]));
    let expected = [
        "consumers.analytics.faults.block: none → 0.0, Live",
        "consumers.analytics.faults.hang: none → 0.0, Live",
        "consumers.analytics.faults.panic: none → 0.0, Live",
        "consumers.analytics.faults.permanent: none → 0.0, Live",
        "consumers.analytics.faults.transient: none → 0.0, Live",
        "consumers.analytics.format: none → \"orderd\", Live",
        "consumers.analytics.handler: \"analytics\" → \"order\", Live",
        "consumers.analytics.on_conflict: none → \"dead_letter\", Live",
    ];
    assert_eq!(described(&old, &new), expected);
    assert_eq!(described(&new, &old).len(), expected.len());
}

#[test]
fn no_secret_is_shown() {
    let mut new = with(&["broker.password=hunter2", "management.password=hunter3"]);
    let token = Secret::new("hunter4hunter4hunter4");
    new.admin.users = vec![AdminUser { name: "ada".to_owned(), role: Role::Viewer, token }];
    for (old, new) in [(&with(&[]), &new), (&new, &with(&[]))] {
        let changes = described(old, new);
        assert!(changes.iter().any(|line| line.contains("admin.users: ")), "{changes:?}");
        assert!(!changes.concat().contains("hunter"), "{changes:?}");
    }
}

#[test]
fn changes_that_need_a_restart_are_reported_until_the_restart() {
    let (old, new) = (with(&[]), with(&["runtime.threads=2", "consumers.order.workers=8", "admin.listen=off"]));
    let applied = applicable(&old, &new);
    assert_eq!(described(&old, &applied), ["consumers.order.workers: 4 → 8, Live"]);
    let pending = described(&applied, &new);
    assert_eq!(pending, ["admin.listen: \"127.0.0.1:9640\" → \"off\", Restart", "runtime.threads: 1 → 2, Restart"]);
    assert_eq!(applicable(&applied, &new), applied);
}

/// Compares the keys that `changes` sees with those of the annotated file.
#[test]
fn every_key_of_the_default_file_is_compared() {
    let mut config = with(&["log.directory=/l"]);
    let client = Some(CertificateFiles { certificate: "/c".into(), key: "/k".into() });
    let files = TlsFiles { ca: Some("/ca".into()), client };
    config.management.tls = files.clone();
    config.broker.tls = Some(Tls { files, server_name: Some("rabbit".to_owned()) });
    let compared: BTreeSet<_> = keys(&config).into_keys().collect();
    let (mut section, mut documented) = (String::new(), BTreeSet::new());
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.trim_start_matches('#').strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
            && !line.starts_with("# ")
        {
            // The password itself is compared, not the name of its file.
            documented.insert(format!("{section}.{}", key.replace("password_file", "password")));
        }
    }
    // The format, the notification channel and the alerts are examples. The lists of a consumer's steps and of users are compared as a whole, and are empty by default.
    let is_example = |key: &String| {
        ["formats.webshop.", "consumers.order.steps.", "notify.email.", "alerts.", "admin.users."]
            .iter()
            .any(|example| key.starts_with(example))
    };
    let not_compared: Vec<_> = documented.difference(&compared).filter(|key| !is_example(key)).collect();
    assert!(not_compared.is_empty(), "{not_compared:?}");
    // Faults are documented for one consumer only, and `[broker.tls]` is a section, not a key.
    let undocumented: Vec<_> =
        compared.difference(&documented).filter(|key| !key.contains(".faults.") && *key != "broker.tls").collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
}

#[test]
fn items_of_a_list_are_escaped_like_other_text() {
    let text = "a\u{7f}\u{202e}";
    assert_eq!(shown(&Value::from(vec![text])), format!("[{}]", shown(&Value::from(text))));
    assert_eq!(shown(&Value::from(text)), r#""a\u{7f}\u{202e}""#);
}

#[test]
fn a_changed_format_is_a_live_change_of_the_consumers_that_use_it() {
    let format = |id: &str| {
        let settings = ["id", "product", "quantity", "price"].map(|key| match key {
            "id" => format!("formats.shop.id={id}"),
            key => format!("formats.shop.{key}=/{key}"),
        });
        let settings: Vec<&str> = settings.iter().map(String::as_str).chain(["consumers.order.format=shop"]).collect();
        with(&settings)
    };
    let (old, new) = (format("/id"), format("/number"));
    assert_eq!(described(&old, &new), ["formats.shop.id: \"/id\" → \"/number\", Live"]);
    assert_ne!(old.consumers["order"], new.consumers["order"], "it gets a new pool");
    assert_eq!(old.consumers["priority"], new.consumers["priority"]);
}
