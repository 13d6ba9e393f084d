//! Errors as an HTTP caller sees them: problem details (RFC 9457).
//!
//! Owns: the closed set of `type`s with their statuses, and what each error of a node becomes. A
//! `type` is a promise: a program decides by it, a person reads `detail` and does what `hint` says.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use understudy_control::handle::{CallError, FormError, ProposeError};

/// What went wrong, for a program and for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which of the closed set.
    pub kind: Kind,
    /// What happened.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Fields of its own, which none of the others is called like.
    pub more: BTreeMap<String, Value>,
}

/// The `type` of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No token, or the wrong one.
    Unauthenticated,
    /// There is no such thing.
    NotFound,
    /// The thing has no such method.
    MethodNotAllowed,
    /// The request is not one.
    Invalid,
    /// The request does not fit what is there.
    Conflict,
    /// A body is too long.
    TooLarge,
    /// Something is full; not done.
    Overloaded,
    /// What is asked for is not there now; not done, unless the detail says otherwise.
    Unavailable,
    /// The time was over first. Unless the detail says otherwise, nobody can say whether it was done.
    DeadlineExceeded,
    /// It needs more than a guest may use.
    QuotaExceeded,
    /// The guest's program failed. The guest is as before the call.
    GuestTrapped,
    /// The guest says that it may not.
    GuestDenied,
    /// The guest says that it failed. What it changed stays changed.
    GuestFailed,
    /// The module has state that no checkpoint can hold.
    StateNotCheckpointable,
}

