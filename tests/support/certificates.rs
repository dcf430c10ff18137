//! A certificate authority for tests, and the server and client certificates that it issues.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, date_time_ymd,
};

/// An authority that writes its certificate, and those it issues, to one directory.
pub struct CertificateAuthority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Whether a certificate is valid today.
#[derive(Clone, Copy)]
pub enum Validity {
    /// Until 2120.
    Current,
    /// Expired in 2021.
    Expired,
}

impl CertificateAuthority {
    /// Creates an authority, and writes its certificate to `<name>.pem`.
    pub fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = parameters(name, Validity::Current);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority =
            CertificateAuthority { directory: directory.to_owned(), issuer: Issuer::new(parameters.clone(), key) };
        let certificate = parameters.self_signed(authority.issuer.key()).unwrap();
        fs::write(authority.file(name, "pem"), certificate.pem()).unwrap();
        authority
    }

    /// The path of `<name>.pem` or `<name>.key`.
    pub fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }

    /// Issues a server certificate for `localhost` and 127.0.0.1.
    pub fn issue_server_certificate(&self, name: &str, validity: Validity) {
        self.issue_certificate_of(&["localhost", "127.0.0.1"], name, validity);
    }

    /// Issues a server certificate for these hosts.
    pub fn issue_certificate_of(&self, hosts: &[&str], name: &str, validity: Validity) {
        let mut parameters = parameters(name, validity);
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        parameters.subject_alt_names = CertificateParams::new(hosts).unwrap().subject_alt_names;
        self.issue(parameters, name, 1);
    }

    /// Issues a client certificate for `CN=<user>` and `OU=serial <hexadecimal>`.
    pub fn issue_client_certificate(&self, name: &str, user: &str, serial: u64) {
        let mut parameters = parameters(user, Validity::Current);
        // RabbitMQ reports the subject of a connection's certificate, but not its serial number.
        parameters.distinguished_name.push(DnType::OrganizationalUnitName, format!("serial {serial:x}"));
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(parameters, name, serial);
    }

    /// Writes `<name>.key` and `<name>.pem`. Each file is replaced atomically, as certificate tools do it.
    fn issue(&self, mut parameters: CertificateParams, name: &str, serial: u64) {
        parameters.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        for (kind, text) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let (file, unfinished) = (self.file(name, kind), self.file(name, "new"));
            fs::write(&unfinished, text).unwrap();
            make_private(&unfinished);
            fs::rename(unfinished, file).unwrap();
        }
    }
}

/// Makes a file readable by its owner only.
fn make_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn parameters(common_name: &str, validity: Validity) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = match validity {
        Validity::Current => date_time_ymd(2120, 1, 1),
        Validity::Expired => date_time_ymd(2021, 1, 1),
    };
    parameters
}
