//! Templates of notifications that are changed while orderd runs.

use std::fs;

use serde_json::json;

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
