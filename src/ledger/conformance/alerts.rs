//! Operators' alerts: what one instance records, another reads, and of two that change the same, one has to begin again.

use super::{at, rules};
use crate::ledger::{AlertBook, AlertRecord, Ledger};

rules! {
    the_alerts_of_a_new_ledger_are_empty_and_reading_them_changes_nothing,
    alerts_are_read_as_they_were_recorded,
    of_two_instances_that_replace_the_same_alerts_one_has_to_read_them_again,
    a_replacement_is_answered_as_it_is_read_later,
}

fn alert(cause: &str) -> AlertRecord {
    AlertRecord {
        scope: "virtual host /".to_owned(),
        cause: cause.to_owned(),
        title: "Queue \"a\" does not exist".to_owned(),
        detail: "It was deleted".to_owned(),
        instance: "host:7".to_owned(),
        opened_at: at(1_000),
        observed_at: at(2_000),
        resolved_at: None,
        reported_at: None,
    }
}

async fn the_alerts_of_a_new_ledger_are_empty_and_reading_them_changes_nothing(ledger: &dyn Ledger) {
    for _ in 0..2 {
        let answer = ledger.exchange_alerts(None).await.unwrap();
        assert_eq!((answer.replaced, answer.book), (false, AlertBook::default()));
    }
}

async fn alerts_are_read_as_they_were_recorded(ledger: &dyn Ledger) {
    let resolved = AlertRecord { resolved_at: Some(at(5_000)), reported_at: Some(at(3_000)), ..alert("b") };
    let book = AlertBook {
        version: 0,
        messages: 3,
        sent_at: Some(at(4_000)),
        sender: Some(("host:7 0a".to_owned(), at(6_000))),
        alerts: vec![alert("a"), resolved],
    };
    let answer = ledger.exchange_alerts(Some(book.clone())).await.unwrap();
    let expected = AlertBook { version: 1, ..book };
    assert_eq!((answer.replaced, &answer.book), (true, &expected));
    assert_eq!(ledger.exchange_alerts(None).await.unwrap().book, expected);
    let none = AlertBook { sender: None, sent_at: None, alerts: Vec::new(), ..expected };
    let answer = ledger.exchange_alerts(Some(none.clone())).await.unwrap();
    assert_eq!((answer.replaced, answer.book), (true, AlertBook { version: 2, ..none }));
}

async fn of_two_instances_that_replace_the_same_alerts_one_has_to_read_them_again(ledger: &dyn Ledger) {
    let with = |cause: &str| AlertBook { alerts: vec![alert(cause)], ..AlertBook::default() };
    let first = ledger.exchange_alerts(Some(with("first"))).await.unwrap();
    let second = ledger.exchange_alerts(Some(with("second"))).await.unwrap();
    assert!(first.replaced && !second.replaced);
    assert_eq!(second.book, first.book);
    let again = AlertBook { version: second.book.version, ..with("second") };
    assert!(ledger.exchange_alerts(Some(again)).await.unwrap().replaced);
}

async fn a_replacement_is_answered_as_it_is_read_later(ledger: &dyn Ledger) {
    let precise = at(1_000).checked_add(jiff::SignedDuration::from_nanos(12_345_678)).unwrap();
    let alerts = vec![AlertRecord { opened_at: precise, observed_at: precise, ..alert("a") }];
    let book = AlertBook { sent_at: Some(precise), alerts, ..AlertBook::default() };
    let answer = ledger.exchange_alerts(Some(book)).await.unwrap();
    assert_eq!(answer.book, ledger.exchange_alerts(None).await.unwrap().book);
}
