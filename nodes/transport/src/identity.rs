//! Who a node is: a key, and a certificate of the cluster's own CA that names the node.
//!
//! Owns: making the CA and the certificates, their files, and the one place where a peer's id is
//! read out of its certificate. Never opens a connection, and never takes a name from anywhere but a
//! certificate that the CA signed: an address or a greeting proves nothing.
//!
//! A certificate names its node three times. The URI `spiffe://<cluster>/node/<16 hex digits>` (the
//! SPIFFE form) is the identity. The DNS name `<16 hex digits>.<cluster>` is what a dialler that knows
//! the id asks TLS for, and `node.<cluster>` what one asks for that knows a seed's address only.
//!
//! ```text
//! ca init   ──▶ ca.pem, ca.key                    stays with the operator
//! ca issue  ──▶ cert.pem, key.pem, ca.pem         goes to one node
//! ```

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use understudy_protocol::id::NodeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls;

#[cfg(test)]
mod tests;

/// A cluster's own certificate authority. Whoever has it can make members.
pub struct Ca {
    cluster: String,
    key: KeyPair,
    certificate: String,
}

/// What a node proves itself with. The private key is in here; `Debug` does not show it.
pub struct Identity {
    node: NodeId,
    cluster: String,
    certificate: String,
    key: String,
    ca: String,
    pub(crate) certificate_der: CertificateDer<'static>,
    pub(crate) key_der: PrivateKeyDer<'static>,
    pub(crate) ca_der: CertificateDer<'static>,
}

/// Why there is no CA, or no certificate of it. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A cluster's name is part of DNS names: lower-case letters, digits, hyphens inside, at most 63.
    #[error("{0:?} is no cluster name: use 1 to 63 of a-z, 0-9 and '-', and no '-' at an end")]
    BadCluster(String),
    /// Neither an IP address nor a host name, nor one of them with a port.
    #[error("{0:?} is no address: give an IP address or a host name, with or without a port")]
    BadAddress(String),
    /// The certificate could not be made.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// A fresh certificate was not readable; nothing of it is used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why the files of a CA or of a node are not usable. Nothing was changed on disk, except where
/// [`IdentityError::Write`] says so.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is not there or not readable.
    #[error("{} cannot be read; `understudy ca issue` makes a node's files: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A file or its directory could not be written; those before it may have been.
    #[error("{} cannot be written: {error}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A CA stands there already. Overwriting it would orphan every member.
    #[error("{} exists already; choose another directory, or remove it if no node needs it", .0.display())]
    Exists(PathBuf),
    /// Others than the owner may read the key.
    #[error("{} may be read by others; run `chmod 600` on it", .0.display())]
    Exposed(PathBuf),
    /// The text holds no PEM section of the expected kind.
    #[error("{what} holds no {expected} in PEM form; copy the file again as it was issued")]
    NotPem {
        /// Which file.
        what: String,
        /// What should be in it.
        expected: &'static str,
    },
    /// The key is not the certificate's.
    #[error("cert.pem and key.pem do not belong together; copy both from one `ca issue`")]
    KeyMismatch,
    /// The certificate is not of this CA, or not valid today.
    #[error("ca.pem does not vouch for cert.pem ({0}); issue the node's files again with this CA")]
    Foreign(String),
    /// The certificate names no node.
    #[error("cert.pem names no node ({0}); issue it with `understudy ca issue`")]
    Name(#[from] NameError),
    /// The CA's certificate names no cluster.
    #[error("ca.pem names no cluster; make a CA with `understudy ca init`")]
    NoCluster,
    /// The CA's own files do not fit one another.
    #[error("ca.key is not the key of ca.pem; copy both from one `ca init`")]
    CaMismatch,
}

/// Why a certificate names no node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Its bytes are no certificate.
    #[error("it is no X.509 certificate")]
    NotCertificate,
    /// It has no `spiffe://` URI, or more than one.
    #[error("it has {0} SPIFFE URIs where one belongs")]
    Uris(usize),
    /// The URI is not of the form `spiffe://<cluster>/node/<16 hex digits>`.
    #[error("its URI {0:?} names no node")]
    BadUri(String),
    /// A node of another cluster.
    #[error("it is of cluster {seen:?}, not {expected:?}")]
    OtherCluster {
        /// What it says.
        seen: String,
        /// Ours.
        expected: String,
    },
}

impl Ca {
    /// A new CA for the cluster of that name, valid for ten years.
    pub fn create(cluster: &str) -> Result<Ca, IssueError> {
        if !is_cluster_name(cluster) {
            return Err(IssueError::BadCluster(cluster.to_owned()));
        }
        let key = KeyPair::generate()?;
        let certificate = ca_params(cluster)?.self_signed(&key)?.pem();
        Ok(Ca {
            cluster: cluster.to_owned(),
            key,
            certificate,
        })
    }

