//! Operators' alerts through a real mail server and a real HTTP server: what is sent when causes begin and end, over a restart,
//! while the channel is down, and by several instances.

use serde_json::Value;

use crate::support::Node;
use crate::support::http::Scrape;
use crate::support::raw_client::properties::Properties;
use crate::support::smtp_server::SmtpServer;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";
const RESOLVED_AFTER: &str = "4s";

/// Alerts through a channel of their own, soon and without a pause between messages.
fn alerts<'a>(env: TestEnv<'a>, channel: &[(&str, &str)]) -> TestEnv<'a> {
    let env = channel.iter().fold(env, |env, (key, value)| env.set(&format!("notify.operators.{key}"), value));
    env.set("alerts.channel", "operators")
        .set("alerts.open_after", "0s")
        .set("alerts.resolved_after", RESOLVED_AFTER)
        .set("alerts.interval", "0s")
        .set("alerts.dead_letter_window", "2s")
}

#[test]
fn each_cause_is_one_e_mail_and_its_end_another_also_over_a_restart() {
    let node = Node::shared();
    let (mails, service) = (SmtpServer::start(&[]), StepServer::start());
    service.answer(|_| reply("503 Service Unavailable", "<b>busy</b>"));
    let step = format!(
        "[{{ name = \"charge\", http = {{ url = {:?} }}, circuit_breaker = {{ window = \"10s\", open = \"300ms\" }} }}]",
        service.url("/charge")
    );
    let address = format!("localhost:{}", mails.port);
    let operators = [("type", "smtp"), ("address", &address), ("from", "orderd@example.com"), ("tls", "none")];
    let (env, mut file) = alerts(TestEnv::new(&node), &operators)
        .set("alerts.to", "[\"later@example.com\", \"ada@example.com\", \"refused@example.com\", \"bob@example.com\"]")
        .set("dead_letters.collect", "true")
        .set("consumers.order.steps", &step)
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", &["300ms"; 16].join(","))
        .with_file();
    let mut orderd = env.start();
    let mut raw = env.raw();
    raw.publish_to("orders", NORMAL, &Properties::persistent(), b"no JSON");
    env.raw().publish_all("orders", (0..30).map(|n| (NORMAL.to_owned(), order(&format!("ord-{n}")))));
    raw.publish_to("orders", "order.unknown", &Properties::persistent(), &order("ord-unrouted"));
    // No producer reaches the operators.
    let phishing = br#"{"event": "processed", "email": "ada@example.com"}"#;
    raw.publish_to("orders", "order.notification.operators", &Properties::persistent(), phishing);
    file.set("consumers.order.workers", "0").save();
    assert_eq!(orderd.reload()["outcome"], "rejected");

    let count = |text: &str| {
        let of = |to: &str| mails.mails_to(to).iter().filter(|mail| content(mail).contains(text)).count();
        assert!(of("ada@example.com").abs_diff(of("bob@example.com")) <= 1, "each gets every message");
        of("ada@example.com").min(of("bob@example.com"))
    };
    let causes = [
        "Messages of consumer \"order\" are dead-lettered (malformed)",
        "Messages of consumer \"notification\" are dead-lettered",
        "Step \"charge\" of consumer \"order\" is unavailable",
        "A reload was rejected",
        "Messages matched no binding and were stored",
    ];
    let opened = || causes.map(|cause| count(&format!("\r\nOPEN: {cause}")));
    // Dead letters remain when no more are added.
    let ends = ["ENDED", "ENDED", "RESOLVED", "RESOLVED", "ENDED"];
    let resolved = || [0, 1, 2, 3, 4].map(|index| count(&format!("\r\n{}: {}", ends[index], causes[index])));
    wait_until("every cause is reported", || opened() == [1; 5]);
    let refused = "SELECT failure_code FROM dead_letters WHERE consumer = 'notification'";
    assert_eq!(env.ledger().rows(refused), ["unknown_channel"]);
    let first = content(&mails.mails()[0]);
    for part in ["docs/operations/runbook.md", "Subject: orderd: ", "Auto-Submitted: auto-generated"] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(count("http_503") > 0 && count("busy") == 0, "what a service answers does not leave orderd");

    assert_eq!(orderd.stop(), 0);
    file.set("consumers.order.workers", "4").save();
    let mut orderd = env.start();
    wait_until("what ended meanwhile is reported", || resolved() == [1, 1, 0, 1, 1]);
    assert_eq!(opened(), [1; 5], "what is open is not reported again");
    let status = orderd.status();
    assert_eq!(status["alerts"]["open"][0]["cause"], "breaker/step/order/charge", "{status}");
    assert_eq!(Scrape::of(orderd.admin_address()).sum("orderd_alerts_open", &[("kind", "breaker")]), 1.0);

    assert!(status["alerts"]["problem"].is_string(), "two recipients are refused: {status}");

    file.set("alerts.to", "[\"eve@example.com\"]").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    service.answer(|_| reply("200 OK", "1"));
    let last = || mails.mails_to("eve@example.com").iter().map(content).collect::<Vec<_>>();
    wait_until("the last one ends", || !last().is_empty());
    assert!(last().len() == 1 && last()[0].contains(&format!("\r\nRESOLVED: {}", causes[2])), "{:?}", last());
    assert_eq!((opened(), resolved()), ([1; 5], [1, 1, 0, 1, 1]));
    wait_until("nothing is left in the ledger", || env.ledger().number("SELECT count(*) FROM alerts") == 0);
    assert_eq!(orderd.stop(), 0);
}

