//! Modules, sandboxes and functions.
//!
//! Owns: what is sent for a file, for numbers and for standard input. Never formats an answer: `print`
//! does.

use std::io::Write as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

use understudy_gateway::{GUEST_BODY_MAX, MODULE_BYTES_MAX, api, params};
use understudy_sandbox::Policy;
use understudy_sandbox::module::ModuleHash;

use super::{Asked, every, from_stdin, header, line, print, random_key};
use crate::cli::args::{GuestCall, Module, Sandbox};
use crate::cli::client::{Ask, Reply, segment};
use crate::cli::{Exit, Failure, Screen};

pub(super) async fn module(
    asked: &Asked,
    module: &Module,
    screen: &mut Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    match module {
        Module::Push { file, id, tenant } => {
            let wasm = wasm(file)?;
            let bytes = wasm.len() as u64;
            let sha256 = ModuleHash::of(&wasm);
            let sent = Arc::new(AtomicU64::new(0));
            let ask = Ask {
                body: Some((wasm, false)),
                sent: Some(sent.clone()),
                patience: push_patience(bytes),
                // The same bytes again change nothing.
                repeatable: true,
                ..Ask::change(
                    Method::PUT,
                    format!(
                        "/v1/modules/{}/{}?tenant={}&sha256={sha256}",
                        segment(id.name()),
                        segment(&id.version().to_string()),
                        segment(tenant)
                    ),
                )
            };
            let pushing = asked.show(&ask, print::pushed);
            with_progress(screen, &sent, bytes, pushing).await
        }
        Module::List { name, tenant, all } => {
            let path = match name {
                Some(name) => format!("/v1/modules/{}", segment(name)),
                None => "/v1/modules".to_owned(),
            };
            let state = all.then(|| "all".to_owned());
            let filters = [("tenant", tenant), ("state", &state)];
            let modules = every(asked, &path, &filters).await?;
            Ok(shown(asked, &modules, print::modules))
        }
        Module::Inspect { id, tenant } => {
            let path = format!(
                "/v1/modules/{}/{}?tenant={}",
                segment(id.name()),
                segment(&id.version().to_string()),
                segment(tenant)
            );
            asked
                .show(&Ask::get(path).wait(Some(LOOK)), print::module)
                .await
        }
    }
}

pub(super) async fn sandbox(
    asked: &Asked,
    sandbox: &Sandbox,
    screen: &mut Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    match sandbox {
        Sandbox::Create {
            name,
            module,
            policy,
            durability,
            tenant,
        } => {
            let new = api::NewSandbox {
                name: name.clone(),
                module: module.clone(),
                sha256: None,
                policy: policy
                    .as_deref()
                    .map(read_policy)
                    .transpose()?
                    .unwrap_or_default(),
                durability: *durability,
                limits: None,
            };
            let path = format!("/v1/sandboxes?tenant={}", segment(tenant));
            let ask = Ask {
                // The same again is done already.
                repeatable: true,
                ..Ask::change(Method::POST, path).json(&new).wait(Some(LOOK))
            };
            asked.show(&ask, print::sandbox).await
        }
        Sandbox::Call { name, call, key } => {
            let key = match key {
                Some(key) => key.clone(),
                // So that asking a second server is the same call.
                None => random_key()?,
            };
            let path = format!("/v1/sandboxes/{}/call", segment(name));
            let headers = vec![("idempotency-key", key)];
            guest(asked, &path, call, headers, screen).await
        }
        Sandbox::List { tenant } => {
            let sandboxes = every(asked, "/v1/sandboxes", &[("tenant", tenant)]).await?;
            Ok(shown(asked, &sandboxes, print::sandboxes))
        }
    }
}

pub(super) async fn function(
    asked: &Asked,
    name: &str,
    call: &GuestCall,
    screen: &mut Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    let path = format!("/v1/functions/{}/call", segment(name));
    guest(asked, &path, call, Vec::new(), screen).await
}