    /// The cluster that it speaks for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Writes `ca.pem` and `ca.key` (for the owner's eyes only) into `dir`, which is made where it
    /// is missing. A CA that stands there already is never overwritten.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let key = dir.join(CA_KEY_FILE);
        for path in [&key, &dir.join(CA_FILE)] {
            if path.exists() {
                return Err(IdentityError::Exists(path.clone()));
            }
        }
        make_dir(dir)?;
        write_file(&key, &self.key.serialize_pem(), KEY_MODE)?;
        write_file(&dir.join(CA_FILE), &self.certificate, CERTIFICATE_MODE)
    }

    /// Reads what [`Ca::save`] wrote.
    pub fn load(dir: &Path) -> Result<Ca, IdentityError> {
        let certificate = read_file(&dir.join(CA_FILE))?;
        let key_path = dir.join(CA_KEY_FILE);
        let key = KeyPair::from_pem(&read_key(&key_path)?).map_err(|_| IdentityError::NotPem {
            what: key_path.display().to_string(),
            expected: "private key",
        })?;
        let der = certificate_from(&certificate, CA_FILE)?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|_| IdentityError::Name(NameError::NotCertificate))?;
        let cluster = cluster_of(&parsed).ok_or(IdentityError::NoCluster)?;
        if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
            return Err(IdentityError::CaMismatch);
        }
        Ok(Ca {
            cluster,
            key,
            certificate,
        })
    }

    /// A key and a certificate for one node, valid for a year. `name` is what people call the node;
    /// `addresses` (IP addresses and host names, with or without a port) are added to the
    /// certificate for tools that check them; nodes go by the id alone.
    pub fn issue(
        &self,
        name: &str,
        node: NodeId,
        addresses: &[String],
    ) -> Result<Identity, IssueError> {
        self.issue_as(&self.cluster, name, node, addresses)
    }

    /// [`Ca::issue`] under any cluster's name, which only tests of refusals want.
    pub(crate) fn issue_as(
        &self,
        cluster: &str,
        name: &str,
        node: NodeId,
        addresses: &[String],
    ) -> Result<Identity, IssueError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![
            SanType::URI(uri_of(cluster, node).try_into()?),
            SanType::DnsName(dns_name_of(cluster, node).try_into()?),
            SanType::DnsName(any_node_of(cluster).try_into()?),
        ];
        for address in addresses {
            params.subject_alt_names.push(address_name(address)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_VALIDITY);
        let issuer = Issuer::new(ca_params(&self.cluster)?, &self.key);
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let ca = self.certificate.clone();
        Ok(Identity::unnamed_from_pem(
            certificate,
            key.serialize_pem(),
            ca,
        )?)
    }
}

impl Identity {
    /// Which node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Of which cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Writes `cert.pem`, `key.pem` (for the owner's eyes only) and `ca.pem` into `dir`, which is
    /// made where it is missing. Files that stand there are replaced, each at once.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        make_dir(dir)?;
        write_file(&dir.join(KEY_FILE), &self.key, KEY_MODE)?;
        write_file(
            &dir.join(CERTIFICATE_FILE),
            &self.certificate,
            CERTIFICATE_MODE,
        )?;
        write_file(&dir.join(CA_FILE), &self.ca, CERTIFICATE_MODE)
    }

    /// Reads what [`Identity::save`] wrote, and checks that the key is the certificate's, that the
    /// CA vouches for it today, and that it names a node.
    pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
        Identity::from_pem(
            read_file(&dir.join(CERTIFICATE_FILE))?,
            read_key(&dir.join(KEY_FILE))?,
            read_file(&dir.join(CA_FILE))?,
        )
    }

    fn from_pem(certificate: String, key: String, ca: String) -> Result<Identity, IdentityError> {
        let identity = Identity::unnamed_from_pem(certificate, key, ca)?;
        let cluster = {
            let (_, parsed) = X509Certificate::from_der(&identity.ca_der)
                .map_err(|_| NameError::NotCertificate)?;
            cluster_of(&parsed).ok_or(IdentityError::NoCluster)?
        };
        check_cluster(identity.cluster.clone(), &cluster)?;
        Ok(identity)
    }

    /// An identity whose cluster is what its certificate says, whatever its CA is called.
    fn unnamed_from_pem(
        certificate: String,
        key: String,
        ca: String,
    ) -> Result<Identity, IdentityError> {
        let certificate_der = certificate_from(&certificate, CERTIFICATE_FILE)?;
        let ca_der = certificate_from(&ca, CA_FILE)?;
        let key_der =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| IdentityError::NotPem {
                what: KEY_FILE.to_owned(),
                expected: "private key",
            })?;
        tls::check_pair(&certificate_der, &key_der).map_err(|_| IdentityError::KeyMismatch)?;
        // The name comes second, so that a file of a foreign CA is called foreign.
        tls::check_chain(&certificate_der, &ca_der)
            .map_err(|error| IdentityError::Foreign(error.to_string()))?;
        let (cluster, node) = name_of(&certificate_der)?;
        Ok(Identity {
            node,
            cluster,
            certificate,
            key,
            ca,
            certificate_der,
            key_der,
            ca_der,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.node, self.cluster)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.cluster)
    }
}

