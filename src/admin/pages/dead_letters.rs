//! The metrics of dead letters: what collectors do, and what the store has.

use std::collections::BTreeMap;
use std::fmt;

use super::metric_writer::{MetricWriter, flag};
use crate::dead_letters::WaitCause;
use crate::ledger::{LetterProgress, LetterSource, ReplayState, STOP_CODES};
use crate::metrics::KeptCause;
use crate::status::{ActiveReplay, StatusSnapshot};

/// Writes them.
pub(super) fn dead_letters(snapshot: &StatusSnapshot, writer: &mut MetricWriter<'_>) -> fmt::Result {
    let collectors = || snapshot.collectors.iter().map(|(queue, reading)| ([("queue", queue.as_str())], reading));
    let subscribed = collectors().map(|(label, reading)| (label, flag(reading.subscribed)));
    writer.gauges("dead_letters_collecting", "1 if the queue is drained into the ledger", subscribed)?;
    let stored = collectors().map(|(label, reading)| (label, reading.stored));
    writer.counters("dead_letters_stored", "Messages stored from a dead letter queue", stored)?;
    let duplicates = collectors().map(|(label, reading)| (label, reading.duplicates));
    writer.counters("dead_letters_duplicates", "Messages that were delivered again and had been stored", duplicates)?;
    let kept = collectors().flat_map(|([queue], reading)| {
        KeptCause::ALL.map(|cause| ([queue, ("cause", cause.as_str())], reading.kept(cause) as f64))
    });
    writer.gauges("dead_letters_kept", "Messages that cannot be stored and stay in their queue", kept)?;
    let unresolved = &snapshot.unresolved_dead_letters;
    let by_reason = unresolved.sums.iter().map(|sum| {
        let labels = [("source", sum.source.as_str()), ("reason", &*sum.reason), ("state", sum.state.as_str())];
        (labels, sum.messages as f64)
    });
    writer.gauges("dead_letters_unresolved", "Messages in the store, neither replayed nor discarded", by_reason)?;
    let counted_at = snapshot.status.dead_letters.counted_at;
    let age = |source| {
        let oldest = unresolved.oldest_of(source).zip(counted_at);
        oldest.map_or(0.0, |(oldest, now)| now.duration_since(oldest).as_secs_f64().max(0.0))
    };
    let ages = LetterSource::ALL.iter().map(|source| ([("source", source.as_str())], age(*source)));
    writer.gauges("dead_letters_oldest_seconds", "Age of the oldest that is open; 0 if there are none", ages)?;
    let counted = counted_at.map_or(0.0, |at| at.as_second() as f64);
    writer.gauge(
        "dead_letters_counted_timestamp_seconds",
        "When the store was last added up, in seconds since 1970; 0 if it was not yet",
        counted,
    )?;
    let mut stopped: BTreeMap<&str, f64> = STOP_CODES.map(|code| (code, 0.0)).into();
    for replay in counted_at.into_iter().flat_map(|now| unresolved.stopped_lately(now)) {
        *stopped.entry(&replay.reason).or_default() += 1.0;
    }
    let stopped = stopped.into_iter().map(|(reason, count)| ([("reason", reason)], count));
    writer.gauges("replays_stopped", "Replays that stopped by themselves within a day", stopped)?;
    let money = unresolved.money();
    let money = money.iter().map(|(currency, sum)| ([("currency", currency.as_str())], sum.approximate()));
    writer.gauges("dead_letters_money", "What the orders among them cost", money)?;
    replays(&snapshot.status.dead_letters.replays, writer)
}

fn replays(replays: &[ActiveReplay], writer: &mut MetricWriter<'_>) -> fmt::Result {
    let count =
        |is_counted: &dyn Fn(&ActiveReplay) -> bool| replays.iter().filter(|replay| is_counted(replay)).count() as f64;
    let states = ReplayState::ALL.iter().filter(|state| !state.has_ended()).map(|state| state.as_str());
    let states = states.map(|state| ([("state", state)], count(&|replay| replay.state == state)));
    writer.gauges("replays", "Replays of dead letters that have not ended", states)?;
    let waiting = WaitCause::ALL.map(WaitCause::as_str);
    let is_waiting = |replay: &ActiveReplay, cause: &str| replay.waiting_cause.as_deref() == Some(cause);
    let waiting = waiting.into_iter().map(|cause| ([("cause", cause)], count(&|replay| is_waiting(replay, cause))));
    writer.gauges("replays_waiting", "Those of them that wait, or some of whose letters do", waiting)?;
    let letters = LetterProgress::ALL.iter().map(|progress| {
        let letters = replays.iter().filter_map(|replay| replay.letters.get(progress.as_str())).sum::<u64>();
        ([("progress", progress.as_str())], letters as f64)
    });
    writer.gauges("replay_letters", "Letters of replays that have not ended", letters)
}
