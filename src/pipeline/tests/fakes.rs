//! Fakes of the queue that a pool consumes and of the publisher.

use super::*;

pub(super) type Settled = Arc<Mutex<Vec<(u64, Settlement)>>>;
type Feed = mpsc::UnboundedSender<Delivery>;
type Open = Arc<Mutex<Option<()>>>;

/// The queue that the pool consumes. The test feeds the latest subscription.
#[derive(Default)]
pub(super) struct FakeQueue {
    /// How many of the next attempts to subscribe fail.
    pub(super) refusals: AtomicUsize,
    pub(super) prefetches: Mutex<Vec<u16>>,
    pub(super) feeds: Mutex<Vec<Feed>>,
    /// For each subscription: `Some` while its stream continues.
    pub(super) open: Mutex<Vec<Open>>,
    /// For each subscription: cancelled when it is lost.
    pub(super) ends: Mutex<Vec<CancellationToken>>,
    pub(super) subscribed: Notify,
    /// If set, the next attempt to subscribe waits for it after the deliveries have started.
    pub(super) subscribe_gate: Mutex<Option<Arc<Notify>>>,
    pub(super) settled: Settled,
    pub(super) changed: Arc<Notify>,
    /// Why subscriptions from now on will have been lost.
    pub(super) loss_cause: Mutex<Option<LossCause>>,
    /// How long the broker has not answered on subscriptions from now on.
    pub(super) unanswered: Mutex<Duration>,
}

struct FakeSettler {
    settled: Settled,
    changed: Arc<Notify>,
    open: Open,
    ended: CancellationToken,
    loss_cause: LossCause,
    unanswered: Duration,
}

impl Settler for FakeSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        self.settled.lock().unwrap().push((delivery.tag, settlement));
        self.changed.notify_one();
    }
    fn ended(&self) -> BoxFuture<'static, LossCause> {
        let (ended, cause) = (self.ended.clone(), self.loss_cause.clone());
        Box::pin(async move {
            ended.cancelled().await;
            cause
        })
    }
    fn unanswered(&self) -> Duration {
        self.unanswered
    }
    fn was_ended_by_broker(&self) -> bool {
        false
    }
    fn cancel(&self) -> BoxFuture<'static, ()> {
        self.open.lock().unwrap().take();
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
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let error = SubscribeError { queue: queue.to_owned(), source: "there is no such queue".into() };
            return Box::pin(async { Err(error) });
        }
        let (feed, deliveries) = mpsc::unbounded_channel();
        self.prefetches.lock().unwrap().push(prefetch);
        let open = Arc::new(Mutex::new(Some(())));
        self.open.lock().unwrap().push(Arc::clone(&open));
        self.feeds.lock().unwrap().push(feed);
        let ended = CancellationToken::new();
        self.ends.lock().unwrap().push(ended.clone());
        let (settled, changed) = (Arc::clone(&self.settled), Arc::clone(&self.changed));
        let settler = FakeSettler {
            settled,
            changed,
            open: Arc::clone(&open),
            ended,
            loss_cause: self.loss_cause.lock().unwrap().clone().unwrap_or(LossCause::Other("lost".to_owned())),
            unanswered: *self.unanswered.lock().unwrap(),
        };
        let stream = futures_util::stream::unfold((deliveries, open), |(mut deliveries, open)| async move {
            loop {
                if let Ok(delivery) = deliveries.try_recv() {
                    return Some((delivery, (deliveries, open)));
                }
                if open.lock().unwrap().is_none() {
                    return None;
                }
                tokio::select! {
                    delivery = deliveries.recv() => return delivery.map(|delivery| (delivery, (deliveries, open))),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
        });
        self.subscribed.notify_one();
        let subscribe_gate = self.subscribe_gate.lock().unwrap().take();
        Box::pin(async move {
            if let Some(subscribe_gate) = subscribe_gate {
                subscribe_gate.notified().await;
            }
            Ok(Subscription {
                deliveries: stream.boxed(),
                settler: Arc::new(settler),
                address: "127.0.0.1:5672".into(),
                silent: Arc::default(),
            })
        })
    }
}

