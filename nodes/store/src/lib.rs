//! One disk's data, under a store id that is random and never used again.
//!
//! Owns: records and their chunks, the Raft log, the audit log, what is flushed and when, and the
//! short-lived probe that opens a store before the node trusts it.
//!
//! Never does: answering before a flush it was asked for, or passing a damaged tail off as a torn
//! one (rule R8). It does not judge who may write either: it keeps the epoch that it promised, and
//! refuses what is older.
