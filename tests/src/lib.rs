//! The harness of the end-to-end tests: real processes, a real browser, real clients, real faults.
//!
//! Owns: starting clusters of `understudy` processes on ports of their own, breaking them (SIGKILL,
//! SIGSTOP, a cut link, a full disk, a torn file), and asking for the state that must hold
//! afterwards.
//!
//! Never does: sleeping until something has probably happened, or reaching into a node's insides.
//! It sees what a user sees. What a seed can show without processes is shown by `understudy-sim`
//! instead, a thousand times as fast.
