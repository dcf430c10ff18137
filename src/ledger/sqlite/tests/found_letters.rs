//! Dead letters are found and grouped by indexes, however many there are.

use std::fmt::Debug;
use std::time::Duration;

use super::super::letter_queries::{self, tests::plans};
use super::super::{SqliteLedger, letter_search};
use super::generated_letters::generate;
use super::{directory, other};
use crate::domain::ExactSum;
use crate::ledger::conformance::at;
use crate::ledger::{DeadLetterFilter, DeadLetterQuery, LedgerMaintenance, LetterSource, LetterState};

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn total(amount: &str) -> Option<ExactSum> {
    Some(amount.parse().unwrap())
}

/// Of this thread, which waits for no other program's.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

/// Far above what an unoptimized build takes, and far below what a search of all messages for each page would take.
const MOST_CPU_TIME: Duration = Duration::from_secs(4);

fn measured<T>(what: &dyn Debug, read: impl FnOnce() -> T) -> T {
    let begun = cpu_time();
    let result = read();
    let taken = cpu_time() - begun;
    assert!(taken < MOST_CPU_TIME, "{what:?} took {taken:?}");
    result
}

#[tokio::test]
async fn a_hundred_thousand_dead_letters_are_found_and_grouped_by_indexes() {
    const LETTERS: i64 = 100_000;
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let (connection, path) = (other(&directory), directory.path());
    generate(&connection, LETTERS, 300);
    letter_search::register(&connection).unwrap();
    let any = DeadLetterFilter::default;
    let open = || DeadLetterFilter { states: vec![LetterState::Open], ..any() };
    for (filter, index, found) in [
        (open(), "stored_by_state", 90_000),
        (DeadLetterFilter { reason: text("permanent"), ..open() }, "stored_by_reason", 60_000),
        (DeadLetterFilter { code: text("code_7"), ..open() }, "stored_by_code", 2_000),
        (DeadLetterFilter { consumer: text("priority"), ..open() }, "stored_by_consumer", 20_000),
        (DeadLetterFilter { source: Some(LetterSource::UnroutedQueue), ..open() }, "stored_by_source", 5_000),
        (DeadLetterFilter { customer: text("customer-7"), ..open() }, "stored_by_customer", 20),
        (DeadLetterFilter { order: text("ord-77777"), ..open() }, "stored_by_order", 1),
        (DeadLetterFilter { since: Some(at(99_000_000)), ..open() }, "stored_by_", 900),
        (DeadLetterFilter { until: Some(at(1_000_000)), ..open() }, "stored_by_", 900),
        (DeadLetterFilter { min_retries: Some(3), ..open() }, "stored_by_retries", 25_000),
        (DeadLetterFilter { min_retries: Some(4), ..open() }, "stored_by_retries", 0),
        (DeadLetterFilter { min_total: total("990"), currency: text("USD"), ..open() }, "stored_by_total", 100),
        (DeadLetterFilter { min_total: total("990.10"), ..open() }, "stored_by_state", 900),
        (DeadLetterFilter { currency: text("USD"), ..open() }, "stored_by_", 10_000),
        (DeadLetterFilter { product: text("product 7"), ..open() }, "stored_products", 334),
        (DeadLetterFilter { text: text("77777@EXAMPLE.com"), ..open() }, "stored_by_state", 1),
        (DeadLetterFilter { text: text("nowhere"), ..open() }, "stored_by_state", 0),
        (DeadLetterFilter { routing_key: text("order.normal.web"), ..open() }, "stored_by_state", 90_000),
        (DeadLetterFilter { routing_key: text("nowhere"), ..open() }, "stored_by_state", 0),
        (DeadLetterFilter { replay: Some(7), ..any() }, "replay_letters", 10_000),
        (any(), "SCAN stored_dead_letters", 100_000),
        (DeadLetterFilter { text: text("77777@EXAMPLE.com"), ..any() }, "SCAN stored_dead_letters", 1),
        (DeadLetterFilter { code: text("code_7"), ..any() }, "SCAN stored_dead_letters", 2_000),
        (DeadLetterFilter { min_retries: Some(4), ..any() }, "SCAN stored_dead_letters", 0),
        (DeadLetterFilter { customer: text("customer-7"), ..any() }, "stored_by_customer", 20),
        (DeadLetterFilter { order: text("ord-77777"), ..any() }, "stored_by_order", 1),
        (
            DeadLetterFilter { states: vec![LetterState::Open, LetterState::Held], ..any() },
            "SCAN stored_dead_letters",
            90_100,
        ),
    ] {
        let query = DeadLetterQuery { filter, limit: 50, ..DeadLetterQuery::default() };
        let [page, groups] = plans(&connection, &query);
        assert!(groups.iter().all(|line| !line.starts_with("SCAN stored_dead")), "{query:?}: {groups:#?}");
        assert!(page.iter().any(|line| line.contains(index)), "{query:?}: {page:#?}");
        let listed = measured(&query, || letter_queries::page(path, &query)).unwrap();
        let grouped = measured(&query, || letter_queries::groups(path, &query.filter)).unwrap();
        assert_eq!(grouped.messages, found, "{query:?}");
        let listed_count = listed.letters.len() as u64;
        assert_eq!((listed_count, listed.more), (found.min(50), found > 50), "{query:?}");
    }
    // A page of the default filter is read in the order of an index, one of a longer export in the order of the table. Nothing that
    // follows the page is read, and nothing is sorted.
    for (filter, after) in [
        (open(), None),
        (any(), None),
        (any(), Some(0)),
        (open(), Some(0)),
        (DeadLetterFilter { since: Some(at(0)), until: Some(at(i64::MAX / 1_000_000)), ..open() }, Some(0)),
        (DeadLetterFilter { code: text("code_7"), ..open() }, Some(0)),
    ] {
        let query = DeadLetterQuery { filter, after, limit: 500, ..DeadLetterQuery::default() };
        let [page, _] = plans(&connection, &query);
        assert!(!page.iter().any(|line| line.contains("TEMP B-TREE")), "{query:?}: {page:#?}");
    }
    let [_, groups] = plans(&connection, &DeadLetterQuery { filter: open(), ..DeadLetterQuery::default() });
    assert!(groups.iter().any(|line| line.contains("COVERING INDEX stored_by_cause")), "{groups:#?}");
    let sums = measured(&"sums", || letter_queries::unresolved_letters(path)).unwrap().sums;
    assert_eq!(sums.iter().map(|sum| sum.messages).sum::<u64>(), 90_100);
    // The longest page of a list, all of which have been replayed.
    let replayed = DeadLetterFilter { replay: Some(7), ..any() };
    let longest = DeadLetterQuery { filter: replayed, limit: 10_000, ..DeadLetterQuery::default() };
    let letters = measured(&longest, || letter_queries::page(path, &longest)).unwrap().letters;
    assert!(letters.len() == 10_000 && letters.iter().all(|letter| letter.last_replay.is_some()));
    // All pages of an export.
    measured(&"an export", || {
        let (mut after, mut rows) = (0, 0);
        loop {
            let query = DeadLetterQuery { filter: any(), after: Some(after), limit: 500, before: None };
            let page = letter_queries::page(path, &query).unwrap();
            rows += page.letters.len();
            let Some(last) = page.letters.last().filter(|_| page.more) else { break };
            after = last.id;
        }
        assert_eq!(rows, 100_000);
    });
    ledger.close().await;
}