impl FakeQueue {
    pub(super) fn deliver(&self, tag: u64, body: &'static str) {
        self.deliver_again(tag, body, 0);
    }

    pub(super) fn deliver_again(&self, tag: u64, body: &'static str, count: i64) {
        let headers = Headers::from([(names::DELIVERY_COUNT.to_owned(), HeaderValue::I64(count))]);
        let delivery = Delivery {
            id: DeliveryId { connection: 1, tag },
            exchange: "orders".to_owned(),
            routing_key: "order.normal.created".to_owned(),
            redelivered: count > 0,
            message: Message {
                headers,
                body: body.into(),
                missing_bytes: usize::from(body == "truncated"),
                ..Message::default()
            },
        };
        self.feeds.lock().unwrap().last().unwrap().send(delivery).unwrap();
    }

    /// The connection dies: the stream ends without having been cancelled.
    pub(super) fn lose(&self) {
        self.open.lock().unwrap().last().unwrap().lock().unwrap().take();
        self.ends.lock().unwrap().last().unwrap().cancel();
    }

    pub(super) async fn settled(&self, count: usize) -> Vec<(u64, Settlement)> {
        loop {
            let mut settled = self.settled.lock().unwrap().clone();
            if settled.len() >= count {
                settled.sort_by_key(|(tag, _)| *tag);
                return settled;
            }
            self.changed.notified().await;
        }
    }
}

/// Confirms publications as far as the gate has permits; of the first `refusals` sets, refuses the first publication.
pub(super) struct FakePublisher {
    pub(super) sent: Mutex<Vec<Publication>>,
    pub(super) gate: Semaphore,
    pub(super) refusals: AtomicUsize,
    /// Whether it refuses with `basic.nack`.
    pub(super) nacks: AtomicBool,
    /// Whether it refuses all publications of a set, those after the first because of a missing permission.
    pub(super) refuses_all: AtomicBool,
    /// Counts what [`Publisher::acceptance`] waits for.
    pub(super) acceptance: watch::Sender<u64>,
    /// Whether every publication is invalid.
    pub(super) invalid: AtomicBool,
    /// The routing key of publications that are invalid.
    pub(super) invalid_key: &'static str,
}

pub(super) struct SharedPublisher(pub(super) Arc<FakePublisher>);

impl Publisher for SharedPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        let publisher = Arc::clone(&self.0);
        Box::pin(async move {
            publisher.gate.acquire().await.unwrap().forget();
            let has_invalid_key = publications.iter().any(|sent| sent.routing_key == publisher.invalid_key);
            if publisher.invalid.load(Ordering::SeqCst) || has_invalid_key {
                let problem = "too long".to_owned();
                return Err(Unpublished::one(0, PublishError::Invalid { exchange: "orders".into(), problem }));
            }
            let one_less = |left: usize| left.checked_sub(1);
            if publisher.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                let (exchange, routing_key) = ("orders".into(), String::new());
                let refused = || PublishError::Refused {
                    exchange: "orders".into(),
                    routing_key: String::new(),
                    reply: String::new(),
                };
                let error = match publisher.nacks.load(Ordering::SeqCst) {
                    true => PublishError::Nacked { exchange, routing_key },
                    false => refused(),
                };
                let mut failures = vec![(0, error)];
                if publisher.refuses_all.load(Ordering::SeqCst) {
                    failures.extend((1..publications.len()).map(|index| (index, refused())));
                } else {
                    publisher.sent.lock().unwrap().extend(publications[1..].iter().cloned());
                }
                return Err(Unpublished { failures });
            }
            publisher.sent.lock().unwrap().extend(publications.iter().cloned());
            Ok(())
        })
    }

    fn acceptance(&self) -> BoxFuture<'static, ()> {
        let mut acceptance = self.0.acceptance.subscribe();
        Box::pin(async move { acceptance.changed().await.unwrap() })
    }
}
