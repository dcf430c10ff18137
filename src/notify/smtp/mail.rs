//! The e-mail of a notification: its headers and parts. Pure, apart from the date.

use std::fmt::Write as _;

use lettre::address::Envelope;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use sha2::{Digest, Sha256};

use super::super::settings::Sender;
use super::super::templates::MailTexts;

/// The whole e-mail, with line ends as SMTP has them. `id` is the event's id and the domain of the `Message-ID`.
pub(in crate::notify) fn mail(sender: &Sender, to: &Address, id: (&str, &str), texts: &MailTexts) -> Vec<u8> {
    let (event_id, domain) = id;
    let envelope = Envelope::new(Some(sender.from.email.clone()), vec![to.clone()]);
    let mut builder = Message::builder()
        .from(sender.from.clone())
        .to(Mailbox::new(None, to.clone()))
        .subject(texts.subject.as_str())
        .date_now()
        // Not read back from the header, whose parser knows no quoted local part.
        .envelope(envelope.expect("there is a recipient"))
        .message_id(Some(message_id(event_id, domain)))
        .raw_header(header("Auto-Submitted", "auto-generated"))
        .raw_header(header("Content-Language", &texts.language));
    if let Some(reply_to) = &sender.reply_to {
        builder = builder.reply_to(reply_to.clone());
    }
    if let Some(list_unsubscribe) = &sender.list_unsubscribe {
        builder = builder.raw_header(header("List-Unsubscribe", list_unsubscribe));
    }
    let built = match &texts.html {
        Some(html) => builder.multipart(MultiPart::alternative_plain_html(texts.text.clone(), html.clone())),
        None => builder.singlepart(SinglePart::plain(texts.text.clone())),
    };
    built.expect("an e-mail with one sender and one recipient is complete").formatted()
}

/// Derived from the event's id and the channel's domain, so that every attempt through every server of the channel has the same and a
/// mail program can recognise a repeated e-mail. Valid whatever characters the id has.
fn message_id(event_id: &str, domain: &str) -> String {
    let digest = Sha256::digest(event_id.as_bytes());
    let mut text = "<".to_owned();
    for byte in &digest[..16] {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    write!(text, ".orderd@{domain}>").expect("writing to a string does not fail");
    text
}

fn header(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::super::address;
    use super::*;

    fn texts() -> MailTexts {
        MailTexts {
            language: "de".to_owned(),
            subject: "Ihre Bestellung ord-2: Glühbirne".to_owned(),
            text: "Hallo\n.\nQUIT\n".to_owned(),
            html: Some("<p>Hallo</p>".to_owned()),
        }
    }

    fn built(to: &str, event_id: &str, texts: &MailTexts) -> String {
        let sender = Sender {
            from: address::parse_mailbox("Lampen & Mehr <orders@bücher.example>").unwrap(),
            reply_to: Some(address::parse_mailbox("help@example.com").unwrap()),
            list_unsubscribe: Some("<https://example.com/unsubscribe>".to_owned()),
        };
        let mail = mail(&sender, &address::parse(to).unwrap(), (event_id, "xn--bcher-kva.example"), texts);
        String::from_utf8(mail).unwrap()
    }

    /// The names of all headers before the body.
    fn headers(mail: &str) -> Vec<&str> {
        let head = mail.split("\r\n\r\n").next().unwrap();
        let lines = head.split("\r\n").filter(|line| !line.starts_with([' ', '\t']));
        lines.map(|line| line.split_once(':').unwrap().0).collect()
    }

    const HEADERS: [&str; 11] = [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "Content-Language",
        "Reply-To",
        "List-Unsubscribe",
        "MIME-Version",
        "Content-Type",
    ];

    #[test]
    fn an_e_mail_is_ascii_with_both_parts_and_all_headers() {
        let mail = built("ada@example.com", "ord-2/notification/processed", &texts());
        assert_eq!(headers(&mail), HEADERS);
        assert!(mail.is_ascii(), "{mail}");
        for part in ["text/plain; charset=utf-8", "text/html; charset=utf-8", "Auto-Submitted: auto-generated\r\n"] {
            assert!(mail.contains(part), "{part}: {mail}");
        }
        assert!(mail.contains("@xn--bcher-kva.example>"), "{mail}");
    }

    #[test]
    fn nothing_in_a_subject_an_id_or_an_address_adds_a_header() {
        let texts = MailTexts { subject: "a\r\nBcc: eve@example.com\r\n\r\n<script>".to_owned(), ..texts() };
        for to in ["ada@example.com", "\"ada, eve\"@example.com", "jürgen@bücher.example"] {
            let mail = built(to, "1\r\nBcc: eve@example.com", &texts);
            assert_eq!(headers(&mail), HEADERS, "{mail}");
        }
    }

    #[test]
    fn the_message_id_is_that_of_the_event_whatever_its_id_contains() {
        let ids = ["ord-2/notification/processed", "ord-3/notification/processed", "<>@\r\n\"ü"].map(|id| {
            assert_eq!(message_id(id, "example.com"), message_id(id, "example.com"));
            message_id(id, "example.com")
        });
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        let is_valid = |c: char| c.is_ascii_alphanumeric() || "<>.@-".contains(c);
        assert!(ids.iter().all(|id| id.chars().all(is_valid) && id.matches('@').count() == 1), "{ids:?}");
    }
}
