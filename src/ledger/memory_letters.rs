//! Stored dead letters in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dead_letters::{
    Cause, Counted, DeadLetter, DeadLetterContent, DeadLetterDetail, DeadLetterFilter, DeadLetterGroups,
    DeadLetterPage, DeadLetterQuery, GroupBuilder, Identification, LetterOrigin, LetterSource, LetterState,
    NewStoredLetter, StoreAnswer, UnresolvedBuilder, UnresolvedDeadLetters, WholeDeadLetters,
};
use super::error::LedgerError;
use super::state::OutageCause;
use crate::domain::ExactSum;

/// A stored message.
#[derive(Debug)]
struct MemoryLetter {
    letter: NewStoredLetter,
    state: LetterState,
    maybe_duplicate_of: Option<i64>,
}

/// The stored messages; a message's number is its place, from 1.
#[derive(Debug, Default)]
pub(super) struct MemoryLetters {
    letters: Vec<MemoryLetter>,
    /// The process that began to read a message, by fingerprint.
    readings: BTreeMap<[u8; 32], String>,
    /// Why the next one cannot be stored.
    next_fails: Option<OutageCause>,
}

impl MemoryLetters {
    pub fn fail_next(&mut self, cause: OutageCause) {
        self.next_fails = Some(cause);
    }

    pub fn store(&mut self, letter: NewStoredLetter) -> Result<StoreAnswer, LedgerError> {
        if let Some(cause) = self.next_fails.take() {
            let source = Arc::new(std::io::Error::other("no room for this letter"));
            return Err(LedgerError::Unavailable { action: "store a letter", cause, source });
        }
        self.readings.remove(&letter.fingerprint);
        let last = |is_meant: &dyn Fn(&MemoryLetter) -> bool| self.letters.iter().rposition(is_meant).map(number);
        let is_same = |known: &MemoryLetter| known.letter.fingerprint == letter.fingerprint;
        let original = match letter.identification {
            Identification::ById => last(&|known| is_same(known) && !known.state.is_closed()),
            Identification::Unidentified => None,
        };
        if let Some(id) = original {
            return Ok(StoreAnswer::Duplicate(id));
        }
        let is_of_other_session = |known: &MemoryLetter| is_same(known) && known.letter.session != letter.session;
        let maybe_duplicate_of = letter.redelivered.then(|| last(&is_of_other_session)).flatten();
        self.letters.push(MemoryLetter { letter, state: LetterState::Open, maybe_duplicate_of });
        Ok(StoreAnswer::Stored(number(self.letters.len() - 1)))
    }

    /// Whether a message about this order may be replayed.
    pub fn may_return(&self, order: &str) -> bool {
        let is_about = |known: &MemoryLetter| known.letter.order.id.as_deref() == Some(order);
        self.letters.iter().any(|known| is_about(known) && !known.state.is_closed())
    }

    /// What has become of a message of this consumer; that of the last one.
    pub fn last_state(&self, identity: &str, consumer: &str) -> Option<LetterState> {
        let mut letters = self.letters.iter().rev();
        let is_meant = |letter: &NewStoredLetter| {
            letter.identity.as_deref() == Some(identity) && ["", consumer].contains(&&*letter.consumer)
        };
        letters.find(|known| is_meant(&known.letter)).map(|known| known.state)
    }

    /// The same of an order.
    pub fn last_state_of_order(&self, order: &str) -> Option<LetterState> {
        let mut letters = self.letters.iter().rev();
        letters.find(|known| known.letter.order.id.as_deref() == Some(order)).map(|known| known.state)
    }

    pub fn begin_parsing(&mut self, fingerprint: [u8; 32], process: String) -> bool {
        *self.readings.entry(fingerprint).or_insert_with(|| process.clone()) != process
    }

    pub fn end_parsing(&mut self, fingerprint: &[u8; 32]) {
        self.readings.remove(fingerprint);
    }

    pub fn page(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        let found = self.found(&query.filter).map(|(id, known)| row(id, known));
        let mut letters: Vec<_> = found
            .filter(|letter| query.before.is_none_or(|before| letter.id < before))
            .filter(|letter| query.after.is_none_or(|after| letter.id > after))
            .collect();
        if query.after.is_none() {
            letters.reverse();
        }
        let more = letters.len() > query.limit;
        letters.truncate(query.limit);
        DeadLetterPage { letters, more }
    }

    pub fn whole_page(&self, query: &DeadLetterQuery, budget: usize) -> WholeDeadLetters {
        let DeadLetterPage { letters, more } = self.page(query);
        let (count, mut bytes) = (letters.len(), 0);
        let whole: Vec<_> = letters
            .iter()
            .filter_map(|letter| self.detail(letter.id))
            .enumerate()
            .take_while(|(before, detail)| {
                bytes += detail.content.body.len();
                *before == 0 || bytes <= budget
            })
            .map(|(_, detail)| detail)
            .collect();
        WholeDeadLetters { more: more || whole.len() < count, letters: whole }
    }

    pub fn groups(&self, filter: &DeadLetterFilter) -> DeadLetterGroups {
        let mut groups = GroupBuilder::default();
        self.found(filter).for_each(|(id, known)| groups.add(counted(id, known)));
        groups.finish()
    }

