//! Edits of dead letters, read as the consumers of a configuration do.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::config::Sources;
use crate::dead_letters::{ActionError, NewBody};
use crate::handlers;
use crate::ledger::conformance::stored_letter;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LedgerReader, LetterOrder, LetterOrigin, NewStoredLetter};
use crate::message::{ExchangeNames, Publication, Publisher, TrustedUsers, Unpublished};

struct NoPublisher;

impl Publisher for NoPublisher {
    fn publish(
        &self,
        publications: Arc<[Publication]>,
    ) -> futures_util::future::BoxFuture<'static, Result<(), Unpublished>> {
        panic!("publishes {}", publications.len())
    }
}

/// One consumer of each kind; that of priority orders reads them in the format of Shopify.
fn consumers() -> KnownConsumers {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
    let settings = [
        "consumers.priority.format=shopify",
        "queues.invoices_queue.bindings=invoice.#",
        "consumers.invoices.queue=invoices_queue",
        "consumers.invoices.handler=steps",
        r#"consumers.invoices.steps=[{ name = "print", http = { url = "http://127.0.0.1:1/print" } }]"#,
    ];
    let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
    let sources = Sources { file: Some(file.into()), settings, ..handlers::sources() };
    known_consumers(&Config::load(&sources).unwrap().config.consumers)
}

fn actions(ledger: &Arc<SqliteLedger>) -> LetterActions {
    LetterActions::new(Arc::new(Replayer::new(ReplayDeps {
        ledger: Arc::clone(ledger) as Arc<dyn Ledger>,
        publisher: Arc::new(NoPublisher),
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        consumers: watch::Sender::new(consumers()).subscribe(),
        access: Arc::new(|_| QueueAccess::Open),
        pause: watch::Sender::new(None).subscribe(),
        shutdown: Shutdown::new(),
    })))
}

/// A letter of this consumer that came from this queue; empty: none.
fn letter(consumer: &str, queue: &str) -> NewStoredLetter {
    let source = if queue.is_empty() { LetterSource::UnroutedQueue } else { LetterSource::DeadLetterQueue };
    let origin_queue = Some(queue.to_owned()).filter(|queue| !queue.is_empty());
    NewStoredLetter { source, origin_queue, consumer: consumer.to_owned(), ..stored_letter("ord-1", 0) }
}

fn no_order(letter: NewStoredLetter) -> NewStoredLetter {
    NewStoredLetter { identity: Some("m-1".to_owned()), order: LetterOrder::default(), ..letter }
}

/// About the order with the id `ord-1`, as one that orderd has published.
fn event(letter: NewStoredLetter, kind: &str) -> NewStoredLetter {
    let key = json!({"type": "string", "value": format!("order.{kind}")});
    let user = json!({"type": "string", "value": "orderd"});
    let failure = json!({"type": "string", "value": "malformed"});
    let headers = json!({"x-failure-kind": failure, "x-origin-routing-key": key, "x-original-user-id": user});
    NewStoredLetter {
        identity: Some(format!("ord-1/{}/processed", kind.split('.').next().unwrap())),
        order: LetterOrder { id: Some("ord-1".to_owned()), ..LetterOrder::default() },
        properties: json!({"user_id": "orderd"}).to_string(),
        headers: headers.to_string(),
        routing_key: "order.failed".to_owned(),
        origin: LetterOrigin::Orderd,
        ..letter
    }
}

const OWN: &str =
    r#"{"id":"ord-1","product":"Ink","quantity":2,"price":"4.00","currency":"EUR","customer_id":"grace"}"#;
const SHOPIFY: &str = r#"{"id":"ord-1","currency":"EUR","customer":{"id":"grace"},"line_items":[{"name":"Ink","quantity":2,
    "price":"4.00"}],"total_price":"8.00"}"#;
const SALE: &str = r#"{"event":"processed","order_id":"ord-1","product":"Ink","quantity":2,"price":"4.00","total":"8.00",
    "currency":"EUR","at":"2026-11-22T08:00:00Z"}"#;

/// Bodies, and a word of the reason for each.
type Refused = Vec<(&'static [u8], &'static str)>;

