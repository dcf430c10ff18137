//! A ledger in memory, for tests. The conformance suite holds it to the same rules as the others.

mod failures;
mod letter_operations;
mod letters;
mod reading;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use tokio::sync::watch;

use super::alerts::{AlertAnswer, AlertBook};
use super::entry::{
    CancelAnswer, CancelledOrder, LedgerEntry, NewAnalytics, NewAttempt, NewCancellation, NewDeadLetter, NewOrder,
    OtherOrder, Recorded,
};
use super::error::LedgerError;
use super::figures::{Figures, OrderFigures};
use super::memory_claims::MemoryClaims;
use super::memory_counted::{Counted, CountedAs};
use super::memory_journal::MemoryJournal;
use super::memory_letters::MemoryLetters;
use super::memory_runs::MemoryRuns;
use super::retention::Pruned;
use super::state::{LedgerState, OutageCause, StateSender};
use super::step_runs::{ClaimAnswer, RunClaim, RunKey, RunOrder, RunRecord, RunRecorded, RunState};
use super::traits::{LedgerMaintenance, LedgerWriter};
use crate::domain::{Amounts, OrderId, Sale};

/// Most rows that one call of [`LedgerMaintenance::prune`] removes from each table.
const PRUNE_ROWS: usize = 256;

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct MemoryLedger {
    tables: Arc<Mutex<Tables>>,
    state: StateSender,
}

#[derive(Debug, Default)]
struct Tables {
    closed: bool,
    commits: u64,
    orders: BTreeMap<OrderId, StoredOrder>,
    /// Of orders that are not known.
    cancellations: BTreeMap<OrderId, NewCancellation>,
    events: BTreeMap<(String, EventKind), StoredEvent>,
    /// By identity, consumer and retry count.
    attempts: BTreeMap<(String, String, String, u32), NewAttempt>,
    /// By identity and consumer.
    dead_letters: BTreeMap<(String, String), NewDeadLetter>,
    /// Never pruned.
    counted: Vec<Counted>,
    runs: MemoryRuns,
    claims: MemoryClaims,
    alerts: AlertBook,
    letters: MemoryLetters,
    journal: MemoryJournal,
}

#[derive(Debug)]
struct StoredOrder {
    order: NewOrder,
    processed_at: Option<Timestamp>,
    has_failed: bool,
    cancellation: Option<StoredCancellation>,
    /// When it arrived, if it was cancelled before that.
    prevented_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct StoredCancellation {
    at: Timestamp,
    was_announced: bool,
    finished_at: Option<Timestamp>,
}

impl StoredOrder {
    fn new(order: NewOrder) -> Self {
        StoredOrder { order, processed_at: None, has_failed: false, cancellation: None, prevented_at: None }
    }

    /// Whether this is the same order.
    fn is(&self, order: &NewOrder) -> bool {
        let content = |order: &NewOrder| {
            let Amounts { goods, charges, total, currency, .. } = order.amounts;
            let charges =
                [charges.shipping, charges.fees, charges.tax, charges.discount].map(Option::unwrap_or_default);
            (Arc::clone(&order.items), goods, charges, total, currency, order.customer_id.clone())
        };
        content(&self.order) == content(order)
    }

    fn status(&self) -> &'static str {
        match (self.cancellation, self.processed_at, self.has_failed) {
            (Some(_), ..) => "cancelled",
            (None, Some(_), _) => "processed",
            (None, None, true) => "failed",
            (None, None, false) => "accepted",
        }
    }

