//! The executor, tick by tick, with a publisher whose answers the test chooses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use tokio::time::{advance, pause, resume};

use super::super::super::reading::{KnownConsumer, KnownConsumers};
use super::super::executor::{LEASE, Memory};
use super::super::*;
use super::acting::{accepted, body};
use super::{Fixture, fixture_with};
use crate::formats::Format;
use crate::ledger::conformance::{finish, stored_letter};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{
    ClaimedReplay, LedgerReader, LedgerWriter, LetterOperation, LetterOperationWriter, LetterProgress, LetterSelection,
    LetterState, LetterWriter, NewStoredLetter, OperationAnswer, Replay, ReplayOptions, ReplayState, ToSelect,
};
use crate::message::{Publication, PublishError, Publisher, Unpublished};

/// What the broker does with messages for a queue.
#[derive(Clone, Copy)]
enum Broker {
    Confirms,
    NeverAnswers,
    Refuses,
    /// AMQP cannot carry them.
    CannotCarry,
}

/// Answers by queue.
struct FakePublisher {
    answers: BTreeMap<&'static str, Broker>,
    published: Mutex<Vec<String>>,
}

impl FakePublisher {
    fn new(answers: &[(&'static str, Broker)]) -> Arc<Self> {
        Arc::new(FakePublisher { answers: answers.iter().copied().collect(), published: Mutex::default() })
    }

    /// The queues of all that was published.
    fn published(&self) -> Vec<String> {
        self.published.lock().unwrap().clone()
    }
}

impl Publisher for FakePublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        let queues: Vec<String> = publications.iter().map(|publication| publication.routing_key.clone()).collect();
        assert!(queues.iter().all(|queue| *queue == queues[0]), "one queue at a time: {queues:?}");
        self.published.lock().unwrap().extend(queues);
        let (exchange, routing_key) = (publications[0].exchange.clone(), publications[0].routing_key.clone());
        match self.answers[&*routing_key] {
            Broker::Confirms => async { Ok(()) }.boxed(),
            Broker::NeverAnswers => std::future::pending().boxed(),
            Broker::Refuses => async move {
                let reply = "403 ACCESS_REFUSED".to_owned();
                let refused = |index| {
                    let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
                    (index, PublishError::Refused { exchange, routing_key, reply: reply.clone() })
                };
                Err(Unpublished { failures: (0..publications.len()).map(refused).collect() })
            }
            .boxed(),
            Broker::CannotCarry => async move {
                let problem = "its headers take too many bytes".to_owned();
                let invalid =
                    |index| (index, PublishError::Invalid { exchange: exchange.clone(), problem: problem.clone() });
                Err(Unpublished { failures: (0..publications.len()).map(invalid).collect() })
            }
            .boxed(),
        }
    }
}

fn consumers(known: &[(&str, &str)]) -> KnownConsumers {
    let consumer =
        |name: &str| KnownConsumer { name: Arc::from(name), format: Some(Format::Own), check: |_, _, _| Ok(()) };
    known.iter().map(|(queue, name)| ((*queue).to_owned(), consumer(name))).collect()
}

fn letter(n: u8, queue: &str) -> NewStoredLetter {
    NewStoredLetter { origin_queue: Some(queue.to_owned()), ..stored_letter(&format!("ord-{n}"), n) }
}

async fn start(actions: &LetterActions, letters: impl Iterator<Item = i64>) -> i64 {
    start_with(actions, letters, ReplayOptions::default()).await
}

async fn start_with(actions: &LetterActions, letters: impl Iterator<Item = i64>, options: ReplayOptions) -> i64 {
    let selection = LetterSelection::Ids(letters.collect());
    let request = ReplayRequest { selection, options, dry_run: false, after: 0 };
    actions.start(request, "ada".to_owned()).await.unwrap().replay.id
}

async fn replay(actions: &LetterActions, id: i64) -> Replay {
    actions.replay(id).await.unwrap().replay
}

async fn tick(replayer: &Replayer, memory: &mut Memory, ticks: usize) {
    for _ in 0..ticks {
        replayer.continue_all(memory).await;
    }
}

/// Time goes by, but the claim does not end.
async fn later(duration: Duration) {
    assert!(duration < LEASE / 2);
    pause();
    advance(duration).await;
    resume();
}

fn always_open() -> AccessToQueue {
    Arc::new(|_| QueueAccess::Open)
}

async fn states(ledger: &SqliteLedger, letters: i64) -> Vec<LetterState> {
    let states = (1..=letters).map(|id| async move { ledger.dead_letter(id).await.unwrap().unwrap().letter.state });
    join_all(states).await
}

