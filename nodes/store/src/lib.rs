//! One disk's data, under a store id that is random and never used again.
//!
//! Owns: records and their chunks, the Raft log, the audit log, what is flushed and when, and the
//! short-lived probe that opens a store before the node trusts it.
//!
//! Never does: answering before a flush it was asked for, or passing a damaged tail off as a torn
//! one (rule R8). It does not judge who may write either: it keeps the epoch that it promised, and
//! refuses what is older.

mod chunks;
mod damage;
mod data_dir;
mod disk;
mod files;
mod fsck;
mod ledger;
mod limit;
mod lock;
mod mark;
mod probe;
mod raft;
mod records;
mod replica;
mod value;

pub use chunks::{CHUNK_BYTES_MAX, ChunkName, Chunks, GetError, KEPT_UNNAMED, Looked, PutError};
pub use damage::Damage;
pub use data_dir::{DataDir, OnDamage, OpenError, OpenStore, QUARANTINED_MAX, Quarantined};
pub use disk::{USED_PERCENT_MAX, room_under};
pub use fsck::{FsckError, FsckReport, fsck, probe};
pub use limit::LimitFile;
pub use probe::Probe;
pub use raft::{Done, RaftLog, RaftState};
pub use records::SledStore;
pub use replica::{Answer, Failed, Full, ReplicaThread};