    /// When it was processed, or its cancellation was complete and it had arrived.
    fn finished_at(&self) -> Option<Timestamp> {
        match self.cancellation {
            Some(cancellation) => cancellation.finished_at.map(|at| at.max(self.prevented_at.unwrap_or(at))),
            None => self.processed_at,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EventKind {
    Notification,
    Analytics,
}

#[derive(Debug)]
struct StoredEvent {
    order_id: Option<String>,
    name: String,
    at: Timestamp,
}

impl MemoryLedger {
    /// Begins an outage: entries wait until it ends.
    pub(crate) fn begin_outage(&self, cause: OutageCause) {
        self.state.unavailable(cause, None);
    }

    /// The next message from a dead letter queue cannot be stored, without an outage.
    pub(crate) fn refuse_next_letter(&self, cause: OutageCause) {
        self.tables().letters.fail_next(cause);
    }

    /// Ends the outage.
    pub(crate) fn end_outage(&self) {
        self.state.recording();
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("no test panics while it holds the lock")
    }

    /// Writes at once, so that entries are recorded in the order of the calls; during an outage once it ends.
    fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Tables) -> Result<T, LedgerError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, LedgerError>> {
        let (tables, mut state) = (Arc::clone(&self.tables), self.state.subscribe());
        let write = move || {
            let mut tables = tables.lock().expect("no test panics while it holds the lock");
            if tables.closed {
                return Err(LedgerError::Closed);
            }
            let answer = write(&mut tables);
            tables.commits += u64::from(answer.is_ok());
            answer
        };
        if !matches!(*state.borrow(), LedgerState::Unavailable(_)) {
            return ready(write()).boxed();
        }
        let written = async move {
            // An error means that the ledger was dropped.
            let _ = state.wait_for(|state| !matches!(state, LedgerState::Unavailable(_))).await;
            write()
        };
        written.boxed()
    }
}

impl LedgerWriter for MemoryLedger {
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        self.write(|tables| tables.record(entry))
    }

    fn cancel_order(&self, cancellation: NewCancellation) -> BoxFuture<'static, Result<CancelAnswer, LedgerError>> {
        self.write(|tables| Ok(tables.cancel(cancellation)))
    }

    fn claim_run(&self, claim: RunClaim) -> BoxFuture<'static, Result<ClaimAnswer, LedgerError>> {
        self.write(move |tables| {
            match claim.order.as_ref().map(|order| tables.accept((**order).clone())) {
                None | Some(Recorded::New | Recorded::Unfinished) => {}
                Some(answer) => return Ok(ClaimAnswer::NotAccepted(answer)),
            }
            let order = tables.run_order(&claim.key);
            let answer = tables.runs.claim(&claim, order);
            if matches!(answer, ClaimAnswer::OtherQueue { .. }) && tables.runs.is_dead_lettered(&claim.key) {
                tables.fail_order(&claim.key);
            }
            Ok(answer)
        })
    }

    fn record_run(&self, record: RunRecord) -> BoxFuture<'static, Result<RunRecorded, LedgerError>> {
        self.write(move |tables| {
            let order = tables.run_order(&record.key);
            let recorded = tables.runs.record(&record, order);
            if record.state == Some(RunState::Undone) && recorded == RunRecorded::Recorded {
                tables.dead_letters_undone(&record.key);
            }
            if record.dead_lettered && recorded == RunRecorded::Recorded && order == RunOrder::Open {
                tables.fail_order(&record.key);
            }
            Ok(recorded)
        })
    }

    fn exchange_alerts(&self, replacement: Option<AlertBook>) -> BoxFuture<'static, Result<AlertAnswer, LedgerError>> {
        self.write(|tables| Ok(tables.alerts.exchange(replacement)))
    }
}

fn refused<T>(action: &'static str, why: &'static str) -> Result<T, LedgerError> {
    Err(LedgerError::refused(action, std::io::Error::other(why)))
}

impl Tables {
    /// The order that a run belongs to is dead-lettered.
    fn fail_order(&mut self, key: &RunKey) {
        let id = OrderId::new(&*key.identity).filter(|_| key.scope.is_empty());
        let stored = id.and_then(|id| self.orders.get_mut(&id));
        stored.into_iter().for_each(|stored| stored.has_failed = true);
    }

    /// The order that a run belongs to, if it is recorded.
    fn order_of(&self, key: &RunKey) -> Option<&StoredOrder> {
        let id = OrderId::new(&*key.identity).filter(|_| key.scope.is_empty())?;
        self.orders.get(&id)
    }

