//! How fast a replay may publish, until when it is claimed, and which queues the broker refuses. It never publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::unanswered::{HandedLetter, UnansweredLetters};
use crate::backoff::Backoff;
use crate::ledger::{LeftOutLetter, LetterProgress, Replay, ReplayGroup};

/// How often a replay looks for outcomes.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Waits after the broker did not accept a letter: it may take a person to grant a permission, or to restore a queue.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// After so many attempts in a row that were refused for a lasting reason, a replay stops.
const MAX_REFUSALS: u32 = 5;

/// How long after its publication the outcome of a letter is expected, if it is not retried.
pub(super) const OUTCOME_TIME: Duration = Duration::from_secs(3_600);

/// A rate in letters a second. What is not used is kept for two ticks only.
pub(super) struct Bucket {
    letters: f64,
    at: Instant,
}

impl Bucket {
    fn new() -> Self {
        Bucket { letters: f64::INFINITY, at: Instant::now() }
    }

    /// How many letters may be published now.
    pub fn allowed(&mut self, rate: u32) -> u64 {
        let (now, rate) = (Instant::now(), f64::from(rate));
        let most = (rate * TICK.as_secs_f64() * 2.0).max(1.0);
        self.letters = (self.letters + rate * (now - self.at).as_secs_f64()).min(most);
        self.at = now;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small and not negative")]
        let whole = self.letters.max(0.0) as u64;
        whole
    }

    /// So many are published.
    #[expect(clippy::cast_precision_loss, reason = "batches are small")]
    pub fn used(&mut self, letters: u64) {
        self.letters -= letters as f64;
    }
}

/// The rates at which all replays together may publish to each queue.
#[derive(Default)]
pub(super) struct QueueRates(BTreeMap<String, (u32, Bucket)>);

impl QueueRates {
    /// From now on, the rate of a queue is the lowest of the replays that have letters for it.
    pub fn set(&mut self, replays: &[Replay]) {
        let mut rates: BTreeMap<&str, u32> = BTreeMap::new();
        for replay in replays {
            let left = |group: &&ReplayGroup| group.count(&[LetterProgress::Selected]) > 0;
            for group in replay.groups.iter().filter(left) {
                let rate = rates.entry(&group.queue).or_insert(u32::MAX);
                *rate = replay.options.rate.min(*rate);
            }
        }
        self.0.retain(|queue, _| rates.contains_key(&**queue));
        for (queue, rate) in rates {
            self.0.entry(queue.to_owned()).or_insert_with(|| (rate, Bucket::new())).0 = rate;
        }
    }

    /// How many letters may be published to a queue now.
    pub fn allowed(&mut self, queue: &str) -> u64 {
        self.0.get_mut(queue).map_or(0, |(rate, bucket)| bucket.allowed(*rate))
    }

    /// So many are published to it.
    pub fn used(&mut self, queue: &str, letters: u64) {
        if let Some((_, bucket)) = self.0.get_mut(queue) {
            bucket.used(letters);
        }
    }
}

/// Since when the consumers of queues process what is published to them, as far as this process knows.
#[derive(Default)]
pub(super) struct OpenQueues(BTreeMap<String, Instant>);

impl OpenQueues {
    /// These are open now, and no others.
    pub fn set<'q>(&mut self, open: impl Iterator<Item = &'q str>) {
        let now = Instant::now();
        let open = open.map(|queue| (queue.to_owned(), self.0.get(queue).copied().unwrap_or(now)));
        self.0 = open.collect();
    }

    /// An outcome is late only if the queue was open for the whole time in which it was expected. Behind a consumer that was paused,
    /// or while orderd did not run, letters have waited.
    pub fn forgive(&self, replays: &mut [Replay]) {
        let has_processed = |queue: &str| self.0.get(queue).is_some_and(|since| since.elapsed() >= OUTCOME_TIME);
        for replay in replays {
            for group in replay.groups.iter_mut().filter(|group| !has_processed(&group.queue)) {
                replay.overdue -= group.overdue;
                group.overdue = 0;
            }
        }
    }
}

/// The broker does not accept letters for a queue.
struct RefusedQueue {
    /// The broker's text.
    error: String,
    attempts: u32,
    /// Nothing is handed over before.
    not_before: Instant,
}

/// The broker has refused letters for a queue.
pub(super) struct Refusal<'a> {
    pub queue: &'a str,
    /// The broker's text.
    pub error: String,
    /// Whether the reason lasts until a person removes it.
    pub lasts: bool,
    /// When the letters were handed over.
    pub handed_at: Instant,
    pub letters: &'a [HandedLetter],
}

