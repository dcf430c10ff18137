//! Reads reports, traces and totals from the tables in memory.

use std::collections::BTreeMap;

use futures_util::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;

use super::{Counted, CountedAs, EventKind, MemoryLedger, StoredOrder, Tables};
use crate::domain::{Amounts, Item, OrderId};
use crate::ledger::dead_letters::{
    DeadLetterDetail, DeadLetterFilter, DeadLetterGroups, DeadLetterPage, DeadLetterQuery, LetterState,
    UnresolvedDeadLetters, WholeDeadLetters,
};
use crate::ledger::entry::{NewAttempt, NewDeadLetter};
use crate::ledger::error::OpenError;
use crate::ledger::figures::{OrderFigures, OrdersByStatus};
use crate::ledger::journal::{JournalHash, JournalPage, JournalQuery, JournalVerification};
use crate::ledger::report::{DeadLettered, GroupBy, Report, ReportBuilder, ReportError, ReportQuery, Window};
use crate::ledger::totals::Totals;
use crate::ledger::trace::{Trace, TraceEvent, TraceStep, TracedItem, TracedMessage, TracedOrder, due};
use crate::ledger::traits::LedgerReader;

impl LedgerReader for MemoryLedger {
    fn report(&self, query: ReportQuery, now: Timestamp) -> BoxFuture<'static, Result<Report, ReportError>> {
        let report = Window::new(&query, now).and_then(|window| self.tables().report(window, query.by));
        ready(report).boxed()
    }

    fn trace(&self, id: &str) -> BoxFuture<'static, Result<Trace, OpenError>> {
        ready(Ok(self.tables().trace(id))).boxed()
    }

    fn totals(&self) -> BoxFuture<'static, Result<Totals, OpenError>> {
        ready(Ok(self.tables().totals())).boxed()
    }

    fn dead_letters(&self, query: DeadLetterQuery) -> BoxFuture<'static, Result<DeadLetterPage, OpenError>> {
        ready(Ok(self.tables().letters.page(&query))).boxed()
    }

    fn whole_dead_letters(
        &self,
        query: DeadLetterQuery,
        budget: usize,
    ) -> BoxFuture<'static, Result<WholeDeadLetters, OpenError>> {
        ready(Ok(self.tables().letters.whole_page(&query, budget))).boxed()
    }

    fn dead_letter_groups(&self, filter: DeadLetterFilter) -> BoxFuture<'static, Result<DeadLetterGroups, OpenError>> {
        ready(Ok(self.tables().letters.groups(&filter))).boxed()
    }

    fn dead_letter_revision(
        &self,
        id: i64,
        revision: Option<i64>,
    ) -> BoxFuture<'static, Result<Option<DeadLetterDetail>, OpenError>> {
        // Nothing is edited in memory.
        let detail = self.tables().letters.detail(id).filter(|_| revision.is_none_or(|revision| revision == 0));
        ready(Ok(detail)).boxed()
    }

    fn dead_letter_bytes(&self, id: i64, revision: Option<i64>) -> BoxFuture<'static, Result<Option<u64>, OpenError>> {
        let detail = self.tables().letters.detail(id).filter(|_| revision.is_none_or(|revision| revision == 0));
        ready(Ok(detail.map(|detail| detail.content.body.len() as u64))).boxed()
    }

    fn unresolved_dead_letters(&self) -> BoxFuture<'static, Result<UnresolvedDeadLetters, OpenError>> {
        ready(Ok(self.tables().letters.unresolved())).boxed()
    }

    fn journal(&self, query: JournalQuery) -> BoxFuture<'static, Result<JournalPage, OpenError>> {
        ready(Ok(self.tables().journal.page(&query))).boxed()
    }

    fn verify_journal(
        &self,
        expected: Option<JournalHash>,
    ) -> BoxFuture<'static, Result<JournalVerification, OpenError>> {
        ready(Ok(self.tables().journal.verify(expected))).boxed()
    }
}

