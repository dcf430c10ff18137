//! Why a TLS handshake failed, in words that name what to change. Pure.

use std::io;

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why there is no TLS connection. Keys named are those of the section `tls`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// Nobody that we trust has signed its certificate.
    #[error("its certificate is not signed by an authority in ca_file")]
    UnknownAuthority,
    /// The certificate is another server's.
    #[error("its certificate is for {presented} and not for {expected}: give server_name, or another address")]
    WrongName {
        /// Who we asked for.
        expected: String,
        /// Whose it is.
        presented: String,
    },
    /// Its time is over.
    #[error("its certificate has expired{}: renew it on the broker", at(.0))]
    Expired(Option<Timestamp>),
    /// Its time has not come.
    #[error("its certificate is not valid yet{}: is the clock right?", at(.0))]
    TooEarly(Option<Timestamp>),
    /// Its certificate is wrong in another way.
    #[error("its certificate cannot be accepted: {0}")]
    Certificate(String),
    /// What answers does not speak TLS.
    #[error("what answers there does not speak TLS: give the port of TLS (5671 by default), or leave out the section")]
    NotTls,
    /// It wants to know who we are.
    #[error("it asks for a client certificate: give certificate_file and key_file")]
    ClientCertificateMissing,
    /// It does not accept who we are.
    #[error("it does not accept the certificate in certificate_file: {0}")]
    ClientCertificateRefused(String),
    /// No version, cipher or signature that both know.
    #[error("it has no version or cipher of TLS in common with orderd, which needs TLS 1.2 or 1.3: {0}")]
    NothingInCommon(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn at(time: &Option<Timestamp>) -> String {
    time.map(|time| format!(" ({time})")).unwrap_or_default()
}

impl TlsFault {
    /// What TLS says in an I/O error, if it is TLS that failed. `identified`: whether we have a client certificate.
    pub fn of(error: &io::Error, identified: bool) -> Option<Self> {
        let inner = error.get_ref()?;
        if let Some(error) = inner.downcast_ref::<Error>() {
            return Some(TlsFault::new(error, identified));
        }
        // HTTP clients wrap I/O errors into I/O errors.
        TlsFault::of(inner.downcast_ref::<io::Error>()?, identified)
    }

    /// What TLS says anywhere in a chain of errors.
    pub fn within(error: &(dyn std::error::Error + 'static), identified: bool) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<Error>() {
                return Some(TlsFault::new(fault, identified));
            }
            if let Some(fault) = error.downcast_ref::<io::Error>().and_then(|error| TlsFault::of(error, identified)) {
                return Some(fault);
            }
            next = error.source();
        }
        None
    }

    fn new(error: &Error, identified: bool) -> Self {
        match error {
            Error::InvalidCertificate(error) => of_certificate(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                TlsFault::NotTls
            }
            Error::AlertReceived(alert) => of_alert(*alert, identified),
            Error::PeerIncompatible(_) => TlsFault::NothingInCommon(error.to_string()),
            other => TlsFault::Other(other.to_string()),
        }
    }

    /// Whether only a person can help, so that trying again is pointless.
    pub fn is_permanent(&self) -> bool {
        match self {
            TlsFault::UnknownAuthority
            | TlsFault::WrongName { .. }
            | TlsFault::Expired(_)
            | TlsFault::Certificate(_)
            | TlsFault::NotTls
            | TlsFault::ClientCertificateMissing
            | TlsFault::ClientCertificateRefused(_)
            | TlsFault::NothingInCommon(_) => true,
            // A clock is set right soon after a machine's start.
            TlsFault::TooEarly(_) | TlsFault::Other(_) => false,
        }
    }
}

fn of_certificate(error: &CertificateError) -> TlsFault {
    match error {
        CertificateError::UnknownIssuer => TlsFault::UnknownAuthority,
        CertificateError::NotValidForNameContext { expected, presented } => TlsFault::WrongName {
            expected: match expected {
                ServerName::IpAddress(address) => format!("{:?}", std::net::IpAddr::from(*address)),
                name => name.to_str().into_owned(),
            },
            presented: if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") },
        },
        CertificateError::Expired => TlsFault::Expired(None),
        CertificateError::ExpiredContext { not_after, .. } => TlsFault::Expired(timestamp(*not_after)),
        CertificateError::NotValidYet => TlsFault::TooEarly(None),
        CertificateError::NotValidYetContext { not_before, .. } => TlsFault::TooEarly(timestamp(*not_before)),
        other => TlsFault::Certificate(other.to_string()),
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

/// What the broker says about us. Under TLS 1.2 it may call a missing certificate a failed handshake.
fn of_alert(alert: AlertDescription, identified: bool) -> TlsFault {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => TlsFault::ClientCertificateMissing,
        Alert::HandshakeFailure | Alert::NoCertificate | Alert::BadCertificate if !identified => {
            TlsFault::ClientCertificateMissing
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
            if identified =>
        {
            TlsFault::ClientCertificateRefused(format!("{alert:?}"))
        }
        Alert::ProtocolVersion | Alert::InsufficientSecurity | Alert::HandshakeFailure => {
            TlsFault::NothingInCommon(format!("{alert:?}"))
        }
        other => TlsFault::Other(format!("it ended the handshake: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found_wherever_it_is_wrapped() {
        let inner = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::other(inner));
        assert_eq!(TlsFault::of(&error, false), Some(TlsFault::UnknownAuthority));
        assert_eq!(TlsFault::within(&error, false), Some(TlsFault::UnknownAuthority));
        assert_eq!(TlsFault::of(&io::Error::other("else"), false), None);
    }

    #[test]
    fn a_refused_handshake_means_what_we_have_shown() {
        let alert = |alert, identified| TlsFault::new(&Error::AlertReceived(alert), identified);
        assert_eq!(alert(AlertDescription::CertificateRequired, false), TlsFault::ClientCertificateMissing);
        assert_eq!(alert(AlertDescription::HandshakeFailure, false), TlsFault::ClientCertificateMissing);
        let refused = alert(AlertDescription::UnknownCA, true);
        assert!(matches!(refused, TlsFault::ClientCertificateRefused(_)), "{refused}");
        assert!(!alert(AlertDescription::InternalError, true).is_permanent());
    }
}
