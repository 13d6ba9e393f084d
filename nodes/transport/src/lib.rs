//! How nodes reach each other: QUIC with mutual authentication by the cluster's own CA.
//!
//! Owns: endpoints and identities, the lanes of the data plane (bounded, with credits, hashed by
//! unit), the bulk lanes beside them, and the heart with its own socket, endpoint and thread.
//!
//! ```text
//! identity     the CA, certificates, and whose a certificate is
//! net          main port: two connections to each peer; lanes, requests, lasting streams, tunnels
//! heart        heart port: datagrams, and death notes in the clear
//! ractor_link  the control plane's engine on a lasting stream
//! ```
//!
//! Never does: deciding that a node is dead. A lost connection fails its calls and dials again;
//! only promises and the directory end a lease. Nor does it ever use 0-RTT or session resumption
//! between nodes, where a replayed packet would be a command given twice.

mod counters;
pub mod heart;
pub mod identity;
pub mod net;
pub mod ractor_link;
mod tls;

pub use counters::Counted;
pub use tls::TlsError;
