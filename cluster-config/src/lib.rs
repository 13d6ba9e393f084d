//! Configuration: TOML and `UNDERSTUDY_SECTION__KEY` variables become types whose invariants hold.
//!
//! Owns: one file for each section (`[node]`, `[transport]`, `[lease]`, …), its defaults with their
//! reasons, and the example topologies. A wrong value is refused with the name of its key, here and
//! once, so that nothing further in checks it again.
//!
//! Never does: acting on a setting, reading a setting after the start, or handing the whole
//! configuration around. Each part of a node receives its own section, because a part that can see
//! every setting soon depends on all of them.
