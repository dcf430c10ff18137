//! A collector with a queue that the test feeds and the ledger in memory: when a delivery is acked, and when it is not.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::*;
use crate::dead_letters::KnownConsumers;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{DeadLetterFilter, DeadLetterQuery, LedgerMaintenance, LedgerReader, OutageCause};
use crate::message::{ExchangeNames, Message, SettleError, Settler, SubscribeError, TrustedUsers};

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
    tags: u64,
    _consumers: watch::Sender<KnownConsumers>,
}

impl Env {
    async fn start() -> Env {
        let (queue, ledger) = (Arc::new(FakeQueue::default()), Arc::new(MemoryLedger::default()));
        let consumers = watch::Sender::new(BTreeMap::new());
        let reader = LetterReader {
            names: Arc::new(ExchangeNames::new("orders")),
            users: Arc::new(TrustedUsers::known("orderd")),
            max_body: 1 << 20,
            consumers: consumers.subscribe(),
        };
        let deps = CollectorDeps {
            source: Arc::clone(&queue) as Arc<dyn Consumer>,
            ledger: Arc::clone(&ledger) as Arc<dyn LetterWriter>,
            ledger_state: ledger.state(),
            reader: Arc::new(reader),
            reconnect_max: Duration::from_secs(1),
            shutdown: Shutdown::new(),
        };
        let (counters, stop) = (Arc::new(CollectorCounters::default()), CancellationToken::new());
        let collector = Collector::new(LetterSource::DeadLetterQueue, deps, Arc::clone(&counters), stop.clone());
        let task = tokio::spawn(Arc::new(collector).run());
        let env = Env { queue, ledger, counters, stop, task, tags: 0, _consumers: consumers };
        env.until(|env| env.counters.read().subscribed).await;
        env
    }

    async fn until(&self, is: impl Fn(&Env) -> bool) {
        while !is(self) {
            tokio::task::yield_now().await;
        }
    }

    /// Delivers a message; `unread`: how much of its body is missing.
    fn deliver(&mut self, body: &'static str, unread: usize) -> u64 {
        self.tags += 1;
        let message = Message { body: Bytes::from_static(body.as_bytes()), unread, ..Message::default() };
        let delivery = Delivery {
            id: DeliveryId { connection: 1, tag: self.tags },
            exchange: String::new(),
            routing_key: "dead_letter_queue".to_owned(),
            redelivered: false,
            message,
        };
        self.queue.feed.lock().unwrap().as_ref().unwrap().send(delivery).unwrap();
        self.tags
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
