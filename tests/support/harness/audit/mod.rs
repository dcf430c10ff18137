//! The audit of a run: compares the ids of all published messages with those in the ledger and on the broker.
//!
//! ```text
//! records           what was found, compared with what was published
//! routing_gap       why a message may be unrouted
//! progress          what is settled while the run lasts
//! dead_letter_sums  whether stored dead letters and their replays add up
//! ```
//! It only reads, and only the ledger and the event files.

pub mod dead_letter_sums;
mod progress;
mod records;
mod routing_gap;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use orderd::domain::ExactSum;
use orderd::ledger::{LedgerLocation, Totals};
pub use progress::{Progress, Unsettled, unsettled_ids};
pub use records::Problems;
use records::{MAX_LISTED_IDS, Records};
pub use routing_gap::{RoutingGap, is_urgent};
use rusqlite::{Connection, OpenFlags};

use super::Outcome;
use super::queued_messages::QueuedMessages;
use super::shop::books::OrderStates;

/// The messages that a run published, all of them confirmed. Their ids begin with the run's prefix, so that other messages
/// on the broker are not counted.
#[derive(Debug, Clone)]
pub struct Published {
    /// The prefix of every id of the run.
    pub prefix: String,
    /// Orders `<prefix>ord-1` to `<prefix>ord-<orders>`.
    pub orders: u64,
    /// Orders `<prefix>typo-1` to `<prefix>typo-<unroutable>`, whose routing key matches no binding.
    pub unroutable: u64,
    /// Notifications, without those that orderd emits.
    pub notifications: u64,
    /// Analytics events, without those that orderd emits.
    pub analytics: u64,
    /// Orders of those that were cancelled once they were processed.
    pub cancelled: HashSet<String>,
    /// When bindings were missing. A message that was under way then may be in the unrouted queue instead, or as well if it was
    /// published twice.
    pub gaps: Vec<RoutingGap>,
}

impl Published {
    /// This many orders and nothing else.
    pub fn orders(orders: u64) -> Published {
        let prefix = String::new();
        let cancelled = HashSet::new();
        Published { prefix, orders, unroutable: 0, notifications: 0, analytics: 0, cancelled, gaps: Vec::new() }
    }

    /// Whether a missing binding explains that a message with this id is unrouted. `is_recorded`: it is an event in the ledger.
    fn may_be_unrouted(&self, id: &str, is_recorded: bool) -> bool {
        self.gaps.iter().any(|gap| gap.explains(&self.prefix, id, is_recorded))
    }
}