    fn run_order(&self, key: &RunKey) -> RunOrder {
        let Some(stored) = self.order_of(key) else { return RunOrder::Open };
        match stored.status() {
            "cancelled" => RunOrder::Cancelled,
            "processed" => RunOrder::Processed,
            _ => RunOrder::Open,
        }
    }

    fn cancel(&mut self, cancellation: NewCancellation) -> CancelAnswer {
        let NewCancellation { id, at, .. } = &cancellation;
        let (run, steps_queue) = (self.runs.state(id.as_str()), self.runs.queue(id.as_str()));
        let Some(stored) = self.orders.get_mut(id) else {
            return match self.cancellations.contains_key(id) {
                true => CancelAnswer::Duplicate,
                false => {
                    self.cancellations.insert(id.clone(), cancellation);
                    CancelAnswer::Kept
                }
            };
        };
        if stored.cancellation.is_some_and(|cancellation| cancellation.finished_at.is_some()) {
            return CancelAnswer::Duplicate;
        }
        let is_new = stored.cancellation.is_none();
        let is_finishing =
            matches!((stored.status(), run), ("accepted", None) | ("accepted" | "failed", Some(RunState::Done)));
        let sale = ([id.as_str(), "/analytics/processed"].concat(), EventKind::Analytics);
        let is_sold = self.events.contains_key(&sale);
        let was_announced = stored.processed_at.is_some() || is_sold || is_finishing;
        let new = StoredCancellation { at: *at, was_announced, finished_at: None };
        let StoredCancellation { at, was_announced, .. } = *stored.cancellation.get_or_insert(new);
        let (order, is_processed) = (stored.order.clone(), stored.processed_at.is_some());
        if is_new {
            let priority = order.priority;
            let what = if is_processed { CountedAs::Cancelled { priority } } else { CountedAs::Prevented { priority } };
            self.count(&order, at, what);
            if is_sold {
                let lines = order.items.iter().map(|item| (item.product.clone(), item.quantity, item.total));
                self.add_sale(&Sale::new(lines, order.amounts.currency, at), at, true);
            }
        }
        CancelAnswer::Cancelled(Box::new(CancelledOrder { order, at, was_announced, steps_queue }))
    }

    fn is_sent(&self, id: &str) -> bool {
        self.events.contains_key(&(id.to_owned(), EventKind::Notification))
    }

    fn record(&mut self, entry: LedgerEntry) -> Result<Recorded, LedgerError> {
        Ok(match entry {
            LedgerEntry::AcceptOrder(order) => {
                let id = order.id.clone();
                match self.accept(*order) {
                    Recorded::Unfinished => self.runs.state(id.as_str()).map_or(Recorded::Unfinished, RunState::answer),
                    answer => answer,
                }
            }
            LedgerEntry::FinishOrder { id, at } => return self.finish(&id, at),
            LedgerEntry::FinishCancellation { id, at } => {
                let cancellation = self.orders.get_mut(&id).and_then(|stored| stored.cancellation.as_mut());
                let unfinished = cancellation.filter(|cancellation| cancellation.finished_at.is_none());
                new_unless(unfinished.map(|cancellation| cancellation.finished_at = Some(at)).is_none())
            }
            LedgerEntry::LookUpNotification { id } => new_unless(self.is_sent(&id)),
            LedgerEntry::LookUpAnalytics { id } => new_unless(self.events.contains_key(&(id, EventKind::Analytics))),
            LedgerEntry::ClaimNotification { id, owner, at, until } => {
                if self.is_sent(&id) {
                    Recorded::Duplicate
                } else {
                    self.claims.claim(id, owner, at, until)
                }
            }
            LedgerEntry::ReleaseNotification { id, owner, failed } => {
                new_unless(!self.claims.release(&id, &owner, failed))
            }
            LedgerEntry::Notification(new) => {
                self.claims.delivered(&new.id, new.delivery);
                let event = StoredEvent { order_id: new.order_id, name: new.channel, at: new.at };
                self.add_event(new.id, EventKind::Notification, event)
            }
            LedgerEntry::Analytics(new) => {
                let NewAnalytics { id, order_id, name, sale, at } = *new;
                let event = StoredEvent { order_id: order_id.clone(), name, at };
                let recorded = self.add_event(id, EventKind::Analytics, event);
                if let Some(sale) = sale.filter(|_| recorded == Recorded::New) {
                    self.count_sale(&sale, order_id.as_deref());
                }
                recorded
            }
            LedgerEntry::ReplayOutcome { .. } => Recorded::Duplicate,
            LedgerEntry::Attempt(attempt) => self.add_retried(*attempt),
            LedgerEntry::DeadLetter(letter) => self.add_dead_letter(*letter),
        })
    }

