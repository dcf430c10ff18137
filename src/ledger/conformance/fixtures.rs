//! Orders, events, attempts and dead letters as entries, for the tests of ledgers.

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::domain::{Amounts, Charges, Item, OrderId, Sale};
use crate::ledger::{
    Identification, LedgerEntry, LetterOrder, LetterOrigin, LetterSource, NewAnalytics, NewAttempt, NewDeadLetter,
    NewNotification, NewOrder, NewStoredLetter, NotificationDelivery,
};

pub(crate) fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

pub(crate) fn order(id: &str) -> NewOrder {
    NewOrder {
        id: OrderId::new(id).unwrap(),
        consumer: "order".into(),
        items: [laptop()].into(),
        amounts: Amounts::new(&[laptop()], Charges::default(), "EUR".parse().unwrap()).unwrap(),
        priority: false,
        customer_id: Some("7".to_owned()),
        email: Some("ada@example.com".to_owned()),
        phone: Some("+49 30 1234".to_owned()),
        locale: Some("de".to_owned()),
        notify: None,
        placed_at: Some(at(1_000)),
        at: at(2_000),
    }
}

fn laptop() -> Item {
    Item::new("Laptop", 3, Decimal::from(400))
}

/// The order with these lines instead.
pub(crate) fn with_items(order: NewOrder, items: impl Into<Vec<Item>>) -> NewOrder {
    let items = items.into();
    let amounts = Amounts::new(&items, order.amounts.charges, order.amounts.currency).unwrap();
    NewOrder { items: items.into(), amounts, ..order }
}

/// The order with these charges and in this currency instead.
pub(crate) fn with_charges(order: NewOrder, charges: Charges, currency: &str) -> NewOrder {
    NewOrder { amounts: Amounts::new(&order.items, charges, currency.parse().unwrap()).unwrap(), ..order }
}

/// An order for three pieces of this product.
pub(crate) fn of_product(id: &str, product: impl Into<String>) -> NewOrder {
    with_items(order(id), [Item::new(product, 3, Decimal::from(400))])
}

pub(crate) fn accept(order: NewOrder) -> LedgerEntry {
    LedgerEntry::AcceptOrder(Box::new(order))
}

pub(crate) fn finish(id: &str) -> LedgerEntry {
    LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: at(3_000) }
}

pub(crate) fn look_up(id: &str) -> LedgerEntry {
    LedgerEntry::LookUpNotification { id: id.to_owned() }
}

pub(crate) fn notification(id: &str) -> LedgerEntry {
    skipped(id, None)
}

/// A notification that was not delivered for this reason.
pub(crate) fn skipped(id: &str, not_delivered: Option<&'static str>) -> LedgerEntry {
    let channel = "email".to_owned();
    let (id, delivery) = (id.to_owned(), NotificationDelivery { not_delivered, ..NotificationDelivery::default() });
    LedgerEntry::Notification(Box::new(NewNotification { id, order_id: None, channel, at: at(4_000), delivery }))
}

pub(crate) fn analytics(id: &str, sale: Option<Sale>) -> LedgerEntry {
    let name = "processed".to_owned();
    LedgerEntry::Analytics(Box::new(NewAnalytics { id: id.to_owned(), order_id: None, name, sale, at: at(5_000) }))
}

pub(crate) fn sale(product: &str, total: Decimal, at: Timestamp) -> Sale {
    Sale::new([(product.to_owned(), 3, total)], "EUR".parse().unwrap(), at)
}

pub(crate) fn attempt(identity: &str, consumer: &str, retry_count: u32) -> NewAttempt {
    NewAttempt {
        identity: identity.to_owned(),
        consumer: consumer.to_owned(),
        replay: None,
        retry_count,
        kind: "transient",
        code: "stock_unreachable".to_owned(),
        reason: "the stock service did not answer".to_owned(),
        failed_at: at(6_000),
        delay: Some("10s".to_owned()),
    }
}

pub(crate) fn dead_letter(attempt: NewAttempt) -> LedgerEntry {
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter {
        attempt: NewAttempt { delay: None, ..attempt },
        order: None,
        reason: "retries_exhausted",
        origin_queue: Some("order_queue".to_owned()),
        at: at(7_000),
    }))
}

/// An order that was dead-lettered. `content` is what distinguishes it from others.
pub(crate) fn stored_letter(identity: &str, content: u8) -> NewStoredLetter {
    NewStoredLetter {
        source: LetterSource::DeadLetterQueue,
        origin: LetterOrigin::Orderd,
        reason: "permanent".to_owned(),
        code: "card_expired".to_owned(),
        failure_kind: Some("permanent".to_owned()),
        failure_reason: Some("the card has expired".to_owned()),
        consumer: "order".to_owned(),
        retries: 3,
        identity: Some(identity.to_owned()),
        order: LetterOrder {
            id: Some(identity.to_owned()),
            customer_id: Some("7".to_owned()),
            products: vec!["Laptop".to_owned()],
            total: Some(("1200.10".to_owned(), "EUR".to_owned())),
        },
        origin_queue: Some("order_queue".to_owned()),
        exchange: "orders.dead_letter".to_owned(),
        routing_key: "order.normal.web".to_owned(),
        message_id: Some(identity.to_owned()),
        user_id: Some("orderd".to_owned()),
        failed_at: at(6_000),
        died_at: None,
        at: at(7_000),
        properties: r#"{"message_id":"ord-1"}"#.to_owned(),
        headers: r#"{"x-retry-count":{"type":"long","value":3}}"#.to_owned(),
        body: format!(r#"{{"id":"{identity}","email":"ada@example.com"}}"#).into(),
        search: format!("{identity}\nlaptop\nada@example.com"),
        fingerprint: [content; 32],
        replay_key: None,
        identification: Identification::ById,
        redelivered: false,
        unparsed: false,
        session: "a".to_owned(),
    }
}
