//! Erases personal data from the file, also while a daemon uses it.
//!
//! It never removes a row, and never changes an aggregate: an order that is delivered again stays a duplicate. Results of steps
//! that are still needed are erased by the daemon, once their run has ended.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde_json::json;

use super::erase_letters::{self, FoundLetters, Subject};
use super::order_items::{CANCELLED, UNKNOWN_QUANTITY};
use super::{FILE_NAME, journal, open, step_texts};
use crate::domain::{CANCELLATION_SUFFIX, EVENT_ID_SUFFIXES};
use crate::ledger::erase::{ERASED, ErasedRows, ErasureOptions, ErasureSubject, ErasureTargets, UnfinishedSteps};
use crate::ledger::error::OpenError;
use crate::ledger::journal::{JournalAction, NewJournalEntry};
use crate::ledger::step_runs::{RunKey, RunState};

/// How long to wait for a lock. A daemon holds it for one commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Orders or messages in one transaction, during which a daemon records nothing.
const BATCH_TARGETS: usize = 256;
/// Results and texts of steps in one transaction, and those of one more order. A result has at most 64 KiB.
const BATCH_STEP_TEXTS: usize = 512;

/// The consumers that have runs, each found by one search of the primary key.
const SCOPES: &str = "
    WITH RECURSIVE scopes (scope) AS (
        SELECT min(scope) FROM step_runs WHERE scope > ''
        UNION ALL SELECT (SELECT min(step_runs.scope) FROM step_runs WHERE step_runs.scope > scopes.scope)
        FROM scopes WHERE scopes.scope IS NOT NULL)";

/// The identities of messages with the id `?1`: that of orderd's own or given whole, of a sender that is not verified, and of
/// the broker's users.
const IDENTITIES: [&str; 3] =
    ["identity = ?1", "identity = ?1 || '/unverified'", "identity > ?1 || '/from/' AND identity < ?1 || '/from0'"];

/// The orders that dead letters of the customer `?1` name, now or before an edit, besides the customer's own accepted orders; and whether
/// they are, or may be, another customer's. An accepted order without a customer, or whose customer was erased, is not known to be that of
/// the letter. Nobody's is one that was cancelled (`?2`) before it arrived, which has the quantity `?3`. An order that was never accepted
/// may be that of anyone whose dead letter names it.
const NAMED_ORDERS: &str = "
    WITH own (letter) AS (
        SELECT id FROM stored_dead_letters WHERE customer_id = ?1
        UNION SELECT letter_id FROM former_orders WHERE customer_id = ?1 AND customer_id <> ''),
    named (id) AS (
        SELECT order_id FROM stored_dead_letters WHERE customer_id = ?1 AND order_id IS NOT NULL
        UNION SELECT order_id FROM former_orders WHERE customer_id = ?1 AND customer_id <> '' AND order_id <> '')
    SELECT id,
           EXISTS (SELECT 1 FROM orders WHERE orders.id = named.id AND NOT (status = ?2 AND quantity = ?3))
           OR EXISTS (SELECT 1 FROM stored_dead_letters AS letters
                      WHERE letters.order_id = named.id AND letters.customer_id <> ?1 AND letters.id NOT IN own)
           OR EXISTS (SELECT 1 FROM former_orders AS former
                      WHERE former.order_id = named.id AND former.order_id <> '' AND former.customer_id NOT IN ('', ?1)
                        AND former.letter_id NOT IN own)
    FROM named WHERE id NOT IN (SELECT id FROM orders WHERE customer_id = ?1) ORDER BY id";

/// What the ledger has about the subject. An order that was never accepted has no row, but may have attempts.
pub(in crate::ledger) fn targets(directory: &Path, subject: &ErasureSubject) -> Result<ErasureTargets, OpenError> {
    let connection = open::for_reading(directory, BUSY_TIMEOUT)?;
    find(&connection, subject).map_err(|error| open::error(directory, error))
}

