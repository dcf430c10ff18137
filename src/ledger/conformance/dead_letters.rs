//! The store of dead letters: each message is stored once, and found by everything that is known about it.

use super::{Ledger, accept, at, finish, order, rules, stored_letter};
use crate::ledger::{
    DeadLetterFilter, DeadLetterQuery, Identification, LetterOrder, LetterSource, LetterState, NewStoredLetter,
    Recorded, StoreAnswer,
};

rules! {
    a_message_that_is_delivered_again_is_stored_once,
    a_message_without_an_id_is_never_taken_for_another_one_with_the_same_content,
    a_message_is_read_by_the_process_that_said_so_and_by_no_other_until_it_is_stored,
    an_order_is_not_forgotten_while_a_dead_letter_of_it_may_be_replayed,
    messages_are_found_by_everything_that_is_known_about_them,
    pages_follow_each_other_in_both_directions,
    groups_add_up_messages_and_money_by_cause,
    the_cause_of_unrouted_messages_is_their_routing_key,
    a_stored_message_is_whole,
}

async fn store(ledger: &dyn Ledger, letter: NewStoredLetter) -> StoreAnswer {
    ledger.store_letter(letter).await.unwrap()
}

/// A message that says neither which message nor which order it is.
pub(super) fn without_id(session: &str, redelivered: bool) -> NewStoredLetter {
    let identification = Identification::Unidentified;
    NewStoredLetter {
        identity: None,
        identification,
        redelivered,
        session: session.to_owned(),
        ..stored_letter("x", 1)
    }
}

async fn found(ledger: &dyn Ledger, filter: DeadLetterFilter) -> Vec<i64> {
    let query = DeadLetterQuery { filter, limit: 100, ..DeadLetterQuery::default() };
    ledger.dead_letters(query).await.unwrap().letters.iter().map(|letter| letter.id).collect()
}

async fn a_message_that_is_delivered_again_is_stored_once(ledger: &dyn Ledger) {
    let letter = || stored_letter("ord-1", 1);
    assert_eq!(store(ledger, letter()).await, StoreAnswer::Stored(1));
    for session in ["a", "b"] {
        let again = NewStoredLetter { session: session.to_owned(), ..letter() };
        assert_eq!(store(ledger, again).await, StoreAnswer::Duplicate(1));
    }
    assert_eq!(store(ledger, stored_letter("ord-1", 2)).await, StoreAnswer::Stored(2), "its content differs");
}

async fn a_message_without_an_id_is_never_taken_for_another_one_with_the_same_content(ledger: &dyn Ledger) {
    let session_a = [without_id("a", false), without_id("a", true)];
    // The first may have lost its ack with session a, or may be a third one, which only session b has received.
    let session_b = [without_id("b", true), without_id("b", false)];
    for (letter, id) in session_a.into_iter().chain(session_b).zip(1..) {
        assert_eq!(store(ledger, letter).await, StoreAnswer::Stored(id));
    }
    let query = DeadLetterQuery { after: Some(0), limit: 10, ..DeadLetterQuery::default() };
    let letters = ledger.dead_letters(query).await.unwrap().letters;
    let originals: Vec<_> = letters.iter().map(|letter| letter.maybe_duplicate_of).collect();
    assert_eq!(originals, [None, None, Some(2), None]);
}

async fn a_message_is_read_by_the_process_that_said_so_and_by_no_other_until_it_is_stored(ledger: &dyn Ledger) {
    let begin = |process: &str| ledger.begin_parsing([1; 32], process.to_owned());
    for (process, expected) in [("a", false), ("a", false), ("b", true)] {
        assert_eq!(begin(process).await.unwrap(), expected, "{process}");
    }
    assert!(!ledger.begin_parsing([2; 32], "b".to_owned()).await.unwrap(), "it is another message");
    store(ledger, stored_letter("ord-1", 1)).await;
    assert!(!begin("b").await.unwrap());
    ledger.end_parsing([1; 32]).await.unwrap();
    assert!(!begin("c").await.unwrap(), "b has read it");
}

