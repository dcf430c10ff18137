//! Analytics events: written to a file, then recorded in the ledger and added to its aggregates if they are sales.
//!
//! The line comes first: if the two are interrupted in between, the event is delivered again and its line is written twice, with
//! the same id, which is better than never. Of two copies of a message that arrive at the same time, the second waits and then
//! finds the first one recorded; this works within one process only.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::claim::Claims;
use super::event_line::event_line;
use super::notification::{last_word_of_routing_key, order_id_and_email};
use super::{EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, append, body_failure};
use crate::config::{MessageKind, Section};
use crate::domain::{Currency, MAX_ITEMS, MAX_PRODUCT_BYTES, MAX_QUANTITY, OrderId, RuleError, Sale, TextField};
use crate::ledger::{LedgerEntry, NewAnalytics, Recorded};
use crate::message::{Delivery, Provenance, Sender};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate};
use crate::recovery::{Failure, FailureKind};

/// The name of the event that orderd publishes for each processed order. Only this event is a sale. The ledger itself subtracts
/// the sale of a cancelled order.
const PROCESSED: &str = "processed";

const NOT_A_SALE: &str = "not an event of a processed order: order_id, product or items, quantity, total, currency and at \
                          are required, with the types that orderd publishes";
/// 2000-01-01, before which nothing was processed by orderd.
const EARLIEST_SALE: Timestamp = Timestamp::constant(946_684_800, 0);
/// How far the clock of the instance that processed an order may be ahead.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// `handler = "analytics"`
pub(super) struct AnalyticsFactory;

impl HandlerFactory for AnalyticsFactory {
    type Settings = ();

    const NAME: &'static str = "analytics";

    const MESSAGES: MessageKind = MessageKind::Analytics;

    fn read(_section: &mut Section<'_>) {}

    fn check(delivery: &Delivery, provenance: Provenance<'_>, max_body: usize) -> Result<(), Failure> {
        decode(delivery, provenance, max_body).map(drop)
    }

    fn build(_consumer: HandlerConsumer<'_>, (): &(), deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(AnalyticsHandler {
            event_log: deps.event_log.clone(),
            claims: Arc::clone(&deps.claims),
            max_body: deps.max_body,
        })
    }
}

struct AnalyticsHandler {
    event_log: EventLog,
    claims: Arc<Claims>,
    max_body: usize,
}

/// The body of an event of a processed order.
#[derive(Deserialize)]
struct Processed {
    order_id: OrderId,
    product: Option<String>,
    quantity: i64,
    items: Option<Vec<ProcessedItem>>,
    goods_total: Option<Decimal>,
    total: Decimal,
    currency: String,
    at: Timestamp,
}

/// One line of a processed order.
#[derive(Deserialize)]
struct ProcessedItem {
    product: String,
    quantity: i64,
    total: Decimal,
}

impl Processed {
    /// The sale, if a processed order can have these values. They are checked because any producer can publish such an
    /// event.
    fn into_sale(self, now: Timestamp) -> Result<Sale, Failure> {
        let Processed { order_id: _, product, quantity, items, goods_total, total, currency, at } = self;
        let currency: Currency = currency.parse().map_err(|error: RuleError| invalid_sale(error.to_string()))?;
        // A time that no order can have been processed at would put the sale into a period of its own.
        if at < EARLIEST_SALE || at > now + MAX_CLOCK_SKEW {
            return Err(invalid_sale(format!("processed at {at}, which is before 2000 or in the future")));
        }
        let items = match (items, product) {
            (Some(items), _) => items,
            (None, Some(product)) => {
                vec![ProcessedItem { product, quantity, total: goods_total.unwrap_or(total) }]
            }
            (None, None) => return Err(invalid_sale(NOT_A_SALE.to_owned())),
        };
        if !(1..=MAX_ITEMS).contains(&items.len()) {
            return Err(invalid_sale(RuleError::Items(items.len()).to_string()));
        }
        items.iter().try_for_each(ProcessedItem::check)?;
        Ok(Sale::new(items.into_iter().map(|item| (item.product, item.quantity, item.total)), currency, at))
    }
}

impl ProcessedItem {
    fn check(&self) -> Result<(), Failure> {
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            return Err(invalid_sale(RuleError::quantity(self.quantity).to_string()));
        }
        let length = self.product.len();
        if length > MAX_PRODUCT_BYTES {
            return Err(invalid_sale(RuleError::TooLong { field: TextField::Product, length }.to_string()));
        }
        if self.total < Decimal::ZERO {
            return Err(invalid_sale("total must not be negative".to_owned()));
        }
        Ok(())
    }
}

fn invalid_sale(reason: String) -> Failure {
    Failure::new(FailureKind::Malformed, "invalid_sale", reason)
}