fn find(connection: &Connection, subject: &ErasureSubject) -> rusqlite::Result<ErasureTargets> {
    let read = |sql: &str, id: &str| {
        let mut select = connection.prepare(sql)?;
        select.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    };
    let mut found = ErasureTargets::default();
    match subject {
        ErasureSubject::Customer(id) => {
            found.customer = Some(id.clone());
            found.orders = read("SELECT id FROM orders WHERE customer_id = ?1 ORDER BY rowid", id)?;
            let mut select = connection.prepare(NAMED_ORDERS)?;
            let named = select.query_map((id, CANCELLED, UNKNOWN_QUANTITY), |row| Ok((row.get(0)?, row.get(1)?)))?;
            for order in named {
                let (order, is_of_another) = order?;
                if is_of_another { &mut found.orders_of_others } else { &mut found.orders }.push(order);
            }
            // Each of the customer's own, also one that names an order of another customer.
            let own = "SELECT id FROM stored_dead_letters WHERE customer_id = ?1 AND erased_at IS NULL
                       UNION SELECT letter_id FROM former_orders JOIN stored_dead_letters ON id = letter_id
                       WHERE former_orders.customer_id = ?1 AND former_orders.customer_id <> '' AND erased_at IS NULL";
            let mut select = connection.prepare(own)?;
            found.dead_letters = select.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        }
        ErasureSubject::Order(id) => {
            let known = "SELECT ?1 WHERE EXISTS (SELECT 1 FROM orders WHERE id = ?1)
                OR EXISTS (SELECT 1 FROM attempts WHERE identity = ?1)
                OR EXISTS (SELECT 1 FROM dead_letters WHERE identity = ?1)
                OR EXISTS (SELECT 1 FROM stored_dead_letters WHERE order_id = ?1)
                OR EXISTS (SELECT 1 FROM former_orders WHERE order_id = ?1 AND order_id <> '')
                OR EXISTS (SELECT 1 FROM step_runs WHERE scope = '' AND identity = ?1)";
            found.orders = read(known, id)?;
        }
        ErasureSubject::DeadLetter(id) => {
            let known = "SELECT id FROM stored_dead_letters WHERE id = ?1 AND erased_at IS NULL";
            let mut select = connection.prepare(known)?;
            found.dead_letters = select.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        }
        ErasureSubject::Message(id) => {
            for sql in message_queries() {
                found.messages.extend(read(&sql, id)?);
            }
            found.messages.sort();
            found.messages.dedup();
        }
    }
    Ok(found)
}

/// Each finds identities of messages with the id `?1`.
fn message_queries() -> impl Iterator<Item = String> {
    IDENTITIES.iter().flat_map(|is_meant| {
        let failed = ["attempts", "dead_letters", "notification_attempts", "stored_dead_letters"]
            .map(|table| format!("SELECT identity FROM {table} WHERE {is_meant}"));
        let is_event = is_meant.replace("identity", "id");
        let delivered = format!("SELECT id FROM events WHERE ({is_event}) AND recipient IS NOT NULL");
        let called = format!(
            "{SCOPES} SELECT identity FROM scopes CROSS JOIN step_runs ON step_runs.scope = scopes.scope WHERE {is_meant}"
        );
        failed.into_iter().chain([delivered, called])
    })
}

/// Erases the customers of these orders, the texts of their and their events' failures, and what their steps have said; of other
/// messages the texts of failures and what their steps have said. Each transaction has an entry of `actor` in the journal.
pub(in crate::ledger) fn erase(
    directory: &Path,
    targets: &ErasureTargets,
    options: ErasureOptions,
    actor: &str,
) -> Result<ErasedRows, OpenError> {
    // Checks that there is a ledger, of this version.
    drop(open::for_reading(directory, BUSY_TIMEOUT)?);
    erase_in(directory, targets, options, actor).map_err(|error| open::error(directory, error))
}

