//! `orderd status`: what it shows of a running daemon, and what it says when something is not there.

use serde_json::Value;

use crate::support::raw::properties::Properties;
use crate::support::shop::{Shop, order, until};
use crate::support::{Node, free_address};

fn with_admin(node: &Node) -> Shop<'_> {
    Shop::new(node).set("admin.listen", &free_address().to_string()).set("management.poll_every", "500ms")
}

/// Its exit code and all it printed.
fn status(shop: &Shop<'_>, arguments: &[&str]) -> (i32, String) {
    let mut command = shop.command(&[&["status"], arguments].concat());
    (command.exit(), command.output())
}

#[test]
fn one_screen_shows_daemon_queues_consumers_and_that_nothing_is_missing() {
    let node = Node::shared();
    let shop =
        with_admin(&node).set("consumers.order.retry.delays", "1h").set("consumers.order.faults.transient", "0.5");
    let mut orderd = shop.open();
    let orders = (0..100).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    shop.raw().flood("orders", orders);
    shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), b"{not json");
    let book = shop.book();
    let count = |query: &str| book.number(query);
    let (processed, retried) =
        ("SELECT count(*) FROM orders WHERE status = 'processed'", "SELECT count(*) FROM attempts WHERE delay = '1h'");
    until("all is through", || {
        count(processed) + count(retried) == 100 && count("SELECT count(*) FROM dead_letters") == 1
    });
    let (processed, retried) = (count(processed), count(retried));
    let waiting = format!("{retried} in 1h");
    until("the broker has told all of it", || status(&shop, &[]).1.contains(&waiting));

    let (code, text) = status(&shop, &[]);
    assert_eq!(code, 0, "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "running, up ",
        "(generation 1)",
        "ready yes",
        "connections 6 of 6",
        "nothing is missing",
        "order: 1h",
        "malformed 1",
    ] {
        assert!(words.contains(part), "no {part:?}: {text}");
    }
    let row = text.lines().find(|line| line.trim_start().starts_with("order ")).unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<_> = row.split_whitespace().collect();
    // Name, workers, in hand, oldest, done, again, failed, retried, dead.
    assert_eq!(cells[..3], ["order", "4/4", "0"], "{text}");
    let numbers = [processed, 0, retried + 1, retried, 1].map(|number| number.to_string());
    assert_eq!(cells[4..9], numbers, "{text}");
    let row = text.lines().find(|line| line.trim_start().starts_with("dead_letter_queue ")).unwrap();
    assert_eq!(row.split_whitespace().nth(1), Some("1"), "{text}");

    let (code, told) = status(&shop, &["--format", "json"]);
    assert_eq!(code, 0);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["consumers"]["order"]["processed"], processed);
    assert_eq!(told["consumers"]["order"]["dead_letters"]["malformed"], 1);
    assert_eq!(told["broker"]["queues"]["order_queue.retry.1h"]["ready"], retried);
    assert_eq!(told["broker"]["api"]["state"], "fresh");
    assert_eq!((&told["conserved"], &told["daemon"]["config_generation"]), (&true.into(), &1.into()));

    let mut watching = shop.command(&["status", "--watch", "100ms", "--format", "json"]);
    until("it is shown again and again", || watching.output().lines().count() >= 3);
    watching.kill();
    for line in watching.output().lines().take(2) {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["conserved"], true);
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_daemon_it_says_what_to_do() {
    let node = Node::shared();
    let shop = with_admin(&node);
    let (code, said) = status(&shop, &[]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("no daemon answers") && said.contains("orderd run"), "{said}");
    let off = shop.set("admin.listen", "off");
    let (code, said) = status(&off, &[]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("admin.listen"), "{said}");
}

#[test]
fn without_a_broker_it_shows_the_daemon_and_says_so() {
    let node = Node::shared();
    let shop = with_admin(&node).set("broker.addresses", &free_address().to_string());
    let mut orderd = shop.run();
    orderd.admin();
    // It answers before the ledger is open.
    until("the ledger is open", || status(&shop, &[]).1.contains("NO: topology"));
    let (code, said) = status(&shop, &[]);
    assert_eq!(code, 69, "{said}");
    for part in ["starting", "NO: topology", "its broker is not there"] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_management_api_the_reason_is_shown_and_the_rest_too() {
    let node = Node::shared();
    let shop = with_admin(&node).set("management.url", "http://127.0.0.1:1");
    let mut orderd = shop.open();
    shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    shop.book().await_settled(1);
    until("the reason is shown", || {
        let (code, said) = status(&shop, &[]);
        assert_eq!(code, 0, "{said}");
        said.contains("DOES NOT TELL")
            && said.contains("cannot reach the management API")
            && said.contains("ready         yes")
    });
    assert_eq!(orderd.stop(), 0);
    let off = shop.set("management.poll_every", "off");
    let mut orderd = off.open();
    let (_, said) = status(&off, &[]);
    assert!(said.contains("management.poll_every"), "{said}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn the_token_is_taken_from_the_configuration() {
    let node = Node::shared();
    let shop = with_admin(&node);
    let file = shop.directory.path().join("token");
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let shop = shop.set("admin.token_file", file.to_str().unwrap());
    let mut orderd = shop.open();
    until("its connections stand", || status(&shop, &[]).0 == 0);
    std::fs::write(&file, "fedcba9876543210").unwrap();
    let (code, said) = status(&shop, &[]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("401") && said.contains("token_file"), "{said}");
    assert_eq!(orderd.stop(), 0);
}