async fn guest(
    asked: &Asked,
    path: &str,
    call: &GuestCall,
    headers: Vec<(&'static str, String)>,
    screen: &mut Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    let path = format!(
        "{path}/{}?tenant={}&timeout={}",
        segment(&call.export),
        segment(&call.tenant),
        params::span_text(call.timeout)
    );
    let body = match call.args.as_slice() {
        [one] if one == "-" => {
            let why = "larger input is sent in several calls";
            (Bytes::from(from_stdin(GUEST_BODY_MAX, why)?), false)
        }
        args => (numbers(args)?, true),
    };
    let ask = Ask {
        body: Some(body),
        headers,
        patience: call.timeout,
        repeatable: true,
        ..Ask::change(Method::POST, path)
    };
    let reply = asked.client.ask(&ask).await?;
    let log = header(&reply, "understudy-log").map(|log| percent_decoded(&log));
    let is_json = header(&reply, "content-type").is_some_and(|of| of == "application/json");
    if asked.json {
        return Ok(line(as_json(&reply, is_json, log).to_string().into_bytes()));
    }
    if let Some((log, aside)) = log.zip(screen.aside.as_mut()) {
        let _ = aside.write_all(print::guest_log(&log).as_bytes());
    }
    if is_json {
        let results: Vec<Value> = serde_json::from_slice(&reply.body).unwrap_or_default();
        return Ok(print::results(&results).into_bytes());
    }
    let mut out = reply.body;
    if screen.is_terminal && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    Ok(out)
}

fn as_json(reply: &Reply, is_json: bool, log: Option<String>) -> Value {
    let number = |name: &str| header(reply, name).and_then(|text| text.parse::<u64>().ok());
    let mut answer = json!({
        "node": header(reply, "understudy-node"),
        "reflects": number("understudy-reflects"),
        "durable": header(reply, "understudy-durable").as_deref() == Some("true"),
        "denied": number("understudy-denied").unwrap_or(0),
    });
    if let Some(log) = log {
        answer["log"] = log.into();
    }
    if is_json {
        answer["results"] = serde_json::from_slice(&reply.body).unwrap_or_default();
    } else {
        answer["body"] = String::from_utf8_lossy(&reply.body).into();
    }
    answer
}

/// The arguments as the gateway takes numbers: a JSON array.
fn numbers(args: &[String]) -> Result<Bytes, Failure> {
    let read = |arg: &String| match arg.as_str() {
        "NaN" | "inf" | "-inf" => Ok(Value::from(arg.as_str())),
        text => match serde_json::from_str(text) {
            Ok(number @ Value::Number(_)) => Ok(number),
            _ => Err(Failure::new(Exit::Usage, format!("`{text}` is no number"))
                .hint("write numbers, one a parameter; `-` sends standard input as bytes")),
        },
    };
    let numbers: Result<Vec<Value>, Failure> = args.iter().map(read).collect();
    Ok(Value::Array(numbers?).to_string().into())
}

fn wasm(file: &Path) -> Result<Bytes, Failure> {
    let failed = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", file.display()));
    let about = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    if about.len() > MODULE_BYTES_MAX as u64 {
        return Err(failed(format!(
            "a module has at most {} MiB",
            MODULE_BYTES_MAX >> 20
        ))
        .hint("strip it (`wasm-strip`, `-s`), or split it"));
    }
    let wasm = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    Ok(wasm.into())
}

fn read_policy(file: &Path) -> Result<Policy, Failure> {
    let text = match file.to_str() {
        Some("-") => from_stdin(POLICY_BYTES_MAX, "a policy is a page of JSON")?,
        _ => std::fs::read(file)
            .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", file.display())))?,
    };
    let wrong = |what: String| {
        Failure::new(
            Exit::Usage,
            format!("{} is no policy: {what}", file.display()),
        )
        .hint("`understudy sandbox create --help` shows one; what is not named is denied")
    };
    let policy: Policy = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    policy.check().map_err(|error| wrong(error.to_string()))?;
    Ok(policy)
}

/// Shows how far it is to whoever waits beside it.
async fn with_progress<T>(
    screen: &mut Screen<'_>,
    sent: &AtomicU64,
    bytes: u64,
    pushing: impl Future<Output = T>,
) -> T {
    let mut pushing = pin!(pushing);
    let Some(aside) = screen.aside.as_mut().filter(|_| bytes > LONG_PUSH) else {
        return pushing.await;
    };
    let mut said = false;
    loop {
        tokio::select! {
            done = pushing.as_mut() => {
                if said {
                    let _ = aside.write_all(print::NO_PROGRESS.as_bytes());
                }
                return done;
            }
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                said = true;
                let text = print::progress(sent.load(Ordering::Relaxed), bytes);
                let _ = aside.write_all(text.as_bytes()).and_then(|()| aside.flush());
            }
        }
    }
}

fn shown<T: Serialize>(asked: &Asked, all: &T, print: impl Fn(&T, usize) -> String) -> Vec<u8> {
    match asked.json {
        true => line(serde_json::to_vec(all).unwrap_or_default()),
        false => print(all, asked.columns).into_bytes(),
    }
}

/// What the gateway's header says, as it was written.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A slow line carries a quarter of a megabyte a second; the cluster replicates it meanwhile.
fn push_patience(bytes: u64) -> Duration {
    Duration::from_secs(60 + (bytes >> 18))
}

/// Shorter pushes are over before one looks.
const LONG_PUSH: u64 = 512 << 10;

/// Five times a second a number seems to move.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What a node may need beyond an answer from memory: modules are asked one by one, fetched and compiled.
const LOOK: Duration = Duration::from_secs(20);

/// Grants are few; the text files of a guest's folders are the most of it.
const POLICY_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_numbers_and_nothing_else() {
        let read = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            numbers(&args).map(|body| String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(read(&[]).unwrap(), "[]");
        assert_eq!(
            read(&["5", "-1", "0.25", "18446744073709551615", "NaN", "-inf"]).unwrap(),
            r#"[5,-1,0.25,18446744073709551615,"NaN","-inf"]"#
        );
        for wrong in ["five", "[1]", "\"5\"", "", "1,2", "true", "-"] {
            assert_eq!(
                read(&["1", wrong]).unwrap_err().exit,
                Exit::Usage,
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_a_guest_wrote_comes_out_of_its_header() {
        for (text, expected) in [
            ("a%20b%0A", "a b\n"),
            ("gr%C3%B6%C3%9Fer", "größer"),
            ("100%25", "100%"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
        ] {
            assert_eq!(percent_decoded(text), expected);
        }
    }
}
