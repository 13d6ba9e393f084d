//! What node agents say to each other.
//!
//! Owns: the bodies and their limits. The version is the name of the group that agents are found in:
//! those of another version are not found, and the directory is asked instead. A field is only ever
//! added, optional, with the next number.

use minicbor::{Decode, Encode};

use understudy_protocol::id::{ChildId, Epoch, NodeId, UnitId};
use understudy_protocol::supervision::Exit;

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Asked {
    /// How long the asker waits for the answer, from the receiving.
    #[n(0)]
    pub(super) patience_ms: u32,
    #[n(1)]
    pub(super) request: Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Request {
    /// Drain yourself, or end that.
    #[n(0)]
    Drain(#[n(0)] bool),
    /// Run this child: a frame of an entry that creates it, pinned to the asked node.
    #[n(1)]
    Spawn(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Answer {
    /// It is so now.
    #[n(0)]
    Done,
    /// It is not, and this is why.
    #[n(1)]
    Refused(#[n(0)] String),
    /// The question was not understood.
    #[n(2)]
    NotUnderstood,
    /// Too many others are being answered.
    #[n(3)]
    Busy,
}

/// A child failed, and this is why: the directory holds only that it did.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ExitNotice {
    /// Where.
    #[n(0)]
    pub(crate) node: NodeId,
    /// Which child.
    #[n(1)]
    pub(crate) child: ChildId,
    /// Its unit and the grant it ran under, as far as the node knows.
    #[n(2)]
    pub(crate) unit: Option<UnitId>,
    #[n(3)]
    pub(crate) epoch: Option<Epoch>,
    /// How.
    #[n(4)]
    pub(crate) exit: Exit,
    /// Why, for people; at most [`TEXT_BYTES_MAX`].
    #[n(5)]
    pub(crate) reason: String,
    /// Notices before this one that its node kept to itself.
    #[n(6)]
    pub(crate) missed: u64,
}

pub(super) fn encoded<T: Encode<()>>(message: &T) -> Vec<u8> {
    minicbor::to_vec(message).expect("a vector takes every byte")
}

/// The message that these bytes are; none for any others.
pub(super) fn decoded<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Option<T> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().ok()?;
    (decoder.position() == bytes.len()).then_some(message)
}

/// A text of another program as far as people are to read it: one line, of some length.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, " ");
    }
    text
}

/// Longest text in bytes: a panic's message with its place.
pub(super) const TEXT_BYTES_MAX: usize = 512;