    fn accept(&mut self, order: NewOrder) -> Recorded {
        if self.cancellations.contains_key(&order.id) {
            self.prevent(order);
            return Recorded::Cancelled;
        }
        let is_undone = self.runs.is_undone(order.id.as_str());
        if let Some(stored) = self.orders.get_mut(&order.id) {
            if !stored.is(&order) {
                return Recorded::Conflict(match stored.status() {
                    "processed" | "cancelled" => OtherOrder::Finished,
                    "failed" => OtherOrder::Failed,
                    _ if is_undone => OtherOrder::Failed,
                    _ => OtherOrder::InProgress,
                });
            }
            return match stored.status() {
                "cancelled" if stored.processed_at.is_none() => Recorded::Cancelled,
                "cancelled" | "processed" => Recorded::Duplicate,
                _ => {
                    stored.has_failed = false;
                    Recorded::Unfinished
                }
            };
        }
        self.count(&order, order.at, CountedAs::Accepted { priority: order.priority });
        self.orders.insert(order.id.clone(), StoredOrder::new(order));
        Recorded::New
    }

    /// Keeps an order that was cancelled before it arrived.
    fn prevent(&mut self, order: NewOrder) {
        let Some(NewCancellation { at, .. }) = self.cancellations.remove(&order.id) else { return };
        let cancellation = StoredCancellation { at, was_announced: false, finished_at: Some(at) };
        self.count(&order, order.at, CountedAs::Prevented { priority: order.priority });
        let (id, prevented_at) = (order.id.clone(), Some(order.at));
        let stored = StoredOrder { cancellation: Some(cancellation), prevented_at, ..StoredOrder::new(order) };
        self.orders.insert(id, stored);
    }

    fn finish(&mut self, id: &OrderId, at: Timestamp) -> Result<Recorded, LedgerError> {
        let is_undone = self.runs.is_undone(id.as_str());
        let Some(stored) = self.orders.get_mut(id) else {
            return refused("finish an order", "it was never accepted");
        };
        if stored.processed_at.is_some() {
            return Ok(Recorded::Duplicate);
        }
        let cancelled_at = stored.cancellation.map(|cancellation| cancellation.at);
        if is_undone && cancelled_at.is_none() {
            return Ok(Recorded::Undone);
        }
        stored.processed_at = Some(at);
        let order = stored.order.clone();
        let priority = order.priority;
        self.count(&order, at, CountedAs::Processed { priority });
        let Some(cancelled_at) = cancelled_at else { return Ok(Recorded::New) };
        self.count(&order, cancelled_at, CountedAs::Cancelled { priority });
        let (currency, figures) = (order.amounts.currency, -OrderFigures::from(&order.amounts));
        self.counted.push(Counted { at: cancelled_at, currency, what: CountedAs::Prevented { priority }, figures });
        Ok(Recorded::Cancelled)
    }

    /// The sale of a cancelled order is subtracted, too.
    fn count_sale(&mut self, sale: &Sale, order: Option<&str>) {
        self.add_sale(sale, sale.at, false);
        let order = order.and_then(OrderId::new).and_then(|id| self.orders.get(&id));
        if let Some(at) = order.and_then(|stored| stored.cancellation).map(|cancellation| cancellation.at) {
            self.add_sale(sale, at, true);
        }
    }

