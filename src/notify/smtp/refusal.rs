//! What a server's reply means: whether it is about the recipient, or about us or the server itself. Pure.

use lettre::Address;
use lettre::transport::smtp::Error as SmtpError;

use super::super::address;
use crate::escape::escaped;

/// Replies about the session, not about the recipient: the service closes, a wrong sequence of commands, a login that is missing,
/// too weak, refused or not encrypted.
pub(super) const SESSION_REPLIES: [u16; 6] = [421, 503, 530, 534, 535, 538];

/// Why a command did not succeed.
pub(super) enum Refusal {
    /// The server answered with this code and text.
    Reply(u16, String),
    /// The connection does not work.
    Lost(String),
}

/// What a reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// `RCPT TO` or `DATA`.
    Envelope,
    /// The whole e-mail.
    Content,
}

impl From<SmtpError> for Refusal {
    fn from(error: SmtpError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        match error.status() {
            Some(code) => Refusal::Reply(code.into(), escaped(source.unwrap_or_default().trim())),
            // It shows its cause itself.
            None => Refusal::Lost(escaped(&error.to_string())),
        }
    }
}

impl Refusal {
    /// To what was said about this recipient. Servers repeat it in their replies, and the log and the status show failures.
    pub fn about(to: &Address, error: SmtpError) -> Self {
        match Refusal::from(error) {
            Refusal::Reply(code, text) => Refusal::Reply(code, without_recipient(&text, to)),
            Refusal::Lost(why) => Refusal::Lost(without_recipient(&why, to)),
        }
    }
}

/// Whether a reply is about us or the server itself, so that it would be the same for other recipients. The enhanced status code
/// (RFC 3463) decides: servers such as Postfix refuse clients, senders and missing logins only once they know the recipient, with
/// 554 5.7.1. About an e-mail 5.7.1 is about its content.
pub(super) fn is_about_service(code: u16, text: &str, answered: Answered) -> bool {
    SESSION_REPLIES.contains(&code)
        || match enhanced_code(text) {
            // The sender's address, a full or misconfigured system, and a limit of ours that is used up.
            Some((1, 7 | 8) | (3, 0..=2 | 5) | (4, 5)) => true,
            // A policy, or security.
            Some((7, _)) => answered == Answered::Envelope,
            _ => false,
        }
}

/// Subject and detail of an enhanced status code, with which the text begins if there is one.
fn enhanced_code(text: &str) -> Option<(u16, u16)> {
    let mut parts = text.split([' ', '\t']).next()?.split('.');
    let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |part: &str| part.parse::<u16>().ok().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit()));
    let is_code = ["4", "5"].contains(&class) && parts.next().is_none();
    is_code.then_some((number(subject)?, number(detail)?))
}

/// The text with the recipient shortened wherever it occurs. What is inserted is not searched: it may contain the address again.
fn without_recipient(text: &str, to: &Address) -> String {
    let to = to.to_string();
    let hidden = address::shortened(&to);
    // Of the same length as the text.
    let lower = text.to_ascii_lowercase();
    let mut shown = String::with_capacity(text.len());
    let mut end = 0;
    for (at, found) in lower.match_indices(&to.to_ascii_lowercase()) {
        shown.push_str(&text[end..at]);
        shown.push_str(&hidden);
        end = at + found.len();
    }
    shown.push_str(&text[end..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_us_is_not_one_of_the_recipient() {
        use Answered::{Content, Envelope};
        for (code, text, answered, expected) in [
            (554, "5.7.1 <a@x.example>: Relay access denied", Envelope, true),
            (553, "5.7.1 <orders@x.example>: Sender address rejected: not owned by user", Envelope, true),
            (550, "5.4.5 Daily sending quota exceeded", Envelope, true),
            (550, "5.4.5 Daily sending quota exceeded", Content, true),
            (452, "4.3.1 Insufficient system storage", Envelope, true),
            (451, "4.3.0 queue file write error", Content, true),
            (450, "4.7.1 too many e-mails", Envelope, true),
            (450, "4.1.8 <orders@x.example>: Sender address rejected: Domain not found", Envelope, true),
            (530, "log in", Envelope, true),
            (554, "5.7.1 looks like spam", Content, false),
            (552, "5.3.4 too big", Content, false),
            (550, "5.1.1 no such user", Envelope, false),
            (550, "5.4.4 no such domain", Envelope, false),
            (452, "4.2.2 mailbox full", Envelope, false),
            (550, "no such user", Envelope, false),
            (550, "5.7", Envelope, false),
            (550, "+5.+7.1 no", Envelope, false),
            (550, "", Envelope, false),
        ] {
            assert_eq!(is_about_service(code, text, answered), expected, "{code} {text} to {answered:?}");
        }
    }
}
