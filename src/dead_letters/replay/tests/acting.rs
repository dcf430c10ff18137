//! What a plan says about dead letters, and what the action then does with them.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Digest;

use super::super::super::reading::{KnownConsumer, KnownConsumers};
use super::super::super::whole_letter::WholeLetter;
use super::super::*;
use super::{Fixture, fixture};
use crate::domain::{OrderDocument, OrderId, body_text};
use crate::formats::Format;
use crate::ledger::conformance::stored_letter;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    DeadLetterDetail, DeadLetterFilter, JournalQuery, LedgerEntry, LedgerReader, LedgerWriter, LetterOrder,
    LetterSelection, LetterSource, LetterState, LetterWriter, NewOrder, NewStoredLetter, ReplayOptions,
};
use crate::message::names;

const FILTER: DeadLetterFilter = DeadLetterFilter {
    states: Vec::new(),
    source: None,
    reason: None,
    code: None,
    consumer: None,
    product: None,
    customer: None,
    order: None,
    since: None,
    until: None,
    text: None,
    routing_key: None,
    min_retries: None,
    currency: None,
    min_total: None,
    replay: None,
};

pub(super) fn shop() -> KnownConsumers {
    let consumer = KnownConsumer { name: Arc::from("order"), format: Some(Format::Own), check: |_, _, _| Ok(()) };
    BTreeMap::from([("order_queue".to_owned(), consumer)])
}

fn by_filter(filter: DeadLetterFilter) -> LetterSelection {
    LetterSelection::Filter { filter: Box::new(filter), up_to: i64::MAX }
}

fn code(code: &str) -> LetterSelection {
    by_filter(DeadLetterFilter { code: Some(code.to_owned()), ..FILTER })
}

async fn plan(actions: &LetterActions, selection: LetterSelection) -> Result<ReplayPlan, ActionError> {
    actions.plan(&ReplayRequest { selection, options: ReplayOptions::default(), dry_run: true, after: 0 }).await
}

async fn change(
    actions: &LetterActions,
    action: LetterChangeKind,
    selection: LetterSelection,
    dry_run: bool,
) -> ChangedLetters {
    let note = if action == LetterChangeKind::Release { String::new() } else { "SHOP-7".to_owned() };
    let request = LetterRequest { selection, note, dry_run, after: 0 };
    actions.change_letters(action, request, "ada".to_owned()).await.unwrap()
}

pub(super) fn body(id: &str, product: &str, email: &str) -> Vec<u8> {
    json!({"id": id, "product": product, "quantity": 1, "price": "10.00", "currency": "EUR", "email": email})
        .to_string()
        .into_bytes()
}

pub(super) fn accepted(body: &[u8]) -> LedgerEntry {
    let text = std::str::from_utf8(body).unwrap();
    let OrderDocument::Placed(order) = Format::Own.read(text, None).unwrap() else { panic!("no order") };
    let amounts = Format::Own.check(&order).unwrap();
    LedgerEntry::AcceptOrder(Box::new(NewOrder::new(&order, &Arc::from("order"), amounts, Timestamp::UNIX_EPOCH)))
}

async fn detail(ledger: &SqliteLedger, id: i64) -> DeadLetterDetail {
    ledger.dead_letter(id).await.unwrap().unwrap()
}

async fn last_entry(ledger: &SqliteLedger) -> Value {
    let journal = ledger.journal(JournalQuery { limit: 1, ..JournalQuery::default() }).await.unwrap();
    journal.entries[0].result.clone()
}

fn new_body(revision: i64, body: Vec<u8>) -> NewBody {
    NewBody { revision, body, change_order_id: false }
}

