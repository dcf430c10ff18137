//! The e-mails that a mail server accepted, compared with what became of the orders. Pure.
//!
//! Each order's customer is notified once of each event. An e-mail is known by its `Message-ID`: one that was sent again after the server
//! went away has the same.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::audit::Problems;

/// An accepted e-mail.
#[derive(Debug, Clone)]
pub struct Mail {
    pub message_id: String,
    pub subject: String,
}

impl Mail {
    /// Reads the headers of an e-mail.
    pub fn read(content: &str) -> Mail {
        let header = |name: &str| {
            let headers = content.split("\r\n\r\n").next().unwrap_or_default();
            let line = headers.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        Mail { message_id: header("Message-ID:"), subject: header("Subject:") }
    }
}

/// The comparison of a finished run.
#[derive(Debug)]
pub struct MailAudit {
    accepted: usize,
    confirmed: usize,
    cancelled: usize,
    others: usize,
    processed: usize,
    problems: Vec<String>,
}

impl MailAudit {
    /// Compares the e-mails with the orders that were processed, cancelled ones included, and with those that were cancelled after that.
    pub fn of(
        mails: &[Mail],
        prefix: &str,
        processed: &HashSet<String>,
        cancelled: &HashSet<String>,
        others: u64,
    ) -> MailAudit {
        let mut subjects: HashMap<&str, &str> = HashMap::new();
        for Mail { message_id, subject } in mails {
            subjects.insert(message_id, subject);
        }
        let (mut confirmations, mut cancellations, mut of_others) = (Vec::new(), Vec::new(), 0);
        for subject in subjects.values() {
            match subject.strip_prefix("Your order ").filter(|order| order.starts_with(prefix)) {
                Some(order) => match order.strip_suffix(" was cancelled") {
                    Some(order) => cancellations.push(order.to_owned()),
                    None => confirmations.push(order.to_owned()),
                },
                None => of_others += 1,
            }
        }
        let mut problems = Problems::default();
        for (what, orders, expected) in
            [("confirmation", &confirmations, processed), ("cancellation", &cancellations, cancelled)]
        {
            let found: HashSet<String> = orders.iter().cloned().collect();
            problems.add(&format!("customers got no {what}"), expected.difference(&found));
            problems.add(&format!("customers got a {what} that is not due"), found.difference(expected));
            let mut seen = HashSet::new();
            problems.add(&format!("customers got a second {what}"), orders.iter().filter(|order| !seen.insert(*order)));
        }
        if of_others != others {
            problems.0.push(format!("{of_others} e-mails of other programs arrived, {others} were published"));
        }
        MailAudit {
            accepted: mails.len(),
            confirmed: confirmations.len(),
            cancelled: cancellations.len(),
            others: of_others as usize,
            processed: processed.len(),
            problems: problems.0,
        }
    }

    /// Whether there are no discrepancies.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for MailAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MailAudit { accepted, confirmed, cancelled, others, processed, problems } = self;
        for (what, count) in [
            ("e-mails accepted", *accepted),
            ("  about processed orders", *confirmed),
            ("  about cancelled orders", *cancelled),
            ("  of other programs", *others),
            ("  again, with the same Message-ID", accepted.saturating_sub(confirmed + cancelled + others)),
        ] {
            writeln!(f, "  {what:<34} {count:>9}")?;
        }
        writeln!(f)?;
        if self.passed() {
            return write!(
                f,
                "  {confirmed} customers notified once = {processed} orders processed; {cancelled} notified of a cancellation"
            );
        }
        writeln!(f, "  the e-mails do not match the orders:")?;
        problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_a_second_e_mail_fails_the_comparison_and_a_repeated_one_does_not() {
        let mail = |id: &str, subject: &str| Mail::read(&format!("Message-ID: <{id}>\r\nSubject: {subject}\r\n\r\nx"));
        let ids = |ids: &[&str]| -> HashSet<String> { ids.iter().map(|id| (*id).to_owned()).collect() };
        let mails =
            [mail("1", "Your order a-1"), mail("2", "Your order a-2"), mail("3", "Your order a-2 was cancelled")];
        let passes = |mails: &[Mail]| MailAudit::of(mails, "a-", &ids(&["a-1", "a-2"]), &ids(&["a-2"]), 0).passed();
        assert!(passes(&mails));
        assert!(passes(&[&mails[..], &mails[..1]].concat()), "it was sent again");
        assert!(!passes(&mails[1..]), "a confirmation is missing");
        assert!(!passes(&mails[..2]), "a cancellation is missing");
        assert!(!passes(&[&mails[..], &[mail("4", "Your order a-1")]].concat()), "a second confirmation");
        assert!(!passes(&[&mails[..], &[mail("4", "An offer")]].concat()), "not published");
    }
}
