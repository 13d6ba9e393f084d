//! Calls of guests: what goes in and out, and everything that a guest can do wrong.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_sandbox::abi::{Args, CallError, Failure, Outcome};
use understudy_sandbox::{Compiled, Engine, Instance, Limits, Setup};

fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE
        .get_or_init(|| Engine::with_slots(64).unwrap())
        .clone()
}

fn compile(wat: &str) -> Compiled {
    engine().compile(&wat::parse_str(wat).unwrap()).unwrap()
}

fn short() -> Setup {
    Setup {
        limits: Limits {
            slices: 5,
            memory_bytes: 4 << 20,
            table_elements: 100,
            ..Limits::default()
        },
        ..Setup::of("acme", "guest")
    }
}

async fn instance(wat: &str) -> Instance {
    Instance::create(&compile(wat), short()).await.unwrap()
}

/// Calls with numbers, and what came of it.
async fn numbers(guest: &mut Instance, export: &str, args: Value) -> Result<Value, CallError> {
    let args = args.as_array().unwrap();
    let done = guest.call(export, Args::Numbers(args), |outcome| match outcome {
        Outcome::Numbers(numbers) => Value::Array(numbers),
        other => panic!("{other:?}"),
    });
    done.await
}

/// Calls with bytes: the answer, or the guest's own error.
async fn bytes(
    guest: &mut Instance,
    export: &str,
    request: &[u8],
) -> Result<Result<Vec<u8>, (u32, String)>, CallError> {
    let done = guest.call(export, Args::Bytes(request), |outcome| match outcome {
        Outcome::Bytes(answer) => Ok(answer.to_vec()),
        Outcome::Failed { code, message } => Err((code, message)),
        other => panic!("{other:?}"),
    });
    done.await
}

/// Echoes, in both forms; fails with the first byte as its code.
const ECHO: &str = r#"(module
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 4096))
    (data (i32.const 16) "no such thing\00")
    (func (export "us_alloc") (param $n i32) (result i32)
        (global.get $next)
        (global.set $next (i32.add (global.get $next) (local.get $n))))
    (func $echo (param $p i32) (param $n i32) (result i32)
        (i32.store (i32.const 1024) (local.get $n))
        (memory.copy (i32.const 1028) (local.get $p) (local.get $n))
        (i32.const 1024))
    (func (export "echo") (param $p i32) (param $n i32) (result i32 i32 i32)
        (call $echo (local.get $p) (local.get $n)) (i32.const 0) (i32.const 0))
    (func (export "echo_ret") (param $ret i32) (param $p i32) (param $n i32)
        (i32.store (local.get $ret) (call $echo (local.get $p) (local.get $n))))
    (func (export "fail") (param $p i32) (param $n i32) (result i32 i32 i32)
        (i32.const 0) (i32.load8_u (local.get $p)) (i32.const 16))
    (func (export "bad_answer") (param i32 i32) (result i32 i32 i32)
        (i32.store (i32.const 64) (i32.const 66000))
        (i32.const 64) (i32.const 0) (i32.const 0))
    (func (export "bad_pointer") (param i32 i32) (result i32 i32 i32)
        (i32.const -2) (i32.const 0) (i32.const 0))
    (func (export "bad_message") (param i32 i32) (result i32 i32 i32)
        (i32.const 0) (i32.const 1) (i32.const 65536))
    (func (export "huge_answer") (param i32 i32) (result i32 i32 i32)
        (i32.store (i32.const 64) (i32.const 0x7fffffff))
        (i32.const 64) (i32.const 0) (i32.const 0)))"#;

#[tokio::test]
async fn numbers_of_every_type_go_in_and_come_out() {
    let mut guest = instance(
        r#"(module
            (func (export "swap") (param i32 i64) (result i64 i32) (local.get 1) (local.get 0))
            (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
            (func (export "single") (param f32) (result f32) (local.get 0))
            (func (export "nothing")))"#,
    )
    .await;
    let swapped = numbers(&mut guest, "swap", json!([4294967295u32, 1u64 << 60])).await;
    assert_eq!(swapped.unwrap(), json!([1u64 << 60, -1]));
    assert_eq!(
        numbers(&mut guest, "half", json!([3])).await.unwrap(),
        json!([1.5])
    );
    assert_eq!(
        numbers(&mut guest, "half", json!(["-inf"])).await.unwrap(),
        json!(["-inf"])
    );
    assert_eq!(
        numbers(&mut guest, "single", json!(["NaN"])).await.unwrap(),
        json!(["NaN"])
    );
    assert_eq!(
        numbers(&mut guest, "nothing", json!([])).await.unwrap(),
        json!([])
    );
}

