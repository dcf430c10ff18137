//! Templates of notifications that are changed while orderd runs.

use std::fs;

use serde_json::json;

use super::notifications::smtp;
use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::smtp_server::SmtpServer;
use crate::support::test_env::{TestEnv, wait_until};

#[test]
fn a_changed_template_is_used_at_once_and_a_broken_one_is_refused_by_its_line_while_the_old_one_stays() {
    let node = Node::shared();
    let server = SmtpServer::start(&[]);
    let env = TestEnv::new(&node);
    let templates = env.directory.path().join("templates");
    fs::create_dir_all(templates.join("en")).unwrap();
    let write =
        |subject: &str| fs::write(templates.join("en/processed.txt"), format!("Subject: {subject}\n\nx\n")).unwrap();
    write("first {{ order_id }}");
    let env = env
        .set("reload.watch", "true")
        .set("notify.email.type", "smtp")
        .set("notify.email.tls", "none")
        .set("notify.email.address", &format!("localhost:{}", server.port))
        .set("notify.email.from", "Lamps <orders@example.com>")
        .set("notify.email.templates", templates.to_str().unwrap());
    let orderd = env.start();
    let mut raw = env.raw();
    let mut subject_of = |id: &str| {
        let email = format!("{id}@example.com");
        let order = json!({"id": id, "product": "Lamp", "quantity": 1, "price": 1, "email": email}).to_string();
        raw.publish_to("orders", "order.normal.created", &Properties::persistent(), order.as_bytes());
        wait_until("the e-mail arrives", || !server.mails_to(&email).is_empty());
        let mail = server.mails_to(&email).remove(0);
        let content = mail["content"].as_str().unwrap().to_owned();
        content.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().trim().to_owned()
    };
    assert_eq!(subject_of("one"), "first one");
    write("second {{ order_id }}");
    wait_until("the change is applied", || orderd.status()["daemon"]["config_generation"] == 2);
    assert_eq!(subject_of("two"), "second two");
    write("third {{ ordr_id }}");
    let reload = || orderd.status()["daemon"]["last_reload"]["report"].clone();
    wait_until("the broken one is refused", || reload()["outcome"] == "rejected");
    assert!(reload()["problems"].to_string().contains("notify.email.templates[en/processed.txt:1]"), "{}", reload());
    assert_eq!(subject_of("three"), "second three");
    write("fourth {{ order_id }}");
    wait_until("it is mended", || orderd.status()["daemon"]["config_generation"] == 3);
    assert_eq!(subject_of("four"), "fourth four");
}

#[test]
fn a_broken_template_stops_neither_the_start_nor_orders_nor_publish_and_its_notifications_wait_until_it_is_mended() {
    let node = Node::shared();
    let server = SmtpServer::start(&[]);
    let env = TestEnv::new(&node);
    let templates = env.directory.path().join("templates");
    fs::create_dir_all(templates.join("en")).unwrap();
    let write = |text: &str| fs::write(templates.join("en/processed.txt"), format!("Subject: x\n\n{text}\n")).unwrap();
    write("{{ ordr_id }}");
    let env = smtp(env, "email", server.port).set("notify.email.templates", templates.to_str().unwrap());
    let orderd = env.start();
    let ledger = env.ledger();
    let orders = env.directory.path().join("orders.ndjson");
    let order = |id: &str| {
        format!("{{\"id\":\"{id}\",\"product\":\"Lamp\",\"quantity\":1,\"price\":1,\"email\":\"{id}@example.com\"}}\n")
    };
    fs::write(&orders, order("one") + &order("two")).unwrap();
    let published = env.program(&["publish", orders.to_str().unwrap()]).output().unwrap();
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    let processed = "SELECT count(*) FROM orders WHERE status = 'processed'";
    wait_until("the orders are processed", || ledger.number(processed) == 2);
    let channel = || orderd.status()["consumers"]["notification"]["breakers"]["email"].clone();
    assert_eq!(channel()["state"], "open", "{}", channel());
    assert!(channel()["last_failure"].as_str().unwrap().contains("en/processed.txt:3"), "{}", channel());
    let in_flight = || orderd.status()["consumers"]["notification"]["in_flight"].as_u64();
    wait_until("nothing is in flight", || in_flight() == Some(0));
    assert_eq!(orderd.reload()["outcome"], "rejected");
    assert_eq!((server.mails().len(), ledger.number("SELECT count(*) FROM dead_letters")), (0, 0));
    write("{{ order_id }}");
    let report = orderd.reload();
    assert_eq!(report["outcome"], "applied", "{report}");
    wait_until("the e-mails arrive", || server.mails().len() == 2);
    assert_eq!(channel()["state"], "closed");
}
