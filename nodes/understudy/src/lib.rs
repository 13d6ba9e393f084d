//! A node: the place where every layer above is put together.
//!
//! Owns: the start and the stop of a node in their order (warden first, gateway last), and the
//! `understudy` binary, which is daemon and command line in one.
//!
//! Never does: anything that a layer above could do. No decision, no wire format and no setting is
//! born here, so that a test can put the same parts together in another way.

pub mod browsers;
pub mod cli;
pub mod dev;
pub mod guests;
pub mod node;
pub mod run;