#[tokio::test]
async fn each_letter_is_edited_only_to_what_its_consumer_can_read_or_if_it_has_none_to_an_order_again() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let actions = actions(&ledger);
    let unrouted = || letter("", "");
    let removed = || letter("vip", "vip_queue");
    let text: &[u8] = b"any text";
    let own = OWN.as_bytes();
    // The letter, bodies that are refused with a word of the reason, and one that is accepted.
    let cases: Vec<(&str, NewStoredLetter, Refused, &[u8])> = vec![
        (
            "order",
            letter("order", "order_queue"),
            vec![(text, "consumer order"), (br#"{"id":"ord-1"}"#, "product")],
            own,
        ),
        ("shopify", letter("priority", "priority_order_queue"), vec![(own, "consumer priority")], SHOPIFY.as_bytes()),
        (
            "notification",
            event(letter("notification", "notification_queue"), "notification.email"),
            vec![(text, "consumer notification"), (b"[1]", "consumer notification")],
            br#"{"order_id":"ord-1"}"#,
        ),
        (
            "analytics",
            event(letter("analytics", "analytics_queue"), "analytics.page_view"),
            vec![(text, "consumer analytics")],
            b"{}",
        ),
        (
            "sale",
            event(letter("analytics", "analytics_queue"), "analytics.processed"),
            vec![(br#"{"order_id":"ord-1"}"#, "event of a processed order")],
            SALE.as_bytes(),
        ),
        ("steps", no_order(letter("invoices", "invoices_queue")), vec![(b"\xff\xfe", "consumer invoices")], text),
        ("unrouted order", unrouted(), vec![(text, "orderd: "), (br#"{"id":"ord-1"}"#, "shopify: ")], own),
        ("unrouted order, another format", unrouted(), vec![], SHOPIFY.as_bytes()),
        ("order of no consumer", removed(), vec![(text, "no consumer has its queue")], own),
        ("unrouted, no order", no_order(unrouted()), vec![], b"\xff any bytes"),
        ("of no consumer, no order", no_order(removed()), vec![], text),
        ("unrouted event", event(unrouted(), "notification.email"), vec![], text),
    ];
    for (n, (name, letter, refused, good)) in cases.into_iter().enumerate() {
        let id = i64::try_from(n).unwrap() + 1;
        let (order_id, is_order) = (letter.order.id.clone(), letter.order.total.is_some());
        let fingerprint = [u8::try_from(id).unwrap(); 32];
        ledger.store_letter(NewStoredLetter { fingerprint, ..letter }).await.unwrap();
        let edit = async |body: &[u8]| {
            let new = NewBody { revision: 0, body: body.to_vec(), change_order_id: false };
            actions.edit(id, new, "ada".to_owned()).await
        };
        for (body, reason) in refused {
            match edit(body).await {
                Err(ActionError::Invalid(text)) => assert!(text.contains(reason), "{name}: {text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        let edited = edit(good).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!((&edited.order_id, &edited.former_order_id), (&order_id, &None), "{name}");
        let letter = ledger.dead_letter(id).await.unwrap().unwrap().letter;
        assert_eq!(letter.order_id, order_id, "{name}");
        let total = letter.total.as_ref().map(ToString::to_string);
        let expected = is_order.then_some(("grace", "Ink", "8.00"));
        assert_eq!(letter.customer_id.as_deref(), expected.map(|(customer, ..)| customer), "{name}");
        assert_eq!(letter.product.as_deref(), expected.map(|(_, product, _)| product), "{name}");
        assert_eq!(total.as_deref(), expected.map(|(.., total)| total), "{name}");
        let has_queue = ["order", "shopify", "notification", "analytics", "sale", "steps"].contains(&name);
        assert_eq!(edited.queue.is_some(), has_queue, "{name}");
    }
}

#[tokio::test]
async fn an_unrouted_letter_becomes_another_order_only_if_that_is_meant_and_is_then_found_by_both() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let actions = actions(&ledger);
    ledger.store_letter(letter("", "")).await.unwrap();
    let edit = async |change_order_id| {
        let body = OWN.replace("ord-1", "ord-2").into_bytes();
        actions.edit(1, NewBody { revision: 0, body, change_order_id }, "ada".to_owned()).await
    };
    let refused = edit(false).await;
    assert!(matches!(refused, Err(ActionError::Conflict(_))), "{refused:?}");
    let edited = edit(true).await.unwrap();
    assert_eq!((edited.order_id.as_deref(), edited.former_order_id.as_deref()), (Some("ord-2"), Some("ord-1")));
    let letter = ledger.dead_letter(1).await.unwrap().unwrap().letter;
    assert_eq!((letter.order_id.as_deref(), letter.former_order_id.as_deref()), (Some("ord-2"), Some("ord-1")));
    assert_eq!(letter.identity.as_deref(), Some("ord-2"), "a replay asks for the order that it is now");
}

#[tokio::test]
async fn what_was_no_order_is_found_as_the_order_that_it_was_edited_to() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let actions = actions(&ledger);
    ledger.store_letter(no_order(letter("", ""))).await.unwrap();
    let new = NewBody { revision: 0, body: OWN.into(), change_order_id: false };
    assert_eq!(actions.edit(1, new, "ada".to_owned()).await.unwrap().order_id.as_deref(), Some("ord-1"));
    let letter = ledger.dead_letter(1).await.unwrap().unwrap().letter;
    assert_eq!((letter.order_id.as_deref(), letter.customer_id.as_deref()), (Some("ord-1"), Some("grace")));
    // Now it is an order, and stays one.
    let new = NewBody { revision: 1, body: b"no order".to_vec(), change_order_id: false };
    assert!(matches!(actions.edit(1, new, "ada".to_owned()).await, Err(ActionError::Invalid(_))));
}