impl AnalyticsHandler {
    async fn record(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        let Event { name, body, order_id, sale } = decode(input.delivery, *input.provenance, self.max_body)?;
        let id = input.identity();
        // The first copy may have to wait for the ledger.
        let waiting = input.ledger.suspend_deadline();
        let _claim = self.claims.claim(MessageKind::Analytics, &id).await;
        drop(waiting);
        if input.ledger.record(LedgerEntry::LookUpAnalytics { id: id.clone() }).await? == Recorded::Duplicate {
            return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate));
        }
        let now = Timestamp::now();
        append(&self.event_log, event_line(&id, name, now, &body), input.ledger).await?;
        let event = NewAnalytics { id: id.clone(), order_id, name: name.to_owned(), sale, at: now };
        input.ledger.record(LedgerEntry::Analytics(Box::new(event))).await?;
        Ok(HandlerOutput::finished(HandlerOutcome::Completed))
    }
}

impl Handler for AnalyticsHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.record(input))
    }

    fn gates(&self) -> Vec<IntakeGate> {
        vec![IntakeGate::EventFile(self.event_log.state().into())]
    }
}

/// An event, decoded.
struct Event<'a> {
    name: &'a str,
    body: Cow<'a, str>,
    /// The order that it is about.
    order_id: Option<String>,
    sale: Option<Sale>,
}

fn decode<'a>(delivery: &'a Delivery, provenance: Provenance<'_>, max_body: usize) -> Result<Event<'a>, Failure> {
    let body = delivery.message.document(max_body).map_err(|error| body_failure(&error))?;
    let name = last_word_of_routing_key(delivery);
    let (order_id, sale) = read(name, provenance.sender == Sender::Own, &body)?;
    Ok(Event { name, body, order_id, sale })
}

