//! Functions: calls of a module's exports that leave nothing behind.
//!
//! Owns: the way from a request to this node's pools and back. Never goes to another node: a function has
//! no place, so the node that was asked is as good as any.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use understudy_sandbox::abi::{CallError, Failure};
use understudy_sandbox::module::ModuleId;
use understudy_sandbox::pool::{
    FunctionAnswer, FunctionArgs, FunctionCall, FunctionError, FunctionOutcome,
};
use understudy_supervision::clock;

use super::sandboxes::{Args, CallOf, args, outcome};
use super::{
    CALL_PATIENCE, CALL_PATIENCE_MAX, DURABLE, Gateway, NODE, Params, Two, idempotency_key,
    limited, name_of,
};
use crate::params;
use crate::problem::{Kind, Problem};
use crate::refusal::{Refused, of_code};

/// One call of a function.
#[derive(Clone, Debug)]
pub struct FunctionAsk {
    /// Whose module.
    pub tenant: String,
    /// Which.
    pub module: ModuleId,
    /// What of it, with what, and until when.
    pub call: FunctionCall,
}

/// What a call of a function is to come to. Dropping it ends the call.
pub type Answering = Pin<Box<dyn Future<Output = Result<FunctionAnswer, FunctionError>> + Send>>;

/// By which the gateway has functions run: the node's own pools, whatever they get their modules from.
#[derive(Clone)]
pub struct RunFunctions(Arc<dyn Fn(FunctionAsk) -> Answering + Send + Sync>);

impl RunFunctions {
    /// Runs each call so.
    pub fn new<F>(run: impl Fn(FunctionAsk) -> F + Send + Sync + 'static) -> RunFunctions
    where
        F: Future<Output = Result<FunctionAnswer, FunctionError>> + Send + 'static,
    {
        RunFunctions(Arc::new(move |ask| Box::pin(run(ask))))
    }
}

impl std::fmt::Debug for RunFunctions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RunFunctions")
    }
}

pub(super) async fn call(
    State(gateway): State<Gateway>,
    Two([name, export]): Two,
    Params(of): Params<CallOf>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    // A function's call changes nothing, so it may be done twice; a key is heard and not needed.
    idempotency_key(&headers)?;
    let patience = limited(of.timeout.as_deref(), CALL_PATIENCE, CALL_PATIENCE_MAX)?;
    let until = Instant::now() + patience;
    let args = match args(&headers, body).await? {
        Args::Numbers(numbers) => FunctionArgs::Numbers(numbers),
        Args::Bytes(bytes) => FunctionArgs::Bytes(bytes),
    };
    gateway.formed()?;
    let tenant = of.tenant.unwrap_or_else(|| params::TENANT.to_owned());
    let module = gateway.latest.resolve(&gateway, &tenant, &name).await?;
    let left = until.saturating_duration_since(Instant::now());
    let call = FunctionCall {
        export,
        args,
        deadline: clock::now() + left,
    };
    let ask = FunctionAsk {
        tenant,
        module,
        call,
    };
    let called = tokio::time::timeout(left, (gateway.functions.0)(ask)).await;
    let answer = called.unwrap_or(Err(FunctionError::DeadlineExceeded));
    let answer = answer.map_err(|error| refused(error, patience))?;
    let log = (!answer.log.bytes.is_empty())
        .then(|| String::from_utf8_lossy(&answer.log.bytes).into_owned());
    let mut response = match answer.outcome {
        FunctionOutcome::Numbers(numbers) => {
            outcome(Some(numbers), Default::default(), answer.denied, log)
        }
        FunctionOutcome::Bytes(bytes) => outcome(None, bytes, answer.denied, log),
        FunctionOutcome::Failed { code, message } => {
            return Err(failed(code, message, answer.denied, log));
        }
    };
    let headers = response.headers_mut();
    headers.insert(DURABLE, HeaderValue::from_static("false"));
    let view = gateway.handle.view();
    if let Ok(name) = HeaderValue::from_str(&name_of(&view, view.node)) {
        headers.insert(NODE, name);
    }
    Ok(response)
}

fn failed(code: u32, message: String, denied: u32, log: Option<String>) -> Problem {
    let mut more = Map::new();
    more.insert("error_code".to_owned(), json!(code));
    more.insert("failure".to_owned(), json!(Failure::of(code).name()));
    if denied > 0 {
        more.insert("denied".to_owned(), json!(denied));
    }
    if let Some(log) = log {
        more.insert("log".to_owned(), Value::from(log));
    }
    let failed = Problem::from(Refused {
        code: "guest_failed".to_owned(),
        detail: message,
        more,
    });
    match failed.kind {
        Kind::GuestFailed => failed.hint("`error_code` and the detail are the guest's own words"),
        _ => failed,
    }
}

fn refused(error: FunctionError, patience: Duration) -> Problem {
    let problem = of_code(error.code(), error.to_string());
    match error {
        FunctionError::Overloaded { retry_after } => Problem {
            retry_after: Some(retry_after),
            ..problem
        },
        FunctionError::DeadlineExceeded => of_code(
            "deadline_exceeded",
            format!(
                "the function did not answer within {}",
                params::span_text(patience)
            ),
        )
        .hint("a function leaves nothing behind: call it again, with more time (`?timeout=`)"),
        FunctionError::Call(CallError::Trapped(trap)) => problem
            .hint("`function` and `backtrace` say where its program failed")
            .with("trap", trap.message)
            .with("function", trap.function)
            .with("backtrace", trap.backtrace),
        _ => problem,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use understudy_sandbox::abi::GuestTrap;

    use super::*;

    #[test]
    fn each_error_of_a_function_has_its_type_and_fields() {
        let check = |error, kind: &str| {
            let problem = refused(error, Duration::from_secs(2));
            let body = problem.body();
            assert_eq!(body.kind, kind, "{body:?}");
            assert!(body.hint.is_some(), "{body:?}");
            problem
        };
        let full = Duration::from_millis(80);
        let overloaded = check(
            FunctionError::Overloaded { retry_after: full },
            "overloaded",
        );
        assert_eq!(overloaded.retry_after, Some(full));
        let late = check(FunctionError::DeadlineExceeded, "deadline_exceeded");
        assert!(late.detail.contains("2s"), "{late:?}");
        let trap = Box::new(GuestTrap {
            message: "unreachable".to_owned(),
            function: "f".to_owned(),
            backtrace: vec!["f".to_owned(), "g".to_owned()],
        });
        let trapped = check(
            FunctionError::Call(CallError::Trapped(trap)),
            "guest_trapped",
        );
        assert_eq!(trapped.more["function"], json!("f"));
        assert_eq!(trapped.more["backtrace"], json!(["f", "g"]));
        check(FunctionError::Stopping, "unavailable");
        check(
            FunctionError::Call(CallError::NoExport("x".to_owned())),
            "not_found",
        );
    }

    #[test]
    fn what_a_guest_says_of_its_own_failure_is_passed_on() {
        let of = |code| failed(code, "no such key".to_owned(), 0, None);
        assert_eq!(of(2).kind, Kind::GuestFailed);
        assert_eq!(of(2).more["failure"], json!("NotFound"));
        assert_eq!(of(13).kind, Kind::GuestDenied);
        assert_eq!(of(99).more["error_code"], json!(99));
        assert_eq!(of(99).detail, "no such key");
    }
}