    fn add_sale(&mut self, sale: &Sale, at: Timestamp, is_subtracted: bool) {
        for sold in sale.products() {
            let figures = Figures { orders: 1, quantity: sold.quantity, revenue: sold.revenue };
            let figures = if is_subtracted { -figures } else { figures };
            let figures = OrderFigures { figures, ..OrderFigures::default() };
            let what = CountedAs::Sold { product: sold.product.clone() };
            self.counted.push(Counted { at, currency: sale.currency, what, figures });
        }
    }

    fn count(&mut self, order: &NewOrder, at: Timestamp, what: CountedAs) {
        let figures = OrderFigures::from(&order.amounts);
        self.counted.push(Counted { at, currency: order.amounts.currency, what, figures });
    }

    fn add_event(&mut self, id: String, kind: EventKind, event: StoredEvent) -> Recorded {
        insert(&mut self.events, (id, kind), event)
    }
}

fn insert<K: Ord, V>(table: &mut BTreeMap<K, V>, key: K, value: V) -> Recorded {
    let known = table.contains_key(&key);
    table.entry(key).or_insert(value);
    new_unless(known)
}

fn new_unless(known: bool) -> Recorded {
    if known { Recorded::Duplicate } else { Recorded::New }
}

impl LedgerMaintenance for MemoryLedger {
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<Pruned, LedgerError>> {
        let mut tables = self.tables();
        if tables.closed {
            return ready(Err(LedgerError::Closed)).boxed();
        }
        let Tables { orders, cancellations, dead_letters, letters, .. } = &mut *tables;
        // A dead letter of a cancelled order may be replayed, and must not be processed then.
        let may_return = |id: &OrderId| {
            dead_letters.keys().any(|(identity, _)| identity == id.as_str()) || letters.may_return(id.as_str())
        };
        let is_old = |stored: &StoredOrder| {
            let id = &stored.order.id;
            stored.finished_at().is_some_and(|at| at < before)
                && !letters.may_return(id.as_str())
                && (stored.cancellation.is_none() || !may_return(id))
        };
        let orders = remove(orders, is_old) + remove(cancellations, |kept| kept.at < before && !may_return(&kept.id));
        let Tables { orders: recorded, events, .. } = &mut *tables;
        // Whether an order's sale is counted is read from its event when the order is cancelled.
        let has_order = |order: &str| OrderId::new(order).is_some_and(|id| recorded.contains_key(&id));
        let events = remove(events, |event| event.at < before && !event.order_id.as_deref().is_some_and(has_order));
        let attempts = remove(&mut tables.attempts, |attempt| attempt.failed_at < before);
        let more = [orders, events, attempts].contains(&PRUNE_ROWS);
        let Tables { runs, orders: recorded, .. } = &mut *tables;
        let has_order = |key: &RunKey| {
            let order = OrderId::new(&*key.identity).filter(|_| key.scope.is_empty());
            order.is_some_and(|id| recorded.contains_key(&id))
        };
        let (step_runs, erased_runs) = runs.prune(before, has_order);
        ready(Ok(Pruned { orders, events, attempts, step_runs, erased_runs, minutes: 0, letters: 0, more })).boxed()
    }

    fn state(&self) -> watch::Receiver<LedgerState> {
        self.state.subscribe()
    }

    fn outages(&self) -> u64 {
        self.state.outages()
    }

    fn commits(&self) -> u64 {
        self.tables().commits
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.tables().closed = true;
        self.state.closed();
        ready(()).boxed()
    }
}

/// Removes at most [`PRUNE_ROWS`] rows.
fn remove<K: Ord, V>(table: &mut BTreeMap<K, V>, is_old: impl Fn(&V) -> bool) -> usize {
    let mut removed = 0;
    table.retain(|_, row| {
        let removes = removed < PRUNE_ROWS && is_old(row);
        removed += usize::from(removes);
        !removes
    });
    removed
}