impl Tables {
    pub(super) fn report(&self, window: Window, by: GroupBy) -> Result<Report, ReportError> {
        let within = |at: Timestamp| (window.since..window.until).contains(&at);
        let mut report = ReportBuilder::new(window, by);
        for Counted { at, currency, what, figures } in self.counted.iter().filter(|counted| within(counted.at)) {
            let (at, currency) = (at.as_millisecond(), currency.as_str());
            match what {
                CountedAs::Accepted { priority } => {
                    let orders = OrdersByStatus { accepted: *figures, ..OrdersByStatus::default() };
                    report.add_orders(at, currency, *priority, orders);
                }
                CountedAs::Processed { priority } => {
                    let orders = OrdersByStatus { processed: *figures, ..OrdersByStatus::default() };
                    report.add_orders(at, currency, *priority, orders);
                }
                CountedAs::Cancelled { priority } => {
                    let orders = OrdersByStatus { cancelled: *figures, ..OrdersByStatus::default() };
                    report.add_orders(at, currency, *priority, orders);
                }
                CountedAs::Prevented { priority } => {
                    let orders = OrdersByStatus { prevented: *figures, ..OrdersByStatus::default() };
                    report.add_orders(at, currency, *priority, orders);
                }
                CountedAs::Sold { product } if by == GroupBy::Product => {
                    report.add_product(currency, product.clone(), figures.figures);
                }
                CountedAs::Sold { .. } => {}
            }
        }
        let mut dead_lettered = BTreeMap::new();
        for letter in self.dead_letters.values().filter(|letter| within(letter.at)) {
            let NewAttempt { identity, consumer, .. } = &letter.attempt;
            let state = self.letters.last_state(identity, consumer);
            let entry: &mut DeadLettered = dead_lettered.entry((consumer.clone(), letter.reason)).or_default();
            entry.add(state, 1);
        }
        let dead_lettered = dead_lettered.into_iter().map(|((consumer, reason), counts)| {
            let reason = reason.to_owned();
            DeadLettered { consumer, reason, ..counts }
        });
        for stored in self.orders.values().filter(|stored| stored.status() == "failed") {
            let id = stored.order.id.as_str();
            let mut letters = self.dead_letters.values().filter(|letter| letter.attempt.identity == id);
            if letters.any(|letter| within(letter.at)) {
                let amounts = &stored.order.amounts;
                let is_discarded = self.letters.last_state_of_order(id) == Some(LetterState::Discarded);
                // No replay fails here.
                report.add_failed(amounts.currency.as_str(), OrderFigures::from(amounts), (false, is_discarded));
            }
        }
        report.finish(dead_lettered.collect())
    }

