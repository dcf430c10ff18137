//! Stored dead letters in memory.

use std::collections::BTreeSet;

use super::dead_letters::{
    Cause, Counted, DeadLetter, DeadLetterContent, DeadLetterDetail, DeadLetterFilter, DeadLetterGroups,
    DeadLetterPage, DeadLetterQuery, GroupBuilder, Identification, LetterState, NewStoredLetter, OpenBuilder,
    OpenDeadLetters, StoreAnswer, WholeDeadLetters,
};

/// The stored messages; a message's number is its place, from 1.
#[derive(Debug, Default)]
pub(super) struct MemoryLetters {
    letters: Vec<NewStoredLetter>,
    /// Subscriptions that have not ended cleanly.
    sessions: BTreeSet<String>,
}

impl MemoryLetters {
    pub fn store(&mut self, letter: NewStoredLetter) -> StoreAnswer {
        let same = |(_, known): &(usize, &NewStoredLetter)| known.fingerprint == letter.fingerprint;
        let is_unsure = |(_, known): &(usize, &NewStoredLetter)| {
            known.session != letter.session && self.sessions.contains(&known.session)
        };
        let stored = || self.letters.iter().enumerate().filter(same);
        let found = match letter.identification {
            Identification::New => None,
            Identification::ById => stored().map(|(index, _)| index).last(),
            Identification::Redelivered => match stored().filter(is_unsure).collect::<Vec<_>>()[..] {
                [(index, _)] => Some(index),
                _ => None,
            },
        };
        self.sessions.insert(letter.session.clone());
        if let Some(index) = found {
            if letter.identification == Identification::Redelivered {
                self.letters[index].session = letter.session;
            }
            return StoreAnswer::Duplicate(number(index));
        }
        self.letters.push(letter);
        StoreAnswer::Stored(number(self.letters.len() - 1))
    }

    pub fn end_session(&mut self, session: &str) {
        self.sessions.remove(session);
    }

    pub fn page(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        let found = self.found(&query.filter).map(|(id, letter)| row(id, letter));
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
            .take_while(|detail| {
                let fits = bytes < budget;
                bytes += detail.content.body.len();
                fits
            })
            .collect();
        WholeDeadLetters { more: more || whole.len() < count, letters: whole }
    }

    pub fn groups(&self, filter: &DeadLetterFilter) -> DeadLetterGroups {
        let mut groups = GroupBuilder::default();
        self.found(filter).for_each(|(id, letter)| groups.add(counted(id, letter)));
        groups.finish()
    }

    pub fn open(&self) -> OpenDeadLetters {
        let mut sums = OpenBuilder::default();
        self.found(&DeadLetterFilter::default()).for_each(|(id, letter)| sums.add(counted(id, letter)));
        sums.finish()
    }

    /// Without attempts and steps.
    pub fn detail(&self, id: i64) -> Option<DeadLetterDetail> {
        let letter = self.letters.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        let json = |text: &str| serde_json::from_str(text).expect("it was JSON");
        let content = DeadLetterContent {
            revision: 0,
            properties: json(&letter.properties),
            headers: json(&letter.headers),
            body: letter.body.to_vec(),
        };
        let products = letter.order.products.clone();
        Some(DeadLetterDetail { letter: row(id, letter), products, content, attempts: Vec::new(), steps: Vec::new() })
    }

    /// Oldest first.
    fn found<'a>(&'a self, filter: &'a DeadLetterFilter) -> impl Iterator<Item = (i64, &'a NewStoredLetter)> {
        let all = self.letters.iter().enumerate().map(|(index, letter)| (number(index), letter));
        all.filter(|(_, letter)| matches(filter, letter))
    }
}

fn number(index: usize) -> i64 {
    i64::try_from(index + 1).expect("tests store few letters")
}

fn matches(filter: &DeadLetterFilter, letter: &NewStoredLetter) -> bool {
    let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
    let is_some = |wanted: &Option<String>, text: &Option<String>| wanted.is_none() || wanted == text;
    (filter.states.is_empty() || filter.states.contains(&LetterState::Open))
        && filter.source.is_none_or(|source| source == letter.source)
        && is(&filter.reason, &letter.reason)
        && is(&filter.code, &letter.code)
        && is(&filter.consumer, &letter.consumer)
        && filter.product.as_ref().is_none_or(|product| letter.order.products.contains(product))
        && is_some(&filter.customer, &letter.order.customer_id)
        && is_some(&filter.order, &letter.order.id)
        && filter.since.is_none_or(|since| letter.failed_at >= since)
        && filter.until.is_none_or(|until| letter.failed_at < until)
        && filter.text.as_ref().is_none_or(|text| letter.search.contains(&text.to_lowercase()))
}

fn counted(id: i64, letter: &NewStoredLetter) -> Counted {
    let cause = Cause {
        source: letter.source,
        reason: letter.reason.clone(),
        consumer: letter.consumer.clone(),
        code: letter.code.clone(),
    };
    let total = letter.order.total.clone();
    let total = total.map(|(total, currency)| (currency, total.parse().expect("it is an amount")));
    Counted { id, cause, total, failed_at: letter.failed_at }
}

fn row(id: i64, letter: &NewStoredLetter) -> DeadLetter {
    let letter = letter.clone();
    let (total, currency) = letter.order.total.unzip();
    DeadLetter {
        id,
        state: LetterState::Open,
        source: letter.source,
        origin: letter.origin,
        reason: letter.reason,
        code: letter.code,
        failure_kind: letter.failure_kind,
        failure_reason: letter.failure_reason,
        consumer: Some(letter.consumer).filter(|consumer| !consumer.is_empty()),
        retries: letter.retries,
        identity: letter.identity,
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
    }
}