/// Opens the ledger read-only. Waits while orderd opens or closes it.
pub fn open(directory: &Path) -> rusqlite::Result<Connection> {
    let ledger = Connection::open_with_flags(directory.join("orderd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    ledger.busy_timeout(Duration::from_secs(5))?;
    Ok(ledger)
}

/// The result of comparing a finished run.
#[derive(Debug)]
pub struct Audit {
    published: Published,
    totals: Totals,
    records: Records,
    /// Number of dead-lettered messages by `x-dead-letter-reason`.
    reasons: BTreeMap<String, u64>,
    /// Dead letters beyond the first of each message: orderd dead-letters a message again if it is killed
    /// between dead-lettering and acknowledging it.
    repeated_dead_letters: u64,
    /// Lines of the event files.
    event_lines: u64,
    /// Lines beyond the first of each event.
    repeated_event_lines: u64,
    /// Discrepancies; empty if the audit passed.
    problems: Vec<String>,
}

impl Audit {
    /// Compares what was published with the ledger in `directory` and with what was found in the queues.
    pub async fn of_run(published: Published, directory: &Path, queued: QueuedMessages) -> Outcome<Audit> {
        let mut audit = Audit {
            totals: LedgerLocation::Directory(directory.to_owned()).reader().totals().await?,
            records: Records::default(),
            reasons: BTreeMap::new(),
            repeated_dead_letters: 0,
            event_lines: 0,
            repeated_event_lines: 0,
            problems: Vec::new(),
            published,
        };
        let ledger = open(directory)?;
        for (id, reason) in queued.dead_letters {
            if !id.starts_with(&audit.published.prefix) {
                continue;
            }
            if audit.records.dead_letters.insert(id) {
                *audit.reasons.entry(reason).or_default() += 1;
            } else {
                audit.repeated_dead_letters += 1;
            }
        }
        // One that failed again is a dead letter still.
        audit.records.replayed = queued.replayed.difference(&audit.records.dead_letters).cloned().collect();
        audit.records.replayed.retain(|id| id.starts_with(&audit.published.prefix));
        audit.records.replayed_unrouted = queued.replayed_unrouted;
        audit.records.replays = queued.replays;
        audit.records.unrouted = queued.unrouted;
        audit.records.unrouted.retain(|id| id.starts_with(&audit.published.prefix));
        audit.records.processed = audit.ids(&ledger, "SELECT id FROM orders WHERE status = 'processed'")?;
        audit.records.cancelled = audit.ids(&ledger, "SELECT id FROM orders WHERE status = 'cancelled'")?;
        audit.records.events = audit.ids(&ledger, "SELECT id FROM events")?;
        audit.records.recorded_dead_letters = audit.ids(&ledger, "SELECT identity FROM dead_letters")?;
        audit.problems = audit.records.problems(&audit.published);
        audit.compare_sales(&ledger)?;
        audit.problems.extend(dead_letter_sums::problems(&ledger)?);
        Ok(audit)
    }

    fn ids(&self, ledger: &Connection, sql: &str) -> rusqlite::Result<HashSet<String>> {
        let mut query = ledger.prepare(sql)?;
        let ids = query.query_map([], |row| row.get::<_, String>(0))?;
        ids.filter(|id| id.as_ref().map_or(true, |id| id.starts_with(&self.published.prefix))).collect()
    }

    /// Checks that each recorded event has a whole line in the event files in this directory.
    pub fn compare_event_files(&mut self, files: &Path) -> Outcome<()> {
        let (mut ids, mut unreadable) = (HashSet::new(), 0_u64);
        for entry in fs::read_dir(files)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            for line in fs::read_to_string(path)?.lines() {
                self.event_lines += 1;
                let value = serde_json::from_str::<serde_json::Value>(line).ok();
                match value.as_ref().and_then(|value| value["id"].as_str()) {
                    Some(id) if ids.insert(id.to_owned()) => {}
                    Some(_) => self.repeated_event_lines += 1,
                    None => unreadable += 1,
                }
            }
        }
        let recorded = &self.records.events;
        let missing: Vec<_> = recorded.difference(&ids).take(MAX_LISTED_IDS).cloned().collect();
        if !missing.is_empty() {
            let count = recorded.difference(&ids).count();
            self.problems.push(format!("{count} recorded events have no line, such as {}", missing.join(", ")));
        }
        if unreadable > 0 {
            self.problems.push(format!("{unreadable} lines of the event files cannot be read"));
        }
        Ok(())
    }

    /// The audit as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let (unrouted_orders, unrouted_events) = self.records.only_unrouted();
        serde_json::json!({
            "published": self.published.orders + self.published.unroutable,
            "processed": self.records.processed.len(),
            "dead_lettered": self.records.dead_letters.len(),
            "dead_letter_reasons": self.reasons,
            "repeated_dead_letters": self.repeated_dead_letters,
            "unrouted": unrouted_orders,
            "unrouted_events": unrouted_events,
            "replayed": self.records.replayed.len() + self.records.replayed_unrouted.len(),
            "unrouted_and_settled": self.records.unrouted_and_settled(),
            "retried": self.totals.retried,
            "event_lines": self.event_lines,
            "repeated_event_lines": self.repeated_event_lines,
            "problems": self.problems,
        })
    }

    /// Checks that the sales aggregates equal the sums over the processed orders whose analytics event is recorded: pieces, and
    /// what they cost to the cent.
    /// [`Records::problems`] has checked that the other events are unrouted: an operator can publish them again.
    fn compare_sales(&mut self, ledger: &Connection) -> Outcome<()> {
        let mut sums: BTreeMap<String, (i64, ExactSum)> = BTreeMap::new();
        let mut query = ledger.prepare(
            "SELECT currency, goods_total, quantity FROM orders WHERE status = 'processed'
             AND EXISTS (SELECT 1 FROM events WHERE events.id = orders.id || '/analytics/processed')",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let sum = sums.entry(row.get(0)?).or_default();
            sum.0 += row.get::<_, i64>(2)?;
            sum.1.add(row.get_ref(1)?.as_str()?.parse()?);
        }
        let aggregates: BTreeMap<String, (i64, ExactSum)> = (self.totals.revenue.iter())
            .map(|(currency, revenue)| (currency.clone(), (revenue.quantity, revenue.total)))
            .collect();
        if sums != aggregates {
            self.problems.push(format!("sales do not match: {sums:?} by orders, {aggregates:?} by aggregates"));
        }
        Ok(())
    }

    /// What became of the orders.
    pub fn order_states(&self) -> OrderStates {
        let Records { processed, dead_letters, cancelled, replayed, replayed_unrouted, replays, .. } = &self.records;
        let replayed = replayed.union(replayed_unrouted).cloned().collect();
        let [processed, dead_lettered, cancelled] = [processed, dead_letters, cancelled].map(HashSet::clone);
        OrderStates { processed, dead_lettered, cancelled, replayed, replays: replays.clone() }
    }

    /// The orders that are unrouted and nowhere else.
    pub fn only_unrouted_orders(&self) -> HashSet<String> {
        self.records.only_unrouted_orders()
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
        let cancelled = self.records.cancelled.len();
        if cancelled > 0 {
            line(f, "  cancelled after that", cancelled as u64)?;
        }
        for (reason, count) in &self.reasons {
            line(f, &format!("  dead-lettered: {reason}"), *count)?;
        }
        let (unrouted_orders, unrouted_events) = self.records.only_unrouted();
        line(f, "  unrouted", unrouted_orders)?;
        let replayed = self.records.replayed.len() + self.records.replayed_unrouted.len();
        line(f, "  dead letters that were replayed", replayed as u64)?;
        line(f, "  dead-lettered more than once", self.repeated_dead_letters)?;
        line(f, "retried after a delay", self.totals.retried)?;
        line(f, &format!("notifications ({notifications} by others)"), self.totals.notifications)?;
        line(f, &format!("analytics events ({analytics} by others)"), self.totals.analytics)?;
        line(f, "  unrouted events", unrouted_events)?;
        line(f, "unrouted, and settled as well", self.records.unrouted_and_settled())?;
        if self.event_lines > 0 {
            line(f, "lines in the event files", self.event_lines)?;
            line(f, "  repeated", self.repeated_event_lines)?;
        }
        for (currency, revenue) in &self.totals.revenue {
            writeln!(f, "  {:<34} {:>9}", format!("sold, in {currency}"), revenue.total.to_string())?;
        }
        let (published, processed, dead_lettered, unrouted) =
            (orders + unroutable, self.records.processed.len(), self.records.dead_letters.len(), unrouted_orders);
        writeln!(f)?;
        if self.passed() {
            let cancelled = if cancelled > 0 { format!(" + {cancelled} cancelled") } else { String::new() };
            return write!(
                f,
                "  {published} published = {processed} processed{cancelled} + {dead_lettered} dead-lettered + {unrouted} unrouted: \
                 nothing is missing"
            );
        }
        writeln!(
            f,
            "  the numbers do not add up ({published} published, {processed} processed, {dead_lettered} dead-lettered, \
             {unrouted} unrouted):"
        )?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}
