//! Counts what the providers of a consumer's notification channels have delivered. It never decides anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::histogram::Histogram;
use super::step_counters::CALL_BOUNDS;
use crate::recovery::Failure;

/// Failure codes of one provider counted separately, since a metric's labels must have few values.
const MAX_CODES: usize = 64;
/// The code under which all further ones are counted.
const OTHER_CODE: &str = "other";

/// What one provider has delivered for one channel, at one instant.
#[derive(Debug, Clone)]
pub struct ProviderReading {
    /// Attempts that have not ended yet.
    pub in_flight: u64,
    /// Notifications that it has accepted.
    pub sent: u64,
    /// Attempts that have failed, by code.
    pub failed: BTreeMap<String, u64>,
    /// Attempts that were dropped before their end, because the delivery was released.
    pub abandoned: u64,
    /// The durations of the attempts that were not abandoned.
    pub durations: Histogram,
}

impl Default for ProviderReading {
    fn default() -> Self {
        ProviderReading {
            in_flight: 0,
            sent: 0,
            failed: BTreeMap::new(),
            abandoned: 0,
            durations: Histogram::new(&CALL_BOUNDS),
        }
    }
}

/// All channels of a consumer, at one instant.
#[derive(Debug, Clone, Default)]
pub struct ChannelsReading {
    /// The providers of each configured channel, in the order in which they are tried.
    pub routes: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// By channel and provider, also of those that are not configured any more.
    pub providers: BTreeMap<(Arc<str>, Arc<str>), ProviderReading>,
}

/// The counts of a consumer's channels.
#[derive(Debug, Default)]
pub struct ChannelCounters(Mutex<ChannelsReading>);

impl ChannelCounters {
    fn lock(&self) -> MutexGuard<'_, ChannelsReading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the configured channels known, so that they are shown before their first notification.
    pub fn configure(&self, routes: BTreeMap<Arc<str>, Vec<Arc<str>>>) {
        let mut reading = self.lock();
        for (channel, providers) in &routes {
            for provider in providers {
                reading.providers.entry((Arc::clone(channel), Arc::clone(provider))).or_default();
            }
        }
        reading.routes = routes;
    }

    /// Counts an attempt as in flight until the guard ends.
    pub(crate) fn begun(&self, channel: &str, provider: &Arc<str>) -> AttemptGuard<'_> {
        let key = (Arc::from(channel), Arc::clone(provider));
        self.lock().providers.entry(key.clone()).or_default().in_flight += 1;
        AttemptGuard { counters: self, key, began: Instant::now(), end: AttemptEnd::Abandoned }
    }

    /// The counts.
    pub fn read(&self) -> ChannelsReading {
        self.lock().clone()
    }
}

/// An attempt in flight.
pub(crate) struct AttemptGuard<'c> {
    counters: &'c ChannelCounters,
    key: (Arc<str>, Arc<str>),
    began: Instant,
    end: AttemptEnd,
}

enum AttemptEnd {
    Sent,
    Failed(String),
    Abandoned,
}

impl AttemptGuard<'_> {
    /// The attempt has ended: with this failure, or without one.
    pub(crate) fn ended(mut self, failure: Option<&Failure>) {
        self.end = failure.map_or(AttemptEnd::Sent, |failure| AttemptEnd::Failed(failure.code.clone()));
    }
}

impl Drop for AttemptGuard<'_> {
    fn drop(&mut self) {
        let mut reading = self.counters.lock();
        let Some(provider) = reading.providers.get_mut(&self.key) else { return };
        provider.in_flight -= 1;
        match std::mem::replace(&mut self.end, AttemptEnd::Abandoned) {
            AttemptEnd::Abandoned => {
                provider.abandoned += 1;
                return;
            }
            AttemptEnd::Sent => provider.sent += 1,
            AttemptEnd::Failed(code) => {
                let is_known = provider.failed.len() < MAX_CODES || provider.failed.contains_key(&code);
                let code = if is_known { code } else { OTHER_CODE.to_owned() };
                *provider.failed.entry(code).or_default() += 1;
            }
        }
        provider.durations.add(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::FailureKind;

    #[test]
    fn an_attempt_is_counted_once_as_sent_failed_or_abandoned() {
        let (counters, provider) = (ChannelCounters::default(), Arc::from("backup"));
        let channel: Arc<str> = "email".into();
        counters.configure([(Arc::clone(&channel), vec![Arc::clone(&channel), Arc::clone(&provider)])].into());
        let attempts: Vec<_> = (0..3).map(|_| counters.begun("email", &provider)).collect();
        let read = || counters.read().providers[&(Arc::clone(&channel), Arc::clone(&provider))].clone();
        assert_eq!(read().in_flight, 3);
        let failure = Failure::new(FailureKind::Transient, "smtp_421", "421 not now");
        for (attempt, end) in attempts.into_iter().zip([Some(None), Some(Some(&failure)), None]) {
            if let Some(failure) = end {
                attempt.ended(failure);
            }
        }
        let reading = read();
        assert_eq!((reading.in_flight, reading.sent, reading.abandoned), (0, 1, 1));
        assert_eq!((reading.failed, reading.durations.count()), ([("smtp_421".to_owned(), 1)].into(), 2));
        assert_eq!(counters.read().providers.len(), 2, "what has delivered nothing is known too");
    }

    #[test]
    fn codes_past_the_limit_are_counted_as_other() {
        let counters = ChannelCounters::default();
        for number in 0..MAX_CODES + 5 {
            let failure = Failure::new(FailureKind::Transient, format!("smtp_{number}"), "");
            counters.begun("email", &"email".into()).ended(Some(&failure));
        }
        let failed = &counters.read().providers[&("email".into(), "email".into())].failed;
        assert_eq!((failed.len(), failed[OTHER_CODE]), (MAX_CODES + 1, 5));
    }
}
