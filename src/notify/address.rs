//! Addresses of e-mail: what an order gives is checked before any server sees it. Pure.
//!
//! Stricter than RFC 5322: no address that could add a recipient, a header or a command, and none of this machine's network.

use lettre::Address;
use lettre::message::Mailbox;

use crate::escape::escaped;

/// The longest address, in bytes: 64 for the local part, 255 for the domain (RFC 5321).
const MAX_ADDRESS_BYTES: usize = 320;
const MAX_LOCAL_BYTES: usize = 64;
const MAX_DOMAIN_BYTES: usize = 255;
/// The last digits of a shorter number are not shown.
const MIN_DIGITS: usize = 5;

/// Why a text is no address. Never contains the address, which belongs to a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressProblem {
    /// It has too many bytes.
    #[error("the address has more than {MAX_ADDRESS_BYTES} bytes, or more than {MAX_LOCAL_BYTES} before the \"@\"")]
    TooLong,
    /// It contains a line break or another control character, an angle bracket or a backslash.
    #[error("the address contains a control character, an angle bracket or a backslash")]
    Character,
    /// It is not `local@domain`.
    #[error("the address is not of the form name@domain")]
    Form,
    /// The domain is no name: an IP address, or not allowed by IDNA.
    #[error("the domain of the address is not valid")]
    Domain,
    /// The domain is a single word.
    #[error("the domain of the address is not one of the Internet")]
    NotInternet,
}

/// Parses an address. A domain with other than ASCII characters becomes its ASCII form.
pub(super) fn parse(text: &str) -> Result<Address, AddressProblem> {
    if text.len() > MAX_ADDRESS_BYTES {
        return Err(AddressProblem::TooLong);
    }
    if text.chars().any(|c| crate::escape::is_escaped(c) || matches!(c, '<' | '>' | '\\')) {
        return Err(AddressProblem::Character);
    }
    let (local, domain) = text.rsplit_once('@').ok_or(AddressProblem::Form)?;
    if local.len() > MAX_LOCAL_BYTES {
        return Err(AddressProblem::TooLong);
    }
    let domain = idna::domain_to_ascii_strict(domain).map_err(|_| AddressProblem::Domain)?;
    let has_name = domain.rsplit('.').next().is_some_and(|last| last.bytes().any(|b| b.is_ascii_alphabetic()));
    if domain.len() > MAX_DOMAIN_BYTES || domain.ends_with('.') || !has_name {
        return Err(AddressProblem::Domain);
    }
    Address::new(local, domain).map_err(|_| AddressProblem::Form)
}

/// Parses the address of a customer, whose domain is one of the Internet.
pub(super) fn parse_customer(text: &str) -> Result<Address, AddressProblem> {
    let address = parse(text.trim_matches(' '))?;
    if address.domain().contains('.') { Ok(address) } else { Err(AddressProblem::NotInternet) }
}

/// Parses an address of the configuration, with or without a name: `Lamps <orders@example.com>`.
pub(super) fn parse_mailbox(text: &str) -> Result<Mailbox, String> {
    let problem = || "must be an address such as \"Lamps <orders@example.com>\"".to_owned();
    if text.chars().any(char::is_control) {
        return Err(problem());
    }
    let mailbox: Mailbox = text.parse().map_err(|_| problem())?;
    let email = parse(mailbox.email.as_ref()).map_err(|error| error.to_string())?;
    if !email.to_string().is_ascii() {
        return Err("must have only ASCII characters before the \"@\"".to_owned());
    }
    Ok(Mailbox::new(mailbox.name, email))
}

/// An address or telephone number for display, shortened so that it names nobody: `a…@example.com`, `…89`.
pub(super) fn shortened(text: &str) -> String {
    match text.trim_matches(['"', ' ']).rsplit_once('@') {
        Some((local, domain)) => {
            let first: String = local.chars().take(1).collect();
            escaped(&format!("{first}…@{}", domain.trim_matches('"')))
        }
        None => {
            let digits: Vec<char> = text.chars().filter(char::is_ascii_digit).collect();
            let shown = if digits.len() > MIN_DIGITS { &digits[digits.len() - 2..] } else { &[] };
            format!("…{}", shown.iter().collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_customers_are_accepted() {
        for (text, expected) in [
            ("ada@example.com", "ada@example.com"),
            ("ada+lamps@mail.example.co.uk", "ada+lamps@mail.example.co.uk"),
            ("o'hara@example.com", "o'hara@example.com"),
            ("\"ada lovelace\"@example.com", "\"ada lovelace\"@example.com"),
            ("ada@bücher.example", "ada@xn--bcher-kva.example"),
            ("jürgen@bücher.example", "jürgen@xn--bcher-kva.example"),
            ("ada@EXAMPLE.com", "ada@example.com"),
        ] {
            assert_eq!(parse(text).map(|address| address.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn nothing_that_could_add_a_command_a_header_or_a_recipient_is_an_address() {
        let long = format!("{}@example.com", "a".repeat(10_000));
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@example.com\r\nRCPT TO:<eve@example.com>",
            "ada@example.com\nBcc: eve@example.com",
            "\"a\r\nBcc: eve\"@example.com",
            "ada@example.com, eve@example.com",
            "ada@example.com eve@example.com",
            "ada@example.com> NOTIFY=SUCCESS",
            "<ada@example.com>",
            "Ada <ada@example.com>",
            "\"a\\\"b\"@example.com",
            "ada\0@example.com",
            "ada\u{202e}@example.com",
            "ada@127.0.0.1",
            "ada@[127.0.0.1]",
            "ada@[IPv6:::1]",
            "ada@exa mple.com",
            "ada@example..com",
            "ada@-example.com",
            "ada@example.com.",
            &long,
            &format!("{}@example.com", "a".repeat(65)),
            &format!("ada@{}.com", "a".repeat(300)),
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_shortened_address_or_number_names_nobody() {
        for (text, expected) in [
            ("ada.lovelace@example.com", "a…@example.com"),
            (" ada@example.com ", "a…@example.com"),
            ("\"ada, eve\"@example.com", "a…@example.com"),
            ("+49 30 123456-89", "…89"),
            ("110", "…"),
            ("", "…"),
            ("ada\r\n@example.com", "a…@example.com"),
        ] {
            assert_eq!(shortened(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_sender_may_have_a_name_but_no_second_line() {
        assert_eq!(parse_mailbox("Lamps <orders@example.com>").unwrap().name.as_deref(), Some("Lamps"));
        assert!(parse_mailbox("orders@example.com").unwrap().name.is_none());
        for text in ["orders", "Lamps\r\nBcc: a@b.c <orders@example.com>", "a@b.c, d@e.f"] {
            assert!(parse_mailbox(text).is_err(), "{text:?}");
        }
    }
}
