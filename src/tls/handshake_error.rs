//! Why a TLS handshake failed, and which setting to change. Pure.

use std::io;

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a TLS handshake failed. The messages name keys of the configuration's `tls` sections, and "it" means the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No trusted authority has signed the server's certificate.
    #[error(
        "its certificate is not signed by an authority in ca_file or, without ca_file, one that the operating system trusts"
    )]
    UnknownAuthority,
    /// The server's certificate is for another name.
    #[error("its certificate is for {presented}, not for {expected}: set server_name, or connect to another address")]
    WrongName {
        /// The name that orderd connected to.
        expected: String,
        /// The names in the certificate.
        presented: String,
    },
    /// The server's certificate has expired, at this time if known.
    #[error("its certificate has expired{}: renew it on the broker", in_parentheses(.0))]
    Expired(Option<Timestamp>),
    /// The server's certificate becomes valid later, at this time if known.
    #[error("its certificate is not valid yet{}: check the clock", in_parentheses(.0))]
    NotYetValid(Option<Timestamp>),
    /// The server's certificate is rejected for another reason.
    #[error("its certificate cannot be accepted: {0}")]
    Certificate(String),
    /// The server does not speak TLS.
    #[error(
        "it does not speak TLS at this port: name its TLS port (by default 5671 for AMQP, 443 for https), or configure the connection \
         without TLS"
    )]
    NotTls,
    /// The server requires a client certificate, and none is configured.
    #[error("it requires a client certificate: set certificate_file and key_file")]
    ClientCertificateMissing,
    /// The server rejects orderd's client certificate.
    #[error("it rejects the client certificate in certificate_file: {0}")]
    ClientCertificateRejected(String),
    /// Client and server share no version, cipher or signature algorithm.
    #[error("it supports no TLS version or cipher that orderd supports (TLS 1.2 and 1.3): {0}")]
    Incompatible(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn in_parentheses(time: &Option<Timestamp>) -> String {
    time.map(|time| format!(" ({time})")).unwrap_or_default()
}

impl TlsError {
    /// The TLS error inside an I/O error, if any. `has_client_certificate`: whether the client has one to send.
    pub fn find_in_io_error(error: &io::Error, has_client_certificate: bool) -> Option<Self> {
        let inner = error.get_ref()?;
        if let Some(error) = inner.downcast_ref::<Error>() {
            return Some(TlsError::new(error, has_client_certificate));
        }
        // HTTP clients wrap I/O errors into I/O errors.
        TlsError::find_in_io_error(inner.downcast_ref::<io::Error>()?, has_client_certificate)
    }

    /// The TLS error anywhere in a chain of errors, if any.
    pub fn find_in_chain(error: &(dyn std::error::Error + 'static), has_client_certificate: bool) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(tls_error) = error.downcast_ref::<Error>() {
                return Some(TlsError::new(tls_error, has_client_certificate));
            }
            if let Some(tls_error) = error
                .downcast_ref::<io::Error>()
                .and_then(|error| TlsError::find_in_io_error(error, has_client_certificate))
            {
                return Some(tls_error);
            }
            next = error.source();
        }
        None
    }

    fn new(error: &Error, has_client_certificate: bool) -> Self {
        match error {
            Error::InvalidCertificate(error) => from_certificate_error(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                TlsError::NotTls
            }
            Error::AlertReceived(alert) => from_alert(*alert, has_client_certificate),
            Error::PeerIncompatible(_) => TlsError::Incompatible(error.to_string()),
            other => TlsError::Other(other.to_string()),
        }
    }

    /// Whether one side did not accept the other's certificate, so that the server read no request. With TLS 1.3 a server may say so
    /// once the client takes the connection for established.
    pub fn is_about_certificate(&self) -> bool {
        match self {
            TlsError::UnknownAuthority
            | TlsError::WrongName { .. }
            | TlsError::Expired(_)
            | TlsError::NotYetValid(_)
            | TlsError::Certificate(_)
            | TlsError::ClientCertificateMissing
            | TlsError::ClientCertificateRejected(_) => true,
            TlsError::NotTls | TlsError::Incompatible(_) | TlsError::Other(_) => false,
        }
    }

    /// `true` if connecting again cannot succeed until a setting or a certificate is changed.
    pub fn is_permanent(&self) -> bool {
        match self {
            TlsError::UnknownAuthority
            | TlsError::WrongName { .. }
            | TlsError::Expired(_)
            | TlsError::Certificate(_)
            | TlsError::NotTls
            | TlsError::ClientCertificateMissing
            | TlsError::ClientCertificateRejected(_)
            | TlsError::Incompatible(_) => true,
            // A machine's clock may be wrong for a short time after boot.
            TlsError::NotYetValid(_) | TlsError::Other(_) => false,
        }
    }
}

fn from_certificate_error(error: &CertificateError) -> TlsError {
    match error {
        CertificateError::UnknownIssuer => TlsError::UnknownAuthority,
        CertificateError::NotValidForNameContext { expected, presented } => TlsError::WrongName {
            expected: match expected {
                ServerName::IpAddress(address) => format!("{:?}", std::net::IpAddr::from(*address)),
                name => name.to_str().into_owned(),
            },
            presented: if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") },
        },
        CertificateError::Expired => TlsError::Expired(None),
        CertificateError::ExpiredContext { not_after, .. } => TlsError::Expired(timestamp(*not_after)),
        CertificateError::NotValidYet => TlsError::NotYetValid(None),
        CertificateError::NotValidYetContext { not_before, .. } => TlsError::NotYetValid(timestamp(*not_before)),
        other => TlsError::Certificate(other.to_string()),
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

/// An alert that the server sent. With TLS 1.2 a server may report a missing client certificate as a failed handshake.
fn from_alert(alert: AlertDescription, has_client_certificate: bool) -> TlsError {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => TlsError::ClientCertificateMissing,
        Alert::HandshakeFailure | Alert::NoCertificate | Alert::BadCertificate if !has_client_certificate => {
            TlsError::ClientCertificateMissing
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        // Of a certificate whose authority has the name of a trusted one and another key.
        | Alert::DecryptError
            if has_client_certificate =>
        {
            TlsError::ClientCertificateRejected(format!("{alert:?}"))
        }
        Alert::ProtocolVersion | Alert::InsufficientSecurity | Alert::HandshakeFailure => {
            TlsError::Incompatible(format!("{alert:?}"))
        }
        other => TlsError::Other(format!("it aborted the handshake: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_at_any_depth_of_wrapping() {
        let inner = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::other(inner));
        assert_eq!(TlsError::find_in_io_error(&error, false), Some(TlsError::UnknownAuthority));
        assert_eq!(TlsError::find_in_chain(&error, false), Some(TlsError::UnknownAuthority));
        assert_eq!(TlsError::find_in_io_error(&io::Error::other("else"), false), None);
    }

    #[test]
    fn an_alert_is_interpreted_by_whether_a_client_certificate_was_sent() {
        let alert = |alert, has_client_certificate| TlsError::new(&Error::AlertReceived(alert), has_client_certificate);
        assert_eq!(alert(AlertDescription::CertificateRequired, false), TlsError::ClientCertificateMissing);
        assert_eq!(alert(AlertDescription::HandshakeFailure, false), TlsError::ClientCertificateMissing);
        for rejects in [AlertDescription::UnknownCA, AlertDescription::DecryptError] {
            let rejected = alert(rejects, true);
            assert!(matches!(rejected, TlsError::ClientCertificateRejected(_)), "{rejected}");
        }
        assert!(!alert(AlertDescription::InternalError, true).is_permanent());
    }
}
