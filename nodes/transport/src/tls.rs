//! How TLS and QUIC are set up between nodes.
//!
//! Owns: every setting of rustls and quinn, with the reason beside it. Never falls back: TLS 1.3 with
//! certificates on both sides, by one provider that is passed in (no process-wide default), without
//! tickets, resumption or early data. A resumed session would skip the check of the certificate, and
//! early data can be replayed, which would be a command given twice.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, VarInt,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, version};

use crate::identity::{self, Identity};

/// Why TLS could not be set up: the identity is not usable. Nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or the key was refused by rustls.
    #[error("the identity is not usable: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA's certificate is not usable as a root.
    #[error("ca.pem is not usable: {0}")]
    Roots(String),
    /// The provider lacks the cipher that QUIC begins with.
    #[error(transparent)]
    Cipher(#[from] NoInitialCipherSuite),
}

/// What one of the two connections between two nodes carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Requests and the control stream: many small streams, bounded answers.
    Truth,
    /// Lanes: few long streams that may be full.
    Data,
}

pub(crate) const ALPN_MAIN: &[u8] = b"understudy/1";
pub(crate) const ALPN_HEART: &[u8] = b"understudy-heart/1";

/// For dialling.
pub(crate) fn client_config(
    identity: &Identity,
    alpn: &[u8],
    transport: TransportConfig,
) -> Result<ClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots(&identity.ca_der)?)
        .with_client_auth_cert(
            vec![identity.certificate_der.clone()],
            identity.key_der.clone_key(),
        )?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// For accepting.
pub(crate) fn server_config(
    identity: &Identity,
    alpn: &[u8],
    transport: TransportConfig,
) -> Result<ServerConfig, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(&identity.ca_der)?.into(), provider())
            .build()
            .map_err(|error| TlsError::Roots(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![identity.certificate_der.clone()],
            identity.key_der.clone_key(),
        )?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    config.transport_config(Arc::new(transport));
    config.token_key(Arc::new(node_secret(identity, b"understudy retry tokens")));
    config.migration(false); // nodes do not roam; one thing less to attack
    config.max_incoming(INCOMING_MAX);
    config.incoming_buffer_size(INCOMING_BYTES_MAX);
    config.incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);
    Ok(config)
}

/// For the socket. Its reset key comes from the node's own key, so that a restarted node can tell
/// its peers that their connections to its former self are over, instead of leaving them to the idle
/// timeout.
pub(crate) fn endpoint_config(identity: &Identity, heart: bool) -> EndpointConfig {
    let purpose: &[u8] = match heart {
        true => b"understudy resets of the heart",
        false => b"understudy resets",
    };
    let mut key = [0; 32];
    node_secret(identity, purpose)
        .expand(&[b"reset"], hkdf::HKDF_SHA256)
        .and_then(|material| material.fill(&mut key))
        .expect("HKDF-SHA-256 gives 32 bytes");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key)));
    config.cid_generator(|| Box::new(RandomIds));
    // A QUIC packet always has the bit 0x40 set, so that plain datagrams can be told from it.
    config.grease_quic_bit(!heart);
    config
}

/// Both sides of a connection use the same, so the negotiated minimum is this. A connection of the
/// main endpoint has one stream, for the greeting, until [`admit`] opens it up.
pub(crate) fn transport_config(segmentation_offload: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("a few seconds fit");
    config.max_idle_timeout(Some(idle));
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.initial_rtt(INITIAL_RTT);
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(TRUTH_WINDOW));
    config.send_window(SEND_WINDOW);
    config.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    config.datagram_send_buffer_size(DATAGRAM_BUFFER);
    config.congestion_controller_factory(Arc::new(CubicConfig::default()));
    config.enable_segmentation_offload(segmentation_offload);
    config
}

/// For the heart, which has datagrams and nothing else.
pub(crate) fn heart_transport_config() -> TransportConfig {
    let mut config = transport_config(false); // one small datagram at a time: nothing to segment
    config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.initial_mtu(HEART_MTU);
    config
}