#[tokio::test]
async fn what_cannot_be_replayed_leaves_no_empty_replay_behind() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    for n in 1..=3 {
        let origin_queue = (n == 1).then(|| "order_queue".to_owned());
        let consumer = if n == 1 { "order" } else { "vip" }.to_owned();
        let letter = NewStoredLetter { origin_queue, consumer, ..stored_letter(&format!("ord-{n}"), n) };
        ledger.store_letter(letter).await.unwrap();
    }
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![3]), false).await;
    let start = async |selection| {
        let request = ReplayRequest { selection, options: ReplayOptions::default(), dry_run: false, after: 0 };
        actions.start(request, "ada".to_owned()).await
    };
    for none in [LetterSelection::Ids(vec![2, 3, 99]), code("card_expird")] {
        let refused = start(none).await;
        assert!(matches!(refused, Err(ActionError::Conflict(_))), "{refused:?}");
    }
    for number in [0, -1] {
        let refused = start(LetterSelection::Ids(vec![1, number])).await;
        assert!(matches!(refused, Err(ActionError::Invalid(_))), "{refused:?}");
    }
    assert_eq!(actions.replays().await.unwrap(), []);
    assert_eq!(start(LetterSelection::Ids(vec![1, 2, 3])).await.unwrap().replay.id, 1, "one can be replayed");
}

#[tokio::test]
async fn a_replay_of_held_or_closed_letters_is_refused_and_replays_no_open_ones() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    for n in 1..=2 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![2]), false).await;
    for state in [LetterState::Held, LetterState::Replaying, LetterState::Replayed, LetterState::Discarded] {
        let filter = DeadLetterFilter { states: vec![state], ..FILTER };
        let request = |dry_run| ReplayRequest {
            selection: by_filter(filter.clone()),
            options: ReplayOptions::default(),
            dry_run,
            after: 0,
        };
        let [planned, started] = [
            actions.plan(&request(true)).await.unwrap_err(),
            actions.start(request(false), "ada".to_owned()).await.unwrap_err(),
        ];
        assert!(matches!(started, ActionError::Invalid(_)), "{state:?}: {started:?}");
        assert_eq!(started.to_string(), planned.to_string());
    }
    // The other actions look for the states that they can change, with and without `dry_run`.
    for (action, state) in [
        (LetterChangeKind::Hold, LetterState::Replaying),
        (LetterChangeKind::Release, LetterState::Open),
        (LetterChangeKind::Discard, LetterState::Replayed),
    ] {
        for dry_run in [true, false] {
            let selection = by_filter(DeadLetterFilter { states: vec![state], ..FILTER });
            let note = if action == LetterChangeKind::Release { String::new() } else { "SHOP-7".to_owned() };
            let request = LetterRequest { selection, note, dry_run, after: 0 };
            let refused = actions.change_letters(action, request, "ada".to_owned()).await;
            assert!(matches!(refused, Err(ActionError::Invalid(_))), "{action:?}: {refused:?}");
        }
    }
    assert_eq!(actions.replays().await.unwrap(), []);
}

