//! Parses stored dead letters that were stored unparsed, because parsing them had ended a process of another version of orderd: a
//! newer one may be able to. What they say is filled in.
//!
//! A version reads each of them once, and none at all any more once one has ended it: so it is ended once at most.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use super::letter_parser::{BodyAccess, LetterParser};
use super::replay::stored_delivery;
use crate::chain::chain;
use crate::ledger::{DeadLetterDetail, EndedParsing, FoundInLetter, Ledger, LedgerError, OpenError};
use crate::metrics::CollectionPause;

/// What it needs.
pub struct Reparse {
    /// Where the letters are.
    pub ledger: Arc<dyn Ledger>,
    /// Reads what they say.
    pub parser: Arc<LetterParser>,
    /// Why no dead letters are collected. Then none is read either.
    pub pause: watch::Receiver<Option<CollectionPause>>,
    /// This version of orderd.
    pub version: &'static str,
}

#[derive(Debug, thiserror::Error)]
enum ReparseError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Read(#[from] OpenError),
}

impl Reparse {
    /// Reads all of them. Cancel-safe, except that this version then reads no more of them.
    pub async fn run(self) {
        let mut pause = self.pause.clone();
        if pause.wait_for(Option::is_none).await.is_err() {
            return;
        }
        match self.read_all().await {
            Ok(0) => {}
            Ok(letters) => {
                info!(letters, "read dead letters again whose reading had ended an earlier version of orderd")
            }
            Err(error) => warn!(error = %chain(&error), "cannot parse dead letters that were stored unparsed"),
        }
    }

    async fn read_all(&self) -> Result<usize, ReparseError> {
        let (ledger, mut read) = (&self.ledger, 0);
        while let Some(letter) = ledger.begin_reparsing(self.version.to_owned()).await? {
            let detail = ledger.dead_letter(letter).await?;
            let found = match detail {
                Some(detail) => self.read(detail).await,
                None => None,
            };
            read += usize::from(found.is_some());
            ledger.end_reparsing(EndedParsing { letter, version: self.version.to_owned(), found }).await?;
        }
        Ok(read)
    }

    /// What a letter says; `None` if parsing it panics.
    async fn read(&self, detail: DeadLetterDetail) -> Option<FoundInLetter> {
        let (letter, delivery) = stored_delivery(detail)?;
        let parser = Arc::clone(&self.parser);
        let reading = tokio::task::spawn_blocking(move || {
            parser.parse(letter.source, &delivery, "", BodyAccess::Parse, letter.collected_at)
        });
        let letter = reading.await.ok()?;
        Some(FoundInLetter { order: letter.order, identity: letter.identity, search: letter.search })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ledger::conformance::stored_letter;
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::{DeadLetterFilter, DeadLetterQuery, LedgerReader, LetterOrder, LetterWriter, NewStoredLetter};
    use crate::message::{ExchangeNames, TrustedUsers};

    #[tokio::test]
    async fn what_an_earlier_version_could_not_read_is_found_by_its_customer_once_a_newer_one_has_read_it() {
        const ORDER: &[u8] =
            br#"{"id":"ord-1","product":"Ink","quantity":3,"price":"4.00","currency":"EUR","customer_id":"ada"}"#;
        let directory = tempfile::tempdir().unwrap();
        let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
        let unparsed = |content, body: &'static [u8]| NewStoredLetter {
            body: body.into(),
            unparsed: true,
            identity: None,
            order: LetterOrder::default(),
            search: String::new(),
            consumer: String::new(),
            properties: "{}".to_owned(),
            headers: "{}".to_owned(),
            ..stored_letter("x", content)
        };
        for letter in [unparsed(1, ORDER), unparsed(2, b"\xff")] {
            ledger.store_letter(letter).await.unwrap();
        }
        let pause = watch::Sender::new(None);
        let consumers = watch::Sender::new(BTreeMap::new());
        let reparse = |version| {
            let parser = LetterParser {
                names: Arc::new(ExchangeNames::new("orders")),
                users: Arc::new(TrustedUsers::known("orderd")),
                max_body: 1 << 20,
                consumers: consumers.subscribe(),
            };
            Reparse { ledger: Arc::clone(&ledger) as _, parser: Arc::new(parser), pause: pause.subscribe(), version }
                .run()
        };
        let letter = async |id| ledger.dead_letter(id).await.unwrap().unwrap().letter;
        reparse(env!("CARGO_PKG_VERSION")).await;
        assert!(letter(1).await.unparsed, "it was this version that it has ended");
        // Another process is reading it, or was ended by it.
        assert_eq!(ledger.begin_reparsing("8".to_owned()).await.unwrap(), Some(1));
        reparse("8").await;
        assert!(letter(1).await.unparsed && letter(2).await.unparsed, "it may be ended by each");
        reparse("9").await;
        let read = letter(1).await;
        assert_eq!(
            (read.unparsed, read.order_id.as_deref(), read.customer_id.as_deref()),
            (false, Some("ord-1"), Some("ada"))
        );
        assert_eq!((read.product.as_deref(), read.products, read.currency.as_deref()), (Some("Ink"), 1, Some("EUR")));
        assert!(!letter(2).await.unparsed, "it is no order, but was read");
        let of_customer = DeadLetterFilter { customer: Some("ada".to_owned()), ..DeadLetterFilter::default() };
        let query = DeadLetterQuery { filter: of_customer, limit: 2, ..DeadLetterQuery::default() };
        assert_eq!(ledger.dead_letters(query).await.unwrap().letters.len(), 1);
    }
}