/// The body of a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemBody {
    /// The word of its [`Kind`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The same in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When to try again, in milliseconds; the header says it in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Fields of its own.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 14] = [
        Kind::Unauthenticated,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::Invalid,
        Kind::Conflict,
        Kind::TooLarge,
        Kind::Overloaded,
        Kind::Unavailable,
        Kind::DeadlineExceeded,
        Kind::QuotaExceeded,
        Kind::GuestTrapped,
        Kind::GuestDenied,
        Kind::GuestFailed,
        Kind::StateNotCheckpointable,
    ];

    /// The `type`, the `title` and the status.
    pub const fn words(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Kind::Unauthenticated => (
                "unauthenticated",
                "No valid token",
                StatusCode::UNAUTHORIZED,
            ),
            Kind::NotFound => ("not_found", "There is no such thing", StatusCode::NOT_FOUND),
            Kind::MethodNotAllowed => (
                "method_not_allowed",
                "It has no such method",
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            Kind::Invalid => (
                "invalid",
                "The request is not valid",
                StatusCode::BAD_REQUEST,
            ),
            Kind::Conflict => (
                "conflict",
                "The request does not fit what is there",
                StatusCode::CONFLICT,
            ),
            Kind::TooLarge => (
                "too_large",
                "The body is too long",
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Kind::Overloaded => (
                "overloaded",
                "Something is full",
                StatusCode::TOO_MANY_REQUESTS,
            ),
            Kind::Unavailable => (
                "unavailable",
                "Not available now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::DeadlineExceeded => (
                "deadline_exceeded",
                "No answer in time",
                StatusCode::GATEWAY_TIMEOUT,
            ),
            Kind::QuotaExceeded => (
                "quota_exceeded",
                "It needs more than it may use",
                StatusCode::INSUFFICIENT_STORAGE,
            ),
            // The guest is the server behind this gateway, and has given no answer of one.
            Kind::GuestTrapped => (
                "guest_trapped",
                "The guest's program failed",
                StatusCode::BAD_GATEWAY,
            ),
            Kind::GuestDenied => ("guest_denied", "The guest may not", StatusCode::FORBIDDEN),
            Kind::GuestFailed => (
                "guest_failed",
                "The guest says that it failed",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Kind::StateNotCheckpointable => (
                "state_not_checkpointable",
                "No checkpoint can hold its state",
                StatusCode::NOT_IMPLEMENTED,
            ),
        }
    }
}

impl Problem {
    /// A problem without a hint.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        let retried = matches!(kind, Kind::Overloaded | Kind::Unavailable);
        Problem {
            kind,
            detail: detail.into(),
            hint: None,
            retry_after: retried.then_some(RETRY_AFTER),
            more: BTreeMap::new(),
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Problem {
        Problem {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// What the node's own store says about why there was no answer.
    #[must_use]
    pub(crate) fn because_of_the_store(self, trouble: &str) -> Problem {
        let detail = format!("{}; {trouble}", self.detail);
        Problem { detail, ..self }
            .hint(
                "make room on that disk, and on those of other nodes that are as full; then send it again \
                 with the same `Idempotency-Key`",
            )
            .with("reason", "disk_full")
    }

    /// With a field of its own.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(field.to_owned(), value.into());
        self
    }

    /// As it is sent.
    pub fn body(&self) -> ProblemBody {
        let (kind, title, status) = self.kind.words();
        ProblemBody {
            kind: kind.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
            retry_after_ms: self
                .retry_after
                .map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
            more: self.more.clone(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (_, _, status) = self.kind.words();
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(span) = self.retry_after {
            // The header counts whole seconds; one that is too early only fails again.
            let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.kind == Kind::Unauthenticated {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Problem {
        let detail = error.to_string();
        match error {
            CallError::Overloaded { retry_after } => Problem {
                retry_after: Some(retry_after),
                ..Problem::new(Kind::Overloaded, detail).hint(if retry_after < KEYS_WAIT {
                    "it was not done: send it again after `Retry-After`, or send less"
                } else {
                    "it was not done: the child remembers the answers to as many `Idempotency-Key`s as it may, \
                     and forgets the oldest after `Retry-After`; call it without a key, or spread the calls \
                     over several children"
                })
            },
            CallError::Conflict => Problem::new(Kind::Conflict, detail)
                .hint("a key stands for one request: use a new key for a new request"),
            CallError::Unavailable(child) => Problem::new(Kind::Unavailable, detail)
                .hint(format!("`understudy unit explain {child}` says which and why")),
            CallError::NotFound(child) => Problem::new(Kind::NotFound, detail)
                .hint(format!("create it first: `understudy unit create {child}`")),
            CallError::UnknownKind { .. } => Problem::new(Kind::NotFound, detail)
                .hint("a child is `tenant/kind/key`: name one of the kinds that there are"),
            CallError::TooLarge => Problem::new(Kind::TooLarge, detail)
                .hint("send less, or have the child answer less"),
            CallError::DeadlineExceeded { .. } => Problem::new(Kind::DeadlineExceeded, detail).hint(
                "send it again with the same `Idempotency-Key`: it is done once, however often it is sent",
            ),
            CallError::NotFormed => not_formed(),
            CallError::Stopping => stopping(),
        }
    }
}

/// A queue is shorter by then: whoever is to come back later than this waits for keys to be forgotten.
const KEYS_WAIT: Duration = Duration::from_secs(10);

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Problem {
        let detail = error.to_string();
        match error {
            ProposeError::TimedOut(_) => Problem::new(Kind::DeadlineExceeded, detail)
                .hint("it may still be done: `understudy node list` shows who is up"),
            ProposeError::Stopping => stopping(),
        }
    }
}

impl From<FormError> for Problem {
    fn from(error: FormError) -> Problem {
        let detail = error.to_string();
        match error {
            FormError::AlreadyFormed => Problem::new(Kind::Conflict, detail)
                .hint("`understudy cluster show` shows it; a cluster is formed once"),
            FormError::Missing(_) => Problem::new(Kind::Unavailable, detail)
                .hint("start the missing nodes and say `understudy cluster init` again"),
            FormError::NotSingle => Problem::new(Kind::Invalid, detail)
                .hint("`understudy cluster init --single`, or name seeds in its configuration"),
            FormError::BadVoters(_) => Problem::new(Kind::Invalid, detail)
                .hint("three voters outlive one; a node alone is formed with `--single`"),
            FormError::Raft(_) => Problem::new(Kind::Unavailable, detail)
                .hint("`understudy cluster show` says what this node knows"),
            FormError::TimedOut(_) => Problem::new(Kind::DeadlineExceeded, detail)
                .hint("`understudy cluster show` says when it is formed"),
            FormError::Stopping => stopping(),
        }
    }
}

/// What a node says that belongs to no cluster yet.
pub fn not_formed() -> Problem {
    Problem::new(Kind::Unavailable, "the cluster is not formed")
        .hint("once, with all nodes up: `understudy cluster init`")
}

fn stopping() -> Problem {
    Problem::new(
        Kind::Unavailable,
        "the node is stopping; nobody can say whether it was done",
    )
    .hint("ask another node, a call with the same `Idempotency-Key`")
}

/// RFC 9457, section 3.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// When nothing better is known: about as long as a failover takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use understudy_protocol::id::ChildId;

    fn check(problem: impl Into<Problem>, kind: &str, status: u16, retry_after: Option<&str>) {
        let problem = problem.into();
        let body = problem.body();
        assert_eq!((&*body.kind, body.status), (kind, status), "{problem:?}");
        assert!(!body.detail.is_empty(), "{problem:?}");
        assert!(body.hint.is_some(), "{problem:?} leaves people alone");
        let response = problem.into_response();
        assert_eq!(response.status().as_u16(), status);
        let headers = response.headers();
        assert_eq!(headers[header::CONTENT_TYPE], MEDIA_TYPE);
        let after = headers
            .get(header::RETRY_AFTER)
            .map(|span| span.to_str().unwrap());
        assert_eq!(after, retry_after, "{body:?}");
    }

    #[test]
    fn a_child_that_is_full_of_keys_is_told_from_one_that_is_busy() {
        let hint = |retry_after| {
            let problem = Problem::from(CallError::Overloaded { retry_after });
            problem.hint.unwrap_or_default()
        };
        assert!(hint(Duration::from_secs(539)).contains("`Idempotency-Key`s as it may"));
        assert!(!hint(Duration::from_millis(50)).contains("Key"));
    }

    #[test]
    fn each_error_of_a_call_has_its_type_and_status() {
        let child = ChildId::parse("@t/counter/a").unwrap();
        for (error, kind, status, retry_after) in [
            (
                CallError::Overloaded {
                    retry_after: Duration::from_millis(50),
                },
                "overloaded",
                429,
                Some("1"),
            ),
            (
                CallError::Overloaded {
                    retry_after: Duration::from_millis(2_001),
                },
                "overloaded",
                429,
                Some("3"),
            ),
            (CallError::Conflict, "conflict", 409, None),
            (
                CallError::Unavailable(child.clone()),
                "unavailable",
                503,
                Some("1"),
            ),
            (CallError::NotFound(child), "not_found", 404, None),
            (CallError::TooLarge, "too_large", 413, None),
            (
                CallError::DeadlineExceeded {
                    patience: Duration::from_secs(5),
                    maybe_done: true,
                },
                "deadline_exceeded",
                504,
                None,
            ),
            (CallError::NotFormed, "unavailable", 503, Some("1")),
            (CallError::Stopping, "unavailable", 503, Some("1")),
        ] {
            check(error, kind, status, retry_after);
        }
    }

    #[test]
    fn each_error_of_a_change_has_its_type_and_status() {
        let long = Duration::from_secs(10);
        check(ProposeError::TimedOut(long), "deadline_exceeded", 504, None);
        check(ProposeError::Stopping, "unavailable", 503, Some("1"));
        for (error, kind, status, retry_after) in [
            (FormError::AlreadyFormed, "conflict", 409, None),
            (
                FormError::Missing(vec!["b:7600".to_owned()]),
                "unavailable",
                503,
                Some("1"),
            ),
            (FormError::NotSingle, "invalid", 400, None),
            (FormError::BadVoters(2), "invalid", 400, None),
            (
                FormError::Raft("no".to_owned()),
                "unavailable",
                503,
                Some("1"),
            ),
            (FormError::TimedOut(long), "deadline_exceeded", 504, None),
            (FormError::Stopping, "unavailable", 503, Some("1")),
        ] {
            check(error, kind, status, retry_after);
        }
    }

    #[test]
    fn no_two_kinds_share_a_type_or_a_status() {
        for (nth, kind) in Kind::ALL.into_iter().enumerate() {
            for other in &Kind::ALL[nth + 1..] {
                assert_ne!(kind.words().0, other.words().0);
                assert_ne!(kind.words().2, other.words().2);
            }
        }
    }

    #[test]
    fn a_problem_reads_back_as_it_was_written() {
        let problem = Problem::new(Kind::Conflict, "no").hint("yes");
        let text = serde_json::to_string(&problem.body()).unwrap();
        assert_eq!(
            text,
            r#"{"type":"conflict","title":"The request does not fit what is there","status":409,"detail":"no","hint":"yes"}"#
        );
        let read: ProblemBody = serde_json::from_str(&text).unwrap();
        assert_eq!(read, problem.body());
        let problem = problem.with("function", "f").with("error_code", 13);
        let text = serde_json::to_string(&problem.body()).unwrap();
        assert!(text.contains(r#""error_code":13,"function":"f""#), "{text}");
        let read: ProblemBody = serde_json::from_str(&text).unwrap();
        assert_eq!(read, problem.body());
    }
}
