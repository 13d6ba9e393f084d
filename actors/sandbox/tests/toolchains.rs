//! Guests that ordinary toolchains made, and what they may reach. That they survive kills is proved beside,
//! in `schedules.rs`.
//!
//! Where a toolchain is not installed, its tests print a line that begins with `SKIPPED` and prove
//! nothing; `guests/mod.rs` says how to install them.
#![allow(clippy::unwrap_used)]

mod common;
mod guests;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::engine;
use serde_json::json;
use understudy_sandbox::policy::{Clock, Denial, Folder, Policy};
use understudy_sandbox::validate::{self, Shape};
use understudy_sandbox::{Args, CallError, Instance, Outcome, Setup};

type Told = Arc<Mutex<Vec<Denial>>>;

async fn instance(wasm: &[u8], policy: Policy) -> Result<(Instance, Told), CallError> {
    let told = Told::default();
    let sink = told.clone();
    policy.check().unwrap();
    let setup = Setup {
        policy,
        denials: Arc::new(move |denial| sink.lock().unwrap().push(denial)),
        ..Setup::of("acme", "guest")
    };
    let compiled = engine().compile(wasm).unwrap();
    Ok((Instance::create(&compiled, setup).await?, told))
}

/// A call with bytes: the answer as text, or the guest's own error code.
async fn ask(guest: &mut Instance, export: &str, request: &str) -> Result<String, u32> {
    let done = guest.call(
        export,
        Args::Bytes(request.as_bytes()),
        |outcome| match outcome {
            Outcome::Bytes(answer) => Ok(String::from_utf8(answer.to_vec()).unwrap()),
            Outcome::Failed { code, .. } => Err(code),
            other => panic!("{other:?}"),
        },
    );
    done.await.unwrap()
}

#[tokio::test]
async fn a_c_program_without_grants_learns_nothing_and_is_told_so() {
    let Some(wasm) = guests::module(guests::FILES_C) else {
        return;
    };
    let (mut guest, told) = instance(&wasm, Policy::default()).await.unwrap();
    let acces = 2;
    assert_eq!(ask(&mut guest, "chance", "").await, Err(acces));
    assert_eq!(ask(&mut guest, "nap", "10").await, Err(acces));
    assert_eq!(ask(&mut guest, "greet", "you").await.unwrap(), "0 -1");
    assert_eq!(ask(&mut guest, "variable", "HOME").await.unwrap(), "(none)");
    let denials: Vec<String> = told
        .lock()
        .unwrap()
        .iter()
        .map(|one| one.call.clone())
        .collect();
    assert_eq!(denials[..2], ["random_get", "clock_time_get"]);
    assert!(denials.contains(&"fd_write".to_owned()));
    // Its C library finds no folder and does not even ask.
    assert!(ask(&mut guest, "append", "/etc/passwd").await.is_err());
    assert!(ask(&mut guest, "size", "/").await.is_err());
}

#[tokio::test]
async fn a_c_program_has_what_it_is_granted_and_no_more() {
    let Some(wasm) = guests::module(guests::FILES_C) else {
        return;
    };
    let mut policy = Policy::deterministic(7);
    policy.env.insert("NAME".into(), "value".into());
    let fixed = Folder {
        write: false,
        files: [("greeting".to_owned(), "hello".to_owned())].into(),
    };
    let own = Folder {
        write: true,
        ..Folder::default()
    };
    policy.folders.insert("/fixed".into(), fixed);
    policy.folders.insert("/own".into(), own);
    let (mut guest, told) = instance(&wasm, policy.clone()).await.unwrap();
    let guest = &mut guest;
    assert_eq!(ask(guest, "variable", "NAME").await.unwrap(), "value");
    assert_eq!(ask(guest, "greet", "you").await.unwrap(), "1 1767225600");
    assert_eq!(guest.log().bytes, b"hello, you\n");
    let chance = ask(guest, "chance", "").await.unwrap();
    assert_eq!(ask(guest, "append", "/own/log").await.unwrap(), "line 1\n");
    assert_eq!(
        ask(guest, "append", "/own/log").await.unwrap(),
        "line 1\nline 2\n"
    );
    assert_eq!(ask(guest, "size", "/own/log").await.unwrap(), "14");
    assert_eq!(ask(guest, "size", "/fixed/greeting").await.unwrap(), "5");
    assert_eq!(ask(guest, "remove", "/own/log").await.unwrap(), "");
    assert_eq!(ask(guest, "size", "/own/log").await, Err(44), "ENOENT");
    assert!(told.lock().unwrap().is_empty());
    assert_eq!(
        ask(guest, "append", "/fixed/greeting").await,
        Err(2),
        "EACCES"
    );
    assert_eq!(
        ask(guest, "remove", "/fixed/greeting").await,
        Err(2),
        "EACCES"
    );
    assert!(ask(guest, "append", "/own/../../etc/passwd").await.is_err());
    assert!(!told.lock().unwrap().is_empty());
    let begun = Instant::now();
    let moved: u64 = ask(guest, "nap", "3600000").await.unwrap().parse().unwrap();
    assert!((3_600_000..3_600_100).contains(&moved), "{moved}");
    assert!(begun.elapsed().as_secs() < 5, "by its own clock only");
    let (mut same, _) = instance(&wasm, policy).await.unwrap();
    assert_eq!(ask(&mut same, "chance", "").await.unwrap(), chance);
}

