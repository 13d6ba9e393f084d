//! The edge: what a browser script, an HTTP caller or an artist waiting for frames talks to.
//!
//! Owns: the HTTP routes under `/v1`, the CDP WebSocket, the event stream, the dashboard, tokens and
//! quotas, and the OpenAPI document that is generated from the code.
//!
//! Never does: holding state that a failover could lose, or retrying a call that may already have
//! had an effect. It waits inside the caller's deadline, and says `overloaded` with a hint sooner
//! than it queues without a limit.
