//! Publishes what has been read, many at a time, and keeps count.
//!
//! It never reads, and never has more on its way than its limits allow.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use indicatif::ProgressBar;
use serde::{Serialize, Serializer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Publication, Refusal};
use crate::chain::chain;
use crate::message::{PublishError, Publisher};

/// Messages on their way at most.
const MAX_IN_FLIGHT: usize = 2_048;
/// Their bytes at most, but for the last one.
const MAX_BYTES_IN_FLIGHT: usize = 8 * 1024 * 1024;
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What the reader hands over.
#[derive(Debug)]
pub(super) enum Feed {
    /// A line, and how many bytes have been read with it.
    Line { number: u64, bytes: u64, publication: Result<Box<Publication>, Refusal> },
    /// The input failed; nothing follows.
    Unreadable(io::Error),
}

/// Why it was over.
#[derive(Debug)]
pub(super) enum End {
    /// All input has been read, and every line answered.
    Input,
    /// Ctrl-C: what had been read is answered.
    Interrupted,
    /// A second Ctrl-C.
    Aborted,
    /// The input failed; what had been read is answered.
    Unreadable(io::Error),
    /// The broker was away for too long.
    NoBroker,
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            End::Input => "end_of_input",
            End::Interrupted => "interrupted",
            End::Aborted => "aborted",
            End::Unreadable(_) => "unreadable",
            End::NoBroker => "no_broker",
        })
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Messages the broker confirmed.
    pub published: u64,
    /// Lines that were no orders, or that the broker did not take.
    pub refused: u64,
    /// Messages of which the broker has not said anything.
    pub unconfirmed: usize,
    /// The line of the first of them; 0 if there are none.
    pub first_unconfirmed: u64,
    /// From the first read to the last confirm.
    pub seconds: f64,
    pub end: End,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { published, refused, seconds, .. } = self;
        let rate = *published as f64 / seconds.max(0.001);
        write!(f, "published {published}, refused {refused}, in {seconds:.2} s ({rate:.0}/s)")?;
        match self.end {
            End::Input | End::Unreadable(_) => Ok(()),
            End::Interrupted => f.write_str("; interrupted"),
            End::Aborted | End::NoBroker => write!(f, "; {} unconfirmed", self.unconfirmed),
        }
    }
}

/// Yields at every INT or TERM.
pub(super) fn interrupts() -> impl Stream<Item = ()> {
    let listen = |kind| {
        // Without a handler the signal ends the process, as it would have anyway.
        futures_util::stream::iter(signal(kind).ok()).flat_map(|signal| {
            futures_util::stream::unfold(signal, |mut signal| async move { signal.recv().await.map(|()| ((), signal)) })
        })
    };
    futures_util::stream::select(listen(SignalKind::interrupt()), listen(SignalKind::terminate()))
}

/// Publishes.
pub(super) struct Sender<'a> {
    pub publisher: &'a dyn Publisher,
    pub is_connected: &'a (dyn Fn() -> bool + Sync),
    /// How long there may be no connection.
    pub patience: Duration,
    pub bar: &'a ProgressBar,
}

type Answer = (u64, usize, Result<(), PublishError>);

/// What is on its way.
#[derive(Default)]
struct InFlightKey {
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    lines: BTreeSet<u64>,
    bytes: usize,
}

impl InFlightKey {
    fn has_room(&self) -> bool {
        self.answers.len() < MAX_IN_FLIGHT && self.bytes < MAX_BYTES_IN_FLIGHT
    }
}

