//! Certificates for a site that has no CA yet: one CA, one server certificate, one client certificate a device.
//!
//! Files lie in one directory (`weir-certs`): `ca.pem` and `ca.key`, `server.pem` and `server.key`, and for every client
//! `<principal>.pem` and `<principal>.key`. The principal is the certificate's common name. Keys are readable by their owner
//! alone; nothing is overwritten unless asked. A site with a CA of its own needs none of this: the node takes any PEM.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Days a CA made here is valid.
pub const CA_DAYS: i64 = 3650;
/// Days a server or client certificate made here is valid.
pub const LEAF_DAYS: i64 = 825;
/// Clocks of devices may be behind by this much and still accept a fresh certificate.
const BACKDATED_SECONDS: i64 = 3600;

/// Why a certificate could not be made. The operator's turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// A file of that name is there already.
    #[error("{} exists already; use --force to replace it, or another --dir", .0.display())]
    Exists(PathBuf),
    /// There is no CA to sign with.
    #[error("no CA in {}: {source}; run `weir cert ca` first, or name its directory with --dir", dir.display())]
    NoCa {
        /// Where it was looked for.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The CA's files are not what they should be.
    #[error("the CA in {} cannot sign: {source}; make a new one with `weir cert ca --force`", dir.display())]
    BadCa {
        /// Where it lies.
        dir: PathBuf,
        /// What the certificate library said.
        source: rcgen::Error,
    },
    /// A name that cannot stand in a certificate or a file name.
    #[error("{name:?} cannot be used as a {what}: {rule}")]
    Name {
        /// As given.
        name: String,
        /// "principal" or "server name".
        what: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
    /// Signing failed.
    #[error("the certificate could not be made: {0}; check the names given")]
    Make(#[from] rcgen::Error),
    /// Writing failed.
    #[error("cannot write {}: {source}; check that the directory is writable", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A certificate and its private key, PEM.
#[derive(Debug, Clone)]
pub struct PemPair {
    /// The certificate.
    pub cert: String,
    /// Its private key: keep it secret.
    pub key: String,
}

/// A CA that can sign, with its PEM.
pub struct Ca {
    pem: PemPair,
    issuer: Issuer<'static, KeyPair>,
}

/// A new CA, valid for `days`.
pub fn make_ca(name: &str, days: i64) -> Result<Ca, CertError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, days);
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    let pem = PemPair { cert: cert.pem(), key: key.serialize_pem() };
    Ok(Ca { pem, issuer: Issuer::new(params, key) })
}

impl Ca {
    /// The CA's own certificate and key.
    pub fn pem(&self) -> &PemPair {
        &self.pem
    }

    /// Reads `ca.pem` and `ca.key` of a directory.
    pub fn from_dir(dir: &Path) -> Result<Ca, CertError> {
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name)).map_err(|source| CertError::NoCa { dir: dir.to_owned(), source })
        };
        let pem = PemPair { cert: read("ca.pem")?, key: read("ca.key")? };
        let bad = |source| CertError::BadCa { dir: dir.to_owned(), source };
        let key = KeyPair::from_pem(&pem.key).map_err(bad)?;
        let issuer = Issuer::from_ca_cert_pem(&pem.cert, key).map_err(bad)?;
        Ok(Ca { pem, issuer })
    }

    /// A server certificate for these host names and addresses.
    pub fn make_server(&self, names: &[String], addresses: &[IpAddr], days: i64) -> Result<PemPair, CertError> {
        let common = names.first().cloned().or_else(|| addresses.first().map(IpAddr::to_string));
        let Some(common) = common else {
            return Err(CertError::Name { name: String::new(), what: "server name", rule: "give at least one name or address" });
        };
        let mut params = CertificateParams::new(names.to_vec())?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, &common, days)
    }

    /// A client certificate whose holder is known to the node as `principal`. A negative number of days makes one that has
    /// expired already (tests need them).
    pub fn make_client(&self, principal: &str, days: i64) -> Result<PemPair, CertError> {
        check_principal(principal)?;
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, principal, days)
    }

    fn sign(&self, mut params: CertificateParams, common: &str, days: i64) -> Result<PemPair, CertError> {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, days);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(PemPair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

/// Writes `<name>.pem` and `<name>.key` (mode 0600) and says where.
pub fn write_pair(dir: &Path, name: &str, pair: &PemPair, force: bool) -> Result<(PathBuf, PathBuf), CertError> {
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    if !force && let Some(there) = [&cert, &key].into_iter().find(|path| path.exists()) {
        return Err(CertError::Exists(there.clone()));
    }
    std::fs::create_dir_all(dir).map_err(|source| CertError::Write { path: dir.to_owned(), source })?;
    write_file(&key, &pair.key, 0o600)?;
    write_file(&cert, &pair.cert, 0o644)?;
    Ok((cert, key))
}

/// A complete directory for trying things: CA, a server certificate for this machine's own names, and one client certificate
/// a principal. The quick start, `weir bench` and tests use it.
pub fn write_site(dir: &Path, principals: &[&str]) -> Result<(), CertError> {
    let ca = make_ca("Weir trial CA", CA_DAYS)?;
    write_pair(dir, "ca", ca.pem(), false)?;
    let loopback = ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().expect("a literal address"));
    write_pair(dir, "server", &ca.make_server(&["localhost".to_owned()], &loopback, LEAF_DAYS)?, false)?;
    for principal in principals {
        write_pair(dir, principal, &ca.make_client(principal, LEAF_DAYS)?, false)?;
    }
    Ok(())
}

