//! Publishes lines, many at a time, and counts the results.
//!
//! It never reads the input, and never has more messages in flight than its limits allow. Whatever it waits for, it says so once.

mod obstacle;

use std::collections::BTreeSet;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(super) use obstacle::ConnectionState;
use obstacle::Obstacles;

use super::line_parser::{LineError, ParsedLine};
use super::summary::{EndReason, PublishSummary};
use crate::chain::chain;
use crate::message::{Publication, PublishError, Publisher, Unpublished};
use crate::notify::RecipientWarning;
use crate::topology::ExchangeNames;

/// Maximum number of messages in flight.
const MAX_IN_FLIGHT: usize = 2_048;
/// Maximum number of bytes in flight. The last message may exceed it.
const MAX_BYTES_IN_FLIGHT: usize = 8 * 1024 * 1024;
/// Interval at which the connection is checked and the progress bar updated.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// What the reader sends to the publish loop.
#[derive(Debug)]
pub(super) enum Input {
    /// One line. `bytes` is the length of the input up to the end of the line.
    Line { number: u64, bytes: u64, parsed: Result<Box<ParsedLine>, LineError> },
    /// The input cannot be read further; nothing follows.
    Unreadable(io::Error),
}

/// Yields at every SIGINT and SIGTERM.
pub(super) fn interrupts() -> impl Stream<Item = ()> {
    let listen = |kind| {
        // Where no handler can be installed, the signal ends the process as usual.
        futures_util::stream::iter(signal(kind).ok()).flat_map(|signal| {
            futures_util::stream::unfold(signal, |mut signal| async move { signal.recv().await.map(|()| ((), signal)) })
        })
    };
    futures_util::stream::select(listen(SignalKind::interrupt()), listen(SignalKind::terminate()))
}

/// Publishes lines until the input ends.
pub(super) struct PublishLoop<'a> {
    pub publisher: &'a dyn Publisher,
    pub connection: &'a (dyn Fn() -> ConnectionState + Sync),
    /// Shows one line to the user.
    pub notify: &'a (dyn Fn(&str) + Sync),
    /// Routing keys that match no binding of the configuration.
    pub unbound: &'a BTreeSet<String>,
    /// How long to wait for a connection before giving up.
    pub connect_timeout: Duration,
    pub bar: &'a ProgressBar,
}

/// The broker's answer for one line.
struct LineResult {
    number: u64,
    bytes: usize,
    /// Whether its routing key matches no binding of the configuration.
    unbound: bool,
    answer: Result<(), PublishError>,
}

/// Messages that the broker has not answered yet.
#[derive(Default)]
struct InFlight {
    answers: FuturesUnordered<BoxFuture<'static, LineResult>>,
    /// Their line numbers.
    lines: BTreeSet<u64>,
    bytes: usize,
    /// The routing keys without a binding that were published with so far, of which the user was warned.
    warned: BTreeSet<String>,
}

impl InFlight {
    fn has_room(&self) -> bool {
        self.answers.len() < MAX_IN_FLIGHT && self.bytes < MAX_BYTES_IN_FLIGHT
    }

    /// How many were confirmed, and what is awaited.
    fn progress(&self, summary: &PublishSummary) -> String {
        let first = self.lines.first().copied().unwrap_or(0);
        let (confirmed, awaited) = (summary.published, self.answers.len());
        format!(
            "{confirmed} messages confirmed, waiting for the broker to confirm {awaited}, the first from line {first}"
        )
    }
}

