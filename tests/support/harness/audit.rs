//! The audit of a run: compares, id by id, what was published with what the ledger and the broker hold.
//!
//! It only reads: messages it inspects are requeued.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::domain::ExactSum;
use orderd::ledger::{LedgerLocation, Totals};
use orderd::message::{Consumer, Delivery, ExchangeNames, HeaderValue, names};
use rusqlite::{Connection, OpenFlags};
use tokio::time::timeout;

use super::Outcome;

/// A queue that has delivered nothing for this long has delivered all its messages.
const SILENCE: Duration = Duration::from_secs(2);
/// Ids listed in one problem.
const MAX_LISTED_IDS: usize = 5;

/// What was published and confirmed. Ids begin with the run's own prefix, so that other messages on the broker are
/// not counted.
#[derive(Debug, Clone)]
pub struct Published {
    /// The prefix of every id of the run.
    pub prefix: String,
    /// Orders `<prefix>ord-1` to `<prefix>ord-<orders>`.
    pub orders: u64,
    /// Orders `<prefix>typo-1` and so on, with a routing key that matches no binding.
    pub unroutable: u64,
    /// Notifications, without those that orderd emits.
    pub notifications: u64,
    /// Analytics events, without those that orderd emits.
    pub analytics: u64,
}

/// Counts in the ledger. Cheap to read while orderd runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub processed: u64,
    pub dead_lettered: u64,
    pub notifications: u64,
    pub analytics: u64,
}