async fn an_order_is_not_forgotten_while_a_dead_letter_of_it_may_be_replayed(ledger: &dyn Ledger) {
    for id in ["ord-1", "ord-2"] {
        ledger.record(accept(order(id))).await.unwrap();
        ledger.record(finish(id)).await.unwrap();
    }
    // Of an order that was sent again and processed meanwhile.
    store(ledger, stored_letter("ord-1", 1)).await;
    while ledger.prune(at(1_000_000_000)).await.unwrap().more {}
    let recorded = async |id| ledger.record(accept(order(id))).await.unwrap();
    assert_eq!(recorded("ord-1").await, Recorded::Duplicate, "a replay would charge its customer twice");
    assert_eq!(recorded("ord-2").await, Recorded::New);
}

async fn messages_are_found_by_everything_that_is_known_about_them(ledger: &dyn Ledger) {
    let mut first = stored_letter("ord-1", 1);
    first.order.products = vec!["Laptop".to_owned(), "Lamp".to_owned()];
    first.order.customer_id = Some("ada".to_owned());
    first.search = "ord-1\nlaptop\ngrüße".to_owned();
    let second = NewStoredLetter {
        source: LetterSource::UnroutedQueue,
        reason: "unrouted".to_owned(),
        code: "unrouted".to_owned(),
        consumer: String::new(),
        failed_at: at(9_000),
        retries: 0,
        order: LetterOrder { total: Some(("0.30".to_owned(), "USD".to_owned())), ..stored_letter("ord-2", 2).order },
        ..stored_letter("ord-2", 2)
    };
    store(ledger, first).await;
    store(ledger, second).await;
    let any = DeadLetterFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let total = |total: &str| Some(total.parse().unwrap());
    for (filter, expected) in [
        (any(), &[2, 1][..]),
        (DeadLetterFilter { states: vec![LetterState::Open], ..any() }, &[2, 1]),
        (DeadLetterFilter { source: Some(LetterSource::UnroutedQueue), ..any() }, &[2]),
        (DeadLetterFilter { reason: text("permanent"), ..any() }, &[1]),
        (DeadLetterFilter { code: text("unrouted"), ..any() }, &[2]),
        (DeadLetterFilter { consumer: text("order"), ..any() }, &[1]),
        (DeadLetterFilter { product: text("Lamp"), ..any() }, &[1]),
        (DeadLetterFilter { customer: text("ada"), ..any() }, &[1]),
        (DeadLetterFilter { order: text("ord-2"), ..any() }, &[2]),
        (DeadLetterFilter { since: Some(at(9_000)), ..any() }, &[2]),
        (DeadLetterFilter { until: Some(at(9_000)), ..any() }, &[1]),
        (DeadLetterFilter { min_retries: Some(3), ..any() }, &[1]),
        (DeadLetterFilter { min_retries: Some(0), ..any() }, &[2, 1]),
        (DeadLetterFilter { min_retries: Some(4), ..any() }, &[]),
        (DeadLetterFilter { currency: text("usd"), ..any() }, &[2]),
        (DeadLetterFilter { min_total: total("1200.1"), ..any() }, &[1]),
        (DeadLetterFilter { min_total: total("1200.11"), ..any() }, &[]),
        (DeadLetterFilter { min_total: total("0.3"), ..any() }, &[2, 1]),
        (DeadLetterFilter { min_total: total("0.3"), currency: text("EUR"), ..any() }, &[1]),
        (DeadLetterFilter { min_total: total("1"), currency: text("USD"), ..any() }, &[]),
        (DeadLetterFilter { text: text("GRÜSSE"), ..any() }, &[]),
        (DeadLetterFilter { text: text("GRÜßE"), ..any() }, &[1]),
        (DeadLetterFilter { text: text("%"), ..any() }, &[]),
        (DeadLetterFilter { product: text("Lamp"), customer: text("bob"), ..any() }, &[]),
    ] {
        assert_eq!(found(ledger, filter.clone()).await, expected, "{filter:?}");
    }
}

