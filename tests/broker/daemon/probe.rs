//! `orderd probe` of a running daemon.

use crate::support::shop::{Shop, until};
use crate::support::{Node, free_address};

/// A shop whose daemon answers at a fixed address, by which it can be asked from its configuration.
fn with_admin(node: &Node) -> Shop<'_> {
    Shop::new(node).set("admin.listen", &free_address().to_string())
}

fn probe(shop: &Shop<'_>, arguments: &[&str]) -> (i32, String) {
    let mut command = shop.command(&[&["probe"], arguments].concat());
    (command.exit(), command.output())
}

#[test]
fn it_tells_living_from_ready_and_names_what_is_missing() {
    let node = Node::shared();
    let shop = with_admin(&node);
    std::fs::create_dir_all(shop.ledger()).unwrap();
    let other = rusqlite::Connection::open(shop.ledger().join("orderd.db")).unwrap();
    other.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (a); DROP TABLE t; BEGIN IMMEDIATE").unwrap();
    let mut orderd = shop.run();
    orderd.admin();
    assert_eq!(probe(&shop, &[]), (0, "live\n".to_owned()));
    let (code, said) = probe(&shop, &["--ready"]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("is not ready (503)") && said.contains("ledger: not open yet"), "{said}");
    let (code, said) = probe(&shop, &["--ready", "--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &told["ok"], &told["status"]), (69, &false.into(), &503.into()));

    other.execute_batch("ROLLBACK").unwrap();
    until("it is ready", || probe(&shop, &["--ready"]) == (0, "ready\n".to_owned()));
    assert_eq!(orderd.stop(), 0);
    assert_eq!(probe(&shop, &[]).0, 69);
}

#[test]
fn a_daemon_with_another_token_is_alive_and_ready_all_the_same() {
    let node = Node::shared();
    let shop = with_admin(&node);
    let token = shop.directory.path().join("token");
    std::fs::write(&token, "the-token-of-the-start").unwrap();
    let shop = shop.set("admin.token_file", token.to_str().unwrap());
    let mut orderd = shop.open();
    std::fs::write(&token, "the-token-of-the-next-start").unwrap();
    assert_eq!(probe(&shop, &[]), (0, "live\n".to_owned()));
    until("it is ready", || probe(&shop, &["--ready"]) == (0, "ready\n".to_owned()));
    assert_eq!(orderd.stop(), 0);
}