/// Lets the peer open what belongs on the connection, once it has said who it is.
pub(crate) fn admit(connection: &quinn::Connection, role: Role) {
    match role {
        Role::Truth => {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(TRUTH_BIDI_STREAMS));
        }
        Role::Data => {
            connection.set_receive_window(VarInt::from_u32(DATA_WINDOW));
            connection.set_max_concurrent_uni_streams(VarInt::from_u32(DATA_UNI_STREAMS));
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(DATA_BIDI_STREAMS));
        }
    }
}

/// Connection ids of random bytes. quinn's own are hashed with a key of each start, and a packet of
/// its former self's would be dropped without a word, where it should be answered with a reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A dialler that would resume sessions and send early data, if anybody let it.
#[cfg(test)]
pub(crate) fn eager_client_config(identity: &Identity) -> ClientConfig {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots(&identity.ca_der).expect("a CA"))
        .with_client_auth_cert(
            vec![identity.certificate_der.clone()],
            identity.key_der.clone_key(),
        )
        .expect("a pair");
    config.alpn_protocols = vec![ALPN_MAIN.to_vec()];
    config.enable_early_data = true;
    let crypto = QuicClientConfig::try_from(config).expect("QUIC's first cipher is there");
    ClientConfig::new(Arc::new(crypto))
}

/// Whether the key is the certificate's.
pub(crate) fn check_pair(
    certificate: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<(), rustls::Error> {
    CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider()).map(|_| ())
}

/// Whether the CA vouches for the certificate, today.
pub(crate) fn check_chain(
    certificate: &CertificateDer<'static>,
    ca: &CertificateDer<'static>,
) -> Result<(), TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?.into(), provider())
        .build()
        .map_err(|error| TlsError::Roots(error.to_string()))?;
    // Any of its own DNS names will do: the chain and the dates are asked for, not the name.
    let name = identity::first_dns_name(certificate)
        .and_then(|name| ServerName::try_from(name).ok())
        .ok_or_else(|| TlsError::Roots("the certificate has no DNS name".to_owned()))?;
    verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now())?;
    Ok(())
}

fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca.clone())
        .map_err(|error| TlsError::Roots(error.to_string()))?;
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A secret that only this node can derive, and derives again after a restart.
fn node_secret(identity: &Identity, purpose: &[u8]) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, purpose).extract(identity.key_der.secret_der())
}

/// A dead peer is noticed after this long at the latest; a living one says something every second.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Nodes stand in one building: a lost first packet is sent again after 30 ms, not a second.
const INITIAL_RTT: Duration = Duration::from_millis(10);

/// Requests at once, the control stream, and the greeting.
const TRUTH_BIDI_STREAMS: u32 = 256;
const TRUTH_WINDOW: u32 = 16 * 1024 * 1024;

/// What a peer may send on one stream before somebody reads it: 32 ms at 1 Gbit/s.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// Nine lanes, and as many as may be on their way to being opened again. All of them full take no
/// more than the connection's window, so that a full lane never stalls another.
const DATA_UNI_STREAMS: u32 = 16;
const DATA_WINDOW: u32 = 80 * 1024 * 1024;
const _: () = assert!(DATA_UNI_STREAMS * STREAM_WINDOW + TUNNELS_WINDOW <= DATA_WINDOW);

/// What is left for tunnels when every lane is full. They are read at once and have credits of their
/// own, so this is only what is on its way.
const TUNNELS_WINDOW: u32 = 16 * 1024 * 1024;

/// Tunnels, and as many again that are being refused or have just ended.
pub(crate) const DATA_BIDI_STREAMS: u32 = 1_024;

/// A whole heart frame of 1,200 bytes fits a packet of this size; a path that is narrower is found out.
const HEART_MTU: u16 = 1_240;

/// What one connection may have on its way: 64 ms at 1 Gbit/s.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;

/// About two hundred heart messages; the oldest go first when nobody takes them.
const DATAGRAM_BUFFER: usize = 256 * 1024;

/// As long as quinn's.
const ID_BYTES: usize = 8;

/// Handshakes not yet looked at, and what of their packets is kept meanwhile: strangers' memory.
const INCOMING_MAX: usize = 1_024;
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
const INCOMING_BYTES_TOTAL_MAX: u64 = 4 * 1024 * 1024;
