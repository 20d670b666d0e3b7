//! Who may do what: the principal comes from the client certificate, the rules from the configuration.
//!
//! Nothing is allowed that no rule allows.

use std::sync::Arc;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::Refusal;
use crate::config::{AclRule, Right, matches_pattern};

/// Longest principal taken from a certificate.
const PRINCIPAL_BYTES_MAX: usize = 512;

/// The operator's rules.
#[derive(Debug, Clone)]
pub struct Acl {
    rules: Arc<[AclRule]>,
}

impl Acl {
    /// The rules as configured.
    pub fn new(rules: Vec<AclRule>) -> Acl {
        Acl { rules: rules.into() }
    }

    /// Refuses unless a rule gives the principal the right on the topic.
    pub fn check(&self, principal: &str, right: Right, topic: &str) -> Result<(), Refusal> {
        if self.rules.iter().any(|rule| rule.permits(principal, right, topic)) {
            return Ok(());
        }
        Err(Refusal::Unauthorized { principal: principal.to_owned(), right: right.as_str(), what: format!("topic {topic:?}") })
    }

    /// Refuses unless a rule gives the principal the right on every topic: what concerns the whole node.
    pub fn check_node(&self, principal: &str, right: Right) -> Result<(), Refusal> {
        let whole =
            |rule: &AclRule| rule.topic == "*" && rule.allow.contains(&right) && matches_pattern(&rule.principal, principal);
        if self.rules.iter().any(whole) {
            return Ok(());
        }
        Err(Refusal::Unauthorized {
            principal: principal.to_owned(),
            right: right.as_str(),
            what: "the node (a rule with topic = \"*\")".to_owned(),
        })
    }

    /// Whether the principal may see that the topic exists.
    pub fn sees(&self, principal: &str, topic: &str) -> bool {
        let rights = [Right::Consume, Right::Produce, Right::Admin];
        rights.iter().any(|right| self.rules.iter().any(|rule| rule.permits(principal, *right, topic)))
    }
}

/// Who a verified client certificate says the peer is, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// First DNS or URI name, else the subject's common name.
    pub principal: Arc<str>,
    /// Seconds since 1970 after which the certificate no longer counts.
    pub not_after: i64,
    /// Seconds since 1970 before which it does not count yet.
    pub not_before: i64,
}

/// Why a certificate gives no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the client certificate cannot be read; issue it again (`weir cert` makes usable ones)")]
    Unreadable,
    /// It has no name.
    #[error("the client certificate has neither a DNS or URI name nor a common name; issue it with one")]
    Nameless,
    /// The certificate is expired, or not valid yet.
    #[error("the client certificate of {principal:?} is not valid now; renew it")]
    NotValidNow {
        /// Whose it is.
        principal: String,
    },
}

impl Identity {
    /// Reads the identity from the leaf certificate.
    pub fn from_der(der: &[u8]) -> Result<Identity, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        let principal = alternative_name(&certificate).or_else(|| common_name(&certificate));
        let principal = principal.filter(|name| !name.is_empty() && name.len() <= PRINCIPAL_BYTES_MAX);
        let validity = certificate.validity();
        Ok(Identity {
            principal: Arc::from(principal.ok_or(IdentityError::Nameless)?),
            not_after: validity.not_after.timestamp(),
            not_before: validity.not_before.timestamp(),
        })
    }

    /// TLS checks validity in a full handshake only: a resumed session brings its certificate unchecked.
    pub fn check_valid(&self, now_seconds: i64) -> Result<(), IdentityError> {
        if now_seconds > self.not_after || now_seconds < self.not_before {
            return Err(IdentityError::NotValidNow { principal: self.principal.to_string() });
        }
        Ok(())
    }
}

fn alternative_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    })
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next()?.as_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: Vec<String>, common_name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_alternative_name_counts_before_the_common_name() {
        let read = |names: Vec<String>, common_name| Identity::from_der(&certificate(names, common_name));
        assert_eq!(&*read(vec!["van-7".into()], "other").unwrap().principal, "van-7");
        assert_eq!(&*read(Vec::new(), "gateway 3").unwrap().principal, "gateway 3");
        assert!(matches!(read(Vec::new(), ""), Err(IdentityError::Nameless)));
        assert!(matches!(Identity::from_der(b"garbage"), Err(IdentityError::Unreadable)));
    }

    #[test]
    fn an_expired_certificate_gives_no_entry() {
        let identity = Identity { principal: Arc::from("a"), not_before: 10, not_after: 20 };
        assert!(identity.check_valid(15).is_ok());
        assert!(identity.check_valid(21).is_err());
        assert!(identity.check_valid(9).is_err());
    }

    #[test]
    fn what_no_rule_allows_is_refused() {
        let rule = |principal: &str, topic: &str, allow: &[Right]| AclRule {
            principal: principal.into(),
            topic: topic.into(),
            allow: allow.to_vec(),
        };
        let acl = Acl::new(vec![rule("van-*", "tpms.*", &[Right::Produce]), rule("ops", "*", &[Right::Admin])]);
        assert!(acl.check("van-7", Right::Produce, "tpms.raw").is_ok());
        assert!(acl.check("van-7", Right::Produce, "other").is_err());
        assert!(acl.check("van-7", Right::Consume, "tpms.raw").is_err());
        assert!(acl.check("car", Right::Produce, "tpms.raw").is_err());
        assert!(acl.check_node("ops", Right::Admin).is_ok());
        assert!(acl.check_node("van-7", Right::Produce).is_err(), "a prefix is not the node");
        assert!(acl.sees("van-7", "tpms.raw") && !acl.sees("van-7", "other"));
    }
}