impl PublishLoop<'_> {
    /// Publishes lines until the input ends or the first interrupt, and waits for the broker's answers. A second interrupt
    /// stops waiting.
    pub async fn run(&self, mut input: mpsc::Receiver<Input>, interrupts: impl Stream<Item = ()>) -> PublishSummary {
        let start = Instant::now();
        let mut summary = PublishSummary::of_nothing(EndReason::Input);
        let mut interrupts = pin!(interrupts);
        let mut check = tokio::time::interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
        let mut last_connected = Instant::now();
        let mut obstacles = Obstacles::default();
        let mut in_flight = InFlight::default();
        let (mut reading, mut interrupted) = (true, false);
        while reading || !in_flight.answers.is_empty() {
            // Cancel-safe: a line, an answer, a signal or a tick that is not received now is received in the next iteration.
            tokio::select! {
                Some(LineResult { number, bytes, unbound, answer }) = in_flight.answers.next() => {
                    in_flight.lines.remove(&number);
                    in_flight.bytes -= bytes;
                    if obstacles.ended() {
                        (self.notify)("the broker answers again");
                    }
                    match answer {
                        Ok(()) => {
                            summary.published += 1;
                            summary.unbound += u64::from(unbound);
                        }
                        Err(error) => self.refuse(&mut summary, number, &error),
                    }
                }
                received = input.recv(), if reading && in_flight.has_room() => match received {
                    Some(Input::Line { number, bytes, parsed }) => {
                        self.bar.set_position(bytes);
                        match parsed {
                            Ok(parsed) => {
                                self.warn(&mut summary, number, parsed.warnings);
                                self.publish(&mut in_flight, number, parsed.publication);
                            }
                            Err(error) => self.refuse(&mut summary, number, &error),
                        }
                    }
                    Some(Input::Unreadable(error)) => summary.end = EndReason::Unreadable(error),
                    None => reading = false,
                },
                Some(()) = interrupts.next() => {
                    if interrupted {
                        summary.end = EndReason::Aborted;
                        break;
                    }
                    interrupted = true;
                    if std::mem::take(&mut reading) {
                        summary.end = EndReason::Interrupted;
                    }
                    if !in_flight.answers.is_empty() {
                        obstacles.observe(&(self.connection)(), last_connected.elapsed());
                        let because = obstacles.latest().map_or_else(String::new, |cause| format!("; {cause}"));
                        let progress = in_flight.progress(&summary);
                        (self.notify)(&format!("interrupted: {progress}{because}; interrupt again to stop waiting"));
                    }
                }
                _ = check.tick() => {
                    self.bar.set_message(format!("{} published, {} refused", summary.published, summary.refused));
                    let connection = (self.connection)();
                    if in_flight.answers.is_empty() || connection.connected {
                        last_connected = Instant::now();
                    } else if last_connected.elapsed() > self.connect_timeout {
                        summary.end = EndReason::NoBroker(connection.error);
                        break;
                    }
                    if !in_flight.answers.is_empty()
                        && let Some(obstacle) = obstacles.observe(&connection, last_connected.elapsed())
                    {
                        (self.notify)(&format!("{obstacle}; {}", in_flight.progress(&summary)));
                    }
                }
            }
        }
        summary.unconfirmed = in_flight.answers.len();
        summary.first_unconfirmed = in_flight.lines.first().copied().unwrap_or(0);
        summary.seconds = start.elapsed().as_secs_f64();
        summary
    }

    fn publish(&self, in_flight: &mut InFlight, number: u64, publication: Publication) {
        let bytes = publication.message.body.len();
        let key = &publication.routing_key;
        let unbound = self.unbound.contains(key);
        if unbound && in_flight.warned.insert(key.clone()) {
            (self.notify)(&format!(
                "warning: no binding of the configuration matches the routing key {key:?}: unless the broker has one, these \
                 messages are kept in {} and not processed",
                ExchangeNames::UNROUTED_QUEUE
            ));
        }
        in_flight.lines.insert(number);
        in_flight.bytes += bytes;
        let answer = self.publisher.publish([publication].into());
        in_flight.answers.push(Box::pin(async move {
            LineResult { number, bytes, unbound, answer: answer.await.map_err(Unpublished::into_first) }
        }));
    }

    /// Shows the first warning of each kind, and counts them.
    fn warn(&self, summary: &mut PublishSummary, line: u64, warnings: Vec<RecipientWarning>) {
        for RecipientWarning { field, code, message } in warnings {
            let count = summary.warnings.entry(code).or_default();
            *count += 1;
            if *count == 1 {
                (self.notify)(&format!("warning: line {line}: {field}: {code}: {message}; further ones are counted"));
            }
        }
    }

    fn refuse(&self, summary: &mut PublishSummary, line: u64, error: &dyn std::error::Error) {
        summary.refused += 1;
        (self.notify)(&format!("line {line}: {}", chain(error)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use futures_util::stream;

    use super::super::line_parser::LineParser;
    use super::*;
    use crate::notify::RecipientCheck;

    /// Answers after a yield; refuses the routing key "no", and never answers for "never".
    #[derive(Default)]
    struct FakePublisher {
        in_flight: Arc<AtomicUsize>,
        max_in_flight: AtomicUsize,
    }

    impl Publisher for FakePublisher {
        fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
            let in_flight = Arc::clone(&self.in_flight);
            self.max_in_flight.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::task::yield_now().await;
                in_flight.fetch_sub(1, Ordering::SeqCst);
                let Publication { exchange, routing_key, .. } = publications[0].clone();
                match routing_key.as_str() {
                    "no" => Err(Unpublished::one(0, PublishError::Nacked { exchange, routing_key })),
                    "never" => std::future::pending().await,
                    _ => Ok(()),
                }
            })
        }
    }

    fn line(number: u64, key: &str) -> Input {
        let recipients = RecipientCheck::default();
        let parser = LineParser { exchange: "orders".into(), routing_key: Some(key.to_owned()), raw: true, recipients };
        let body = if key == "bad" { b"[]".to_vec() } else { b"{}".to_vec() };
        Input::Line { number, bytes: 2 * number, parsed: parser.parse(Some(body)).map(Box::new) }
    }

    fn disconnected() -> ConnectionState {
        ConnectionState { connected: false, error: Some("refused".into()), ..ConnectionState::default() }
    }

    async fn publish_all(broker: &FakePublisher, keys: Vec<&'static str>) -> PublishSummary {
        let (sender, input) = mpsc::channel(8);
        let feeding = tokio::spawn(async move {
            for (number, key) in (1..).zip(keys) {
                sender.send(line(number, key)).await.unwrap();
            }
        });
        let bar = ProgressBar::hidden();
        let warnings = Mutex::new(Vec::new());
        let publish_loop = PublishLoop {
            publisher: broker,
            connection: &disconnected,
            notify: &|notice| warnings.lock().unwrap().extend(notice.strip_prefix("warning: ").map(str::to_owned)),
            unbound: &["other", "yes"].map(str::to_owned).into(),
            connect_timeout: Duration::from_millis(600),
            bar: &bar,
        };
        let summary = publish_loop.run(input, stream::pending()).await;
        let warnings = warnings.into_inner().unwrap();
        assert!(
            matches!(&warnings[..], [one] if one.contains("\"yes\"")),
            "once, and not of a key without messages: {warnings:?}"
        );
        feeding.await.unwrap();
        summary
    }

    #[tokio::test]
    async fn every_line_is_published_or_refused() {
        let broker = FakePublisher::default();
        let summary = publish_all(&broker, vec!["yes", "no", "bad", "yes"]).await;
        assert_eq!((summary.published, summary.refused, summary.unconfirmed), (2, 2, 0));
        assert_eq!(summary.unbound, 2);
        assert!(matches!(summary.end, EndReason::Input));
    }

    #[tokio::test]
    async fn the_number_of_messages_in_flight_is_limited() {
        let broker = FakePublisher::default();
        let summary = publish_all(&broker, vec!["yes"; 3 * MAX_IN_FLIGHT]).await;
        assert_eq!(summary.published, 3 * MAX_IN_FLIGHT as u64);
        assert!(broker.max_in_flight.load(Ordering::SeqCst) <= MAX_IN_FLIGHT);
    }

    #[tokio::test(start_paused = true)]
    async fn publishing_gives_up_on_an_unreachable_broker_and_reports_the_line_to_resume_from() {
        let summary = publish_all(&FakePublisher::default(), vec!["yes", "never", "yes"]).await;
        assert!(matches!(&summary.end, EndReason::NoBroker(Some(error)) if error == "refused"));
        assert_eq!((summary.published, summary.unconfirmed, summary.first_unconfirmed), (2, 1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_interrupt_stops_reading_and_says_what_is_awaited_and_the_second_stops_waiting() {
        let at = |millis| stream::once(tokio::time::sleep(Duration::from_millis(millis)));
        let (sender, input) = mpsc::channel(8);
        let bar = ProgressBar::hidden();
        let broker = FakePublisher::default();
        let (notices, blocked) = (
            Mutex::new(Vec::new()),
            ConnectionState { connected: true, blocked: Some("low on disk".into()), ..ConnectionState::default() },
        );
        let publish_loop = PublishLoop {
            publisher: &broker,
            connection: &|| blocked.clone(),
            notify: &|notice| notices.lock().unwrap().push(notice.to_owned()),
            unbound: &BTreeSet::new(),
            connect_timeout: Duration::from_secs(600),
            bar: &bar,
        };
        sender.send(line(1, "yes")).await.unwrap();
        let summary = publish_loop.run(input, at(100).chain(stream::pending())).await;
        assert!(matches!(summary.end, EndReason::Interrupted), "although the input has not ended");
        assert_eq!(summary.published, 1);

        let (sender, input) = mpsc::channel(8);
        sender.send(line(1, "never")).await.unwrap();
        let summary = publish_loop.run(input, at(400).chain(at(100)).chain(stream::pending())).await;
        assert!(matches!(summary.end, EndReason::Aborted));
        assert_eq!((summary.unconfirmed, summary.first_unconfirmed), (1, 1));
        let notices = notices.into_inner().unwrap();
        let [blocked, interrupted] = &notices[..] else { panic!("each is said once: {notices:#?}") };
        assert!(blocked.contains("low on disk") && blocked.contains("line 1"), "{blocked}");
        assert!(interrupted.contains("low on disk") && interrupted.contains("confirm 1"), "{interrupted}");
    }
}
