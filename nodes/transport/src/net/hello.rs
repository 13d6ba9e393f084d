//! The greeting that opens a connection.
//!
//! Owns: its bytes, and the check that a greeting fits the certificate. Never decides which of two
//! connections stays: see `peers`.
//!
//! ```text
//! dialler                                   accepter
//!    │── role, length, Hello ───────────────────▶│
//!    │◀─────────────────── length, Hello, [use] ─│  [use]: the accepter decides, and takes it
//!    │── [use] ─────────────────────────────────▶│         or the dialler does
//! ```
//!
//! A side that does not take the connection closes it instead, with a code that says why.

use minicbor::{Decode, Encode};
use quinn::{Connection, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use understudy_protocol::id::{IncarnationId, NodeId, StoreId};

use crate::tls::Role;

/// What a node says of itself when a connection opens.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Which node; the same as in its certificate.
    #[n(0)]
    pub node: NodeId,
    /// Which start of it.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// Its store.
    #[n(2)]
    pub store: StoreId,
    /// What people call it; at most [`NAME_BYTES_MAX`] bytes.
    #[n(3)]
    pub name: String,
    /// Where it wants to be dialled, as host and port; at most [`NAME_BYTES_MAX`] bytes.
    #[n(4)]
    pub address: String,
    /// Whether it is willing to be a voter.
    #[n(5)]
    pub votes: bool,
    /// Whether it runs units.
    #[n(6)]
    pub works: bool,
}

/// Why two nodes did not greet each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the greeting is malformed")]
    Malformed,
    #[error("the greeting names {named}, the certificate {certified}")]
    Impostor { named: NodeId, certified: NodeId },
    #[error(transparent)]
    Lost(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Read(#[from] ReadExactError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A greeting in which both have spoken, and nobody has decided yet.
pub(crate) struct Greeting {
    send: SendStream,
    recv: RecvStream,
    pub(crate) peer: Hello,
    pub(crate) role: Role,
}

impl Greeting {
    pub(crate) async fn dial(
        connection: &Connection,
        role: Role,
        ours: &Hello,
        certified: NodeId,
    ) -> Result<Greeting, HelloError> {
        let (mut send, mut recv) = connection.open_bi().await?;
        let mut bytes = vec![number_of(role)];
        write_hello(ours, &mut bytes);
        send.write_all(&bytes).await?;
        let peer = read_hello(&mut recv, certified).await?;
        Ok(Greeting {
            send,
            recv,
            peer,
            role,
        })
    }

    pub(crate) async fn accept(
        connection: &Connection,
        ours: &Hello,
        certified: NodeId,
    ) -> Result<Greeting, HelloError> {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let mut role = [0];
        recv.read_exact(&mut role).await?;
        let role = role_of(role[0]).ok_or(HelloError::Malformed)?;
        let peer = read_hello(&mut recv, certified).await?;
        let mut bytes = Vec::new();
        write_hello(ours, &mut bytes);
        send.write_all(&bytes).await?;
        Ok(Greeting {
            send,
            recv,
            peer,
            role,
        })
    }

    /// Tells the peer that this connection is taken.
    pub(crate) async fn take(mut self) -> Result<(), HelloError> {
        self.send.write_all(&[USE]).await?;
        let _ = self.send.finish();
        Ok(())
    }

    /// Waits until the peer takes the connection; a close is an error.
    pub(crate) async fn taken(mut self) -> Result<(), HelloError> {
        let mut said = [0];
        self.recv.read_exact(&mut said).await?;
        if said != [USE] {
            return Err(HelloError::Malformed);
        }
        Ok(())
    }
}

fn write_hello(hello: &Hello, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    minicbor::encode(hello, &mut *out).expect("a vector takes every byte");
    let length = (out.len() - start - 2) as u16; // `checked` bounds the texts
    out[start..start + 2].copy_from_slice(&length.to_be_bytes());
}

async fn read_hello(recv: &mut RecvStream, certified: NodeId) -> Result<Hello, HelloError> {
    let mut length = [0; 2];
    recv.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > HELLO_BYTES_MAX {
        return Err(HelloError::Malformed);
    }
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await?;
    let hello: Hello = minicbor::decode(&bytes).map_err(|_| HelloError::Malformed)?;
    if !is_within_limits(&hello) {
        return Err(HelloError::Malformed);
    }
    if hello.node != certified {
        return Err(HelloError::Impostor {
            named: hello.node,
            certified,
        });
    }
    Ok(hello)
}

/// Whether a peer would take the greeting.
pub(crate) fn is_within_limits(hello: &Hello) -> bool {
    hello.name.len() <= NAME_BYTES_MAX && hello.address.len() <= NAME_BYTES_MAX
}

fn number_of(role: Role) -> u8 {
    match role {
        Role::Truth => 1,
        Role::Data => 2,
    }
}

fn role_of(number: u8) -> Option<Role> {
    [Role::Truth, Role::Data]
        .into_iter()
        .find(|role| number_of(*role) == number)
}

/// The longest name, and the longest address: a host name has at most 253 bytes (RFC 1035).
pub const NAME_BYTES_MAX: usize = 260;

/// Two names and five numbers, with room for fields that later versions add.
const HELLO_BYTES_MAX: usize = 2_048;

const USE: u8 = 1;

/// The node is going away.
pub(crate) const CLOSE_BYE: VarInt = VarInt::from_u32(0);
/// The certificate names no node of the cluster, or not the one that was dialled.
pub(crate) const CLOSE_IDENTITY: VarInt = VarInt::from_u32(1);
/// The greeting was malformed, late, or not the certificate's.
pub(crate) const CLOSE_HELLO: VarInt = VarInt::from_u32(2);
/// Another connection between the two is in use.
pub(crate) const CLOSE_DUPLICATE: VarInt = VarInt::from_u32(3);
/// A newer connection has taken this one's place.
pub(crate) const CLOSE_REPLACED: VarInt = VarInt::from_u32(4);
/// A node has dialled itself.
pub(crate) const CLOSE_SELF: VarInt = VarInt::from_u32(5);
/// The other connection of the pair is gone, and this one goes with it.
pub(crate) const CLOSE_HALF: VarInt = VarInt::from_u32(6);