async fn pages_follow_each_other_in_both_directions(ledger: &dyn Ledger) {
    for n in 1..=5 {
        store(ledger, stored_letter("ord", n)).await;
    }
    let page = async |before, after| {
        let query = DeadLetterQuery { before, after, limit: 2, ..DeadLetterQuery::default() };
        let page = ledger.dead_letters(query).await.unwrap();
        (page.letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(page(None, None).await, (vec![5, 4], true));
    assert_eq!(page(Some(4), None).await, (vec![3, 2], true));
    assert_eq!(page(Some(2), None).await, (vec![1], false));
    assert_eq!(page(None, Some(0)).await, (vec![1, 2], true));
    assert_eq!(page(None, Some(3)).await, (vec![4, 5], false));
    let whole = async |limit, budget| {
        let query = DeadLetterQuery { after: Some(0), limit, ..DeadLetterQuery::default() };
        let page = ledger.whole_dead_letters(query, budget).await.unwrap();
        (page.letters.iter().map(|detail| detail.letter.id).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(whole(5, 1 << 20).await, (vec![1, 2, 3, 4, 5], false));
    assert_eq!(whole(2, 1 << 20).await, (vec![1, 2], true));
    assert_eq!(whole(5, 1).await, (vec![1], true), "its body is larger than that");
    let bytes = stored_letter("ord", 1).body.len();
    assert_eq!(whole(5, 2 * bytes).await, (vec![1, 2], true));
    assert_eq!(whole(5, 3 * bytes - 1).await, (vec![1, 2], true), "with the third one, it would be too much");
}

async fn the_cause_of_unrouted_messages_is_their_routing_key(ledger: &dyn Ledger) {
    let of_key = |content, source, key: &str| NewStoredLetter {
        source,
        routing_key: key.to_owned(),
        ..stored_letter("ord-1", content)
    };
    let (unrouted, dead) = (LetterSource::UnroutedQueue, LetterSource::DeadLetterQueue);
    for (content, source, key) in [
        (1, unrouted, "oder.normal"),
        (2, unrouted, "oder.normal"),
        (3, unrouted, "order.nrmal"),
        (4, dead, "a"),
        (5, dead, "b"),
    ] {
        store(ledger, of_key(content, source, key)).await;
    }
    let groups = ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap().groups;
    let counts: Vec<_> = groups.iter().map(|group| (group.messages, group.routing_key.as_deref())).collect();
    assert_eq!(counts, [(2, None), (2, Some("oder.normal")), (1, Some("order.nrmal"))]);
    let typo = DeadLetterFilter { routing_key: Some("order.nrmal".to_owned()), ..DeadLetterFilter::default() };
    assert_eq!(found(ledger, typo).await, [3]);
}

async fn groups_add_up_messages_and_money_by_cause(ledger: &dyn Ledger) {
    for n in 1..=3 {
        store(ledger, stored_letter("ord", n)).await;
    }
    store(ledger, NewStoredLetter { code: "other".to_owned(), ..stored_letter("ord", 4) }).await;
    let groups = ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap();
    assert_eq!((groups.messages, groups.groups.len()), (4, 2));
    let first = &groups.groups[0];
    assert_eq!((first.messages, first.code.as_str(), first.example), (3, "card_expired", 3));
    assert_eq!(first.money["EUR"].to_string(), "3600.30");
    let open = ledger.unresolved_dead_letters().await.unwrap();
    assert_eq!((open.sums.len(), open.sums[0].messages, open.oldest()), (1, 4, Some(at(6_000))));
    assert_eq!(open.money()["EUR"].to_string(), "4800.40");
}

async fn a_stored_message_is_whole(ledger: &dyn Ledger) {
    let letter = NewStoredLetter { body: vec![0, 255, b'\n'].into(), ..stored_letter("ord-1", 1) };
    store(ledger, letter).await;
    let detail = ledger.dead_letter(1).await.unwrap().unwrap();
    assert_eq!((&*detail.content.body, detail.content.revision), (&[0, 255, b'\n'][..], 0));
    assert_eq!(detail.content.headers["x-retry-count"]["value"], 3);
    assert_eq!((detail.letter.retries, detail.products.len()), (3, 1));
    assert_eq!(ledger.dead_letter(2).await.unwrap(), None);
}
