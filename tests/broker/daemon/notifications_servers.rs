//! Servers of notification channels that hang, refuse, go away and return, and reloads that change channels.

use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};

use super::notifications::{dead_letter, notified, place, smtp};
use crate::support::Node;
use crate::support::certificates::{CertificateAuthority, Validity};
use crate::support::http::Scrape;
use crate::support::smtp_server::SmtpServer;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, wait_until};

/// So many retries that none is used up.
fn patient(env: TestEnv<'_>) -> TestEnv<'_> {
    env.set("consumers.notification.retry.delays", &["300ms"; 32].join(","))
}

fn all_notified(ledger: &LedgerReader, prefix: &str, count: u64) -> bool {
    let sql = "SELECT count(*) FROM events WHERE kind = 'notification' AND order_id LIKE";
    ledger.number(&format!("{sql} '{prefix}-%'")) == count
}

fn channels(orderd: &OrderdProcess) -> Vec<Value> {
    orderd.status()["consumers"]["notification"]["channels"].as_array().unwrap().clone()
}

fn provider_in_use(orderd: &OrderdProcess, channel: &str) -> Option<String> {
    let in_use = |row: &&Value| row["channel"] == channel && row["in_use"] == true;
    channels(orderd).iter().find(in_use).map(|row| row["provider"].as_str().unwrap().to_owned())
}

#[test]
fn check_names_what_is_wrong_with_each_server_and_sends_nothing() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let directory = env.directory.path().to_owned();
    let authority = CertificateAuthority::new(&directory, "ca");
    CertificateAuthority::new(&directory, "other");
    authority.issue_server_certificate("server", Validity::Current);
    authority.issue_certificate_of(&["smtp.example.com"], "elsewhere", Validity::Current);
    let file = |name: &str, kind: &str| authority.file(name, kind).to_str().unwrap().to_owned();
    let tls = |name: &str, more: &[&str]| {
        let (certificate, key) = (file(name, "pem"), file(name, "key"));
        SmtpServer::start(&[&["--tls", &certificate, &key], more].concat())
    };
    let (good, elsewhere) = (tls("server", &["--login", "shop", "hunter2"]), tls("elsewhere", &[]));
    let (plain, down) = (SmtpServer::start(&[]), SmtpServer::start(&["--mode", "down"]));
    let (silent, hook) = (SmtpServer::start(&["--mode", "silent"]), StepServer::start());
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (name, text) in [("right", "hunter2"), ("wrong", "hunter3")] {
        fs::write(directory.join(name), text).unwrap();
    }
    let mut env = env;
    for (channel, port, mode, ca) in [
        ("good", good.port, "tls", "ca"),
        ("login", good.port, "tls", "ca"),
        ("authority", good.port, "tls", "other"),
        ("name", elsewhere.port, "tls", "ca"),
        ("plain", plain.port, "starttls", "ca"),
        ("down", down.port, "none", ""),
        ("downtls", down.port, "starttls", "ca"),
        ("silent", silent.port, "none", ""),
        ("away", away, "none", ""),
    ] {
        env = smtp(env, channel, port).set(&format!("notify.{channel}.tls"), mode);
        if !ca.is_empty() {
            env = env.set(&format!("notify.{channel}.ca_file"), &file(ca, "pem"));
        }
    }
    for (channel, password) in [("good", "right"), ("login", "wrong")] {
        env = env
            .set(&format!("notify.{channel}.username"), "shop")
            .set(&format!("notify.{channel}.password_file"), directory.join(password).to_str().unwrap());
    }
    let env = env
        .set("notify.hook.type", "webhook")
        .set("notify.hook.http.url", &format!("http://127.0.0.1:{}/hook", hook.port));
    let output = env.program(&["check", "--connect", "--format", "json"]).output().unwrap();
    assert!(!output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = report["channel_servers"].as_array().unwrap().iter();
    let found: Vec<_> =
        found.map(|row| (row["channel"].as_str().unwrap(), row["error"]["code"].as_str().unwrap_or("none"))).collect();
    let expected = [
        ("authority", "tls_failed"),
        ("away", "unreachable"),
        ("down", "smtp_421"),
        ("downtls", "smtp_421"),
        ("good", "none"),
        ("hook", "none"),
        ("login", "login_refused"),
        ("name", "tls_failed"),
        ("plain", "tls_failed"),
        ("silent", "timed_out"),
    ];
    assert_eq!(found, expected, "{report}");
    assert!(good.mails().is_empty() && plain.mails().is_empty() && hook.calls().is_empty());
}

#[test]
fn a_server_that_hangs_at_any_point_costs_only_the_e_mails_it_hangs_for() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let authority = CertificateAuthority::new(env.directory.path(), "ca");
    authority.issue_server_certificate("server", Validity::Current);
    let file = |name: &str, kind: &str| authority.file(name, kind).to_str().unwrap().to_owned();
    let server = SmtpServer::start(&["--tls", &file("server", "pem"), &file("server", "key")]);
    let env = smtp(env, "email", server.port)
        .set("notify.email.tls", "tls")
        .set("notify.email.ca_file", &file("ca", "pem"))
        .set("notify.email.timeout", "1s")
        .set("notify.email.accept_timeout", "1s")
        // It would stop the intake for a moment.
        .set("notify.email.circuit_breaker.failures", "1.0")
        .set("consumers.notification.retry.immediate", "0");
    let _orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    place(&mut raw, "first-0", &json!({"email": "ada@example.com"}));
    wait_until("the first is delivered", || all_notified(&ledger, "first", 1));
    let failing = [("hang", "timed_out"), ("hang-data", "timed_out"), ("hang-end", "timed_out"), ("gone", "smtp_421")];
    for (local, _) in failing {
        place(&mut raw, local, &json!({"email": format!("{local}@example.com")}));
    }
    for number in 0..10 {
        place(&mut raw, &format!("good-{number}"), &json!({"email": "ada@example.com"}));
    }
    wait_until("the others are delivered", || all_notified(&ledger, "good", 10));
    for (local, code) in failing {
        wait_until(local, || !dead_letter(&ledger, local).is_empty());
        assert_eq!(dead_letter(&ledger, local).join(" "), format!("retries_exhausted|transient|{code}|1"), "{local}");
    }
    assert_eq!(server.mails_to("ada@example.com").len(), 11);
    assert_eq!(server.mails()[0]["tls"], true);
}