#[tokio::test]
async fn bytes_go_through_the_guests_memory_in_both_forms() {
    let mut guest = instance(ECHO).await;
    for export in ["echo", "echo_ret"] {
        for request in [&b""[..], b"a", &[7; 3000]] {
            let answer = bytes(&mut guest, export, request).await.unwrap();
            assert_eq!(answer.unwrap(), request, "{export}");
        }
    }
}

#[tokio::test]
async fn a_guests_own_error_has_its_code_and_its_words_and_spends_nothing() {
    let mut guest = instance(ECHO).await;
    for (code, name) in [
        (2, "NotFound"),
        (13, "PermissionDenied"),
        (28, "OutOfMemory"),
        (99, "Other"),
    ] {
        let failed = bytes(&mut guest, "fail", &[code as u8]).await.unwrap();
        assert_eq!(failed, Err((code, "no such thing".to_owned())));
        assert_eq!(Failure::of(code).name(), name);
    }
    assert!(!guest.is_spent());
}

#[tokio::test]
async fn a_call_that_cannot_be_made_is_refused_before_anything_runs() {
    let mut guest = instance(ECHO).await;
    let cases = [
        (
            numbers(&mut guest, "nobody", json!([])).await.unwrap_err(),
            "not_found",
        ),
        (
            numbers(&mut guest, "memory", json!([])).await.unwrap_err(),
            "not_found",
        ),
        (
            numbers(&mut guest, "__us_g0", json!([])).await.unwrap_err(),
            "not_found",
        ),
        (
            numbers(&mut guest, "echo", json!([1])).await.unwrap_err(),
            "invalid",
        ),
        (
            numbers(&mut guest, "us_alloc", json!([1.5]))
                .await
                .unwrap_err(),
            "invalid",
        ),
        (
            numbers(&mut guest, "us_alloc", json!([4294967296u64]))
                .await
                .unwrap_err(),
            "invalid",
        ),
        (
            numbers(&mut guest, "us_alloc", json!(["x"]))
                .await
                .unwrap_err(),
            "invalid",
        ),
        (
            bytes(&mut guest, "us_alloc", b"x").await.unwrap_err(),
            "invalid",
        ),
    ];
    for (error, code) in cases {
        assert_eq!(error.code(), code, "{error}");
    }
    assert!(!guest.is_spent());
    let mut without = instance(
        r#"(module (memory 1) (func (export "f") (param i32 i32) (result i32 i32 i32)
            (i32.const 0) (i32.const 0) (i32.const 0)))"#,
    )
    .await;
    let error = bytes(&mut without, "f", b"x").await.unwrap_err();
    assert!(error.to_string().contains("us_alloc"), "{error}");
}