#[tokio::test]
async fn a_plan_says_which_letters_are_left_out_and_why_and_a_filter_that_finds_nothing_what_there_is() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    for n in 1..=4 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![2]), false).await;
    change(&actions, LetterChangeKind::Discard, LetterSelection::Ids(vec![3]), false).await;
    let named = plan(&actions, LetterSelection::Ids(vec![99, 3, 2, 1, 1])).await.unwrap();
    assert_eq!((named.letters(), named.groups[0].messages), (1, 1));
    assert_eq!(named.groups[0].money["EUR"].to_string(), "1200.10");
    let reasons: Vec<_> = named.not_replayed.iter().map(|letter| (letter.id, letter.reason.as_str())).collect();
    assert_eq!(reasons, [(2, "held"), (3, "discarded"), (99, "missing")]);

    let found = plan(&actions, code("card_expired")).await.unwrap();
    assert_eq!((found.letters(), found.nothing), (2, None));
    change(&actions, LetterChangeKind::Hold, code("card_expired"), false).await;
    let nothing = plan(&actions, code("card_expired")).await.unwrap();
    assert_eq!((nothing.letters(), nothing.not_replayed.len()), (0, 4));
    let others = nothing.nothing.unwrap().other_states;
    assert_eq!(others, BTreeMap::from([(LetterState::Held, 3), (LetterState::Discarded, 1)]));
    for (filter, hint) in [
        (
            DeadLetterFilter { code: Some("card_expird".to_owned()), ..FILTER },
            "has code card_expird; known: card_expired",
        ),
        (DeadLetterFilter { reason: Some("permanant".to_owned()), ..FILTER }, "has reason permanant; known: permanent"),
        (DeadLetterFilter { consumer: Some("oder".to_owned()), ..FILTER }, "has consumer oder; known: order"),
        (DeadLetterFilter { replay: Some(7), ..FILTER }, "there is no replay 7"),
    ] {
        let unknown = plan(&actions, by_filter(filter)).await.unwrap().nothing.unwrap().hint.unwrap();
        assert!(unknown.contains(hint), "{unknown}");
    }
    let held = DeadLetterFilter { states: vec![LetterState::Held], ..FILTER };
    let refused = plan(&actions, by_filter(held)).await;
    assert!(matches!(refused, Err(ActionError::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn an_order_is_not_replayed_to_a_consumer_of_other_messages_that_would_count_it_as_processed() {
    let mut consumers = shop();
    let events = KnownConsumer { name: Arc::from("analytics"), format: None, check: |_, _, _| Ok(()) };
    consumers.insert("analytics_queue".to_owned(), events);
    let Fixture { ledger, actions, _directory, .. } = fixture(consumers);
    let without_total = |letter: NewStoredLetter| {
        let order = LetterOrder { total: None, ..letter.order.clone() };
        NewStoredLetter { order, ..letter }
    };
    let unrouted = |n| NewStoredLetter {
        source: LetterSource::UnroutedQueue,
        consumer: String::new(),
        origin_queue: None,
        ..stored_letter(&format!("unrouted-{n}"), n)
    };
    for letter in [without_total(stored_letter("malformed", 1)), unrouted(2), without_total(unrouted(3))] {
        ledger.store_letter(letter).await.unwrap();
    }
    let plan_to = async |queue: &str| {
        let options = ReplayOptions { to: Some(queue.to_owned()), ..ReplayOptions::default() };
        let selection = LetterSelection::Ids(vec![1, 2, 3]);
        actions.plan(&ReplayRequest { selection, options, dry_run: true, after: 0 }).await.unwrap()
    };
    let plan = plan_to("analytics_queue").await;
    let left_out: Vec<_> = plan.not_replayed.iter().map(|letter| (letter.id, &*letter.reason)).collect();
    assert_eq!(left_out, [(1, "no_order_queue"), (2, "no_order_queue")]);
    assert_eq!(plan.queues, [("analytics_queue".to_owned(), 1)].into());
    assert_eq!(plan_to("order_queue").await.queues, [("order_queue".to_owned(), 3)].into());
}

#[tokio::test]
async fn an_order_is_not_published_to_a_consumer_that_a_reload_has_made_one_of_other_messages() {
    let Fixture { ledger, actions, replayer, consumers, shutdown, _directory, .. } = fixture(shop());
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let options = ReplayOptions { to: Some("order_queue".to_owned()), ..ReplayOptions::default() };
    let request = ReplayRequest { selection: LetterSelection::Ids(vec![1]), options, dry_run: false, after: 0 };
    let replay = actions.start(request, "ada".to_owned()).await.unwrap().replay.id;
    consumers.send_modify(|consumers| consumers.get_mut("order_queue").unwrap().format = None);
    // The publisher of the fixture panics.
    let running = tokio::spawn(Arc::clone(&replayer).run());
    let ended = loop {
        let report = actions.replay(replay).await.unwrap();
        if report.replay.state.has_ended() {
            break report;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(ended.replay.skipped, [("no_order_queue".to_owned(), 1)].into());
    assert_eq!(detail(&ledger, 1).await.letter.state, LetterState::Open);
    shutdown.begin();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_order_that_was_processed_meanwhile_is_to_be_discarded_although_nothing_else_is_replayed() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let processed = body("ord-1", "Laptop", "ada@example.com");
    let price = String::from_utf8(processed).unwrap().replace("10.00", "1200.10").into_bytes();
    ledger.record(accepted(&price)).await.unwrap();
    let finish = LedgerEntry::FinishOrder { id: OrderId::new("ord-1").unwrap(), at: Timestamp::UNIX_EPOCH };
    ledger.record(finish).await.unwrap();
    for selection in [LetterSelection::Ids(vec![1]), code("card_expired")] {
        let plan = plan(&actions, selection).await.unwrap();
        assert_eq!((plan.letters(), &plan.skipped), (1, &BTreeMap::new()), "{plan:?}");
        assert_eq!(plan.discarded, BTreeMap::from([("order_processed".to_owned(), 1)]));
    }
}

#[tokio::test]
async fn what_would_be_changed_is_shown_by_cause_and_a_filter_takes_open_letters_unless_another_state_is_named() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    for n in 1..=3 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![3]), false).await;
    let planned = change(&actions, LetterChangeKind::Discard, by_filter(FILTER), true).await;
    assert_eq!((planned.changed, planned.groups[0].messages, planned.up_to), (2, 2, 3));
    assert_eq!(planned.groups[0].money["EUR"].to_string(), "2400.20");
    assert_eq!(detail(&ledger, 1).await.letter.state, LetterState::Open, "nothing has changed");
    let done = change(&actions, LetterChangeKind::Discard, by_filter(FILTER), false).await;
    assert_eq!((done.changed, done.next), (2, None));
    assert_eq!(detail(&ledger, 3).await.letter.state, LetterState::Held);
    let nothing = change(&actions, LetterChangeKind::Discard, by_filter(FILTER), false).await.nothing.unwrap();
    assert_eq!(nothing.other_states, BTreeMap::from([(LetterState::Held, 1), (LetterState::Discarded, 2)]));
    let held = DeadLetterFilter { states: vec![LetterState::Held], ..FILTER };
    assert_eq!(change(&actions, LetterChangeKind::Discard, by_filter(held), false).await.changed, 1);
    let named = change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![1, 99]), true).await;
    assert_eq!(named.refused, BTreeMap::from([(1, "discarded".to_owned()), (99, "missing".to_owned())]));
}