#[test]
fn a_lost_connection_to_the_broker_repeats_no_e_mail_that_a_slow_server_is_accepting() {
    let node = Node::shared();
    let server = SmtpServer::start(&[]);
    // The server accepts after two seconds.
    let env = smtp(TestEnv::new(&node), "email", server.port).set("notify.email.timeout", "1s");
    let _orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    for number in 0..4 {
        place(&mut raw, &format!("slow-{number}"), &json!({"email": "slow@example.com"}));
    }
    wait_until("the server has them", || server.mails().len() == 4);
    drop(raw);
    env.vhost.close_connections();
    wait_until("they are recorded", || all_notified(&ledger, "slow", 4));
    place(&mut env.raw(), "after-0", &json!({"email": "ada@example.com"}));
    wait_until("the consumer works again", || all_notified(&ledger, "after", 1));
    assert_eq!(server.mails_to("slow@example.com").len(), 4, "one was sent twice");
    assert_eq!(ledger.number("SELECT count(*) FROM notification_attempts"), 0);
}

#[test]
fn a_fallback_takes_over_while_the_server_is_down_and_what_both_cannot_deliver_waits() {
    let node = Node::shared();
    let (email, backup) = (SmtpServer::start(&[]), SmtpServer::start(&[]));
    let mut env = patient(smtp(smtp(TestEnv::new(&node), "email", email.port), "backup", backup.port))
        .set("notify.email.fallback", "backup");
    for channel in ["email", "backup"] {
        env = env
            .set(&format!("notify.{channel}.circuit_breaker.open"), "500ms")
            .set(&format!("notify.{channel}.circuit_breaker.window"), "5s");
    }
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let address = json!({"email": "ada.lovelace@example.com"});
    let mut publish = |prefix: &str, count: usize| {
        (0..count).for_each(|number| place(&mut raw, &format!("{prefix}-{number}"), &address));
    };
    publish("before", 3);
    wait_until("the server delivers", || all_notified(&ledger, "before", 3));
    email.set_mode("down");
    publish("during", 30);
    wait_until("the fallback delivers", || all_notified(&ledger, "during", 30));
    assert_eq!((email.mails().len(), backup.mails().len()), (3, 30));
    assert_eq!(provider_in_use(&orderd, "email").as_deref(), Some("backup"));
    let scrape = Scrape::of(orderd.admin_address());
    let route = |provider| [("channel", "email"), ("provider", provider)];
    assert_eq!(scrape.sum("orderd_notifications_sent_total", &route("backup")), 30.0);
    assert!(scrape.sum("orderd_notifications_failed_total", &[("provider", "email"), ("code", "smtp_421")]) >= 1.0);
    assert_eq!(scrape.sum("orderd_notification_provider_in_use", &route("backup")), 1.0);

    let failed = "SELECT identity FROM notification_attempts WHERE provider = 'email' LIMIT 1";
    let order = ledger.rows(failed).remove(0).replace("/notification/processed", "");
    let trace = env.program(&["trace", &order, "--format", "json"]).output().unwrap();
    let text = String::from_utf8(trace.stdout).unwrap();
    assert!(!text.contains("lovelace"), "{text}");
    let trace: Value = serde_json::from_str(&text).unwrap();
    let steps = trace["steps"].as_array().unwrap();
    let step =
        |name: &str| steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}: {text}"));
    let (refused, notified) = (step("delivery_failed"), step("notified"));
    assert_eq!((&refused["provider"], &refused["code"]), (&json!("email"), &json!("smtp_421")));
    assert_eq!((&notified["channel"], &notified["provider"]), (&json!("email"), &json!("backup")));
    assert_eq!(notified["recipient"], "a…@example.com");

    backup.set_mode("down");
    publish("neither", 30);
    wait_until("no provider is in use", || provider_in_use(&orderd, "email").is_none());
    email.set_mode("up");
    wait_until("the server has returned", || all_notified(&ledger, "neither", 30));
    wait_until("it is in use again", || provider_in_use(&orderd, "email").as_deref() == Some("email"));
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters"), 0);
    assert_eq!(email.mails().len() + backup.mails().len(), 63, "none was sent twice");
}

