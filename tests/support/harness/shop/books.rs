//! What the services did for which order, and its comparison with what became of the orders. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::super::audit::Problems;

/// Every how many orders one is refused, by the number at the end of its id: the card, the stock, the carrier.
const REFUSED_CARD: u64 = 97;
const SOLD_OUT: u64 = 89;
const NO_CARRIER: u64 = 83;

/// What a service can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Charge,
    Refund,
    Reserve,
    Release,
    Ship,
    Cancel,
}

impl Action {
    /// The action of a path such as `/charge`.
    pub fn of_path(path: &str) -> Option<Action> {
        Some(match path {
            "/charge" => Action::Charge,
            "/refund" => Action::Refund,
            "/reserve" => Action::Reserve,
            "/release" => Action::Release,
            "/ship" => Action::Ship,
            "/cancel" => Action::Cancel,
            _ => return None,
        })
    }
}

/// What was done, by idempotency key and by order.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// The answer to each key.
    answers: HashMap<String, String>,
    /// The orders for which something was done, once for each key.
    done: BTreeMap<Action, Vec<String>>,
    /// The orders for which it was refused.
    refused: BTreeMap<Action, HashSet<String>>,
    /// Calls with a key that was known.
    repeated: u64,
}

impl Books {
    /// Answers a call with a status and a body: a known key with its first answer.
    pub fn call(&mut self, action: Action, key: &str, order: &str) -> (&'static str, String) {
        if let Some(known) = self.answers.get(key) {
            self.repeated += 1;
            return ("200 OK", known.clone());
        }
        if let Some(refusal) = refusal(action, order) {
            self.refused.entry(action).or_default().insert(order.to_owned());
            return refusal;
        }
        let undone = match action {
            Action::Charge | Action::Reserve | Action::Ship => None,
            Action::Refund => Some(Action::Charge),
            Action::Release => Some(Action::Reserve),
            Action::Cancel => Some(Action::Ship),
        };
        let has_effect = undone.is_none_or(|undone| self.done(undone).iter().any(|done| done == order));
        if has_effect {
            self.done.entry(action).or_default().push(order.to_owned());
        }
        let answer = format!("{{\"key\":{key:?},\"had_effect\":{has_effect}}}");
        self.answers.insert(key.to_owned(), answer.clone());
        ("200 OK", answer)
    }

    /// Only what was done for other orders than these.
    pub fn without(mut self, orders: &HashSet<String>) -> Books {
        self.done.values_mut().for_each(|done| done.retain(|order| !orders.contains(order)));
        self
    }

    fn done(&self, action: Action) -> &[String] {
        self.done.get(&action).map_or(&[], Vec::as_slice)
    }

    /// Compares what was done with what became of the orders.
    pub fn audit(
        self,
        processed: &HashSet<String>,
        dead_lettered: &HashSet<String>,
        cancelled: &HashSet<String>,
    ) -> BooksAudit {
        let ended: HashSet<String> = dead_lettered.union(cancelled).cloned().collect();
        let mut problems = Problems::default();
        for (what, undo, doing, undoing) in [
            ("charged", "refunded", Action::Charge, Action::Refund),
            ("reserved", "released", Action::Reserve, Action::Release),
            ("shipped", "cancelled", Action::Ship, Action::Cancel),
        ] {
            let (done, undone) = (set(self.done(doing)), set(self.done(undoing)));
            let kept: HashSet<String> = done.difference(&undone).cloned().collect();
            problems.add(&format!("orders were {what} twice"), repeated(self.done(doing)));
            problems.add(&format!("orders were {undo} twice"), repeated(self.done(undoing)));
            problems.add(&format!("orders are {what}, and neither processed nor {undo}"), kept.difference(processed));
            problems.add(&format!("processed orders are not {what}, or were {undo}"), processed.difference(&kept));
            problems.add(&format!("cancelled orders are still {what}"), kept.intersection(cancelled));
            problems.add(
                &format!("orders were {undo}, and neither dead-lettered nor cancelled"),
                undone.difference(&ended),
            );
        }
        let charged = set(self.done(Action::Charge));
        let failed_after_charge = charged.intersection(dead_lettered).count();
        let cancelled_after_charge = charged.intersection(cancelled).count();
        BooksAudit {
            processed: processed.len(),
            failed_after_charge,
            cancelled_after_charge,
            problems: problems.0,
            books: self,
        }
    }
}

/// The answer to an order that is refused.
fn refusal(action: Action, order: &str) -> Option<(&'static str, String)> {
    let number: u64 = order.rsplit('-').next()?.parse().ok()?;
    let (every, status, reason) = match action {
        Action::Charge => (REFUSED_CARD, "402 Payment Required", "the card was refused"),
        Action::Reserve => (SOLD_OUT, "409 Conflict", "sold out"),
        Action::Ship => (NO_CARRIER, "422 Unprocessable Content", "no carrier delivers there"),
        Action::Refund | Action::Release | Action::Cancel => return None,
    };
    (number % every == 1).then(|| (status, reason.to_owned()))
}