/// A principal names a file and stands in ACL rules, so it keeps to plain characters.
pub fn check_principal(name: &str) -> Result<(), CertError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let reserved = matches!(name, "ca" | "server");
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with('.') || reserved {
        let rule = "use 1 to 64 letters, digits, `-`, `_`, `.` or `@`, not `.` first, and not `ca` or `server`";
        return Err(CertError::Name { name: name.to_owned(), what: "principal", rule });
    }
    Ok(())
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let until = now + days * 86_400;
    let from = (now - BACKDATED_SECONDS).min(until - 86_400);
    let at = |seconds: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.max(0) as u64);
    params.not_before = at(from);
    params.not_after = at(until);
}

/// Created with its mode, so that a key is never readable by others, not even for a moment.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let wrong = |source| CertError::Write { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(wrong)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_nothing_is_overwritten_by_accident() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca = make_ca("test", 1).expect("made");
        let (cert, key) = write_pair(dir.path(), "ca", ca.pem(), false).expect("written");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&key), 0o600);
        assert_eq!(mode(&cert), 0o644);
        let error = write_pair(dir.path(), "ca", ca.pem(), false).expect_err("must refuse").to_string();
        assert!(error.contains("--force"), "{error}");
        write_pair(dir.path(), "ca", ca.pem(), true).expect("forced");
        assert_eq!(mode(&key), 0o600);
    }

    #[test]
    fn a_ca_read_back_signs_what_its_certificate_verifies() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_pair(dir.path(), "ca", make_ca("test", 30).expect("made").pem(), false).expect("written");
        let ca = Ca::from_dir(dir.path()).expect("read back");
        let client = ca.make_client("truck-7", 30).expect("made");
        let parse = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents;
        let (ca_der, client_der) = (parse(&ca.pem().cert), parse(&client.cert));
        let ca_cert = x509_parser::parse_x509_certificate(&ca_der).expect("a certificate").1;
        let client_cert = x509_parser::parse_x509_certificate(&client_der).expect("a certificate").1;
        assert_eq!(client_cert.issuer(), ca_cert.subject());
        let names: Vec<_> = client_cert.subject().iter_common_name().map(|name| name.as_str().expect("text")).collect();
        assert_eq!(names, ["truck-7"]);
        assert!(client_cert.validity().is_valid());
    }

    #[test]
    fn negative_days_make_an_expired_certificate() {
        let client = make_ca("test", 30).and_then(|ca| ca.make_client("old", -1)).expect("made");
        let der = x509_parser::pem::parse_x509_pem(client.cert.as_bytes()).expect("PEM").1.contents;
        assert!(!x509_parser::parse_x509_certificate(&der).expect("a certificate").1.validity().is_valid());
    }

    #[test]
    fn principals_that_would_leave_the_directory_are_refused() {
        for name in ["", "../evil", "a/b", ".hidden", "ca", "server", "spaced name", &"x".repeat(65)] {
            assert!(check_principal(name).is_err(), "{name:?}");
        }
        assert!(check_principal("gateway-12.site@north").is_ok());
    }

    #[test]
    fn signing_without_a_ca_says_what_to_run() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = Ca::from_dir(dir.path()).err().expect("no CA there").to_string();
        assert!(error.contains("weir cert ca"), "{error}");
    }
}