/// The id of the order that an event is about, and the sale to add to the aggregates.
fn read(name: &str, is_own: bool, body: &str) -> Result<(Option<String>, Option<Sale>), Failure> {
    // Another sender's event is recorded, whatever its name, but is never a sale.
    // Serde would read a JSON array as the fields of a struct in order.
    if !is_own || name != PROCESSED || !body.trim_ascii_start().starts_with('{') {
        return Ok((order_id_and_email(body)?.0, None));
    }
    match serde_json::from_str::<Processed>(body) {
        Ok(event) => Ok((Some(event.order_id.as_str().to_owned()), Some(event.into_sale(Timestamp::now())?))),
        // An event that is not about an order, published by hand as orderd's user.
        Err(_) if order_id_and_email(body)?.0.is_none() => Ok((None, None)),
        Err(_) => Err(invalid_sale(NOT_A_SALE.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{FILE_MODE, Rolling, Rotation};
    use crate::ledger::LedgerReader;
    use crate::ledger::memory::MemoryLedger;
    use crate::message::{DeliveryId, Message, Properties};
    use crate::pipeline::{LedgerAccess, StepAccess};

    const SALE: &str = r#"{"event":"processed","order_id":"ord-2","product":"Laptop","quantity":3,"price":"400",
        "total":"1200.00","currency":"EUR","at":"2026-11-22T08:00:00Z"}"#;

    #[test]
    fn a_processed_order_is_a_sale() {
        let (order, sale) = read("processed", true, SALE).unwrap();
        assert_eq!(order.as_deref(), Some("ord-2"));
        assert_eq!(sale.unwrap().products()[0].revenue.to_string(), "1200.00");
    }

    #[test]
    fn a_sale_counts_goods_and_each_product_once() {
        let lines = r#""items":[{"product":"Pen","quantity":2,"price":"1","total":"2"},{"product":"Pen","quantity":1,
            "price":"3","total":"3"},{"product":"Ink","quantity":1,"price":"4","total":"4.50"}]"#;
        let event = SALE.replace(r#""product":"Laptop""#, lines);
        let (_, sale) = read("processed", true, &event).unwrap();
        let sale = sale.unwrap();
        let sold = sale.products().iter().map(|sold| (&*sold.product, sold.quantity, sold.revenue.to_string()));
        assert_eq!(sold.collect::<Vec<_>>(), [("Pen", 3, "5".to_owned()), ("Ink", 1, "4.50".to_owned())]);
        let shipped = SALE.replace(r#""total""#, r#""goods_total":"1195.10","shipping":"4.90","total""#);
        let sale = read("processed", true, &shipped).unwrap().1.unwrap();
        assert_eq!(sale.products()[0].revenue.to_string(), "1195.10");
        for items in
            ["[]".to_owned(), format!("[{}]", vec![r#"{"product":"P","quantity":1,"total":"1"}"#; 1001].join(","))]
        {
            let event = SALE.replace(r#""product":"Laptop""#, &format!("\"items\":{items}"));
            assert_eq!(read("processed", true, &event).unwrap_err().code, "invalid_sale");
        }
    }

    #[test]
    fn the_event_of_a_cancelled_order_is_no_sale() {
        let cancelled = SALE.replace("processed", "cancelled");
        assert_eq!(read("cancelled", true, &cancelled).unwrap(), (Some("ord-2".to_owned()), None));
    }

    #[test]
    fn an_event_of_a_processed_order_that_orderd_did_not_publish_is_not_a_sale() {
        assert_eq!(read("processed", false, SALE).unwrap(), (Some("ord-2".to_owned()), None));
    }

    #[test]
    fn another_producers_event_is_not_a_sale() {
        assert_eq!(read("page_view", true, r#"{"order_id":7,"total":"1"}"#).unwrap(), (Some("7".to_owned()), None));
        assert_eq!(read("processed", true, r#"{"file":"x"}"#).unwrap(), (None, None));
    }

    #[test]
    fn a_sale_with_values_that_no_order_can_have_is_malformed() {
        for (original, replacement) in [
            (r#""EUR""#, r#""\u001b[2J""#),
            (r#""1200.00""#, r#""-1200.00""#),
            (r#""quantity":3"#, r#""quantity":0"#),
            ("2026-11-22", "1970-01-01"),
            ("2026-11-22", "9998-11-22"),
            (r#""Laptop""#, &format!("\"{}\"", "x".repeat(1025))),
            (r#""quantity":3"#, r#""quantity":9223372036854775807"#),
        ] {
            let failure = read("processed", true, &SALE.replace(original, replacement)).unwrap_err();
            assert_eq!(
                (failure.kind, failure.code.as_str()),
                (FailureKind::Malformed, "invalid_sale"),
                "{replacement}"
            );
        }
    }

    #[test]
    fn a_sale_with_a_missing_field_is_malformed() {
        let failure = read("processed", true, r#"{"order_id":"ord-2","product":"Laptop"}"#).unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Malformed, "invalid_sale"));
        assert_eq!(read("page_view", true, "[1]").unwrap_err().kind, FailureKind::Malformed);
    }

    #[test]
    fn an_event_that_is_not_an_object_is_malformed_and_not_written_to_the_file() {
        let list = r#"["ord-2","Laptop",3,"1200.00","EUR","2026-11-22T08:00:00Z"]"#;
        for (name, body) in [("processed", list), ("page_view", "{"), ("page_view", r#"{"order_id":1,"order_id":2}"#)] {
            let failure = read(name, true, body).unwrap_err();
            assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Malformed, "invalid_event"), "{name}");
        }
    }

    async fn handler(directory: &std::path::Path) -> AnalyticsHandler {
        let (directory, name, suffix) = (directory.to_owned(), "analytics", "jsonl");
        let files = Rolling { directory, name, suffix, rotation: Rotation::Never, keep: 1, mode: FILE_MODE };
        let event_log = EventLog::start(files).await.unwrap().0;
        AnalyticsHandler { event_log, claims: Arc::default(), max_body: 1 << 20 }
    }

    fn page_view() -> Delivery {
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: "order.analytics.page_view".to_owned(),
            redelivered: false,
            message: Message {
                properties: Properties { message_id: Some("view-1".to_owned()), ..Properties::default() },
                body: b"{}".as_slice().into(),
                ..Message::default()
            },
        }
    }

    async fn handle(
        handler: &AnalyticsHandler,
        ledger: &MemoryLedger,
        delivery: &Delivery,
    ) -> Result<HandlerOutput, HandlerError> {
        let provenance = &Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None };
        let ledger = LedgerAccess::without_deadline(ledger);
        let consumer = "analytics".into();
        handler
            .handle(HandlerInput {
                delivery,
                provenance,
                consumer: &consumer,
                bindings: &[],
                retries: 0,
                ledger,
                steps: StepAccess::default(),
            })
            .await
    }

    #[tokio::test]
    async fn an_event_is_not_recorded_while_its_line_cannot_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("analytics.jsonl");
        let ledger = Arc::new(MemoryLedger::default());
        let (handler, delivery) = (handler(directory.path()).await, page_view());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut file = handler.event_log.state();
        let mut handling = std::pin::pin!(handle(&handler, &ledger, &delivery));
        // Cancel-safe: `handling` is only borrowed.
        tokio::select! {
            result = &mut handling => panic!("{result:?}"),
            outage = file.wait_for(|file| file.outage.is_some()) => drop(outage.unwrap()),
        }
        assert_eq!(ledger.totals().await.unwrap().analytics, 0);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(handling.await.unwrap().outcome, HandlerOutcome::Completed);
        assert_eq!(handle(&handler, &ledger, &delivery).await.unwrap().outcome, HandlerOutcome::Duplicate);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert_eq!(ledger.totals().await.unwrap().analytics, 1);
    }

    #[tokio::test]
    async fn an_event_whose_handler_is_dropped_at_any_moment_gets_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("analytics.jsonl");
        let ledger = Arc::new(MemoryLedger::default());
        let (handler, delivery) = (handler(directory.path()).await, page_view());
        // Polled a few times, then dropped: as when the connection is lost while the line is written.
        for polls in 0..4 {
            let mut handling = std::pin::pin!(handle(&handler, &ledger, &delivery));
            for _ in 0..polls {
                let _ = futures_util::poll!(handling.as_mut());
                tokio::task::yield_now().await;
            }
        }
        handle(&handler, &ledger, &delivery).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() >= 1 && text.lines().all(|line| line.contains("\"view-1\"")), "{text}");
        assert_eq!(ledger.totals().await.unwrap().analytics, 1);
    }
}