impl Sender<'_> {
    /// Publishes all that is fed until it ends or is interrupted, and waits for the answers.
    pub async fn send_all(&self, mut feed: mpsc::Receiver<Feed>, interrupts: impl Stream<Item = ()>) -> Summary {
        let begin = Instant::now();
        let mut summary =
            Summary { published: 0, refused: 0, unconfirmed: 0, first_unconfirmed: 0, seconds: 0.0, end: End::Input };
        let mut interrupts = pin!(interrupts);
        let mut look = tokio::time::interval(LOOK);
        let mut last_connected = Instant::now();
        let mut flight = InFlightKey::default();
        let (mut reading, mut interrupted) = (true, false);
        while reading || !flight.answers.is_empty() {
            // Cancel-safe: a line, an answer, a signal or a tick not taken in this turn is there in the next.
            tokio::select! {
                Some((line, bytes, answer)) = flight.answers.next() => {
                    flight.lines.remove(&line);
                    flight.bytes -= bytes;
                    match answer {
                        Ok(()) => summary.published += 1,
                        Err(refusal) => self.refuse(&mut summary, line, &refusal),
                    }
                }
                step = feed.recv(), if reading && flight.has_room() => match step {
                    Some(Feed::Line { number, bytes, publication }) => {
                        self.bar.set_position(bytes);
                        match publication {
                            Ok(publication) => self.publish(&mut flight, number, *publication),
                            Err(refusal) => self.refuse(&mut summary, number, &refusal),
                        }
                    }
                    Some(Feed::Unreadable(error)) => summary.end = End::Unreadable(error),
                    None => reading = false,
                },
                Some(()) = interrupts.next() => {
                    if interrupted {
                        summary.end = End::Aborted;
                        break;
                    }
                    interrupted = true;
                    if std::mem::take(&mut reading) {
                        summary.end = End::Interrupted;
                    }
                }
                _ = look.tick() => {
                    self.bar.set_message(format!("{} published, {} refused", summary.published, summary.refused));
                    if flight.answers.is_empty() || (self.is_connected)() {
                        last_connected = Instant::now();
                    } else if last_connected.elapsed() > self.patience {
                        summary.end = End::NoBroker;
                        break;
                    }
                }
            }
        }
        summary.unconfirmed = flight.answers.len();
        summary.first_unconfirmed = flight.lines.first().copied().unwrap_or(0);
        summary.seconds = begin.elapsed().as_secs_f64();
        summary
    }

    fn publish(&self, flight: &mut InFlightKey, number: u64, publication: Publication) {
        let bytes = publication.message.body.len();
        flight.lines.insert(number);
        flight.bytes += bytes;
        let answer = self.publisher.publish([publication].into());
        flight.answers.push(Box::pin(async move { (number, bytes, answer.await) }));
    }

    fn refuse(&self, summary: &mut Summary, line: u64, reason: &dyn std::error::Error) {
        summary.refused += 1;
        self.bar.suspend(|| eprintln!("orderd: line {line}: {}", chain(reason)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;

    use super::super::parse::Shape;
    use super::*;

    /// Answers after a yield; refuses the routing key "no", and never answers "never".
    #[derive(Default)]
    struct Broker {
        open: Arc<AtomicUsize>,
        most: AtomicUsize,
    }

    impl Publisher for Broker {
        fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), PublishError>> {
            let open = Arc::clone(&self.open);
            self.most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::task::yield_now().await;
                open.fetch_sub(1, Ordering::SeqCst);
                let Publication { exchange, routing_key, .. } = publications[0].clone();
                match routing_key.as_str() {
                    "no" => Err(PublishError::Refused { exchange, routing_key }),
                    "never" => std::future::pending().await,
                    _ => Ok(()),
                }
            })
        }
    }

    fn line(number: u64, key: &str) -> Feed {
        let shape = Shape { exchange: "orders".into(), routing_key: Some(key.to_owned()), raw: true };
        let body = if key == "bad" { b"[]".to_vec() } else { b"{}".to_vec() };
        Feed::Line { number, bytes: 2 * number, publication: shape.publication(Some(body)).map(Box::new) }
    }

    async fn send(broker: &Broker, keys: Vec<&'static str>) -> Summary {
        let (feed, fed) = mpsc::channel(8);
        let feeding = tokio::spawn(async move {
            for (number, key) in (1..).zip(keys) {
                feed.send(line(number, key)).await.unwrap();
            }
        });
        let bar = ProgressBar::hidden();
        let sender =
            Sender { publisher: broker, is_connected: &|| false, patience: Duration::from_millis(600), bar: &bar };
        let summary = sender.send_all(fed, stream::pending()).await;
        feeding.await.unwrap();
        summary
    }

    #[tokio::test]
    async fn every_line_is_published_or_refused() {
        let broker = Broker::default();
        let summary = send(&broker, vec!["yes", "no", "bad", "yes"]).await;
        assert_eq!((summary.published, summary.refused, summary.unconfirmed), (2, 2, 0));
        assert!(matches!(summary.end, End::Input));
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_bounded() {
        let broker = Broker::default();
        let summary = send(&broker, vec!["yes"; 3 * MAX_IN_FLIGHT]).await;
        assert_eq!(summary.published, 3 * MAX_IN_FLIGHT as u64);
        assert!(broker.most.load(Ordering::SeqCst) <= MAX_IN_FLIGHT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_stays_away_is_given_up_with_the_line_to_resume_from() {
        let summary = send(&Broker::default(), vec!["yes", "never", "yes"]).await;
        assert!(matches!(summary.end, End::NoBroker));
        assert_eq!((summary.published, summary.unconfirmed, summary.first_unconfirmed), (2, 1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_ends_the_reading_and_a_second_one_the_waiting() {
        let at = |millis| stream::once(tokio::time::sleep(Duration::from_millis(millis)));
        let (feed, fed) = mpsc::channel(8);
        let bar = ProgressBar::hidden();
        let broker = Broker::default();
        let sender =
            Sender { publisher: &broker, is_connected: &|| true, patience: Duration::from_secs(600), bar: &bar };
        feed.send(line(1, "yes")).await.unwrap();
        let summary = sender.send_all(fed, at(100).chain(stream::pending())).await;
        assert!(matches!(summary.end, End::Interrupted), "though the input has not ended");
        assert_eq!(summary.published, 1);

        let (feed, fed) = mpsc::channel(8);
        feed.send(line(1, "never")).await.unwrap();
        let summary = sender.send_all(fed, at(100).chain(at(100)).chain(stream::pending())).await;
        assert!(matches!(summary.end, End::Aborted));
        assert_eq!((summary.unconfirmed, summary.first_unconfirmed), (1, 1));
    }
}