#[tokio::test]
async fn an_edited_body_keeps_the_orders_id_unless_that_is_meant_and_then_both_orders_lead_to_the_letter() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let other = || body("ord-2", "Laptop", "ada@example.com");
    let refused = actions.edit(1, new_body(0, other()), "ada".to_owned()).await;
    assert!(matches!(refused, Err(ActionError::Conflict(_))), "{refused:?}");
    let meant = NewBody { change_order_id: true, ..new_body(0, other()) };
    let edited = actions.edit(1, meant, "ada".to_owned()).await.unwrap();
    assert_eq!((edited.order_id.as_deref(), edited.former_order_id.as_deref()), (Some("ord-2"), Some("ord-1")));
    let entry = last_entry(&ledger).await;
    assert_eq!((&entry["revision"], &entry["order_id"]), (&json!(1), &json!({"before": "ord-1", "after": "ord-2"})));
    for order in ["ord-1", "ord-2"] {
        let found =
            plan(&actions, by_filter(DeadLetterFilter { order: Some(order.to_owned()), ..FILTER })).await.unwrap();
        assert_eq!(found.letters(), 1, "{order}");
    }
    assert_eq!(detail(&ledger, 1).await.letter.former_order_id.as_deref(), Some("ord-1"));
    // Back to what it was.
    let back = NewBody { change_order_id: true, ..new_body(1, body("ord-1", "Laptop", "ada@example.com")) };
    actions.edit(1, back, "ada".to_owned()).await.unwrap();
    assert_eq!(detail(&ledger, 1).await.letter.former_order_id, None);
}