/// Without the soft line breaks of quoted-printable.
fn content(mail: &Value) -> String {
    mail["content"].as_str().unwrap().replace("=\r\n", "")
}

#[test]
fn while_the_channel_is_down_alerts_wait_and_of_two_instances_one_sends_them() {
    let node = Node::shared();
    let chat = StepServer::start();
    chat.answer(|_| reply("503 Service Unavailable", ""));
    let url = format!("http://127.0.0.1:{}/chat", chat.port);
    let env =
        alerts(TestEnv::new(&node), &[("type", "webhook"), ("http.url", &url)]).set("management.poll_every", "200ms");
    assert_eq!(env.start().stop(), 0, "declares the topology");
    let declare = [("topology.declare", "false")];
    let instances = [env.start_with(&declare), env.start_with(&declare)];
    let queue = format!("/queues/{}/unrouted_queue", env.vhost.name);
    assert_eq!(node.management("DELETE", &queue, "").0, 204);
    env.raw().publish_to("orders", NORMAL, &Properties::persistent(), b"no JSON");
    wait_until("both are open, and neither is sent", || {
        let statuses = instances.each_ref().map(|orderd| orderd.status()["alerts"].clone());
        // The binding is missing, too.
        let causes = ["dead_letters/order/malformed", "finding/queue_missing/unrouted_queue"];
        let is_open =
            |alerts: &Value, cause| alerts["open"].as_array().unwrap().iter().any(|open| open["cause"] == cause);
        statuses.iter().all(|alerts| causes.iter().all(|cause| is_open(alerts, *cause)))
            && statuses.iter().any(|alerts| alerts["problem"].is_string() && alerts["failed"].as_u64().unwrap() > 0)
    });
    // Processing does not wait for the channel.
    env.raw().publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    assert!(instances.iter().all(|orderd| orderd.status()["alerts"]["sent"] == 0));

    let before = chat.calls().len();
    chat.answer(|_| reply("200 OK", ""));
    let test = env.command(&["notify", "--alert"]).wait_for_exit();
    assert_eq!(test, 0);
    let titles = || -> Vec<String> {
        let alerts =
            chat.calls().into_iter().skip(before).flat_map(|call| call.body["event"]["alerts"].as_array().cloned());
        alerts
            .flatten()
            .map(|alert| format!("{} {}", alert["state"].as_str().unwrap(), alert["cause"].as_str().unwrap()))
            .collect()
    };
    let sent =
        || titles().iter().filter(|title| title.starts_with("open finding/queue_missing/unrouted_queue")).count();
    wait_until("it is sent", || sent() > 0);
    wait_until("it is recorded", || instances[0].status()["alerts"]["unsent"] == 0);
    assert_eq!(sent(), 1, "{:?}", titles());
    assert_eq!(titles().iter().filter(|title| *title == "open test").count(), 1);
}
