//! What guests and modules refuse, as problems.
//!
//! Owns: one row for each code of the kinds `module` and `sandbox` and of functions, and what it becomes
//! here. Never words what happened: whoever refused did, and it is passed on.

use serde::Deserialize;
use serde_json::{Map, Value};

use understudy_sandbox::abi::Failure;
use understudy_sandbox::module;

use crate::problem::{Kind, Problem};

/// Every code, the problem that it is, and what to do where the refusal does not say so itself.
pub const CODES: [(&str, Kind, &str); 11] = [
    (
        "invalid",
        Kind::Invalid,
        "`understudy module inspect NAME@VERSION` shows what a module exports and how it is called",
    ),
    (
        "not_found",
        Kind::NotFound,
        "`understudy module list` and `understudy sandbox list` show what there is, and `understudy module \
         inspect NAME@VERSION` what a module exports",
    ),
    (
        "conflict",
        Kind::Conflict,
        "take another name or another version: what there is does not change",
    ),
    (
        "overloaded",
        Kind::Overloaded,
        "it was not done: send it again after `Retry-After`, or send less",
    ),
    (
        "deadline_exceeded",
        Kind::DeadlineExceeded,
        "it was not done: call for less at a time, or give the guest more in its limits",
    ),
    (
        "quota_exceeded",
        Kind::QuotaExceeded,
        "send less, have the guest answer less, or give it more in its limits",
    ),
    (
        "unavailable",
        Kind::Unavailable,
        "send it again with the same `Idempotency-Key`: it is done once, however often it is sent",
    ),
    (
        "guest_trapped",
        Kind::GuestTrapped,
        "the guest is as before the call; `function` and `backtrace` say where its program failed",
    ),
    (
        "guest_failed",
        Kind::GuestFailed,
        "`error_code` and the detail are the guest's own words; what it changed stays changed",
    ),
    (
        "guest_denied",
        Kind::GuestDenied,
        "the guest's policy says what it may reach; `understudy events` shows what it was denied",
    ),
    (
        "state_not_checkpointable",
        Kind::StateNotCheckpointable,
        "call it as a stateless function, or build it without what `obstacle` names",
    ),
];

/// What was refused, as a sandbox says it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Refused {
    pub(crate) code: String,
    pub(crate) detail: String,
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let mut detail = refused.detail;
        if detail.is_empty() {
            detail = "the guest says that it failed, and no more".to_owned();
        }
        let failure = refused.more.get("error_code").and_then(Value::as_u64);
        let failure = failure
            .and_then(|code| u32::try_from(code).ok())
            .map(Failure::of);
        // What a guest answers that was denied something it needs.
        let code = match failure {
            Some(Failure::PermissionDenied) => "guest_denied",
            _ => &*refused.code,
        };
        let mut problem = of_code(code, detail);
        for (field, value) in refused.more {
            problem = problem.with(&field, value);
        }
        problem
    }
}

impl From<module::Refusal> for Problem {
    fn from(refusal: module::Refusal) -> Problem {
        let mut problem = of_code(&refusal.code, refusal.detail).hint(refusal.next_step);
        if refusal.reason != refusal.code {
            problem = problem.with("reason", refusal.reason);
        }
        match refusal.offset {
            Some(offset) => problem.with("offset", offset),
            None => problem,
        }
    }
}

/// The problem of a code.
pub(crate) fn of_code(code: &str, detail: impl Into<String>) -> Problem {
    match CODES.iter().find(|(known, _, _)| *known == code) {
        Some((_, kind, hint)) => Problem::new(*kind, detail).hint(*hint),
        // A newer node's: that it was refused is certain, and why is for its own gateway to say.
        None => Problem::new(Kind::Unavailable, detail)
            .hint("this gateway is older than the node that refused: ask another one")
            .with("code", code),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    /// Where codes are given out.
    const SOURCES: [&str; 5] = [
        include_str!("../../../actors/sandbox/src/abi.rs"),
        include_str!("../../../actors/sandbox/src/library.rs"),
        include_str!("../../../actors/sandbox/src/module/wire.rs"),
        include_str!("../../../actors/sandbox/src/pool.rs"),
        include_str!("../../../actors/sandbox/src/sandbox.rs"),
    ];

    /// The words between quotes in `text` that could be codes.
    fn words(text: &str) -> impl Iterator<Item = &str> {
        let quoted = text.split('"').skip(1).step_by(2);
        quoted.filter(|word| {
            !word.is_empty() && word.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
        })
    }

    /// Every code that the sources of the kinds name: what their `fn code` gives, and what their
    /// refusals are made with.
    fn codes() -> BTreeSet<&'static str> {
        let mut codes = BTreeSet::new();
        for source in SOURCES {
            for body in source.split("pub fn code(").skip(1) {
                codes.extend(words(body.split("\n    }").next().unwrap()));
            }
            for made in source.split("Refusal::new(").skip(1) {
                let first = made.trim_start().strip_prefix('"');
                codes.extend(first.and_then(|rest| rest.split('"').next()));
            }
            for named in source.split("\"code\": \"").skip(1) {
                codes.extend(named.split('"').next());
            }
        }
        codes
    }

    #[test]
    fn every_code_of_the_kinds_has_its_problem() {
        let known: BTreeSet<&str> = CODES.iter().map(|(code, _, _)| *code).collect();
        assert_eq!(known.len(), CODES.len(), "a code has two rows");
        let named = codes();
        assert!(named.len() >= 9, "the sources were not read: {named:?}");
        let missing: Vec<_> = named.difference(&known).collect();
        assert!(missing.is_empty(), "without a row: {missing:?}");
        for (code, kind, hint) in CODES {
            assert_eq!(kind.words().0, code, "a code is the type of its problem");
            assert!(!hint.is_empty());
        }
    }

    #[test]
    fn a_refusal_keeps_its_words_and_its_fields() {
        let refused =
            |value: Value| Problem::from(serde_json::from_value::<Refused>(value).unwrap());
        let trapped = refused(json!({
            "code": "guest_trapped", "detail": "the guest trapped in f: unreachable",
            "function": "f", "backtrace": ["f", "g"],
        }));
        assert_eq!(trapped.kind, Kind::GuestTrapped);
        assert_eq!(trapped.detail, "the guest trapped in f: unreachable");
        assert_eq!(trapped.more["backtrace"], json!(["f", "g"]));

        for (code, kind) in [(7, Kind::GuestFailed), (13, Kind::GuestDenied)] {
            let failed = refused(json!({"code": "guest_failed", "detail": "", "error_code": code}));
            assert_eq!(failed.kind, kind);
            assert_eq!(failed.more["error_code"], json!(code));
            assert!(!failed.detail.is_empty());
        }
    }

    #[test]
    fn what_a_newer_node_refuses_is_passed_on() {
        let problem = of_code("too_blue", "it is too blue");
        assert_eq!(problem.kind, Kind::Unavailable);
        assert_eq!(problem.more["code"], json!("too_blue"));
    }
}