#[tokio::test]
async fn a_queue_whose_broker_never_confirms_keeps_neither_other_queues_nor_a_stop_waiting_and_is_shown() {
    let publisher = FakePublisher::new(&[("orders", Broker::NeverAnswers), ("carts", Broker::Confirms)]);
    let known = consumers(&[("orders", "order"), ("carts", "cart")]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(known, Arc::<FakePublisher>::clone(&publisher), always_open());
    for (n, queue) in [(1, "orders"), (2, "orders"), (3, "carts"), (4, "carts")] {
        ledger.store_letter(letter(n, queue)).await.unwrap();
    }
    let (first, second, mut memory) = (start(&actions, 1..=3).await, start(&actions, 4..=4).await, Memory::default());
    tick(&replayer, &mut memory, 3).await;
    assert_eq!(replay(&actions, first).await.count(LetterProgress::Published), 1);
    assert_eq!(publisher.published(), ["carts", "orders"], "each once; the second cart waits for the first one");
    later(Duration::from_secs(3)).await;
    tick(&replayer, &mut memory, 1).await;
    let waiting = replayer.running().borrow()[0].waiting.clone().unwrap();
    assert_eq!(waiting.cause, WaitCause::Unconfirmed);
    assert!(waiting.text.contains("orders"), "{waiting:?}");

    actions.stop(first, "ada".to_owned()).await.unwrap();
    tick(&replayer, &mut memory, 1).await;
    assert_eq!(replay(&actions, first).await.state, ReplayState::Stopping);
    assert_eq!(
        states(&ledger, 3).await,
        [LetterState::Replaying, LetterState::Open, LetterState::Replaying],
        "only what was not published is given back"
    );
    actions.stop(first, "ada".to_owned()).await.unwrap();
    tick(&replayer, &mut memory, 3).await;
    assert_eq!(replay(&actions, first).await.state, ReplayState::Stopped);
    assert_eq!(replay(&actions, second).await.count(LetterProgress::Published), 1);
    assert_eq!(publisher.published(), ["carts", "orders", "carts"]);
}

#[tokio::test]
async fn letters_whose_queue_is_another_one_meanwhile_wait_for_the_canary_of_that_queue() {
    // Of a queue whose consumer has another one now, and of one that nobody consumed.
    for (before, origin) in [(&[("orders", "order")][..], "orders"), (&[], "new_orders")] {
        let publisher = FakePublisher::new(&[("new_orders", Broker::Confirms)]);
        let closed = Arc::new(Mutex::new(true));
        let access: AccessToQueue = {
            let closed = Arc::clone(&closed);
            Arc::new(move |_| match *closed.lock().unwrap() {
                true => QueueAccess::Closed(Waiting { cause: WaitCause::Paused, text: "paused".to_owned() }),
                false => QueueAccess::Open,
            })
        };
        // No replay begins of which no letter has a queue: the consumer is removed after that.
        let at_first = if before.is_empty() { &[("new_orders", "order")] } else { before };
        let fixture = fixture_with(consumers(at_first), Arc::<FakePublisher>::clone(&publisher), access);
        let Fixture { ledger, replayer, actions, .. } = &fixture;
        for n in 1..=20 {
            ledger.store_letter(letter(n, origin)).await.unwrap();
        }
        let (id, mut memory) = (start(actions, 1..=20).await, Memory::default());
        fixture.consumers.send_replace(consumers(before));
        tick(replayer, &mut memory, 2).await;
        assert_eq!(replay(actions, id).await.count(LetterProgress::Selected), 20);
        fixture.consumers.send_replace(consumers(&[("new_orders", "order")]));
        memory.consumers_changed();
        tick(replayer, &mut memory, 3).await;
        assert_eq!(publisher.published(), Vec::<String>::new(), "it is paused");
        *closed.lock().unwrap() = false;
        tick(replayer, &mut memory, 20).await;
        assert_eq!(publisher.published(), ["new_orders"], "from {origin}: one is published before its outcome is seen");
    }
}

#[tokio::test]
async fn dead_letters_of_orders_that_were_processed_meanwhile_are_closed_at_once_and_not_at_the_pace_of_a_canary() {
    const LETTERS: u8 = 100;
    let publisher = FakePublisher::new(&[]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(consumers(&[("orders", "order")]), publisher, always_open());
    let store = |n| {
        let ledger = Arc::clone(&ledger);
        async move {
            let id = format!("ord-{n}");
            let body = body(&id, "Laptop", "ada@example.com");
            ledger.record(accepted(&body)).await.unwrap();
            ledger.store_letter(NewStoredLetter { body: body.into(), ..letter(n, "orders") }).await.unwrap();
            ledger.record(finish(&id)).await.unwrap();
        }
    };
    join_all((1..=LETTERS).map(store)).await;
    let (id, mut memory) = (start(&actions, 1..=i64::from(LETTERS)).await, Memory::default());
    tick(&replayer, &mut memory, 10).await;
    let replay = replay(&actions, id).await;
    assert_eq!(replay.skipped, BTreeMap::from([("order_processed".to_owned(), u64::from(LETTERS))]));
    assert_eq!(replay.state, ReplayState::Finished);
}

#[tokio::test]
async fn a_process_that_does_not_carry_replays_out_asks_seldom_whether_it_may() {
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(consumers(&[("orders", "order")]), FakePublisher::new(&[]), always_open());
    ledger.store_letter(letter(1, "orders")).await.unwrap();
    let (replay, at) = (start(&actions, 1..=1).await, Timestamp::now());
    let claim = LetterOperation::Claim { replay, owner: "another".to_owned(), at, until: at + LEASE };
    assert_eq!(ledger.carry_out(claim).await.unwrap(), OperationAnswer::Done(true));
    let mut memory = Memory::default();
    assert_eq!(replayer.continue_all(&mut memory).await, LEASE / 2);
    assert_eq!(replayer.running().borrow().len(), 1, "it is shown");
    assert_eq!(states(&ledger, 1).await, [LetterState::Open]);
}

#[tokio::test]
async fn letters_that_the_broker_never_accepts_are_open_again_once_their_replay_has_stopped() {
    let publisher = FakePublisher::new(&[("orders", Broker::Refuses), ("carts", Broker::Confirms)]);
    let known = consumers(&[("orders", "order"), ("carts", "cart")]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(known, Arc::<FakePublisher>::clone(&publisher), always_open());
    for (n, queue) in [(1, "orders"), (2, "orders"), (3, "carts")] {
        ledger.store_letter(letter(n, queue)).await.unwrap();
    }
    let (id, mut memory) = (start(&actions, 1..=3).await, Memory::default());
    for _ in 0..10 {
        tick(&replayer, &mut memory, 2).await;
        later(Duration::from_secs(4)).await;
    }
    let replay = replay(&actions, id).await;
    assert_eq!((replay.state, replay.end_reason.as_deref()), (ReplayState::Stopped, Some("refused")));
    assert_eq!(publisher.published().iter().filter(|queue| *queue == "orders").count(), 5);
    assert_eq!(states(&ledger, 3).await, [LetterState::Open, LetterState::Open, LetterState::Replaying]);
    assert_eq!(replay.skipped, BTreeMap::from([("refused".to_owned(), 1)]));
    assert_eq!(replay.count(LetterProgress::Unknown), 0);
}

#[tokio::test]
async fn letters_of_many_causes_that_the_broker_never_accepts_are_refused_five_times_and_all_are_open_again() {
    const LETTERS: u8 = 6;
    let publisher = FakePublisher::new(&[("orders", Broker::Refuses)]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(consumers(&[("orders", "order")]), Arc::<FakePublisher>::clone(&publisher), always_open());
    for n in 1..=LETTERS {
        let letter = NewStoredLetter { code: format!("http_{n}"), ..letter(n, "orders") };
        ledger.store_letter(letter).await.unwrap();
    }
    let (id, mut memory) = (start(&actions, 1..=LETTERS.into()).await, Memory::default());
    let mut published = Vec::new();
    for _ in 0..10 {
        tick(&replayer, &mut memory, 2).await;
        published.push(publisher.published().len());
        later(Duration::from_secs(4)).await;
    }
    let rounds = [1, 2, 3, 4].map(|round| round * usize::from(LETTERS));
    assert_eq!(published[..4], [rounds[0], rounds[1], rounds[2], rounds[3]], "after waits of 1, 2 and 4 s");
    assert_eq!(published[9], 5 * usize::from(LETTERS));
    let replay = replay(&actions, id).await;
    assert_eq!((replay.state, replay.end_reason.as_deref()), (ReplayState::Stopped, Some("refused")));
    assert_eq!(states(&ledger, LETTERS.into()).await, [LetterState::Open; LETTERS as usize]);
    assert_eq!(replay.skipped, BTreeMap::from([("refused".to_owned(), LETTERS.into())]));
}

#[tokio::test]
async fn of_many_letters_that_amqp_cannot_carry_all_are_open_again() {
    let publisher = FakePublisher::new(&[("orders", Broker::CannotCarry)]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(consumers(&[("orders", "order")]), publisher, always_open());
    for n in 1..=3 {
        ledger.store_letter(letter(n, "orders")).await.unwrap();
    }
    let options = ReplayOptions { canary: false, ..ReplayOptions::default() };
    let (id, mut memory) = (start_with(&actions, 1..=3, options).await, Memory::default());
    tick(&replayer, &mut memory, 5).await;
    let replay = replay(&actions, id).await;
    assert_eq!(replay.skipped, BTreeMap::from([("cannot_publish".to_owned(), 3)]));
    assert_eq!(replay.state, ReplayState::Finished);
    assert_eq!(states(&ledger, 3).await, [LetterState::Open; 3]);
}

#[tokio::test]
async fn a_letter_that_ends_its_readers_does_not_make_those_after_it_unreadable() {
    let publisher = FakePublisher::new(&[("orders", Broker::Confirms)]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(consumers(&[("orders", "order")]), Arc::<FakePublisher>::clone(&publisher), always_open());
    for n in 1..=4 {
        ledger.store_letter(letter(n, "orders")).await.unwrap();
    }
    let options = ReplayOptions { canary: false, ..ReplayOptions::default() };
    let (id, mut memory) = (start_with(&actions, 1..=4, options).await, Memory::default());
    // Two former processes have ended at the first one.
    for (owner, seconds_ago, tries) in [("first", 60, vec![0; 4]), ("second", 30, vec![1])] {
        let at = Timestamp::now() - Duration::from_secs(seconds_ago);
        let carry_out = async |operation| ledger.carry_out(operation).await.unwrap();
        let claim = LetterOperation::Claim { replay: id, owner: owner.to_owned(), at, until: at + LEASE };
        assert_eq!(carry_out(claim).await, OperationAnswer::Done(true));
        let replay = || ClaimedReplay { id, owner: owner.to_owned() };
        let letters = (1..=4).map(|letter| ToSelect { letter, queue: "orders".to_owned() }).collect();
        carry_out(LetterOperation::Select { replay: replay(), letters, is_named: true, is_last: true, at }).await;
        let reading = LetterOperation::Reading { replay: replay(), letters: (1..=4).collect(), has_ended: false, at };
        assert_eq!(carry_out(reading).await, OperationAnswer::Reading(tries));
    }
    tick(&replayer, &mut memory, 5).await;
    let replay = replay(&actions, id).await;
    assert_eq!(replay.skipped, BTreeMap::from([("unreadable".to_owned(), 1)]));
    assert_eq!(publisher.published().len(), 3);
}

#[tokio::test]
async fn a_replay_that_waits_for_the_first_outcomes_in_another_queue_says_so_and_goes_on_once_that_queue_is_paused() {
    let publisher = FakePublisher::new(&[("orders", Broker::Confirms), ("carts", Broker::Confirms)]);
    let is_paused = Arc::new(Mutex::new(false));
    let access: AccessToQueue = {
        let is_paused = Arc::clone(&is_paused);
        Arc::new(move |queue| match queue == "orders" && *is_paused.lock().unwrap() {
            true => QueueAccess::Closed(Waiting { cause: WaitCause::Paused, text: "paused".to_owned() }),
            false => QueueAccess::Open,
        })
    };
    let known = consumers(&[("orders", "order"), ("carts", "cart")]);
    let Fixture { ledger, replayer, actions, _directory, .. } =
        fixture_with(known, Arc::<FakePublisher>::clone(&publisher), access);
    for n in 1..=10 {
        let letter = NewStoredLetter { code: format!("http_{n}"), ..letter(n, "orders") };
        ledger.store_letter(letter).await.unwrap();
    }
    ledger.store_letter(letter(11, "carts")).await.unwrap();
    let mut memory = Memory::default();
    start(&actions, 1..=10).await;
    tick(&replayer, &mut memory, 3).await;
    start(&actions, 11..=11).await;
    tick(&replayer, &mut memory, 3).await;
    assert_eq!(publisher.published(), ["orders"; 10]);
    let waiting = replayer.running().borrow()[1].waiting.clone().unwrap();
    assert_eq!(waiting.cause, WaitCause::OtherReplay);
    assert!(!waiting.text.contains("same queue"), "{waiting:?}");
    *is_paused.lock().unwrap() = true;
    tick(&replayer, &mut memory, 1).await;
    assert_eq!(publisher.published()[10..], ["carts"]);
}
