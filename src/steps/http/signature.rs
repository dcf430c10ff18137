//! The signature of a request: `Orderd-Signature: t=<seconds since 1970>,v1=<HMAC-SHA-256 in hexadecimal digits>`, over
//! `<t>.<idempotency key>.<body>`. The time lets a service refuse a request that was recorded and is sent again.
//!
//! Pure.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

pub(super) fn sign(key: &str, seconds: i64, idempotency_key: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key of any length is accepted");
    mac.update(format!("{seconds}.{idempotency_key}.").as_bytes());
    mac.update(body);
    let digits: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_can_be_verified_by_other_programs() {
        // printf '1700000000.ord-2/charge.{"order":2}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let expected = "t=1700000000,v1=dc0eecb6c465a8c115b1b14d0fad4fcfd2465b1cc8ddf3fa2e567abb80a3ddbd";
        assert_eq!(sign("0123456789abcdef", 1_700_000_000, "ord-2/charge", b"{\"order\":2}"), expected);
    }
}