    pub fn unresolved(&self) -> UnresolvedDeadLetters {
        let mut sums = UnresolvedBuilder::default();
        let all = DeadLetterFilter::default();
        let open = self.found(&all).filter(|(_, known)| !known.state.is_closed());
        open.for_each(|(id, known)| sums.add(counted(id, known)));
        // It has no replays.
        sums.finish(Vec::new())
    }

    /// Without attempts, deliveries and steps.
    pub fn detail(&self, id: i64) -> Option<DeadLetterDetail> {
        let known = self.letters.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        let letter = &known.letter;
        let json = |text: &str| serde_json::from_str(text).expect("it was JSON");
        let content = DeadLetterContent {
            revision: 0,
            properties: json(&letter.properties),
            headers: json(&letter.headers),
            body: letter.body.to_vec(),
        };
        let products = letter.order.products.clone();
        Some(DeadLetterDetail {
            letter: row(id, known),
            products,
            content,
            edits: Vec::new(),
            replays: Vec::new(),
            attempts: Vec::new(),
            deliveries: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Oldest first.
    fn found<'a>(&'a self, filter: &'a DeadLetterFilter) -> impl Iterator<Item = (i64, &'a MemoryLetter)> {
        let all = self.letters.iter().enumerate().map(|(index, known)| (number(index), known));
        all.filter(|(_, known)| matches(filter, known))
    }
}

fn number(index: usize) -> i64 {
    i64::try_from(index + 1).expect("tests store few letters")
}

fn matches(filter: &DeadLetterFilter, MemoryLetter { letter, state, .. }: &MemoryLetter) -> bool {
    let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
    let is_some = |wanted: &Option<String>, text: &Option<String>| wanted.is_none() || wanted == text;
    let (total, currency) = letter.order.total.as_ref().map(|(total, currency)| (total, currency)).unzip();
    let total: Option<ExactSum> = total.map(|total| total.parse().expect("it is an amount"));
    (filter.states.is_empty() || filter.states.contains(state))
        && filter.source.is_none_or(|source| source == letter.source)
        && is(&filter.reason, &letter.reason)
        && is(&filter.code, &letter.code)
        && is(&filter.consumer, &letter.consumer)
        && filter.product.as_ref().is_none_or(|product| letter.order.products.contains(product))
        && is_some(&filter.customer, &letter.order.customer_id)
        && is_some(&filter.order, &letter.order.id)
        && is(&filter.routing_key, &letter.routing_key)
        && filter.replay.is_none()
        && filter.min_retries.is_none_or(|retries| letter.retries >= retries)
        && filter
            .currency
            .as_ref()
            .is_none_or(|wanted| currency.is_some_and(|currency| currency.eq_ignore_ascii_case(wanted)))
        && filter.min_total.is_none_or(|least| total.is_some_and(|total| total >= least))
        && filter.since.is_none_or(|since| letter.failed_at >= since)
        && filter.until.is_none_or(|until| letter.failed_at < until)
        && filter.text.as_ref().is_none_or(|text| letter.search.contains(&text.to_lowercase()))
}

fn counted(id: i64, known: &MemoryLetter) -> Counted {
    let (letter, state) = (&known.letter, known.state);
    let cause = Cause {
        source: letter.source,
        reason: letter.reason.clone(),
        consumer: letter.consumer.clone(),
        code: letter.code.clone(),
        routing_key: (letter.source == LetterSource::UnroutedQueue).then(|| letter.routing_key.clone()),
    };
    let total = letter.order.total.clone();
    let total = total.map(|(total, currency)| (currency, total.parse().expect("it is an amount")));
    Counted { id, state, cause, total, failed_at: letter.failed_at }
}

fn row(id: i64, known: &MemoryLetter) -> DeadLetter {
    let MemoryLetter { state, maybe_duplicate_of, .. } = *known;
    let letter = known.letter.clone();
    let broker_reason = (letter.origin == LetterOrigin::Broker).then(|| letter.reason.clone());
    let (total, currency) = letter.order.total.unzip();
    DeadLetter {
        id,
        state,
        source: letter.source,
        origin: letter.origin,
        reason: letter.reason,
        broker_reason,
        code: letter.code,
        failure_kind: letter.failure_kind,
        failure_reason: letter.failure_reason,
        consumer: Some(letter.consumer).filter(|consumer| !consumer.is_empty()),
        retries: letter.retries,
        identity: letter.identity,
        former_order_id: None,
        order_id: letter.order.id,
        customer_id: letter.order.customer_id,
        product: letter.order.products.first().cloned(),
        products: u32::try_from(letter.order.products.len()).expect("tests have few products"),
        total: total.map(|total| total.parse().expect("it is an amount")),
        currency,
        origin_queue: letter.origin_queue,
        exchange: letter.exchange,
        routing_key: letter.routing_key,
        message_id: letter.message_id,
        user_id: letter.user_id,
        bytes: letter.body.len() as u64,
        failed_at: letter.failed_at,
        collected_at: letter.at,
        note: None,
        maybe_duplicate_of,
        erased: false,
        unparsed: letter.unparsed,
        last_replay: None,
        came_back_from: None,
    }
}
