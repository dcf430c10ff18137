//! Analytics events: recorded, added to the aggregates, and written to a file.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::notification::{channel_of, order_id};
use super::{EventLog, Handled, Handler, Parts, Verdict, Work, ledger_failure};
use crate::ledger::{Entry, Ledger, NewAnalytics, Recorded};
use crate::order::Sale;
use crate::recovery::{Failure, FailureKind};

/// The event that orderd emits for each processed order; only it counts as a sale.
const PROCESSED: &str = "processed";

pub(super) struct AnalyticsHandler {
    ledger: Arc<dyn Ledger>,
    event_log: EventLog,
}

/// One line of the file.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    event: &'a str,
    received_at: Timestamp,
    body: &'a RawValue,
}

impl AnalyticsHandler {
    pub(super) fn new(parts: &Parts) -> Self {
        AnalyticsHandler { ledger: Arc::clone(&parts.ledger), event_log: parts.event_log.clone() }
    }

    async fn count(&self, work: Work<'_>) -> Result<Handled, Failure> {
        let body = &work.delivery.message.body;
        let (order_id, _) = order_id(body)?;
        let name = channel_of(work);
        let sale = if name == PROCESSED && order_id.is_some() { Some(sale(body)?) } else { None };
        let id = work.delivery.identity();
        let now = Timestamp::now();
        let line = line(&id, name, now, body)?;
        let event = NewAnalytics { id, order_id, name: name.to_owned(), sale, at: now };
        let recorded = self.ledger.record(Entry::Analytics(Box::new(event))).await;
        if recorded.map_err(|error| ledger_failure(&error))? == Recorded::Duplicate {
            return Ok(Handled::just(Verdict::Duplicate));
        }
        self.event_log.append(line).await;
        Ok(Handled::just(Verdict::Completed))
    }
}

impl Handler for AnalyticsHandler {
    fn handle<'a>(&'a self, work: Work<'a>) -> BoxFuture<'a, Result<Handled, Failure>> {
        Box::pin(self.count(work))
    }
}

fn sale(body: &[u8]) -> Result<Sale, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(FailureKind::Malformed, "invalid_sale", format!("not an event of a processed order: {error}"))
    })
}

fn line(id: &str, event: &str, received_at: Timestamp, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let malformed = |error| Failure::new(FailureKind::Malformed, "invalid_event", format!("not JSON: {error}"));
    let text = std::str::from_utf8(body).expect("parsed JSON is UTF-8");
    let compact;
    // One event is one line: a body with line feeds between its tokens is written anew without them.
    let text = if text.contains(['\n', '\r']) {
        compact = serde_json::from_str::<serde_json::Value>(text).map_err(malformed)?.to_string();
        &compact
    } else {
        text
    };
    let body = serde_json::from_str(text).map_err(malformed)?;
    let mut line = serde_json::to_vec(&Line { id, event, received_at, body }).map_err(malformed)?;
    line.push(b'\n');
    Ok(line)
}
