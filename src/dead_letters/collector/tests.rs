//! A collector with a queue that the test feeds and the ledger in memory: when a delivery is acked, and when it is not.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::*;
use crate::dead_letters::KnownConsumers;
use crate::dead_letters::fingerprint::fingerprint;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{DeadLetterFilter, DeadLetterQuery, LedgerMaintenance, LedgerReader, OutageCause};
use crate::message::{
    Delivery, DeliveryId, ExchangeNames, HeaderValue, Message, SettleError, Settler, SubscribeError, TrustedUsers,
    names,
};

type Settled = Arc<Mutex<Vec<(u64, Settlement)>>>;
type Feed = mpsc::UnboundedSender<Delivery>;

/// The queue: the test feeds the latest subscription.
#[derive(Default)]
struct FakeQueue {
    prefetches: Mutex<Vec<u16>>,
    /// `None` once the consumer is cancelled.
    feed: Arc<Mutex<Option<Feed>>>,
    settled: Settled,
}

struct FakeSettler {
    settled: Settled,
    feed: Arc<Mutex<Option<Feed>>>,
}

impl Settler for FakeSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        self.settled.lock().unwrap().push((delivery.tag, settlement));
    }
    fn ended(&self) -> BoxFuture<'static, LossCause> {
        Box::pin(std::future::pending())
    }
    fn was_ended_by_broker(&self) -> bool {
        false
    }
    fn cancel(&self) -> BoxFuture<'static, ()> {
        self.feed.lock().unwrap().take();
        Box::pin(async {})
    }
    fn cancel_when_idle(&self) -> BoxFuture<'static, ()> {
        self.cancel()
    }
    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Consumer for FakeQueue {
    fn subscribe(&self, _queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        self.prefetches.lock().unwrap().push(prefetch);
        let (feed, received) = mpsc::unbounded_channel();
        *self.feed.lock().unwrap() = Some(feed);
        let deliveries = futures_util::stream::unfold(received, |mut received| async move {
            received.recv().await.map(|delivery| (delivery, received))
        });
        let settler = Arc::new(FakeSettler { settled: Arc::clone(&self.settled), feed: Arc::clone(&self.feed) });
        let (address, silent) = ("test".into(), Arc::default());
        Box::pin(async move { Ok(Subscription { deliveries: deliveries.boxed(), settler, address, silent }) })
    }
}

struct Env {
    queue: Arc<FakeQueue>,
    ledger: Arc<MemoryLedger>,
    counters: Arc<CollectorCounters>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Infallible>>,
    pause: watch::Sender<Option<CollectionPause>>,
    tags: u64,
    _consumers: watch::Sender<KnownConsumers>,
}

impl Env {
    async fn start() -> Env {
        let env = Env::new(None);
        env.until(|env| env.counters.read().subscribed).await;
        env
    }

    fn new(pause: Option<CollectionPause>) -> Env {
        let (queue, ledger) = (Arc::new(FakeQueue::default()), Arc::new(MemoryLedger::default()));
        let (consumers, pause) = (watch::Sender::new(BTreeMap::new()), watch::Sender::new(pause));
        let parser = LetterParser {
            names: Arc::new(ExchangeNames::new("orders")),
            users: Arc::new(TrustedUsers::known("orderd")),
            max_body: 1 << 20,
            consumers: consumers.subscribe(),
        };
        let deps = CollectorDeps {
            source: Arc::clone(&queue) as Arc<dyn Consumer>,
            ledger: Arc::clone(&ledger) as Arc<dyn LetterWriter>,
            ledger_state: ledger.state(),
            pause: pause.subscribe(),
            parser: Arc::new(parser),
            reconnect_max: Duration::from_secs(1),
            shutdown: Shutdown::new(),
        };
        let (counters, stop) = (Arc::new(CollectorCounters::default()), CancellationToken::new());
        let collector = Collector::new(LetterSource::DeadLetterQueue, deps, Arc::clone(&counters), stop.clone());
        let task = tokio::spawn(Arc::new(collector).run());
        Env { queue, ledger, counters, stop, task, pause, tags: 0, _consumers: consumers }
    }

    async fn until(&self, is: impl Fn(&Env) -> bool) {
        while !is(self) {
            tokio::task::yield_now().await;
        }
    }

    /// Delivers a message; `missing_bytes`: how much of its body is missing.
    fn deliver(&mut self, body: &'static str, missing_bytes: usize) -> u64 {
        let delivery = self.delivery(body, missing_bytes, None);
        self.queue.feed.lock().unwrap().as_ref().unwrap().send(delivery).unwrap();
        self.tags
    }

    /// `count`: how often the broker has delivered it before.
    fn delivery(&mut self, body: &'static str, missing_bytes: usize, count: Option<i64>) -> Delivery {
        self.tags += 1;
        let headers =
            count.map(|count| (names::DELIVERY_COUNT.to_owned(), HeaderValue::I64(count))).into_iter().collect();
        let message =
            Message { body: Bytes::from_static(body.as_bytes()), headers, missing_bytes, ..Message::default() };
        Delivery {
            id: DeliveryId { connection: 1, tag: self.tags },
            exchange: String::new(),
            routing_key: "dead_letter_queue".to_owned(),
            redelivered: count.is_some(),
            message,
        }
    }

    fn settled(&self) -> Vec<(u64, Settlement)> {
        self.queue.settled.lock().unwrap().clone()
    }

    async fn stored(&self) -> u64 {
        self.ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap().messages
    }
}

