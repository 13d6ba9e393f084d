//! The edge: what a browser script, an HTTP caller or an artist waiting for frames talks to.
//!
//! Owns: the HTTP routes under `/v1`, the CDP WebSocket, the event stream, the dashboard, tokens and
//! quotas, and the OpenAPI document that is generated from the code. In this first form there is one
//! token for everything, and the listener is on loopback.
//!
//! Never does: holding state that a failover could lose, or retrying a call that may already have
//! had an effect. It waits inside the caller's deadline, and says `overloaded` with a hint sooner
//! than it queues without a limit.
//!
//! ```text
//!   socket ── serve (limits) ── routes (token, parameters) ──┬─> Handle.view()    ── show ──> api, JSON
//!                                                            ├─> Handle.call()    ── problem
//!                                                            ├─> Handle.propose() ── problem
//!                                                            └─> Handle.events()  ── events, SSE
//! ```

pub mod api;
pub mod events;
pub mod params;
pub mod problem;
pub mod refusal;
mod routes;
mod serve;
pub mod show;
mod token;

pub use routes::{
    Answering, BROWSER_LABEL, CALL_BODY_MAX, FunctionAsk, GUEST_BODY_MAX, MODULE_BYTES_MAX,
    RunFunctions,
};
pub use serve::{CONNECTIONS_MAX, Reach, ServeError, serve};
pub use token::{TOKEN_BYTES_MAX, TOKEN_BYTES_MIN, Token, TokenError};