#[tokio::test]
async fn a_release_of_the_letters_of_a_replay_opens_only_those_that_no_replay_is_to_bring_an_outcome() {
    let Fixture { ledger, actions, _directory: directory, .. } = fixture(shop());
    for n in 1..=6 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![6]), false).await;
    let rows = "INSERT INTO replays (id, state, actor, options, token, selected_to, began_at)
                VALUES (3, 'finished', 'ada', '{}', x'00', 6, 1), (4, 'running', 'ada', '{}', x'01', 6, 2);
                -- Nobody knows; is retried until some day; is in the next replay; is in that one only; was given back and held.
                INSERT INTO replay_letters (replay_id, letter_id, key, state, due_at, changed_at)
                VALUES (3, 1, 'a', 'unknown', NULL, 1), (3, 2, 'b', 'retrying', 9000000000000, 1),
                       (3, 3, 'c', 'unknown', NULL, 1), (4, 3, 'd', 'published', 2, 2), (4, 4, 'e', 'unknown', NULL, 2),
                       (3, 5, 'f', 'published', 2, 1), (3, 6, 'g', 'returned', NULL, 1);
                UPDATE stored_dead_letters SET state = 'replaying' WHERE id <= 5";
    rusqlite::Connection::open(directory.path().join("orderd.db")).unwrap().execute_batch(rows).unwrap();
    let of = |replay| by_filter(DeadLetterFilter { replay: Some(replay), ..FILTER });
    assert_eq!(change(&actions, LetterChangeKind::Release, of(3), true).await.changed, 2, "nothing has changed yet");
    for (replay, changed) in [(4, 0), (3, 2), (3, 0)] {
        let released = change(&actions, LetterChangeKind::Release, of(replay), false).await;
        assert_eq!((released.changed, released.refused.len()), (changed, 0), "{replay}");
    }
    let mut states = Vec::new();
    for id in 1..=6 {
        states.push(detail(&ledger, id).await.letter.state.as_str());
    }
    assert_eq!(states, ["open", "replaying", "replaying", "replaying", "open", "held"]);
    let by_number = change(&actions, LetterChangeKind::Release, LetterSelection::Ids(vec![2, 3, 4]), false).await;
    assert_eq!((by_number.changed, by_number.refused.len()), (0, 3), "nor by number");
}

#[tokio::test]
async fn the_journal_has_the_hashes_of_the_bodies_before_and_after_an_edit_as_they_are_stored_and_shown() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&body("ord-1", "Laptop", "ada@example.com")).unwrap();
    let original = gzip.finish().unwrap();
    let properties = json!({"content_encoding": "gzip"}).to_string();
    let letter = NewStoredLetter { body: original.clone().into(), properties, ..stored_letter("ord-1", 1) };
    ledger.store_letter(letter).await.unwrap();
    let hash = |body: &[u8]| {
        let digest: [u8; 32] = sha2::Sha256::digest(body).into();
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut before = original;
    for revision in [0, 1] {
        let product = format!("Laptop {revision}");
        actions
            .edit(1, new_body(revision, body("ord-1", &product, "ada@example.com")), "ada".to_owned())
            .await
            .unwrap();
        let after = detail(&ledger, 1).await;
        let entry = last_entry(&ledger).await;
        let expected = json!({"before": hash(&before), "after": hash(&after.content.body)});
        assert_eq!(entry, json!({"revision": revision + 1, "body_sha256": expected}), "compressed, as it is stored");
        before.clone_from(&after.content.body);
        assert_eq!(WholeLetter::from(after).body_sha256, hash(&before));
    }
}

