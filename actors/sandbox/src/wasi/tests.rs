//! What a guest reaches, what it is denied, and what of it is kept.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::files::{Access, How};
use crate::policy::{BUFFERS_MAX, COPY_BYTES_MAX, Folder, SUBSCRIPTIONS_MAX};
use crate::{Args, CallError, Engine, Instance, Outcome, Setup};

/// A guest that exports every function of preview 1 as it is, and a little to look into its memory.
async fn guest(policy: Policy) -> (Instance, Arc<Mutex<Vec<Denial>>>) {
    let mut wat = String::from("(module\n");
    let types = |parameters: &str| -> String {
        let names = parameters
            .chars()
            .map(|c| if c == 'I' { "i64 " } else { "i32 " });
        names.collect()
    };
    for (name, parameters) in FUNCTIONS {
        let result = if name == "proc_exit" {
            ""
        } else {
            "(result i32)"
        };
        let types = types(parameters);
        wat +=
            &format!("(import \"{MODULE}\" \"{name}\" (func ${name} (param {types}) {result}))\n");
    }
    wat += "(memory (export \"memory\") 1)\n";
    for (name, parameters) in FUNCTIONS {
        let result = if name == "proc_exit" {
            ""
        } else {
            "(result i32)"
        };
        let types = types(parameters);
        let gets: String = (0..parameters.len())
            .map(|n| format!("(local.get {n})"))
            .collect();
        wat +=
            &format!("(func (export \"{name}\") (param {types}) {result} (call ${name} {gets}))\n");
    }
    wat += r#"(func (export "put") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
        (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
        (func (export "get64") (param i32) (result i64) (i64.load (local.get 0))))"#;
    let wasm = wat::parse_str(wat).unwrap();
    let compiled = Engine::with_slots(4).unwrap().compile(&wasm).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    policy.check().unwrap();
    let setup = Setup {
        policy,
        denials: Arc::new(move |denial| sink.lock().unwrap().push(denial)),
        ..Setup::of("acme", "guest")
    };
    (Instance::create(&compiled, setup).await.unwrap(), told)
}

async fn call(guest: &mut Instance, export: &str, args: Value) -> Result<Value, CallError> {
    let args = args.as_array().unwrap().clone();
    let done = guest.call(export, Args::Numbers(&args), |outcome| match outcome {
        Outcome::Numbers(numbers) => numbers.first().cloned().unwrap_or(Value::Null),
        other => panic!("{other:?}"),
    });
    done.await
}

/// Writes a buffer's entry for `len` bytes at `at`, and calls `fd_write` with it.
async fn write(guest: &mut Instance, fd: u32, at: u32, len: u32) -> Value {
    call(guest, "put", json!([0, at])).await.unwrap();
    call(guest, "put", json!([4, len])).await.unwrap();
    call(guest, "fd_write", json!([fd, 0, 1, 8])).await.unwrap()
}

#[test]
fn every_function_of_preview_1_is_known_by_its_type() {
    assert!(FUNCTIONS.is_sorted_by_key(|(name, _)| name));
    assert_eq!(
        type_text("clock_time_get").unwrap(),
        "(i32, i64, i32) -> (i32)"
    );
    assert_eq!(type_text("proc_exit").unwrap(), "(i32) -> ()");
    assert_eq!(type_text("sched_yield").unwrap(), "() -> (i32)");
    assert_eq!(type_text("fd_explode"), None);
}