#[tokio::test]
async fn a_pointer_or_length_out_of_bounds_is_told_with_what_it_was() {
    let cases = [
        ("bad_answer", "answer"),
        ("bad_pointer", "answer's length"),
        ("bad_message", "error message"),
    ];
    for (export, expected) in cases {
        let mut guest = instance(ECHO).await;
        let error = bytes(&mut guest, export, b"x").await.unwrap_err();
        assert_eq!(error.code(), "guest_trapped");
        assert!(
            matches!(error, CallError::OutOfBounds { what, memory: 65536, .. } if what == expected),
            "{error}"
        );
        assert!(guest.is_spent());
        assert_eq!(bytes(&mut guest, "echo", b"x").await, Err(CallError::Spent));
    }
    let mut guest = instance(ECHO).await;
    let error = bytes(&mut guest, "huge_answer", b"x").await.unwrap_err();
    assert_eq!(error, CallError::AnswerTooLarge(0x7fff_ffff));
    // The allocator's word is no better than any other.
    for place in ["65536", "65535", "-1"] {
        let mut guest = instance(&format!(
            r#"(module (memory 1)
                (func (export "us_alloc") (param i32) (result i32) (i32.const {place}))
                (func (export "f") (param i32 i32) (result i32 i32 i32)
                    (i32.const 0) (i32.const 0) (i32.const 0)))"#
        ))
        .await;
        let error = bytes(&mut guest, "f", b"xy").await.unwrap_err();
        assert!(
            matches!(
                error,
                CallError::OutOfBounds {
                    what: "request",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_trap_says_in_which_function_and_who_called_it() {
    let mut guest = instance(
        r#"(module
            (func $divide (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
            (func $middle (param i32) (result i32) (call $divide (local.get 0)))
            (func (export "run") (param i32) (result i32) (call $middle (local.get 0))))"#,
    )
    .await;
    assert_eq!(
        numbers(&mut guest, "run", json!([1])).await.unwrap(),
        json!([1])
    );
    let error = numbers(&mut guest, "run", json!([0])).await.unwrap_err();
    let CallError::Trapped(trap) = error else {
        panic!("{error}");
    };
    assert_eq!(trap.function, "divide");
    assert!(trap.message.contains("divide by zero"), "{}", trap.message);
    assert_eq!(trap.backtrace.len(), 3);
    assert_eq!(trap.backtrace[1], "middle");
}

#[tokio::test]
async fn deep_recursion_is_a_trap_of_its_own() {
    let mut guest = instance(r#"(module (func $f (export "f") (call $f)))"#).await;
    let error = numbers(&mut guest, "f", json!([])).await.unwrap_err();
    assert!(
        error.to_string().contains("call stack exhausted"),
        "{error}"
    );
    assert_eq!(error.code(), "guest_trapped");
}

#[tokio::test]
async fn memory_and_tables_grow_to_their_limits_and_no_further() {
    let mut guest = instance(
        r#"(module (memory 1) (table 1 funcref)
            (func (export "memory") (param i32) (result i32) (memory.grow (local.get 0)))
            (func (export "table") (param i32) (result i32)
                (table.grow (ref.null func) (local.get 0))))"#,
    )
    .await;
    assert_eq!(
        numbers(&mut guest, "memory", json!([64])).await.unwrap(),
        json!([-1])
    );
    assert_eq!(
        numbers(&mut guest, "memory", json!([63])).await.unwrap(),
        json!([1])
    );
    assert_eq!(
        numbers(&mut guest, "memory", json!([1])).await.unwrap(),
        json!([-1])
    );
    assert_eq!(
        numbers(&mut guest, "table", json!([100])).await.unwrap(),
        json!([-1])
    );
    assert_eq!(
        numbers(&mut guest, "table", json!([99])).await.unwrap(),
        json!([1])
    );
    assert_eq!(guest.memory().len(), 4 << 20);
}

#[tokio::test]
async fn an_endless_loop_ends_and_its_neighbours_on_the_same_thread_go_on() {
    let endless = compile(r#"(module (func (export "f") (loop $l (br $l))))"#);
    let mut looping = Instance::create(&endless, short()).await.unwrap();
    let mut neighbour = instance(ECHO).await;
    // One thread serves both, so the neighbour only answers when the loop lets go of it.
    let neighbours = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let begun = Instant::now();
            let echoed = bytes(&mut neighbour, "echo", b"hello").await;
            assert_eq!(echoed.unwrap().unwrap(), b"hello");
            longest = begun.elapsed().max(longest);
            tokio::task::yield_now().await;
        }
        longest
    };
    let (ended, longest) = tokio::join!(numbers(&mut looping, "f", json!([])), neighbours);
    assert_eq!(ended.unwrap_err(), CallError::OutOfTime);
    assert!(looping.is_spent());
    println!("the longest call of the neighbour took {longest:?}");
}

#[tokio::test]
async fn an_endless_start_is_ended_like_a_call() {
    let endless = compile(r#"(module (func $f (loop $l (br $l))) (start $f))"#);
    let error = Instance::create(&endless, short()).await.unwrap_err();
    assert_eq!(error, CallError::OutOfTime);
    let trapping = compile(r#"(module (func (export "_initialize") unreachable))"#);
    let error = Instance::create(&trapping, short()).await.unwrap_err();
    assert_eq!(error.code(), "guest_trapped");
}

#[tokio::test]
async fn start_and_initialize_run_once_and_in_this_order() {
    let mut guest = instance(
        r#"(module (global $g (mut i32) (i32.const 1))
            (func $start (global.set $g (i32.mul (global.get $g) (i32.const 10))))
            (start $start)
            (func (export "_initialize") (global.set $g (i32.add (global.get $g) (i32.const 5))))
            (func (export "get") (result i32) (global.get $g)))"#,
    )
    .await;
    assert_eq!(
        numbers(&mut guest, "get", json!([])).await.unwrap(),
        json!([15])
    );
    // Nobody can have it run again.
    let hidden = numbers(&mut guest, "__us_start", json!([])).await;
    assert_eq!(hidden.unwrap_err().code(), "not_found");
}

#[test]
fn where_addresses_are_scarce_there_are_fewer_slots() {
    // Four PiB, of the 128 TiB that a process may have.
    let engine = Engine::with_slots(1 << 20).unwrap();
    assert!(
        (16..1 << 20).contains(&engine.slots()),
        "{}",
        engine.slots()
    );
}

#[tokio::test]
async fn a_guest_may_exit_and_only_a_command_does_so_without_an_error() {
    let exiting = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory 1)
        (func (export "_start") (call $exit (i32.const 0)))
        (func (export "fail") (call $exit (i32.const 3))))"#;
    let mut guest = instance(exiting).await;
    assert_eq!(
        numbers(&mut guest, "_start", json!([])).await.unwrap(),
        json!([])
    );
    let mut guest = instance(exiting).await;
    let error = numbers(&mut guest, "fail", json!([])).await.unwrap_err();
    assert_eq!(error, CallError::Exited(3));
}

#[tokio::test]
async fn when_all_slots_are_taken_the_next_guest_is_told_to_come_again() {
    let engine = Engine::with_slots(2).unwrap();
    let module = engine.compile(&wat::parse_str(ECHO).unwrap()).unwrap();
    let first = Instance::create(&module, short()).await.unwrap();
    let _second = Instance::create(&module, short()).await.unwrap();
    assert_eq!(engine.live(), 2);
    let error = Instance::create(&module, short()).await.unwrap_err();
    assert_eq!(error, CallError::Crowded);
    drop(first);
    Instance::create(&module, short()).await.unwrap();
}

#[tokio::test]
async fn a_slot_shows_its_next_guest_nothing_of_its_last() {
    let engine = Engine::with_slots(1).unwrap();
    let module = wat::parse_str(
        r#"(module (memory 16) (global $g (mut i32) (i32.const 0))
            (func (export "fill") (global.set $g (i32.const 9))
                (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 1048576))))"#,
    );
    let module = engine.compile(&module.unwrap()).unwrap();
    for _ in 0..5 {
        let mut guest = Instance::create(&module, short()).await.unwrap();
        assert!(guest.memory().iter().all(|byte| *byte == 0));
        numbers(&mut guest, "fill", json!([])).await.unwrap();
        assert!(guest.memory().iter().all(|byte| *byte == 0xaa));
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_a_guest_that_answers_nobody() {
    let mut guest =
        instance(r#"(module (func (export "f") (loop $l (br $l))) (func (export "g")))"#).await;
    let gone = tokio::time::timeout(
        Duration::from_millis(15),
        numbers(&mut guest, "f", json!([])),
    );
    assert!(gone.await.is_err());
    let error = numbers(&mut guest, "g", json!([])).await.unwrap_err();
    assert_eq!(error, CallError::Spent);
}

#[test]
fn what_is_switched_off_is_refused_when_it_is_compiled() {
    let modules = [
        r#"(module (memory 1 1 shared))"#,
        r#"(module (memory i64 1))"#,
        r#"(module (memory 1) (memory 1))"#,
        r#"(module (tag))"#,
        r#"(module (type (struct)))"#,
        r#"(module (memory 4097))"#,
        r#"(module (table 20001 funcref))"#,
        r#"(module (import "env" "f" (func)))"#,
        r#"(module (func (result v128) (i32x4.relaxed_trunc_f32x4_s (v128.const i64x2 0 0))))"#,
    ];
    for wat in modules {
        let wasm = wat::parse_str(wat).unwrap();
        let error = engine().compile(&wasm).unwrap_err();
        println!("{error}");
    }
    engine().compile(b"\0asm").unwrap_err();
    engine().compile(b"").unwrap_err();
}