#[tokio::test]
async fn a_delivery_is_acked_once_it_is_stored_and_not_before() {
    let mut env = Env::start().await;
    env.ledger.begin_outage(OutageCause::DiskFull);
    let tag = env.deliver("a", 0);
    env.until(|env| env.counters.read().in_flight == 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(env.settled(), []);
    env.ledger.end_outage();
    env.until(|env| !env.settled().is_empty()).await;
    assert_eq!((env.settled(), env.stored().await), (vec![(tag, Settlement::Ack)], 1));
    let query = DeadLetterQuery { limit: 1, ..DeadLetterQuery::default() };
    let letter = env.ledger.dead_letters(query).await.unwrap().letters.remove(0);
    assert_eq!((letter.reason.as_str(), letter.consumer, letter.identity), ("foreign", None, None));
}

#[tokio::test]
async fn a_message_that_is_too_large_stays_in_the_queue_and_those_behind_it_are_stored() {
    let mut env = Env::start().await;
    env.deliver("the beginning", 1);
    let behind = env.deliver("b", 0);
    env.until(|env| env.counters.read().stored == 1 && env.counters.read().too_large == 1).await;
    assert_eq!(env.settled(), [(behind, Settlement::Ack)], "the first one is neither acked nor dropped");
    env.stop.cancel();
    env.task.await.unwrap().unwrap();
    // Closing the subscription has returned it to the queue.
    assert_eq!((env.counters.read().released, env.ledger.close().await), (1, ()));
}

#[tokio::test]
async fn many_messages_that_are_too_large_do_not_take_the_places_of_the_others() {
    let mut env = Env::start().await;
    for _ in 0..SLOTS {
        env.deliver("the beginning", 1);
    }
    env.until(|env| env.queue.prefetches.lock().unwrap().len() == 2 && env.counters.read().subscribed).await;
    let prefetches = env.queue.prefetches.lock().unwrap().clone();
    assert!(usize::from(prefetches[1]) > 2 * SLOTS, "{prefetches:?}");
    let stored = env.deliver("b", 0);
    env.until(|env| env.settled() == [(stored, Settlement::Ack)]).await;
}

#[tokio::test]
async fn a_collector_that_is_stopped_stores_what_it_has_received() {
    let mut env = Env::start().await;
    let bodies = ["a", "b", "c"];
    for body in bodies {
        env.deliver(body, 0);
    }
    env.stop.cancel();
    env.task.await.unwrap().unwrap();
    let stored = env.ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap().messages;
    assert_eq!((stored, env.counters.read().stored), (3, 3));
}

#[tokio::test]
async fn a_collector_that_is_stopped_during_an_outage_leaves_what_it_has_received_in_the_queue() {
    let mut env = Env::start().await;
    env.ledger.begin_outage(OutageCause::DiskFull);
    env.deliver("a", 0);
    env.until(|env| env.counters.read().in_flight == 1).await;
    env.stop.cancel();
    env.task.await.unwrap().unwrap();
    let settled = env.queue.settled.lock().unwrap().clone();
    assert_eq!((settled, env.counters.read().released), (vec![], 1));
    assert!(env.queue.feed.lock().unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn dead_letters_wait_for_the_consumers_and_give_way_when_those_need_the_connection_or_the_disk() {
    let mut env = Env::new(Some(CollectionPause::Consumers));
    env.until(|env| env.counters.read().pause == Some(CollectionPause::Consumers)).await;
    assert!(env.queue.prefetches.lock().unwrap().is_empty());
    for cause in [CollectionPause::ConnectionLimit, CollectionPause::DiskSpace] {
        env.pause.send_replace(None);
        env.until(|env| env.counters.read().subscribed).await;
        env.pause.send_replace(Some(CollectionPause::Consumers));
        let tag = env.deliver("a", 0);
        env.until(|env| env.settled().contains(&(tag, Settlement::Ack))).await;
        assert!(env.counters.read().subscribed, "a consumer that subscribes anew needs no other connection");
        env.pause.send_replace(Some(cause));
        env.until(|env| env.counters.read().pause == Some(cause)).await;
        assert!(!env.counters.read().subscribed && env.queue.feed.lock().unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_the_ledger_has_no_room_for_stays_in_its_queue_and_is_tried_again_later() {
    let mut env = Env::start().await;
    env.ledger.refuse_next_letter(OutageCause::DiskFull);
    env.deliver("a", 0);
    let other = env.deliver("b", 0);
    env.until(|env| env.counters.read().pause == Some(CollectionPause::DiskSpace)).await;
    assert_eq!((env.settled(), env.counters.read().released), (vec![(other, Settlement::Ack)], 1));
    tokio::time::advance(NO_ROOM_WAIT).await;
    env.until(|env| env.counters.read().subscribed).await;
    let again = env.deliver("a", 0);
    env.until(|env| env.settled().contains(&(again, Settlement::Ack))).await;
    assert_eq!(env.counters.read().pause, None);
}

#[tokio::test]
async fn a_message_that_came_back_often_is_read_unless_a_process_ended_while_it_did() {
    let order = r#"{"id":"ord-1","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR"}"#;
    for (is_marked, expected) in [(false, Some("ord-1")), (true, None)] {
        let mut env = Env::start().await;
        let delivery = env.delivery(order, 0, Some(7));
        let print = fingerprint("dead_letter_queue", &delivery);
        if is_marked {
            assert!(!env.ledger.begin_parsing(print, "another process".to_owned()).await.unwrap());
        }
        env.queue.feed.lock().unwrap().as_ref().unwrap().send(delivery).unwrap();
        env.until(|env| !env.settled().is_empty()).await;
        let letter = env.ledger.dead_letter(1).await.unwrap().unwrap().letter;
        assert_eq!((letter.order_id.as_deref(), letter.unparsed), (expected, is_marked));
        assert!(!env.ledger.begin_parsing(print, "a third process".to_owned()).await.unwrap(), "the mark is removed");
    }
}
