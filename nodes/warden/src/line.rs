//! The line between a node and its warden: a pair of `SOCK_SEQPACKET` sockets, one CBOR item a
//! packet.
//!
//! Owns: the messages, their limits, and the door through which a packet becomes a value. Never
//! blocks when it sends: the heart's thread feeds through it.
//!
//! Both ends are the same version of the same program, so the line needs no rule for change;
//! [`LINE_VERSION`] is there to notice a program that was exchanged on disk under a running node.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use understudy_protocol::cluster::voters::VOTERS_MAX;
use understudy_protocol::id::{IncarnationId, UnitId};

/// What a node says to its warden.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ToWarden {
    /// The first message, said once.
    #[n(0)]
    Begin {
        /// [`LINE_VERSION`].
        #[n(0)]
        version: u32,
        /// Whose death the note will prove.
        #[n(1)]
        incarnation: IncarnationId,
        /// Where notes are kept: an absolute path.
        #[n(2)]
        notes: ByteVec,
    },
    /// The lease ends then, in nanoseconds of `CLOCK_BOOTTIME`.
    #[n(1)]
    Feed(#[n(0)] u64),
    /// A unit starts or works.
    #[n(2)]
    AtWork(#[n(0)] UnitId),
    /// A unit has started, or rests.
    #[n(3)]
    AtRest(#[n(0)] UnitId),
    /// The voters' heart addresses, all of them.
    #[n(4)]
    Voters(#[n(0)] Vec<String>),
    /// Start a helper. Ids only grow.
    #[n(5)]
    Start {
        /// Names it from now on.
        #[n(0)]
        id: u64,
        /// What to run.
        #[n(1)]
        plan: Plan,
    },
    /// Kill a helper; one that is gone already stays so.
    #[n(6)]
    Kill(#[n(0)] u64),
}

/// What a warden says to its node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ToNode {
    /// The answer to `Begin`: the digest of the secret (L10).
    #[n(0)]
    Ready(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]),
    /// The helper runs.
    #[n(1)]
    Started {
        /// Which.
        #[n(0)]
        id: u64,
        /// Its process.
        #[n(1)]
        pid: i32,
    },
    /// The helper does not run, and will not.
    #[n(2)]
    Refused {
        /// Which.
        #[n(0)]
        id: u64,
        /// Why not.
        #[n(1)]
        why: String,
    },
    /// The helper has ended and been reaped.
    #[n(3)]
    Ended {
        /// Which.
        #[n(0)]
        id: u64,
        /// Its exit code, unless a signal ended it.
        #[n(1)]
        code: Option<i32>,
        /// The signal that ended it.
        #[n(2)]
        signal: Option<i32>,
    },
    /// A message was dropped: no message of this line, or one that breaks its promises.
    #[n(4)]
    NotUnderstood(#[n(0)] String),
}

/// How a helper is started. Paths and arguments are bytes, as the kernel has them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Plan {
    #[n(0)]
    pub(crate) program: ByteVec,
    #[n(1)]
    pub(crate) args: Vec<ByteVec>,
    /// The whole environment.
    #[n(2)]
    pub(crate) env: Vec<Variable>,
    #[n(3)]
    pub(crate) dir: ByteVec,
    #[n(4)]
    pub(crate) user: Option<User>,
    /// How many descriptors come with the message.
    #[n(5)]
    pub(crate) fds: u8,
    /// A folder to be removed when it has ended.
    #[n(6)]
    pub(crate) scratch: Option<ByteVec>,
}

/// One variable of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Variable {
    #[n(0)]
    pub(crate) name: ByteVec,
    #[n(1)]
    pub(crate) value: ByteVec,
}

/// Whom a helper runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct User {
    #[n(0)]
    pub(crate) uid: u32,
    #[n(1)]
    pub(crate) gid: u32,
}

/// One packet as it came.
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why a packet was refused. Nothing of it was done; its descriptors are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    /// The kernel cut it: it was above [`MESSAGE_BYTES_MAX`], or carried too many descriptors.
    #[error("the message was longer than the line allows")]
    Cut,
    /// It is no message of this line.
    #[error("no message of this line")]
    NoMessage,
    /// It breaks what its type promises.
    #[error("{0}")]
    Invalid(&'static str),
}