/// What is erased at once.
#[derive(Clone, Copy)]
enum Target<'a> {
    Order(&'a str),
    Message(&'a str),
}

fn erase_in(
    directory: &Path,
    targets: &ErasureTargets,
    options: ErasureOptions,
    actor: &str,
) -> rusqlite::Result<ErasedRows> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(directory.join(FILE_NAME), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "full")?;
    // What is replaced is overwritten with zeros.
    connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    let mut erased = ErasedRows::default();
    let mut letters = FoundLetters::default();
    for id in &targets.dead_letters {
        letters.add(&connection, Subject::Letter(*id), None)?;
    }
    let orders = targets.orders.iter().map(|order| Target::Order(order));
    let mut left = orders.chain(targets.messages.iter().map(|identity| Target::Message(identity))).peekable();
    // Once even without any target: that somebody wanted to erase something is recorded too, if not with the dead letters.
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut batch, mut done) = (ErasedRows::default(), Vec::new());
        for target in left.by_ref().take(BATCH_TARGETS) {
            erase_target(&transaction, target, options, &mut batch)?;
            find_letters(&transaction, target, targets.customer.as_deref(), &mut letters)?;
            done.push(target);
            if batch.step_texts >= BATCH_STEP_TEXTS {
                break;
            }
        }
        if options.dry_run {
            transaction.rollback()?;
        } else {
            if !done.is_empty() || letters.erasable.is_empty() {
                erased.journal = Some(journal::append(&transaction, &journal_entry(&done, options, &batch, actor))?);
            }
            transaction.commit()?;
            journal::log_committed();
        }
        erased.add(batch);
        if left.peek().is_none() {
            break;
        }
    }
    if options.dry_run {
        (erased.dead_letters, erased.replaying_dead_letters) = (letters.erasable.len(), letters.replaying.len());
    } else {
        erase_found(&mut connection, letters, options, actor, &mut erased)?;
    }
    erased.unattributed_dead_letters = erase_letters::count_unattributed(&connection, targets.customer.is_some())?;
    if !options.dry_run {
        // The write-ahead log contains pages from before, also from before a command that was killed.
        let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        erased.copies_remain = busy != 0;
    }
    Ok(erased)
}

/// Erases the letters that were found. A replay may have selected some of them since.
fn erase_found(
    connection: &mut Connection,
    FoundLetters { erasable, mut replaying }: FoundLetters,
    options: ErasureOptions,
    actor: &str,
    erased: &mut ErasedRows,
) -> rusqlite::Result<()> {
    let letters = erase_letters::erase(connection, &erasable, actor)?;
    replaying.extend(letters.replaying);
    (erased.dead_letters, erased.replaying_dead_letters) = (letters.erased, replaying.len());
    erased.journal = letters.journal.or(erased.journal);
    if erased.journal.is_none() {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let entry = journal_entry(&[], options, &ErasedRows::default(), actor);
        erased.journal = Some(journal::append(&transaction, &entry)?);
        transaction.commit()?;
        journal::log_committed();
    }
    Ok(())
}