#[tokio::test]
async fn a_c_program_sleeps_by_the_real_clock_and_exits_as_it_likes() {
    let Some(wasm) = guests::module(guests::FILES_C) else {
        return;
    };
    let policy = Policy {
        clock: Clock::Real,
        ..Policy::default()
    };
    let (mut guest, _) = instance(&wasm, policy.clone()).await.unwrap();
    let begun = Instant::now();
    let moved: u64 = ask(&mut guest, "nap", "50").await.unwrap().parse().unwrap();
    assert!(begun.elapsed().as_millis() >= 50 && moved >= 49, "{moved}");
    let leave = guest
        .call("leave", Args::Numbers(&[json!(7)]), |_| ())
        .await;
    assert_eq!(leave, Err(CallError::Exited(7)));
    let (mut guest, _) = instance(&wasm, policy).await.unwrap();
    let aborted = guest.call("fail", Args::Numbers(&[]), |_| ()).await;
    assert!(matches!(aborted, Err(CallError::Trapped(_))), "{aborted:?}");
}

#[tokio::test]
async fn a_go_program_needs_a_clock_and_chance_to_begin_at_all() {
    let Some(wasm) = guests::module(guests::LEDGER_GO) else {
        return;
    };
    let about = validate::validate(&wasm, &validate::Limits::NODE).unwrap();
    assert_eq!(about.shape, Shape::Reactor);
    assert!(about.mutable_globals > 1, "{}", about.mutable_globals);
    let refused = instance(&wasm, Policy::default()).await.err();
    println!("without grants: {refused:?}");
    assert!(refused.is_some());
    let (mut guest, told) = instance(&wasm, Policy::deterministic(1)).await.unwrap();
    let first = ask(&mut guest, "draw", "ada").await.unwrap();
    assert_eq!(ask(&mut guest, "read", "ada").await.unwrap(), first);
    assert_eq!(ask(&mut guest, "read", "nobody").await, Err(2));
    let list = ask(&mut guest, "list", "").await.unwrap();
    assert_eq!(list, format!(r#"[{{"name":"ada","balance":{first}}}]"#));
    let escaped = ask(&mut guest, "escape", "/etc/passwd").await.unwrap();
    println!("reading /etc/passwd: {escaped}");
    let log = String::from_utf8(guest.log().bytes.clone()).unwrap();
    assert!(log.contains("/etc/passwd"), "{log}");
    assert!(!escaped.contains("nil"), "{escaped}");
    drop(told);
}

#[tokio::test]
async fn the_c_guest_built_here_answers_as_the_one_that_is_kept() {
    let Some(wasm) = guests::module(guests::LEDGER_C) else {
        return;
    };
    let (mut built, _) = instance(&wasm, Policy::default()).await.unwrap();
    let (mut kept, _) = instance(common::LEDGER, Policy::default()).await.unwrap();
    for name in ["ada", "grace", "ada", ""] {
        let (here, there) = (
            ask(&mut built, "draw", name).await,
            ask(&mut kept, "draw", name).await,
        );
        assert_eq!(here, there);
    }
}
