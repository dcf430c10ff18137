//! What the services did for which order, and its comparison with what became of the orders. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::super::audit::Problems;

/// Every how many orders one is refused, by the number at the end of its id: the card, the stock, the carrier.
const REFUSED_CARD: u64 = 97;
const SOLD_OUT: u64 = 89;
const NO_CARRIER: u64 = 83;
/// The number of the first order that is refused.
const FIRST_REFUSED: u64 = 5;

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
    refusals: Refusals,
    /// The orders that were refused once more.
    refused_once_more: HashSet<String>,
}

/// Which orders are refused, of those that can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Refusals {
    #[default]
    All,
    /// Those with an even number, once more.
    OnceMore,
    None,
}

/// What became of the orders.
#[derive(Debug, Clone, Default)]
pub struct OrderStates {
    pub processed: HashSet<String>,
    pub dead_lettered: HashSet<String>,
    pub cancelled: HashSet<String>,
    /// The dead letters that were replayed and then processed or cancelled. What was done for them may have been undone before.
    pub replayed: HashSet<String>,
    /// How often orders were replayed, whatever became of them.
    pub replays: HashMap<String, usize>,
}

impl Books {
    /// From now on no other orders are refused than these: the goods are in stock, the cards are covered, and a carrier delivers everywhere.
    pub fn refuse(&mut self, refusals: Refusals) {
        self.refusals = refusals;
    }

    /// The answer to an order that is refused.
    fn refuses(&mut self, action: Action, order: &str) -> Option<(&'static str, String)> {
        let refusal = refusal(action, order)?;
        let refused = match self.refusals {
            Refusals::All => true,
            Refusals::OnceMore => {
                order.ends_with(['0', '2', '4', '6', '8']) && self.refused_once_more.insert(order.to_owned())
            }
            Refusals::None => false,
        };
        refused.then_some(refusal)
    }

