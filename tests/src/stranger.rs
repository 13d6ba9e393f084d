//! Whoever speaks QUIC to a node and should not, or not like this.
//!
//! Owns: a raw endpoint with a certificate of the test's choice, and the greeting that a member would
//! send. Shares no code with a node's own dialler: what is refused here is refused by the node alone.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use understudy_protocol::id::{IncarnationId, NodeId, StoreId};
use understudy_transport::net::Hello;

/// An endpoint that no node has asked for.
pub struct Stranger {
    endpoint: Endpoint,
}

/// What one of a node's two connections carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Requests.
    Truth = 1,
    /// Lanes.
    Data = 2,
}

impl Stranger {
    /// One that proves itself with the certificate and key in `identity`, and believes every node that
    /// the authority in `ca` vouches for.
    pub fn new(identity: &Path, ca: &Path) -> Result<Stranger> {
        let pem = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let certificate = CertificateDer::from_pem_slice(&pem(&identity.join("cert.pem"))?)?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&identity.join("key.pem"))?)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem(&ca.join("ca.pem"))?)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"understudy/1".to_vec()];
        let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        let config = QuicClientConfig::try_from(config)?;
        endpoint.set_default_client_config(ClientConfig::new(Arc::new(config)));
        Ok(Stranger { endpoint })
    }

    /// Where it speaks from: what a node's log calls it.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.endpoint.local_addr()?)
    }

    /// Connects to whatever node of the cluster `test` listens on the port. With TLS 1.3 a node that
    /// refuses the certificate says so only after this.
    pub async fn connect(&self, port: u16) -> Result<Connection> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let connecting = self.endpoint.connect(address, "node.test")?;
        Ok(tokio::time::timeout(PATIENCE, connecting).await??)
    }

    /// Greets as a member does, and is taken as one.
    pub async fn greet(&self, port: u16, role: Role, hello: &Hello) -> Result<Connection> {
        let connection = self.connect(port).await?;
        let greeted = tokio::time::timeout(PATIENCE, greet(&connection, role, hello));
        greeted.await.context("no greeting")??;
        Ok(connection)
    }
}

async fn greet(connection: &Connection, role: Role, hello: &Hello) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&greeting(role, hello)?).await?;
    let mut length = [0; 2];
    recv.read_exact(&mut length).await?;
    let mut theirs = vec![0; u16::from_be_bytes(length).into()];
    recv.read_exact(&mut theirs).await?;
    let theirs: Hello = minicbor::decode(&theirs)?;
    // The lower id decides, and says so with one byte.
    if hello.node < theirs.node {
        send.write_all(&[USE]).await?;
        return Ok(());
    }
    let mut said = [0];
    recv.read_exact(&mut said).await?;
    if said != [USE] {
        bail!("it said {said:?}");
    }
    Ok(())
}

/// The first bytes on a connection of a member.
pub fn greeting(role: Role, hello: &Hello) -> Result<Vec<u8>> {
    let hello = minicbor::to_vec(hello)?;
    let mut bytes = vec![role as u8];
    bytes.extend_from_slice(&u16::try_from(hello.len())?.to_be_bytes());
    bytes.extend_from_slice(&hello);
    Ok(bytes)
}

/// What a member that neither votes nor works would say of itself.
pub fn hello(node: NodeId, name: &str) -> Hello {
    Hello {
        node,
        incarnation: IncarnationId(0x5747),
        store: StoreId(0x5747),
        name: name.to_owned(),
        address: "127.0.0.1:9".to_owned(),
        votes: false,
        works: false,
    }
}

/// Sends datagrams from a socket of their own, and says from where.
pub fn throw(port: u16, datagrams: impl IntoIterator<Item = Vec<u8>>) -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for datagram in datagrams {
        // A full buffer is one more lost datagram.
        let _ = socket.send_to(&datagram, (Ipv4Addr::LOCALHOST, port));
    }
    Ok(socket.local_addr()?)
}

/// How long a node may take to answer a handshake or a greeting.
const PATIENCE: Duration = Duration::from_secs(5);

const USE: u8 = 1;
