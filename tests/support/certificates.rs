//! Certificates for tests: an authority, and whom it vouches for.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, date_time_ymd,
};

/// An authority whose files are in a directory.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Until when a certificate is good.
#[derive(Clone, Copy)]
pub enum Until {
    /// For as long as these tests may run.
    Long,
    /// It ended long ago.
    Past,
}

impl Authority {
    /// A new one: its certificate is in `<name>.pem`.
    pub fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = named(name, Until::Long);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = Authority { directory: directory.to_owned(), issuer: Issuer::new(parameters.clone(), key) };
        let certificate = parameters.self_signed(authority.issuer.key()).unwrap();
        fs::write(authority.file(name, "pem"), certificate.pem()).unwrap();
        authority
    }

    /// `<name>.pem` or `<name>.key`.
    pub fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }

    /// A server's certificate for `localhost` and 127.0.0.1.
    pub fn vouch_for_server(&self, name: &str, until: Until) {
        let mut parameters = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let dated = named(name, until);
        (parameters.not_before, parameters.not_after) = (dated.not_before, dated.not_after);
        parameters.distinguished_name = dated.distinguished_name;
        self.vouch(parameters, name, 1);
    }

    /// A client's certificate, for `CN=<user>` and `OU=serial <hexadecimal>`, in `<name>.pem` and `<name>.key`.
    pub fn vouch_for(&self, name: &str, user: &str, serial: u64) {
        let mut parameters = named(user, Until::Long);
        // RabbitMQ tells the subject of a connection's certificate, and not its serial number.
        parameters.distinguished_name.push(DnType::OrganizationalUnitName, format!("serial {serial:x}"));
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.vouch(parameters, name, serial);
    }

    /// Both files are replaced the way a good tool does: written beside and moved into place.
    fn vouch(&self, mut parameters: CertificateParams, name: &str, serial: u64) {
        parameters.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        for (kind, text) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let (file, beside) = (self.file(name, kind), self.file(name, "new"));
            fs::write(&beside, text).unwrap();
            private(&beside);
            fs::rename(beside, file).unwrap();
        }
    }
}

/// Readable by its owner only.
fn private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn named(name: &str, until: Until) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = match until {
        Until::Long => date_time_ymd(2120, 1, 1),
        Until::Past => date_time_ymd(2021, 1, 1),
    };
    parameters
}