    /// Answers a call with a status and a body: a known key with its first answer.
    pub fn call(&mut self, action: Action, key: &str, order: &str) -> (&'static str, String) {
        if let Some(known) = self.answers.get(key) {
            self.repeated += 1;
            return ("200 OK", known.clone());
        }
        if let Some(refusal) = self.refuses(action, order) {
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
    pub fn audit(self, states: &OrderStates) -> BooksAudit {
        let OrderStates { processed, dead_lettered, cancelled, replayed, replays } = states;
        let ended: HashSet<String> = [dead_lettered, cancelled, replayed].into_iter().flatten().cloned().collect();
        // Once, and once more after each replay.
        let allowed = |order: &String| 1 + replays.get(order).copied().unwrap_or_default();
        let mut problems = Problems::default();
        for (what, undo, doing, undoing) in [
            ("charged", "refunded", Action::Charge, Action::Refund),
            ("reserved", "released", Action::Reserve, Action::Release),
            ("shipped", "cancelled", Action::Ship, Action::Cancel),
        ] {
            let (done, undone) = (counts(self.done(doing)), counts(self.done(undoing)));
            let balance = |order: &String| done[order] as i64 - undone.get(order).map_or(0, |undone| *undone as i64);
            let kept: HashSet<String> = done.keys().filter(|order| balance(order) > 0).cloned().collect();
            let too_often = |counts: &HashMap<String, usize>| -> Vec<String> {
                counts
                    .iter()
                    .filter(|(order, count)| **count > allowed(order))
                    .map(|(order, _)| order.clone())
                    .collect()
            };
            problems.add(&format!("orders were {what} too often"), too_often(&done).iter());
            problems.add(&format!("orders were {undo} too often"), too_often(&undone).iter());
            problems.add(
                &format!("orders are {what} twice, and not {undo}"),
                done.keys().filter(|order| balance(order) > 1),
            );
            problems.add(&format!("orders are {what}, and neither processed nor {undo}"), kept.difference(processed));
            problems.add(&format!("processed orders are not {what}, or were {undo}"), processed.difference(&kept));
            problems.add(&format!("cancelled orders are still {what}"), kept.intersection(cancelled));
            problems.add(
                &format!("orders were {undo}, and neither dead-lettered nor cancelled"),
                undone.keys().filter(|order| !ended.contains(*order)),
            );
        }
        let charges = counts(self.done(Action::Charge));
        let charges_of = |orders: &HashSet<String>| orders.iter().filter_map(|order| charges.get(order)).sum::<usize>();
        let kept_after_replay: HashSet<String> = replayed.intersection(processed).cloned().collect();
        BooksAudit {
            processed: processed.len(),
            failed_after_charge: charges_of(dead_lettered),
            cancelled_after_charge: charges_of(cancelled),
            replayed_after_charge: charges_of(&kept_after_replay)
                - kept_after_replay.iter().filter(|order| charges.contains_key(*order)).count(),
            problems: problems.0,
            books: self,
        }
    }
}

/// The answer to an order that is refused, if it is one of those that can be.
fn refusal(action: Action, order: &str) -> Option<(&'static str, String)> {
    let number: u64 = order.rsplit('-').next()?.parse().ok()?;
    let (every, status, reason) = match action {
        Action::Charge => (REFUSED_CARD, "402 Payment Required", "the card was refused"),
        Action::Reserve => (SOLD_OUT, "409 Conflict", "sold out"),
        Action::Ship => (NO_CARRIER, "422 Unprocessable Content", "no carrier delivers there"),
        Action::Refund | Action::Release | Action::Cancel => return None,
    };
    (number % every == FIRST_REFUSED).then(|| (status, reason.to_owned()))
}

/// How often each order occurs.
fn counts(orders: &[String]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    orders.iter().for_each(|order| *counts.entry(order.clone()).or_default() += 1);
    counts
}

/// The books of a finished run, compared with what became of its orders.
#[derive(Debug)]
pub struct BooksAudit {
    books: Books,
    processed: usize,
    failed_after_charge: usize,
    cancelled_after_charge: usize,
    /// Refunded when they failed, and charged again by their replay.
    replayed_after_charge: usize,
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
            "replayed_after_charge": self.replayed_after_charge,
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
            let (cancelled, replayed) = (self.cancelled_after_charge, self.replayed_after_charge);
            let replayed = if replayed > 0 { format!(" + {replayed} failed and replayed") } else { String::new() };
            return write!(
                f,
                "  {kept} charged and not refunded = {processed} processed; {refunded} refunded = {failed} failed + {cancelled} \
                 cancelled{replayed} after the charge"
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
            (Action::Charge, "a-94/charge", "a-94"),
            (Action::Reserve, "a-94/reserve", "a-94"),
            (Action::Refund, "a-94/charge/undo", "a-94"),
        ] {
            books.call(action, key, order);
        }
        books
    }

    fn passes(books: Books, processed: &[&str], dead: &[&str]) -> bool {
        let states = OrderStates { processed: ids(processed), dead_lettered: ids(dead), ..OrderStates::default() };
        books.audit(&states).passed()
    }

    #[test]
    fn the_charge_of_a_cancelled_order_is_refunded() {
        let passes = |cancelled: &[&str]| {
            let states = OrderStates { processed: ids(&["a-2"]), cancelled: ids(cancelled), ..OrderStates::default() };
            books().audit(&states).passed()
        };
        assert!(passes(&["a-94"]));
        assert!(!passes(&[]));
        assert!(!passes(&["a-94", "a-2"]), "it is still charged");
    }

    #[test]
    fn a_charge_that_is_lost_repeated_or_not_refunded_fails_the_comparison() {
        assert_eq!(refusal(Action::Reserve, "a-94").unwrap().0, "409 Conflict");
        assert!(passes(books(), &["a-2"], &["a-94"]));
        assert!(!passes(books(), &["a-2", "a-94"], &[]), "a refunded order is processed");
        assert!(!passes(books(), &[], &["a-2", "a-94"]), "a failed order is not refunded");
        assert!(!passes(books(), &["a-2", "a-3"], &["a-94"]), "a processed order is not charged");
        assert!(!passes(books(), &["a-2"], &[]), "a refunded order is lost");
        let with = |action, key: &str, order: &str| {
            let mut books = books();
            books.call(action, key, order);
            passes(books, &["a-2"], &["a-94"])
        };
        assert!(with(Action::Charge, "a-2/charge", "a-2"), "the key is known");
        assert!(!with(Action::Charge, "a-2/charge/2", "a-2"), "charged twice");
        assert!(!with(Action::Refund, "a-94/charge/2/undo", "a-94"), "refunded twice");
        assert!(!with(Action::Reserve, "a-3/reserve", "a-3"), "reserved for ever");
        assert!(with(Action::Release, "a-94/reserve/undo", "a-94"), "there was nothing to release");
    }

    #[test]
    fn a_replayed_order_may_be_charged_again_once_its_charge_was_refunded() {
        let passes = |calls: &[(Action, &str)]| {
            let mut books = books();
            books.refuse(Refusals::None);
            calls.iter().for_each(|(action, key)| drop(books.call(*action, key, "a-94")));
            let orders = ids(&["a-2", "a-94"]);
            let replays = HashMap::from([("a-94".to_owned(), 1)]);
            let states = OrderStates { processed: orders, replayed: ids(&["a-94"]), replays, ..OrderStates::default() };
            books.audit(&states).passed()
        };
        let again = [(Action::Charge, "2/charge"), (Action::Reserve, "2/reserve"), (Action::Ship, "2/ship")];
        assert!(passes(&again));
        assert!(!passes(&again[1..]), "it was refunded, and not charged again");
        assert!(!passes(&again[..2]), "it was not shipped");
        assert!(!passes(&[&again[..], &[(Action::Charge, "3/charge")]].concat()), "charged twice");
        assert!(!passes(&[&again[..], &[(Action::Ship, "3/ship")]].concat()), "shipped twice, and not cancelled");
    }
}