    pub(super) fn trace(&self, id: &str) -> Trace {
        let mut steps = Vec::new();
        let stored = OrderId::new(id).and_then(|id| self.orders.get(&id));
        let mut step = |at, event| steps.push(TraceStep { at, message: TracedMessage::Order, event });
        if let Some(StoredOrder { order, processed_at, cancellation, prevented_at, .. }) = stored {
            match prevented_at {
                None => step(order.at, TraceEvent::Accepted { consumer: order.consumer.to_string() }),
                Some(at) => step(*at, TraceEvent::Prevented),
            }
            processed_at.iter().for_each(|at| step(*at, TraceEvent::Processed));
            cancellation.iter().for_each(|cancellation| step(cancellation.at, TraceEvent::Cancelled));
        }
        let cancellation = stored.and_then(|stored| stored.cancellation.as_ref());
        let finished_later =
            cancellation.and_then(|cancellation| cancellation.finished_at.filter(|at| *at > cancellation.at));
        steps.extend(finished_later.map(|at| TraceStep {
            at,
            message: TracedMessage::Cancellation,
            event: TraceEvent::CancellationFinished,
        }));
        let mut step = |at, event| steps.push(TraceStep { at, message: TracedMessage::Order, event });
        let kept = OrderId::new(id).and_then(|id| self.cancellations.get(&id));
        kept.iter().for_each(|kept| step(kept.at, TraceEvent::Cancelled));
        if stored.is_some() {
            steps.extend(self.runs.trace(id));
        }
        for (message, suffix) in TracedMessage::SUFFIXES {
            let identity = format!("{id}{suffix}");
            let mut step = |at, event| steps.push(TraceStep { at, message, event });
            for attempt in self.attempts.values().filter(|attempt| attempt.identity == identity) {
                step(attempt.failed_at, failed(attempt));
            }
            for letter in self.dead_letters.values().filter(|letter| letter.attempt.identity == identity) {
                step(letter.at, dead_lettered(letter));
            }
            let event = |kind| self.events.get(&(identity.clone(), kind));
            match message {
                TracedMessage::Order | TracedMessage::Cancellation => {}
                TracedMessage::Notification | TracedMessage::NotificationCancelled => {
                    self.claims.failed(&identity).for_each(|(at, event)| step(at, event));
                    event(EventKind::Notification)
                        .iter()
                        .for_each(|event| step(event.at, self.claims.notified(&identity, event.name.clone())));
                }
                TracedMessage::Analytics | TracedMessage::AnalyticsFailed | TracedMessage::AnalyticsCancelled => {
                    event(EventKind::Analytics).iter().for_each(|event| step(event.at, TraceEvent::Counted));
                }
            }
        }
        Trace::new(id, stored.map(traced_order), steps)
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for stored in self.orders.values() {
            let counts = totals.orders.entry(stored.order.consumer.to_string()).or_default();
            match stored.status() {
                "processed" => counts.processed += 1,
                "failed" => counts.failed += 1,
                "cancelled" => counts.cancelled += 1,
                _ => counts.accepted += 1,
            }
        }
        for kept in self.cancellations.values() {
            totals.orders.entry(kept.consumer.to_string()).or_default().cancelled += 1;
        }
        for (_, kind) in self.events.keys() {
            match kind {
                EventKind::Notification => totals.notifications += 1,
                EventKind::Analytics => totals.analytics += 1,
            }
        }
        totals.retried = self.attempts.values().filter(|attempt| attempt.delay.is_some()).count() as u64;
        for letter in self.dead_letters.values() {
            *totals.dead_letters.entry(letter.reason.to_owned()).or_default() += 1;
        }
        for Counted { currency, what, figures, .. } in &self.counted {
            if let CountedAs::Sold { .. } = what {
                let revenue = totals.revenue.entry(currency.to_string()).or_default();
                revenue.quantity += figures.figures.quantity;
                revenue.total.add(figures.figures.revenue);
            }
        }
        totals
    }
}

fn failed(attempt: &NewAttempt) -> TraceEvent {
    TraceEvent::Failed {
        consumer: attempt.consumer.clone(),
        // It has no replays.
        replay: None,
        retries: attempt.retry_count.into(),
        kind: attempt.kind.to_owned(),
        code: attempt.code.clone(),
        reason: attempt.reason.clone(),
        delay: attempt.delay.clone(),
        due_at: attempt.delay.as_deref().and_then(|delay| due(attempt.failed_at, delay)),
    }
}

fn dead_lettered(letter: &NewDeadLetter) -> TraceEvent {
    TraceEvent::DeadLettered {
        consumer: letter.attempt.consumer.clone(),
        reason: letter.reason.to_owned(),
        retries: letter.attempt.retry_count.into(),
        code: letter.attempt.code.clone(),
        origin_queue: letter.origin_queue.clone(),
        letter: None,
    }
}

fn traced_order(stored: &StoredOrder) -> TracedOrder {
    let order = &stored.order;
    let item = |item: &Item| TracedItem {
        product: item.product.clone(),
        quantity: item.quantity,
        price: item.price.into(),
        total: item.total.into(),
    };
    let Amounts { goods, charges, total, currency, quantity } = order.amounts;
    TracedOrder {
        status: stored.status().to_owned(),
        consumer: order.consumer.to_string(),
        items: order.items.iter().map(item).collect(),
        quantity,
        goods_total: goods.into(),
        shipping: charges.shipping.map(Into::into),
        fees: charges.fees.map(Into::into),
        tax: charges.tax.map(Into::into),
        tax_included: charges.stated_tax_included(),
        discount: charges.discount.map(Into::into),
        total: total.into(),
        currency: currency.to_string(),
        priority: order.priority,
        customer_id: order.customer_id.clone(),
        placed_at: order.placed_at,
    }
}
