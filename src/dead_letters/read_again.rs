//! Reads stored dead letters again that were stored unread, because reading them had ended a process of another version of orderd: a
//! newer one may be able to. What they say is filled in.
//!
//! A version reads each of them once, and none at all any more once one has ended it: so it is ended once at most.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use super::letter_reader::{BodyAccess, LetterReader};
use super::replay::stored_delivery;
use crate::chain::chain;
use crate::ledger::{DeadLetterDetail, EndedReading, FoundInLetter, Ledger, LedgerError, OpenError};
use crate::metrics::HoldCause;

/// What it needs.
pub struct ReadAgain {
    /// Where the letters are.
    pub ledger: Arc<dyn Ledger>,
    /// Reads what they say.
    pub reader: Arc<LetterReader>,
    /// Why no dead letters are collected. Then none is read either.
    pub hold: watch::Receiver<Option<HoldCause>>,
    /// This version of orderd.
    pub version: &'static str,
}

#[derive(Debug, thiserror::Error)]
enum ReadAgainError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Read(#[from] OpenError),
}

impl ReadAgain {
    /// Reads all of them. Cancel-safe, except that this version then reads no more of them.
    pub async fn run(self) {
        let mut hold = self.hold.clone();
        if hold.wait_for(Option::is_none).await.is_err() {
            return;
        }
        match self.read_all().await {
            Ok(0) => {}
            Ok(letters) => {
                info!(letters, "read dead letters again whose reading had ended an earlier version of orderd")
            }
            Err(error) => warn!(error = %chain(&error), "cannot read dead letters again that were stored unread"),
        }
    }

    async fn read_all(&self) -> Result<usize, ReadAgainError> {
        let (ledger, mut read) = (&self.ledger, 0);
        while let Some(letter) = ledger.begin_reading_again(self.version.to_owned()).await? {
            let detail = ledger.dead_letter(letter).await?;
            let found = match detail {
                Some(detail) => self.read(detail).await,
                None => None,
            };
            read += usize::from(found.is_some());
            ledger.end_reading_again(EndedReading { letter, version: self.version.to_owned(), found }).await?;
        }
        Ok(read)
    }

    /// What a letter says; `None` if its reader dies of it.
    async fn read(&self, detail: DeadLetterDetail) -> Option<FoundInLetter> {
        let (letter, delivery) = stored_delivery(detail)?;
        let reader = Arc::clone(&self.reader);
        let reading = tokio::task::spawn_blocking(move || {
            reader.read(letter.source, &delivery, "", BodyAccess::Read, letter.collected_at)
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
        let unread = |content, body: &'static [u8]| NewStoredLetter {
            body: body.into(),
            unread: true,
            identity: None,
            order: LetterOrder::default(),
            search: String::new(),
            consumer: String::new(),
            properties: "{}".to_owned(),
            headers: "{}".to_owned(),
            ..stored_letter("x", content)
        };
        for letter in [unread(1, ORDER), unread(2, b"\xff")] {
            ledger.store_letter(letter).await.unwrap();
        }
        let hold = watch::Sender::new(None);
        let consumers = watch::Sender::new(BTreeMap::new());
        let read_again = |version| {
            let reader = LetterReader {
                names: Arc::new(ExchangeNames::new("orders")),
                users: Arc::new(TrustedUsers::known("orderd")),
                max_body: 1 << 20,
                consumers: consumers.subscribe(),
            };
            ReadAgain { ledger: Arc::clone(&ledger) as _, reader: Arc::new(reader), hold: hold.subscribe(), version }
                .run()
        };
        let letter = async |id| ledger.dead_letter(id).await.unwrap().unwrap().letter;
        read_again(env!("CARGO_PKG_VERSION")).await;
        assert!(letter(1).await.unread, "it was this version that it has ended");
        // Another process is reading it, or was ended by it.
        assert_eq!(ledger.begin_reading_again("8".to_owned()).await.unwrap(), Some(1));
        read_again("8").await;
        assert!(letter(1).await.unread && letter(2).await.unread, "it may be ended by each");
        read_again("9").await;
        let read = letter(1).await;
        assert_eq!(
            (read.unread, read.order_id.as_deref(), read.customer_id.as_deref()),
            (false, Some("ord-1"), Some("ada"))
        );
        assert_eq!((read.product.as_deref(), read.products, read.currency.as_deref()), (Some("Ink"), 1, Some("EUR")));
        assert!(!letter(2).await.unread, "it is no order, but was read");
        let of_customer = DeadLetterFilter { customer: Some("ada".to_owned()), ..DeadLetterFilter::default() };
        let query = DeadLetterQuery { filter: of_customer, limit: 2, ..DeadLetterQuery::default() };
        assert_eq!(ledger.dead_letters(query).await.unwrap().letters.len(), 1);
    }
}