#[tokio::test]
async fn without_grants_everything_that_reaches_out_is_denied_and_told() {
    let (mut guest, told) = guest(Policy::default()).await;
    let denied = [
        ("clock_time_get", json!([0, 0, 64])),
        ("clock_time_get", json!([1, 0, 64])),
        ("clock_res_get", json!([0, 64])),
        ("random_get", json!([64, 16])),
        ("fd_write", json!([1, 0, 1, 8])),
        ("fd_write", json!([2, 0, 1, 8])),
        ("path_open", json!([3, 0, 64, 4, 0, 0, 0, 0, 128])),
        ("path_filestat_get", json!([3, 0, 64, 4, 128])),
        ("path_create_directory", json!([3, 64, 4])),
        ("path_unlink_file", json!([3, 64, 4])),
        ("path_symlink", json!([64, 4, 3, 64, 4])),
        ("path_link", json!([3, 0, 64, 4, 3, 64, 4])),
        ("sock_accept", json!([3, 0, 64])),
        ("sock_recv", json!([3, 64, 1, 0, 96, 128])),
        ("sock_send", json!([3, 64, 1, 0, 96])),
    ];
    call(&mut guest, "put", json!([4, 5])).await.unwrap();
    for (name, args) in denied {
        let errno = call(&mut guest, name, args).await.unwrap();
        assert_eq!(errno, json!(2), "{name}: EACCES");
        let denial = told.lock().unwrap().pop().unwrap();
        assert_eq!((denial.call.as_str(), denial.errno), (name, 2));
        assert_eq!(
            (denial.tenant.as_str(), denial.sandbox.as_str()),
            ("acme", "guest")
        );
        assert!(!denial.wanted.is_empty());
        assert_eq!(guest.denied(), 1);
    }
    // What asks for nothing is no denial: no arguments, no environment, no folders, no input.
    let allowed = [
        ("args_sizes_get", json!([64, 68]), 0),
        ("environ_sizes_get", json!([64, 68]), 0),
        ("fd_prestat_get", json!([3, 64]), 8),
        ("fd_read", json!([0, 0, 1, 8]), 0),
        ("sched_yield", json!([]), 0),
        ("fd_fdstat_get", json!([1, 64]), 0),
        ("fd_close", json!([17]), 8),
    ];
    for (name, args, errno) in allowed {
        assert_eq!(
            call(&mut guest, name, args).await.unwrap(),
            json!(errno),
            "{name}"
        );
    }
    assert!(told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn denials_in_a_loop_are_told_a_few_times_and_counted() {
    let (mut guest, told) = guest(Policy::default()).await;
    let wasi = |guest: &mut Instance| {
        let wasi = guest.store.data_mut().wasi();
        for _ in 0..1_000 {
            assert_eq!(wasi.denied("fd_write", "standard output"), Errno::ACCES);
        }
        wasi.denials()
    };
    assert_eq!(wasi(&mut guest), 1_000);
    assert_eq!(told.lock().unwrap().len(), DENIALS_MAX as usize);
}

#[tokio::test]
async fn output_is_kept_to_its_limit_and_the_rest_counted() {
    let (mut guest, _) = guest(Policy::deterministic(1)).await;
    assert_eq!(write(&mut guest, 1, 16, 5).await, json!(0));
    assert_eq!(
        guest.log(),
        &Log {
            bytes: vec![0; 5],
            dropped: 0
        }
    );
    // A call's log is its own; and one write takes no more than a host call may copy.
    call(&mut guest, "put", json!([4, 60_000])).await.unwrap();
    let entries = 100;
    for n in 0..entries {
        call(&mut guest, "put", json!([1024 + n * 8, 2048]))
            .await
            .unwrap();
        call(&mut guest, "put", json!([1024 + n * 8 + 4, 60_000]))
            .await
            .unwrap();
    }
    let errno = call(&mut guest, "fd_write", json!([2, 1024, entries, 8]))
        .await
        .unwrap();
    assert_eq!(errno, json!(0));
    let log = guest.log().clone();
    assert_eq!(log.bytes.len(), LOG_BYTES_MAX);
    assert_eq!(log.bytes.len() as u64 + log.dropped, COPY_BYTES_MAX as u64);
    let written = call(&mut guest, "get", json!([8])).await.unwrap();
    assert_eq!(
        written,
        json!(COPY_BYTES_MAX),
        "the guest is told how much was taken"
    );
    let bomb = call(&mut guest, "fd_write", json!([1, 0, BUFFERS_MAX + 1, 8]))
        .await
        .unwrap();
    assert_eq!(bomb, json!(Errno::INVAL.0));
}

#[tokio::test]
async fn chance_follows_from_its_seed_and_has_a_limit() {
    let drawn = async |seed| {
        let (mut guest, _) = guest(Policy::deterministic(seed)).await;
        let mut drawn = Vec::new();
        for _ in 0..3 {
            assert_eq!(
                call(&mut guest, "random_get", json!([64, 8]))
                    .await
                    .unwrap(),
                json!(0)
            );
            drawn.push(call(&mut guest, "get64", json!([64])).await.unwrap());
        }
        let bomb = json!([0, RANDOM_BYTES_MAX + 1]);
        let bomb = call(&mut guest, "random_get", bomb).await.unwrap();
        assert_eq!(bomb, json!(Errno::FAULT.0), "its memory is only so large");
        drawn
    };
    let (one, same, other) = (drawn(1).await, drawn(1).await, drawn(2).await);
    assert_eq!(one, same);
    assert!(one.iter().all(|bytes| !other.contains(bytes)));
    assert_ne!(one[0], one[1]);
    let mut wasi = Wasi::new(Policy::deterministic(1), "a", "b", Arc::new(|_| {}));
    let mut much = vec![0; RANDOM_BYTES_MAX + 1];
    assert_eq!(wasi.fill_random(&mut much), Err(Errno::TOOBIG));
    let real = Policy {
        random: Random::Real,
        ..Policy::default()
    };
    let mut wasi = Wasi::new(real, "a", "b", Arc::new(|_| {}));
    let (mut first, mut second) = ([0; 32], [0; 32]);
    wasi.fill_random(&mut first).unwrap();
    wasi.fill_random(&mut second).unwrap();
    assert_ne!(first, second);
}

#[tokio::test]
async fn the_state_behind_a_guest_comes_back_with_its_checkpoint() {
    let mut policy = Policy::deterministic(5);
    let folder = Folder {
        write: true,
        ..Folder::default()
    };
    policy.folders.insert("/data".into(), folder);
    let wasi = |policy: &Policy| Wasi::new(policy.clone(), "a", "b", Arc::new(|_| {}));
    let mut before = wasi(&policy);
    let how = How {
        create: true,
        folder: false,
        exclusive: false,
        truncate: false,
        flags: 1,
        access: Access {
            read: true,
            write: true,
        },
    };
    let fd = before.state.files.open(3, b"log", how).unwrap();
    before.state.files.write(fd, None, b"one").unwrap();
    let (mut some, time) = ([0; 7], before.time(0).unwrap());
    before.fill_random(&mut some).unwrap();
    let kept = before.checkpoint();
    let mut after = wasi(&policy);
    after.restore(&kept).unwrap();
    assert_eq!(after.state, before.state);
    for one in [&mut before, &mut after] {
        one.state.files.write(fd, None, b"two").unwrap();
        assert_eq!(one.state.files.read(fd, Some(0), 99).unwrap(), b"onetwo");
    }
    let (mut here, mut there) = ([0; 40], [0; 40]);
    before.fill_random(&mut here).unwrap();
    after.fill_random(&mut there).unwrap();
    assert_eq!(here, there);
    let (here, there) = (before.time(0).unwrap(), after.time(0).unwrap());
    assert!(here == there && here > time);
    for cut in 0..kept.len() {
        assert!(after.restore(&kept[..cut]).is_err());
    }
}

#[tokio::test]
async fn sleeping_by_the_virtual_clock_takes_no_time_and_moves_it() {
    let (mut guest, _) = guest(Policy::deterministic(1)).await;
    let now = async |guest: &mut Instance| {
        call(guest, "clock_time_get", json!([1, 0, 64]))
            .await
            .unwrap();
        call(guest, "get64", json!([64]))
            .await
            .unwrap()
            .as_i64()
            .unwrap()
    };
    let before = now(&mut guest).await;
    // One subscription: userdata 7, a clock, monotonic, an hour.
    let hour = 3_600_000_000_000_u64;
    for (at, word) in [
        (0, 7),
        (8, 0),
        (16, 1),
        (24, hour as u32),
        (28, (hour >> 32) as u32),
    ] {
        call(&mut guest, "put", json!([at, word])).await.unwrap();
    }
    let begun = std::time::Instant::now();
    let errno = call(&mut guest, "poll_oneoff", json!([0, 128, 1, 192]))
        .await
        .unwrap();
    assert_eq!(errno, json!(0));
    assert!(begun.elapsed().as_secs() < 5);
    assert_eq!(
        call(&mut guest, "get", json!([192])).await.unwrap(),
        json!(1)
    );
    assert_eq!(
        call(&mut guest, "get", json!([128])).await.unwrap(),
        json!(7)
    );
    let moved = now(&mut guest).await - before;
    assert!(
        moved >= hour as i64 && moved < hour as i64 + 1_000_000,
        "{moved}"
    );
    let many = json!([0, 128, SUBSCRIPTIONS_MAX + 1, 192]);
    let many = call(&mut guest, "poll_oneoff", many).await.unwrap();
    assert_eq!(many, json!(Errno::INVAL.0));
}

#[tokio::test]
async fn a_guest_that_exits_ends_its_call_with_its_code() {
    let (mut guest, _) = guest(Policy::default()).await;
    let exited = call(&mut guest, "proc_exit", json!([3])).await;
    assert_eq!(exited, Err(CallError::Exited(3)));
    assert!(guest.is_spent());
}

/// Whatever a guest passes, it gets a number: no function panics, traps, or writes outside its memory.
#[tokio::test]
async fn no_arguments_break_any_function() {
    let mut policy = Policy::deterministic(1);
    policy.args = vec!["guest".into(), "x".into()];
    policy.env.insert("A".into(), "B".into());
    let folder = Folder {
        write: true,
        files: [("f".to_owned(), "text".to_owned())].into(),
    };
    policy.folders.insert("/data".into(), folder);
    let (mut guest, _) = guest(policy).await;
    // A page of small words, so that what is read from it is sometimes a sensible pointer.
    for at in (0..4096).step_by(4) {
        call(&mut guest, "put", json!([at, at % 40])).await.unwrap();
    }
    let words = [
        0_i64, 1, 2, 3, 4, 5, 8, 64, 100, 4096, 65_528, 65_535, 65_536, -1, -8,
    ];
    let longs = [0, 1, 3, 1 << 20, i64::MAX, i64::MIN, -1];
    let mut chance = 88_172_645_463_325_252_u64;
    let mut next = |bound: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        (chance % bound as u64) as usize
    };
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..12_000 {
        let (name, parameters) = FUNCTIONS[round % FUNCTIONS.len()];
        if name == "proc_exit" {
            continue;
        }
        let args = parameters.chars().map(|c| match c {
            'I' => json!(longs[next(longs.len())]),
            _ => json!(words[next(words.len())]),
        });
        let args: Vec<Value> = args.collect();
        let answer = call(&mut guest, name, Value::Array(args.clone())).await;
        let errno = answer.unwrap_or_else(|error| panic!("{name}{args:?}: {error}"));
        let errno = errno.as_i64().unwrap();
        assert!((0..=76).contains(&errno), "{name}{args:?}: {errno}");
        seen.insert(errno);
    }
    // Success, EACCES, EBADF, EFAULT, EINVAL and ENOENT at least: the arguments reach into everything.
    for errno in [0, 2, 8, 21, 28, 44] {
        assert!(seen.contains(&errno), "never {errno}: {seen:?}");
    }
}
