//! The small process that outlives a node by just long enough to clean up after it.
//!
//! Owns: the helper processes of a node (Chromium, render workers), the deadline that the node's
//! heart feeds it, the 32 bytes of the death note (rules L10 and L11), and the list of units at work.
//!
//! Never does: running a child, holding a cluster key, or talking to anything but the voters' heart
//! ports, and that only once, after the node has died and the helpers are reaped. It is kept so
//! small that it has nothing left to crash on.