fn set(orders: &[String]) -> HashSet<String> {
    orders.iter().cloned().collect()
}

/// The orders that occur more than once.
fn repeated(orders: &[String]) -> impl Iterator<Item = &String> {
    let mut seen = HashSet::new();
    orders.iter().filter(move |order| !seen.insert(*order))
}

/// The books of a finished run, compared with what became of its orders.
#[derive(Debug)]
pub struct BooksAudit {
    books: Books,
    processed: usize,
    failed_after_charge: usize,
    cancelled_after_charge: usize,
    problems: Vec<String>,
}

impl BooksAudit {
    /// Whether there are no discrepancies.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    /// The comparison as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let done = |action| self.books.done(action).len();
        serde_json::json!({
            "charged": done(Action::Charge),
            "refunded": done(Action::Refund),
            "failed_after_charge": self.failed_after_charge,
            "calls_answered_from_the_key": self.books.repeated,
            "problems": self.problems,
        })
    }
}

impl fmt::Display for BooksAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = |action| self.books.done(action).len();
        let refused = |action| self.books.refused.get(&action).map_or(0, HashSet::len);
        let (charged, refunded) = (done(Action::Charge), done(Action::Refund));
        for (what, count) in [
            ("charged", charged),
            ("  refunded", refunded),
            ("  cards refused", refused(Action::Charge)),
            ("reserved", done(Action::Reserve)),
            ("  released", done(Action::Release)),
            ("  sold out", refused(Action::Reserve)),
            ("shipped", done(Action::Ship)),
            ("  without a carrier", refused(Action::Ship)),
        ] {
            writeln!(f, "  {what:<34} {count:>9}")?;
        }
        writeln!(f, "  {:<34} {:>9}\n", "calls answered from the key", self.books.repeated)?;
        let (kept, processed, failed) = (charged.saturating_sub(refunded), self.processed, self.failed_after_charge);
        if self.passed() {
            let cancelled = self.cancelled_after_charge;
            return write!(
                f,
                "  {kept} charged and not refunded = {processed} processed; {refunded} refunded = {failed} failed + {cancelled} \
                 cancelled after the charge"
            );
        }
        writeln!(
            f,
            "  what the services did does not match ({kept} charged and not refunded, {processed} processed, {refunded} refunded, \
             {failed} failed after the charge):"
        )?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> HashSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    /// Two orders: one is done, the other is undone after its charge.
    fn books() -> Books {
        let mut books = Books::default();
        for (action, key, order) in [
            (Action::Charge, "a-2/charge", "a-2"),
            (Action::Reserve, "a-2/reserve", "a-2"),
            (Action::Ship, "a-2/ship", "a-2"),
            (Action::Charge, "a-90/charge", "a-90"),
            (Action::Reserve, "a-90/reserve", "a-90"),
            (Action::Refund, "a-90/charge/undo", "a-90"),
        ] {
            books.call(action, key, order);
        }
        books
    }

    fn passes(books: Books, processed: &[&str], dead: &[&str]) -> bool {
        books.audit(&ids(processed), &ids(dead), &ids(&[])).passed()
    }

    #[test]
    fn the_charge_of_a_cancelled_order_is_refunded() {
        let audit = |cancelled: &[&str]| books().audit(&ids(&["a-2"]), &ids(&[]), &ids(cancelled)).passed();
        assert!(audit(&["a-90"]));
        assert!(!audit(&[]));
        assert!(!audit(&["a-90", "a-2"]), "it is still charged");
    }

    #[test]
    fn a_charge_that_is_lost_repeated_or_not_refunded_fails_the_comparison() {
        assert_eq!(refusal(Action::Reserve, "a-90").unwrap().0, "409 Conflict");
        assert!(passes(books(), &["a-2"], &["a-90"]));
        assert!(!passes(books(), &["a-2", "a-90"], &[]), "a refunded order is processed");
        assert!(!passes(books(), &[], &["a-2", "a-90"]), "a failed order is not refunded");
        assert!(!passes(books(), &["a-2", "a-3"], &["a-90"]), "a processed order is not charged");
        assert!(!passes(books(), &["a-2"], &[]), "a refunded order is lost");
        let with = |action, key: &str, order: &str| {
            let mut books = books();
            books.call(action, key, order);
            passes(books, &["a-2"], &["a-90"])
        };
        assert!(with(Action::Charge, "a-2/charge", "a-2"), "the key is known");
        assert!(!with(Action::Charge, "a-2/charge/2", "a-2"), "charged twice");
        assert!(!with(Action::Refund, "a-90/charge/2/undo", "a-90"), "refunded twice");
        assert!(!with(Action::Reserve, "a-3/reserve", "a-3"), "reserved for ever");
        assert!(with(Action::Release, "a-90/reserve/undo", "a-90"), "there was nothing to release");
    }
}