/// The ids of orders and the identities of messages are not erased; the id of the customer is, and must not be in the journal.
fn journal_entry(done: &[Target<'_>], options: ErasureOptions, erased: &ErasedRows, actor: &str) -> NewJournalEntry {
    let (mut orders, mut messages) = (Vec::new(), Vec::new());
    for target in done {
        match target {
            Target::Order(id) => orders.push(id),
            Target::Message(identity) => messages.push(identity),
        }
    }
    let ErasedRows { customer_ids, failure_texts, recipients, step_texts, unfinished, .. } = erased;
    let subject = json!({ "orders": orders, "messages": messages, "include_unfinished": options.include_unfinished });
    let result = json!({
        "customer_ids": customer_ids, "failure_texts": failure_texts, "recipients": recipients, "step_texts": step_texts,
        "unfinished": unfinished.len(),
    });
    NewJournalEntry::new(Timestamp::now(), actor, JournalAction::Erase, &subject, &result)
}

fn erase_target(
    connection: &Connection,
    target: Target<'_>,
    options: ErasureOptions,
    erased: &mut ErasedRows,
) -> rusqlite::Result<()> {
    match target {
        Target::Order(order) => {
            erased.customer_ids += connection.execute(
                "UPDATE orders SET customer_id = iif(customer_id IS NULL, NULL, ?2), email = NULL, phone = NULL,
                                   locale = NULL
                     WHERE id = ?1 AND (customer_id <> ?2 OR coalesce(email, phone, locale) IS NOT NULL)",
                (order, ERASED),
            )?;
            // Not every identity that begins with the order's: `ord-1/2` may be another order.
            for suffix in [""].into_iter().chain(EVENT_ID_SUFFIXES).chain([CANCELLATION_SUFFIX]) {
                erase_failures(connection, &format!("{order}{suffix}"), erased)?;
            }
            let key = RunKey { scope: String::new(), identity: order.to_owned() };
            erase_steps(connection, &key, options, erased)
        }
        Target::Message(identity) => {
            erase_failures(connection, identity, erased)?;
            for scope in scopes_of(connection, identity)? {
                let key = RunKey { scope, identity: identity.to_owned() };
                erase_steps(connection, &key, options, erased)?;
            }
            Ok(())
        }
    }
}

fn find_letters(
    connection: &Connection,
    target: Target<'_>,
    customer: Option<&str>,
    letters: &mut FoundLetters,
) -> rusqlite::Result<()> {
    match target {
        Target::Order(order) => {
            for suffix in [""].into_iter().chain(EVENT_ID_SUFFIXES).chain([CANCELLATION_SUFFIX]) {
                letters.add(connection, Subject::Identity(&format!("{order}{suffix}")), customer)?;
            }
            letters.add(connection, Subject::Order(order), customer)
        }
        Target::Message(identity) => letters.add(connection, Subject::Identity(identity), None),
    }
}

fn erase_failures(connection: &Connection, identity: &str, erased: &mut ErasedRows) -> rusqlite::Result<()> {
    for table in ["attempts", "dead_letters", "notification_attempts"] {
        erased.failure_texts += connection.execute(
            &format!("UPDATE {table} SET failure_reason = ?2 WHERE identity = ?1 AND failure_reason <> ?2"),
            (identity, ERASED),
        )?;
    }
    for (table, key) in [("events", "id"), ("notification_attempts", "identity")] {
        erased.recipients += connection.execute(
            &format!("UPDATE {table} SET recipient = NULL WHERE {key} = ?1 AND recipient IS NOT NULL"),
            [identity],
        )?;
    }
    Ok(())
}

/// The consumers that have called steps for the message with this identity.
fn scopes_of(connection: &Connection, identity: &str) -> rusqlite::Result<Vec<String>> {
    let mut select = connection.prepare(&format!(
        "{SCOPES} SELECT step_runs.scope FROM scopes CROSS JOIN step_runs ON step_runs.scope = scopes.scope
         WHERE identity = ?1"
    ))?;
    select.query_map([identity], |row| row.get(0))?.collect()
}

/// Erases what the steps of a run have said, at once or once it has ended.
fn erase_steps(
    connection: &Connection,
    key: &RunKey,
    options: ErasureOptions,
    erased: &mut ErasedRows,
) -> rusqlite::Result<()> {
    let Some((state, has_ended)) = step_texts::state(connection, key)? else { return Ok(()) };
    if has_ended || options.include_unfinished {
        erased.step_texts += step_texts::erase(connection, key)?;
    }
    // What a run that has not ended says from now on is erased too.
    step_texts::set_erasure(connection, key, Some(if has_ended { "done" } else { "requested" }))?;
    if !has_ended && !options.include_unfinished {
        erased.unfinished.push(unfinished(key, state));
    }
    Ok(())
}

fn unfinished(RunKey { scope, identity }: &RunKey, state: RunState) -> UnfinishedSteps {
    let consumer = Some(scope.clone()).filter(|scope| !scope.is_empty());
    UnfinishedSteps { consumer, id: identity.clone(), state: state.as_str() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::conformance::fixtures::{accept, attempt, dead_letter, finish, order, stored_letter};
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::{
        FailedDelivery, JournalEntry, JournalQuery, LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter,
        LetterWriter, NewNotification, NewOrder, NotificationDelivery, OtherOrder, Recorded,
    };

    async fn entries(ledger: &SqliteLedger) -> Vec<JournalEntry> {
        ledger.journal(JournalQuery { limit: 10, ..JournalQuery::default() }).await.unwrap().entries
    }

    fn of_customer(id: &str, customer: &str) -> LedgerEntry {
        accept(NewOrder { customer_id: Some(customer.to_owned()), ..order(id) })
    }

    #[tokio::test]
    async fn an_erased_customer_is_nowhere_in_the_ledger_and_its_orders_stay_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        for (id, customer) in [("ord-1", "ada-lovelace"), ("ord-2", "other"), ("ord-3", "ada-lovelace")] {
            assert_eq!(ledger.record(of_customer(id, customer)).await.unwrap(), Recorded::New);
        }
        ledger.record(finish("ord-1")).await.unwrap();
        for identity in ["ord-1", "ord-1/notification/processed", "ord-10", "ord-1/2"] {
            ledger.record(LedgerEntry::Attempt(Box::new(attempt(identity, "order", 0)))).await.unwrap();
            ledger.record(dead_letter(attempt(identity, "order", 1))).await.unwrap();
        }
        let totals = ledger.totals().await.unwrap();
        let path = directory.path();
        let ada = ErasureSubject::Customer("ada-lovelace".to_owned());
        let found = targets(path, &ada).unwrap();
        assert_eq!((&*found.orders, found.messages.len()), (&["ord-1".to_owned(), "ord-3".to_owned()][..], 0));
        let dry_run = ErasureOptions { dry_run: true, ..ErasureOptions::default() };
        let planned = erase(path, &found, dry_run, "local").unwrap();
        assert!(entries(&ledger).await.is_empty());
        assert_eq!((planned.customer_ids, planned.failure_texts), (2, 6));
        assert_eq!(targets(path, &ada).unwrap(), found);
        let erased = |targets| {
            let erased = erase(path, targets, ErasureOptions::default(), "local").unwrap();
            assert!(erased.journal.is_some());
            ErasedRows { copies_remain: false, journal: None, ..erased }
        };
        assert_eq!(erased(&found), planned);
        assert_eq!(erased(&found), ErasedRows::default(), "nothing is left to erase");
        assert_eq!(ledger.totals().await.unwrap(), totals);
        let [second, first] = &entries(&ledger).await[..] else { panic!("each erasure is in the journal") };
        assert_eq!((first.action.as_str(), first.actor.as_str()), ("erase", "local"));
        assert_eq!((&first.subject["orders"], &first.result["failure_texts"]), (&json!(["ord-1", "ord-3"]), &json!(6)));
        assert_eq!(second.result["failure_texts"], 0);
        // A redelivery is no conflict, and another customer is untouched.
        assert_eq!(ledger.record(of_customer("ord-1", "ada-lovelace")).await.unwrap(), Recorded::Duplicate);
        assert_eq!(ledger.record(of_customer("ord-3", "ada-lovelace")).await.unwrap(), Recorded::Unfinished);
        assert_eq!(
            ledger.record(of_customer("ord-2", "third")).await.unwrap(),
            Recorded::Conflict(OtherOrder::InProgress)
        );
        ledger.close().await;
        let file = std::fs::read(path.join(FILE_NAME)).unwrap();
        assert!(!file.windows(12).any(|bytes| bytes == b"ada-lovelace"));
        assert!(targets(path, &ErasureSubject::Order("ord-7".to_owned())).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_dead_letter_that_a_replay_selects_while_it_is_about_to_be_erased_is_left_and_that_is_said_and_recorded()
    {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let mut connection = Connection::open(directory.path().join(FILE_NAME)).unwrap();
        let mut found = FoundLetters::default();
        found.add(&connection, Subject::Letter(1), None).unwrap();
        connection.execute("UPDATE stored_dead_letters SET state = 'replaying'", []).unwrap();
        let mut erased = ErasedRows::default();
        erase_found(&mut connection, found, ErasureOptions::default(), "local", &mut erased).unwrap();
        assert_eq!((erased.dead_letters, erased.replaying_dead_letters), (0, 1));
        let [entry] = &entries(&ledger).await[..] else { panic!("it was asked for") };
        assert_eq!(erased.journal.map(|head| head.seq), Some(entry.seq));
        assert!(!ledger.dead_letter(1).await.unwrap().unwrap().content.body.is_empty());
        ledger.close().await;
    }

    #[tokio::test]
    async fn what_mail_servers_have_said_and_whom_a_notification_reached_is_erased_too() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        let failed = |identity: &str| FailedDelivery {
            channel: "email".to_owned(),
            provider: "email".to_owned(),
            recipient: Some("a…@lovelace.example".to_owned()),
            kind: "transient",
            code: "smtp_450".to_owned(),
            reason: format!("450 <ada@home.example> is full ({identity})"),
            at: crate::ledger::conformance::at(1_000),
        };
        for id in ["ord-1/notification/processed", "m-1"] {
            let (id, channel) = (id.to_owned(), "email".to_owned());
            let (provider, recipient) = (Some("email".to_owned()), Some("a…@lovelace.example".to_owned()));
            let delivery = NotificationDelivery { provider, recipient, failed: vec![failed(&id)], not_delivered: None };
            let at = crate::ledger::conformance::at(2_000);
            let notified = NewNotification { id, order_id: None, channel, at, delivery };
            ledger.record(LedgerEntry::Notification(Box::new(notified))).await.unwrap();
        }
        ledger.record(accept(order("ord-1"))).await.unwrap();
        let path = directory.path();
        for (subject, number) in
            [(ErasureSubject::Order("ord-1".to_owned()), 1), (ErasureSubject::Message("m-1".to_owned()), 1)]
        {
            let found = targets(path, &subject).unwrap();
            assert_eq!(found.orders.len() + found.messages.len(), number, "{subject:?}");
            let erased = erase(path, &found, ErasureOptions::default(), "local").unwrap();
            assert_eq!((erased.failure_texts, erased.recipients), (1, 2), "{subject:?}");
        }
        ledger.close().await;
        let file = std::fs::read(path.join(FILE_NAME)).unwrap();
        let contains = |text: &[u8]| file.windows(text.len()).any(|bytes| bytes == text);
        assert!(!contains(b"lovelace") && !contains(b"home.example"));
    }

    #[tokio::test]
    async fn claims_of_instances_that_were_killed_are_removed_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let claims = || {
            let connection = open::for_reading(directory.path(), BUSY_TIMEOUT).unwrap();
            connection.query_row("SELECT count(*) FROM notification_claims", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        let now = jiff::Timestamp::now();
        for (id, seconds) in [("ended", -1), ("held", 60)] {
            let until = now + jiff::SignedDuration::from_secs(seconds);
            let (id, owner) = (id.to_owned(), "killed".into());
            ledger.record(LedgerEntry::ClaimNotification { id, owner, at: now, until }).await.unwrap();
        }
        ledger.close().await;
        assert_eq!(claims(), 2);
        SqliteLedger::open(directory.path()).unwrap().close().await;
        assert_eq!(claims(), 1);
    }

    /// However large the ledger is.
    #[tokio::test]
    async fn a_message_is_found_by_searches_of_indexes_alone() {
        let directory = tempfile::tempdir().unwrap();
        SqliteLedger::open(directory.path()).unwrap().close().await;
        let connection = open::for_reading(directory.path(), BUSY_TIMEOUT).unwrap();
        for sql in message_queries() {
            let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let plan = explain.query_map(["inv-1"], |row| row.get::<_, String>(3)).unwrap();
            let plan: Vec<String> = plan.map(Result::unwrap).collect();
            let scans_table = |line: &String| line.starts_with("SCAN") && !line.contains("scopes");
            assert!(!plan.iter().any(scans_table) && plan.iter().any(|line| line.starts_with("SEARCH")), "{plan:?}");
        }
    }
}