/// The pace of one replay.
pub(super) struct Pace {
    pub claimed_until: Instant,
    /// Nothing is published before.
    pub not_before: Instant,
    pub bucket: Bucket,
    /// What the broker has not answered yet.
    pub unanswered: UnansweredLetters,
    /// Whether the consumers may have changed since the queues of its letters were looked up.
    pub may_have_other_queues: bool,
    refused: BTreeMap<String, RefusedQueue>,
    /// Letters that the broker has refused each time, from the first time on: they were certainly not published.
    unpublished: BTreeSet<i64>,
}

impl Pace {
    pub fn new() -> Self {
        let now = Instant::now();
        Pace {
            claimed_until: now,
            not_before: now,
            bucket: Bucket::new(),
            unanswered: UnansweredLetters::default(),
            may_have_other_queues: true,
            refused: BTreeMap::new(),
            unpublished: BTreeSet::new(),
        }
    }

    /// The broker has accepted these letters for a queue.
    pub fn accepted(&mut self, queue: &str, letters: &[HandedLetter]) {
        self.refused.remove(queue);
        self.may_be_published(letters);
    }

    /// It is not known whether the broker has accepted these letters.
    pub fn may_be_published(&mut self, letters: &[HandedLetter]) {
        for letter in letters {
            self.unpublished.remove(&letter.id);
        }
    }

    /// The broker has refused letters. If it has done so too often, for a reason that lasts: what is to become of them.
    pub fn refused(&mut self, refusal: Refusal<'_>) -> Option<Vec<LeftOutLetter>> {
        let Refusal { queue, error, lasts, handed_at, letters } = refusal;
        let first = || RefusedQueue { error: String::new(), attempts: 0, not_before: handed_at };
        let known = self.refused.entry(queue.to_owned()).or_insert_with(first);
        known.error = error;
        // The letters of each cause are refused for themselves. What was handed over before the first of these refusals is no other attempt.
        if known.not_before <= handed_at {
            known.not_before = Instant::now() + REFUSED_BACKOFF.wait(known.attempts, 1.0);
            known.attempts = known.attempts.saturating_add(1);
        }
        let is_too_often = lasts && known.attempts >= MAX_REFUSALS;
        self.unpublished.extend(letters.iter().filter(|letter| letter.is_first).map(|letter| letter.id));
        is_too_often.then(|| self.left_out(letters, "refused"))
    }

    /// These letters, which the broker has not accepted now, are not published again.
    pub fn left_out(&self, letters: &[HandedLetter], code: &'static str) -> Vec<LeftOutLetter> {
        let left_out = letters.iter().map(|letter| {
            let is_unpublished = letter.is_first || self.unpublished.contains(&letter.id);
            LeftOutLetter { letter: letter.id, code, is_unpublished }
        });
        left_out.collect()
    }