#[tokio::test]
async fn an_accepted_order_is_edited_only_where_the_ledger_does_not_compare_it() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    let original = body("ord-1", "Unicorn", "ada@example.com");
    let mut letter = NewStoredLetter { body: original.clone().into(), ..stored_letter("ord-1", 1) };
    letter.order.total = Some(("10.00".to_owned(), "EUR".to_owned()));
    ledger.store_letter(letter).await.unwrap();
    assert!(!actions.draft(1).await.unwrap().is_accepted);
    ledger.record(accepted(&original)).await.unwrap();
    assert!(actions.draft(1).await.unwrap().is_accepted);
    let other = actions.edit(1, new_body(0, body("ord-1", "Laptop", "ada@example.com")), "ada".to_owned()).await;
    assert!(matches!(other, Err(ActionError::Conflict(_))), "{other:?}");
    actions.edit(1, new_body(0, body("ord-1", "Unicorn", "ada@example.org")), "ada".to_owned()).await.unwrap();
    let outdated = actions.edit(1, new_body(0, body("ord-1", "Unicorn", "x@example.org")), "ada".to_owned()).await;
    assert!(matches!(outdated, Err(ActionError::Conflict(_))), "{outdated:?}");
}

#[tokio::test]
async fn an_order_whose_steps_are_still_to_be_undone_keeps_its_id_since_its_replays_would_not_take_another() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    let run = format!("1/{}//ord-1", "00".repeat(32));
    let typed = |text: &str| json!({"type": "string", "value": text});
    let headers = json!({names::FAILURE_KIND: typed("permanent"), names::RUN: typed(&run)}).to_string();
    let properties = json!({"user_id": "orderd"}).to_string();
    let reason = "undo_failed".to_owned();
    let letter = NewStoredLetter { reason, headers, properties, ..stored_letter("ord-1", 1) };
    ledger.store_letter(letter).await.unwrap();
    for change_order_id in [false, true] {
        let other = NewBody { change_order_id, ..new_body(0, body("ord-2", "Laptop", "ada@example.com")) };
        let refused = actions.edit(1, other, "ada".to_owned()).await;
        assert!(matches!(&refused, Err(ActionError::Conflict(text)) if text.contains("\"ord-1\"")), "{refused:?}");
    }
    actions.edit(1, new_body(0, body("ord-1", "Laptop", "ada@example.org")), "ada".to_owned()).await.unwrap();
}

#[tokio::test]
async fn a_letter_that_cannot_be_edited_is_refused_before_its_body_is_shown() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    for n in 1..=2 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    change(&actions, LetterChangeKind::Discard, LetterSelection::Ids(vec![1]), false).await;
    change(&actions, LetterChangeKind::Hold, LetterSelection::Ids(vec![2]), false).await;
    assert!(matches!(actions.draft(1).await, Err(ActionError::Conflict(_))));
    assert!(matches!(actions.draft(99).await, Err(ActionError::Missing(_))));
    assert_eq!(actions.draft(2).await.unwrap().order_id.as_deref(), Some("ord-2"));
}

#[tokio::test]
async fn a_compressed_body_is_edited_as_text_and_stored_as_its_properties_say() {
    let Fixture { ledger, actions, _directory, .. } = fixture(shop());
    let text = body("ord-1", "Laptop", "ada@example.com");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    for (n, (encoding, stored)) in [(Some("gzip"), &gzip), (None, &gzip), (Some("br"), &text)].into_iter().enumerate() {
        let id = i64::try_from(n).unwrap() + 1;
        let properties = encoding.map_or_else(|| json!({}), |encoding| json!({"content_encoding": encoding}));
        let letter = NewStoredLetter {
            body: stored.clone().into(),
            properties: properties.to_string(),
            ..stored_letter("ord-1", u8::try_from(id).unwrap())
        };
        ledger.store_letter(letter).await.unwrap();
        let draft = actions.draft(id).await.unwrap();
        assert_eq!(STANDARD.decode(draft.body_base64).unwrap(), text, "{encoding:?}");
        let new = body("ord-1", "Laptop", "ada@example.org");
        actions.edit(id, new_body(0, new.clone()), "ada".to_owned()).await.unwrap();
        let content = detail(&ledger, id).await.content;
        let encoding = content.properties["content_encoding"].as_str();
        let read = body_text(&content.body, encoding, 1 << 20).unwrap().into_owned();
        assert_eq!(read.into_bytes(), new, "it can be read: {encoding:?}");
    }
}