/// The message's bytes; `None` when they are more than a packet may hold.
pub(crate) fn encode<T: Encode<()>>(message: &T) -> Option<Vec<u8>> {
    let bytes = minicbor::to_vec(message).expect("a vector takes every byte");
    (bytes.len() <= MESSAGE_BYTES_MAX).then_some(bytes)
}

/// The message that `bytes` are.
pub(crate) fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, LineError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().map_err(|_| LineError::NoMessage)?;
    if decoder.position() != bytes.len() {
        return Err(LineError::NoMessage);
    }
    Ok(message)
}

/// What a warden takes from a packet: a message that holds its promises.
pub(crate) fn request(packet: &Packet) -> Result<ToWarden, LineError> {
    let message: ToWarden = decode(&packet.bytes)?;
    let fds = match &message {
        ToWarden::Begin { version, notes, .. } => {
            holds(*version == LINE_VERSION, "another version of the program")?;
            holds(is_path(notes), "the notes' directory is no absolute path")?;
            0
        }
        ToWarden::Voters(voters) => {
            holds(voters.len() <= VOTERS_MAX, "more voters than a cluster has")?;
            0
        }
        ToWarden::Start { plan, .. } => {
            plan.check()?;
            usize::from(plan.fds)
        }
        _ => 0,
    };
    holds(packet.fds.len() == fds, "descriptors that nobody announced")?;
    Ok(message)
}

/// The addresses that `texts` name.
pub(crate) fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>, LineError> {
    texts
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| LineError::Invalid("a voter without an address"))
}

impl Plan {
    /// Whether this can be started as it is written.
    pub(crate) fn check(&self) -> Result<(), LineError> {
        holds(is_path(&self.program), "the program is no absolute path")?;
        holds(is_path(&self.dir), "the directory is no absolute path")?;
        let scratch = self.scratch.as_ref();
        holds(
            scratch.is_none_or(|scratch| is_path(scratch) && scratch.len() > 1),
            "the folder is no absolute path below the root",
        )?;
        let no_nul = |bytes: &ByteVec| !bytes.contains(&0);
        holds(self.args.iter().all(no_nul), "an argument holds a NUL")?;
        for Variable { name, value } in &self.env {
            let is_named = !name.is_empty() && !name.contains(&b'=') && no_nul(name);
            holds(
                is_named && no_nul(value),
                "a variable without a proper name",
            )?;
        }
        if let Some(User { uid, gid }) = self.user {
            // The kernel reads the highest number as "leave it as it is".
            let is_id = uid != u32::MAX && gid != u32::MAX;
            holds(is_id, "no user or no group has that number")?;
        }
        let few = usize::from(self.fds) <= HELPER_FDS_MAX;
        holds(few, "more descriptors than a helper may have")
    }
}

fn is_path(bytes: &[u8]) -> bool {
    bytes.starts_with(b"/") && bytes.len() <= PATH_BYTES_MAX && !bytes.contains(&0)
}

fn holds(promise: bool, otherwise: &'static str) -> Result<(), LineError> {
    promise.then_some(()).ok_or(LineError::Invalid(otherwise))
}

/// Sends one packet without ever waiting: [`Errno::AGAIN`] when the other end is behind.
pub(crate) fn send(line: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELPER_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(&line, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            sent => return sent.map(drop),
        }
    }
}

/// Receives one packet: `None` at the end of the line. `buffer` has [`MESSAGE_BYTES_MAX`] bytes.
pub(crate) fn receive(
    line: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Option<Result<Packet, LineError>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELPER_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let into = &mut [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&line, into, &mut control, flags) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Ok(Some(Err(LineError::Cut)));
    }
    if received.bytes == 0 {
        // Nobody sends an empty packet: this is the end.
        return Ok(None);
    }
    let bytes = buffer[..received.bytes].to_vec();
    Ok(Some(Ok(Packet { bytes, fds })))
}

/// Raised with every change of a message.
pub(crate) const LINE_VERSION: u32 = 2;

/// The longest message in bytes: a browser's command line has 4 KiB, the addresses of 1,024 voters
/// at most 61 KiB, and a socket's buffer of 208 KiB still holds three of these.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Descriptors that a helper may be given: a browser takes two pipes, a render worker a few buffers.
pub const HELPER_FDS_MAX: usize = 8;

/// The kernel's own limit.
const PATH_BYTES_MAX: usize = 4_095;