    /// What the broker said, while nothing is to be published to a queue.
    pub fn refusal(&self, queue: &str) -> Option<&str> {
        let refused = self.refused.get(queue)?;
        (refused.not_before > Instant::now()).then_some(&refused.error)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::tests::deciding::replay as replay_with;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_is_published_than_the_rate_allows_and_a_pause_does_not_add_up() {
        for (rate, most) in [(1, 1), (5, 1), (50, 10), (1_000, 200)] {
            let (mut bucket, mut published) = (Bucket::new(), 0);
            for _ in 0..200 {
                let allowed = bucket.allowed(rate);
                bucket.used(allowed);
                published += allowed;
                advance(TICK).await;
            }
            let seconds = 20;
            let expected = u64::from(rate) * seconds;
            assert!((expected - 1..=expected + most).contains(&published), "{rate}: {published}");
            advance(Duration::from_secs(3_600)).await;
            assert_eq!(bucket.allowed(rate), most, "{rate}");
        }
    }

    const FIRST: HandedLetter = HandedLetter { id: 1, is_first: true };
    const AGAIN: HandedLetter = HandedLetter { id: 2, is_first: false };

    /// What is handed over now is refused at once.
    fn refused(pace: &mut Pace, (error, lasts): (&str, bool), letters: &[HandedLetter]) -> Option<Vec<LeftOutLetter>> {
        let (error, handed_at) = (error.to_owned(), Instant::now());
        pace.refused(Refusal { queue: "carts", error, lasts, handed_at, letters })
    }

    async fn wait(pace: &Pace) {
        while pace.refusal("carts").is_some() {
            advance(TICK).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_refused_waits_ever_longer_until_it_is_accepted_or_too_often_refused() {
        let mut pace = Pace::new();
        let mut waits = Vec::new();
        for attempt in 1..=MAX_REFUSALS {
            let refused_at = Instant::now();
            let is_too_often = refused(&mut pace, ("403", true), &[FIRST]).is_some();
            assert_eq!(is_too_often, attempt == MAX_REFUSALS);
            assert_eq!((pace.refusal("carts"), pace.refusal("orders")), (Some("403"), None));
            wait(&pace).await;
            waits.push(refused_at.elapsed().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        assert_eq!(refused(&mut pace, ("full", false), &[FIRST]), None, "it may have room again");
        pace.accepted("carts", &[]);
        assert!(pace.refusal("carts").is_none());
        assert_eq!(refused(&mut pace, ("403", true), &[FIRST]), None);
    }

    fn left_out(letter: i64, is_unpublished: bool) -> LeftOutLetter {
        LeftOutLetter { letter, code: "refused", is_unpublished }
    }

    #[tokio::test(start_paused = true)]
    async fn of_letters_that_are_refused_too_often_those_are_open_again_that_were_never_accepted() {
        let mut pace = Pace::new();
        for attempt in 1..=MAX_REFUSALS {
            // Only at the first attempt it is its first one. What a former process had handed over may be on its way.
            let first = HandedLetter { is_first: attempt == 1, ..FIRST };
            let is_left_out = refused(&mut pace, ("403", true), &[first, AGAIN]);
            assert_eq!(is_left_out, (attempt == MAX_REFUSALS).then(|| vec![left_out(1, true), left_out(2, false)]));
            wait(&pace).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn letters_of_many_causes_that_are_handed_over_together_and_refused_are_one_attempt() {
        let mut pace = Pace::new();
        for attempt in 1..=MAX_REFUSALS {
            let handed_at = Instant::now();
            for id in 1..=6 {
                // The broker's answers to those of one attempt need not come at once.
                advance(Duration::from_secs(1)).await;
                let (error, letters) = ("403".to_owned(), [HandedLetter { id, is_first: attempt == 1 }]);
                let refusal = Refusal { queue: "carts", error, lasts: true, handed_at, letters: &letters };
                let expected = (attempt == MAX_REFUSALS).then(|| vec![left_out(id, true)]);
                assert_eq!(pace.refused(refusal), expected, "attempt {attempt} with {id}");
            }
            wait(&pace).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_letter_that_was_refused_and_then_perhaps_published_is_not_open_again() {
        let mut pace = Pace::new();
        let again = HandedLetter { is_first: false, ..FIRST };
        let ways: [fn(&mut Pace, &[HandedLetter]); 2] =
            [Pace::may_be_published, |pace, letters| pace.accepted("carts", letters)];
        for may_be_published in ways {
            refused(&mut pace, ("403", true), &[FIRST]);
            assert_eq!(pace.left_out(&[again], "refused"), [left_out(1, true)]);
            may_be_published(&mut pace, &[again]);
            assert_eq!(pace.left_out(&[again], "refused"), [left_out(1, false)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn letters_that_waited_behind_a_pause_of_hours_have_an_hour_for_their_outcome_once_it_is_over() {
        let late = || {
            let group = ReplayGroup {
                queue: "orders".to_owned(),
                letters: [(LetterProgress::Published, 10)].into(),
                overdue: 10,
                ..ReplayGroup::default()
            };
            Replay { overdue: 10, groups: vec![group], ..replay_with(&[(LetterProgress::Published, 10)]) }
        };
        let forgiven = |open: &OpenQueues| {
            let mut replays = [late()];
            open.forgive(&mut replays);
            (replays[0].overdue, replays[0].groups[0].overdue)
        };
        let mut open = OpenQueues::default();
        open.set(["orders"].into_iter());
        advance(OUTCOME_TIME).await;
        assert_eq!(forgiven(&open), (10, 10), "nothing was seen, although they were processed");
        open.set(["carts"].into_iter());
        assert_eq!(forgiven(&open), (0, 0), "it is paused");
        advance(2 * OUTCOME_TIME).await;
        open.set(["orders"].into_iter());
        assert_eq!(forgiven(&open), (0, 0), "it goes on");
        advance(OUTCOME_TIME - Duration::from_secs(1)).await;
        open.set(["orders"].into_iter());
        assert_eq!(forgiven(&open), (0, 0));
        advance(Duration::from_secs(1)).await;
        assert_eq!(forgiven(&open), (10, 10));
    }
}