#[test]
fn a_channel_that_hangs_stops_no_other_one_with_a_consumer_of_its_own() {
    let node = Node::shared();
    let (email, sms) = (SmtpServer::start(&["--mode", "silent"]), StepServer::start());
    sms.answer(|_| reply("200 OK", "queued"));
    let env = patient(smtp(TestEnv::new(&node), "email", email.port))
        .set("notify.email.timeout", "500ms")
        .set("notify.email.circuit_breaker.open", "500ms")
        .set("notify.sms.type", "webhook")
        .set("notify.sms.preset", "sms")
        .set("notify.sms.http.url", &format!("http://127.0.0.1:{}/sms", sms.port))
        .set("queues.notification_queue.bindings", "order.notification.email")
        .set("queues.texts.bindings", "order.notification.sms")
        .set("consumers.texts.queue", "texts")
        .set("consumers.texts.handler", "notification");
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    for number in 0..12 {
        place(&mut raw, &format!("mail-{number}"), &json!({"email": "ada@example.com"}));
    }
    wait_until("its breaker is open", || provider_in_use(&orderd, "email").is_none());
    for number in 0..5 {
        place(&mut raw, &format!("text-{number}"), &json!({"phone": "+49 1", "notify": "sms"}));
    }
    wait_until("the texts are delivered", || all_notified(&ledger, "text", 5));
    assert!(all_notified(&ledger, "mail", 0));
    email.set_mode("up");
    wait_until("the e-mails are delivered", || all_notified(&ledger, "mail", 12));
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters"), 0);
}

#[test]
fn a_reload_applies_a_new_password_and_a_new_address_and_refuses_a_broken_template() {
    let node = Node::shared();
    let (server, other) = (SmtpServer::start(&["--login", "shop", "hunter2"]), SmtpServer::start(&[]));
    let env = patient(smtp(TestEnv::new(&node), "email", server.port));
    let (password, templates) = (env.directory.path().join("password"), env.directory.path().join("templates"));
    fs::write(&password, "hunter3").unwrap();
    fs::create_dir_all(templates.join("en")).unwrap();
    let (env, mut file) = env
        .set("notify.email.username", "shop")
        .set("notify.email.password_file", password.to_str().unwrap())
        .set("notify.email.templates", templates.to_str().unwrap())
        .with_file();
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    place(&mut raw, "password", &json!({"email": "ada@example.com"}));
    let refused = "SELECT count(*) FROM notification_attempts WHERE failure_code = 'login_refused'";
    wait_until("the login is refused", || ledger.number(refused) > 0);
    fs::write(&password, "hunter2").unwrap();
    assert_eq!(orderd.reload()["outcome"], "applied");
    wait_until("the new password is used", || notified(&ledger, "password"));

    let template = |text: &str| fs::write(templates.join("en/processed.txt"), text).unwrap();
    template("Subject: broken\n\n{{ ordr_id }}\n");
    let report = orderd.reload();
    assert_eq!(report["outcome"], "rejected");
    assert!(report["problems"].to_string().contains("en/processed.txt:3"), "{report}");
    place(&mut raw, "template", &json!({"email": "ada@example.com"}));
    wait_until("the former template is used", || notified(&ledger, "template"));
    assert!(!server.mails()[1]["content"].as_str().unwrap().contains("broken"));

    template("Subject: changed\n\n{{ order_id }}\n");
    file.set("notify.email.address", &format!("localhost:{}", other.port));
    file.remove("notify.email.username").remove("notify.email.password_file").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    place(&mut raw, "address", &json!({"email": "ada@example.com"}));
    wait_until("the new address is used", || notified(&ledger, "address"));
    assert!(other.mails()[0]["content"].as_str().unwrap().contains("Subject: changed"));
    assert_eq!((server.mails().len(), ledger.number("SELECT count(*) FROM dead_letters")), (2, 0));
}