/// The node that a certificate names, if it is one of `cluster`. The certificate's signature was
/// checked before, by TLS.
pub(crate) fn node_named_by(
    certificate: &CertificateDer<'_>,
    cluster: &str,
) -> Result<NodeId, NameError> {
    let (seen, node) = name_of(certificate)?;
    check_cluster(seen, cluster)?;
    Ok(node)
}

/// The DNS name by which a node is dialled whose id is known.
pub(crate) fn dns_name_of(cluster: &str, node: NodeId) -> String {
    format!("{:016x}.{cluster}", node.0)
}

/// The DNS name by which any node of the cluster is dialled.
pub(crate) fn any_node_of(cluster: &str) -> String {
    format!("node.{cluster}")
}

/// Some DNS name of a certificate.
pub(crate) fn first_dns_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
}

fn uri_of(cluster: &str, node: NodeId) -> String {
    format!("spiffe://{cluster}/node/{:016x}", node.0)
}

fn check_cluster(seen: String, expected: &str) -> Result<String, NameError> {
    if seen != expected {
        return Err(NameError::OtherCluster {
            seen,
            expected: expected.to_owned(),
        });
    }
    Ok(seen)
}

fn name_of(certificate: &CertificateDer<'_>) -> Result<(String, NodeId), NameError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| NameError::NotCertificate)?;
    let uris = uris_of(&parsed);
    let [uri] = uris.as_slice() else {
        return Err(NameError::Uris(uris.len()));
    };
    let bad = || NameError::BadUri(uri.chars().take(URI_CHARS_SHOWN).collect());
    let (cluster, digits) = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once("/node/"))
        .ok_or_else(bad)?;
    let lower_hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if !is_cluster_name(cluster) || digits.len() != 16 || !digits.bytes().all(lower_hex) {
        return Err(bad());
    }
    let node = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
    Ok((cluster.to_owned(), NodeId(node)))
}

fn cluster_of(ca: &X509Certificate<'_>) -> Option<String> {
    let uris = uris_of(ca);
    let cluster = uris.first()?.strip_prefix("spiffe://")?;
    is_cluster_name(cluster).then(|| cluster.to_owned())
}

fn uris_of<'c>(certificate: &'c X509Certificate<'_>) -> Vec<&'c str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let uri = |name: &'c GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

fn is_cluster_name(name: &str) -> bool {
    let inside = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=CLUSTER_BYTES_MAX).contains(&name.len())
        && name.bytes().all(inside)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The same for one cluster each time, but for its dates: an issuer's certificate is found again by
/// its name and key.
fn ca_params(cluster: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = format!("understudy cluster {cluster}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{cluster}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_VALIDITY);
    Ok(params)
}

/// A certificate's dates are for people and other machines: the one place for the wall clock.
#[allow(clippy::disallowed_methods)]
fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + validity;
}

fn address_name(address: &str) -> Result<SanType, IssueError> {
    let bad = || IssueError::BadAddress(address.to_owned());
    if let Ok(ip) = address.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    if let Ok(socket) = address.parse::<std::net::SocketAddr>() {
        return Ok(SanType::IpAddress(socket.ip()));
    }
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) => return Err(bad()),
        None => address,
    };
    rustls::pki_types::DnsName::try_from(host).map_err(|_| bad())?;
    Ok(SanType::DnsName(
        host.to_owned().try_into().map_err(|_| bad())?,
    ))
}

fn certificate_from(pem: &str, what: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityError::NotPem {
        what: what.to_owned(),
        expected: "certificate",
    })
}

fn read_file(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|error| IdentityError::Read {
        path: path.to_owned(),
        error,
    })
}

fn read_key(path: &Path) -> Result<String, IdentityError> {
    let read = |error| IdentityError::Read {
        path: path.to_owned(),
        error,
    };
    let mode = fs::metadata(path).map_err(read)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed(path.to_owned()));
    }
    read_file(path)
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|error| IdentityError::Write {
        path: dir.to_owned(),
        error,
    })
}

/// A file under a temporary name first, so that nobody ever reads half of one, and with its mode
/// from its first byte on.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&beside); // left by a crash, perhaps with another mode
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| IdentityError::Write {
        path: path.to_owned(),
        error,
    })
}

const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// A DNS label's limit (RFC 1035, section 2.3.4): the cluster's name is one.
const CLUSTER_BYTES_MAX: usize = 63;

/// What a log line shows of a URI that a stranger wrote.
const URI_CHARS_SHOWN: usize = 120;

/// The CA's certificate lives as long as a cluster may without anybody thinking of it.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A node's certificate lives for a year: renewing it is issuing it again.
const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// A node whose clock is behind the operator's by this much takes a fresh certificate.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