impl Progress {
    /// Reads the ledger in `directory`; zeros if there is none yet.
    pub fn read(directory: &Path, prefix: &str) -> Progress {
        let count = |ledger: &Connection, sql: &str| {
            let range = [prefix.to_owned(), format!("{prefix}\u{10FFFF}")];
            ledger.query_row(sql, range, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
        };
        let read = || -> rusqlite::Result<Progress> {
            let ledger = open(directory)?;
            let events = "SELECT count(*) FROM events WHERE id >= ?1 AND id < ?2 AND kind = ";
            Ok(Progress {
                processed: count(
                    &ledger,
                    "SELECT count(*) FROM orders WHERE id >= ?1 AND id < ?2 AND status = 'processed'",
                )?,
                dead_lettered: count(
                    &ledger,
                    "SELECT count(*) FROM dead_letters WHERE identity >= ?1 AND identity < ?2",
                )?,
                notifications: count(&ledger, &format!("{events} 'notification'"))?,
                analytics: count(&ledger, &format!("{events} 'analytics'"))?,
            })
        };
        read().unwrap_or_default()
    }

    /// Whether everything published is processed or dead-lettered, and everything that orderd emits about it is recorded:
    /// a notification and an event for each processed order, an event for each dead-lettered one.
    pub fn is_settled(&self, published: &Published) -> bool {
        self.processed + self.dead_lettered >= published.orders
            && self.notifications >= self.processed + published.notifications
            && self.analytics >= self.processed + self.dead_lettered + published.analytics
    }
}

/// Read-only; waits while the writer is starting or ending.
fn open(directory: &Path) -> rusqlite::Result<Connection> {
    let ledger = Connection::open_with_flags(directory.join("orderd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    ledger.busy_timeout(Duration::from_secs(5))?;
    Ok(ledger)
}

/// The comparison of a settled run.
#[derive(Debug)]
pub struct Audit {
    published: Published,
    totals: Totals,
    /// Ids of processed orders.
    processed: HashSet<String>,
    /// Ids in the dead letter queue.
    dead_lettered: HashSet<String>,
    /// Their number by `x-dead-letter-reason`.
    reasons: BTreeMap<String, u64>,
    /// Ids in the unrouted queue.
    unrouted: HashSet<String>,
    /// Discrepancies; empty if the audit passed.
    problems: Vec<String>,
}

impl Audit {
    /// Reads ledger and broker, and compares them with what was published.
    pub async fn of_run(published: Published, directory: &Path, link: &Connector) -> Outcome<Audit> {
        let mut audit = Audit {
            totals: LedgerLocation::Directory(directory.to_owned()).reader().totals().await?,
            processed: HashSet::new(),
            dead_lettered: HashSet::new(),
            reasons: BTreeMap::new(),
            unrouted: HashSet::new(),
            problems: Vec::new(),
            published,
        };
        let ledger = open(directory)?;
        audit.processed = audit.ids(&ledger, "SELECT id FROM orders WHERE status = 'processed'")?;
        for delivery in read_queue(link, ExchangeNames::DEAD_LETTER_QUEUE).await? {
            if let Some(id) = audit.id_of_this_run(&delivery)
                // A crash between dead-lettering a message and recording that dead-letters a second copy.
                && audit.dead_lettered.insert(id)
            {
                let reason = delivery.message.headers.get(names::DEAD_LETTER_REASON).and_then(HeaderValue::as_text);
                *audit.reasons.entry(reason.unwrap_or("none given").to_owned()).or_default() += 1;
            }
        }
        let unrouted = read_queue(link, ExchangeNames::UNROUTED_QUEUE).await?;
        audit.unrouted = unrouted.iter().filter_map(|delivery| audit.id_of_this_run(delivery)).collect();
        audit.compare_ids(&ledger)?;
        audit.compare_events(&ledger)?;
        audit.compare_sales(&ledger)?;
        Ok(audit)
    }

    fn id_of_this_run(&self, delivery: &Delivery) -> Option<String> {
        let id = delivery.message.properties.message_id.as_ref()?;
        id.starts_with(&self.published.prefix).then(|| id.clone())
    }

    fn ids(&self, ledger: &Connection, sql: &str) -> rusqlite::Result<HashSet<String>> {
        let mut query = ledger.prepare(sql)?;
        let ids = query.query_map([], |row| row.get::<_, String>(0))?;
        ids.filter(|id| id.as_ref().map_or(true, |id| id.starts_with(&self.published.prefix))).collect()
    }

    /// Every published order is in exactly one place, and nothing is there that was not published.
    fn compare_ids(&mut self, ledger: &Connection) -> rusqlite::Result<()> {
        let Published { prefix, orders, unroutable, .. } = &self.published;
        let ordered: HashSet<String> = (1..=*orders).map(|number| format!("{prefix}ord-{number}")).collect();
        let mistyped: HashSet<String> = (1..=*unroutable).map(|number| format!("{prefix}typo-{number}")).collect();
        let settled: HashSet<String> = self.processed.union(&self.dead_lettered).cloned().collect();
        let recorded = self.ids(ledger, "SELECT identity FROM dead_letters")?;
        let mut problems = Vec::new();
        let mut report = |what: &str, ids: BTreeSet<&String>| {
            if !ids.is_empty() {
                let named: Vec<_> = ids.iter().take(MAX_LISTED_IDS).map(|id| id.as_str()).collect();
                problems.push(format!("{} {what}, such as {}", ids.len(), named.join(", ")));
            }
        };
        report("orders are missing: neither processed nor dead-lettered", ordered.difference(&settled).collect());
        report(
            "orders were processed and dead-lettered as well",
            self.processed.intersection(&self.dead_lettered).collect(),
        );
        report("orders exist that were never published", settled.difference(&ordered).collect());
        report("unroutable orders are not in the unrouted queue", mistyped.difference(&self.unrouted).collect());
        report("messages went unrouted that have a queue", self.unrouted.difference(&mistyped).collect());
        report("dead-lettered messages are not in the ledger", self.dead_lettered.difference(&recorded).collect());
        report("messages are dead-lettered by the ledger only", recorded.difference(&self.dead_lettered).collect());
        self.problems.extend(problems);
        Ok(())
    }

    /// Each processed order has emitted a notification and an analytics event, each dead-lettered one an analytics event.
    fn compare_events(&mut self, ledger: &Connection) -> rusqlite::Result<()> {
        let events = self.ids(ledger, "SELECT id FROM events")?;
        let expected: HashSet<String> = (self.processed.iter())
            .flat_map(|id| [format!("{id}/notification/processed"), format!("{id}/analytics/processed")])
            .chain(self.dead_lettered.iter().map(|id| format!("{id}/analytics/failed")))
            .collect();
        let missing = expected.difference(&events).count();
        if missing > 0 {
            self.problems.push(format!("{missing} events about orders are not recorded"));
        }
        let emitted = expected.len() as u64;
        let (others, foreign) = (events.len() as u64 - (emitted - missing as u64), &self.published);
        if others != foreign.notifications + foreign.analytics {
            let wanted = foreign.notifications + foreign.analytics;
            self.problems.push(format!("{others} events of others are recorded, {wanted} were published"));
        }
        Ok(())
    }

    /// The aggregates equal the sums over the processed orders, to the cent.
    fn compare_sales(&mut self, ledger: &Connection) -> Outcome<()> {
        let mut sums: BTreeMap<String, (u64, ExactSum)> = BTreeMap::new();
        let mut query = ledger.prepare("SELECT currency, total FROM orders WHERE status = 'processed'")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let sum = sums.entry(row.get(0)?).or_default();
            sum.0 += 1;
            sum.1.add(row.get_ref(1)?.as_str()?.parse()?);
        }
        let aggregates: BTreeMap<String, (u64, ExactSum)> = (self.totals.revenue.iter())
            .map(|(currency, revenue)| (currency.clone(), (revenue.orders, revenue.total)))
            .collect();
        if sums != aggregates {
            self.problems.push(format!("sales do not add up: orders say {sums:?}, aggregates say {aggregates:?}"));
        }
        Ok(())
    }

    /// Whether there are no discrepancies.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Published { orders, unroutable, notifications, analytics, .. } = &self.published;
        let line = |f: &mut fmt::Formatter<'_>, what: &str, count: u64| writeln!(f, "  {what:<34} {count:>9}");
        line(f, "published orders", orders + unroutable)?;
        for (consumer, counts) in &self.totals.orders {
            line(f, &format!("  processed by consumer {consumer}"), counts.processed)?;
        }
        for (reason, count) in &self.reasons {
            line(f, &format!("  dead-lettered: {reason}"), *count)?;
        }
        line(f, "  unrouted", self.unrouted.len() as u64)?;
        line(f, "retried after a delay", self.totals.retried)?;
        line(f, &format!("notifications ({notifications} by others)"), self.totals.notifications)?;
        line(f, &format!("analytics events ({analytics} by others)"), self.totals.analytics)?;
        for (currency, revenue) in &self.totals.revenue {
            writeln!(f, "  {:<34} {:>9}", format!("sold, in {currency}"), revenue.total.to_string())?;
        }
        let (all, done, dead_lettered, lost) =
            (orders + unroutable, self.processed.len(), self.dead_lettered.len(), self.unrouted.len());
        writeln!(f)?;
        if self.passed() {
            return write!(
                f,
                "  {all} published = {done} processed + {dead_lettered} dead-lettered + {lost} unrouted: nothing is missing"
            );
        }
        writeln!(
            f,
            "  the numbers do not add up ({all} published, {done} processed, {dead_lettered} dead-lettered, {lost} unrouted):"
        )?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}

/// Everything a queue holds; the messages are requeued.
async fn read_queue(link: &Connector, queue: &str) -> Outcome<Vec<Delivery>> {
    let mut subscription = link.subscribe(queue, u16::MAX).await?;
    let mut all = Vec::new();
    while let Ok(Some(delivery)) = timeout(SILENCE, subscription.deliveries.next()).await {
        all.push(delivery);
    }
    if all.len() >= usize::from(u16::MAX) {
        return Err(format!("{queue} holds more messages than can be inspected").into());
    }
    // Deliveries that are unsettled when a subscription closes are requeued.
    subscription.settler.close().await?;
    Ok(all)
}
