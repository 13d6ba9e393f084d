//! Guests and modules that mean harm: each gets its typed error, and its neighbours go on.
#![allow(clippy::unwrap_used)]

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::Shelf;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use understudy_sandbox::abi::CallError;
use understudy_sandbox::engine::{CompileError, HOST_BYTES, HOST_CALLS};
use understudy_sandbox::library::LoadError;
use understudy_sandbox::module::{Module, ModuleHash, ModuleId};
use understudy_sandbox::policy::{
    Clock, DENIALS_MAX, Folder, LOG_BYTES_MAX, Output, Policy, Random,
};
use understudy_sandbox::pool::{
    FunctionAnswer, FunctionArgs, FunctionCall, FunctionError, FunctionOutcome, Functions,
};
use understudy_sandbox::wasi::Exhausted;
use understudy_sandbox::{Engine, Library, Limits};
use understudy_supervision::clock;

const HOSTILE: &str = include_str!("guests/hostile.wat");

/// A neighbour: answers with what it was sent, and counts in a global that must be new for every call.
const NEIGHBOUR: &str = r#"(module
    (memory (export "memory") 2)
    (global $calls (mut i32) (i32.const 0))
    (func (export "us_alloc") (param i32) (result i32) (i32.const 4096))
    (func (export "echo") (param $at i32) (param $bytes i32) (result i32 i32 i32)
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (i32.store (i32.const 1024) (local.get $bytes))
        (memory.copy (i32.const 1028) (local.get $at) (local.get $bytes))
        (i32.const 1024) (i32.sub (global.get $calls) (i32.const 1)) (i32.const 0)))"#;

const MEMORY_BYTES: u64 = 8 << 20;

/// A node's functions, and how many denials were told.
struct Node {
    functions: Functions<Shelf>,
    library: Library<Shelf>,
    told: Arc<AtomicU64>,
}

fn node(more: &[(&str, Vec<u8>)]) -> Node {
    let mut shelf = Shelf::default();
    shelf
        .0
        .insert("hostile@1.0.0".into(), wat::parse_str(HOSTILE).unwrap());
    shelf
        .0
        .insert("neighbour@1.0.0".into(), wat::parse_str(NEIGHBOUR).unwrap());
    for (name, wasm) in more {
        shelf.0.insert((*name).to_owned(), wasm.clone());
    }
    let library = Library::new(Engine::with_slots(64).unwrap(), common::threads(), shelf);
    let told = Arc::new(AtomicU64::new(0));
    let sink = told.clone();
    let denials = Arc::new(move |_| {
        sink.fetch_add(1, Ordering::Relaxed);
    });
    let functions = Functions::new(library.clone(), denials);
    let functions = functions.with_instances(NonZeroU32::new(5).unwrap());
    Node {
        functions,
        library,
        told,
    }
}

impl Node {
    async fn call(
        &self,
        module: &str,
        policy: &Policy,
        export: &str,
        args: FunctionArgs,
    ) -> Answer {
        let limits = Limits {
            memory_bytes: MEMORY_BYTES,
            table_elements: 1_000,
            slices: 20,
            call_ms: 2_000,
            host_calls: HOST_CALLS,
            host_bytes: HOST_BYTES,
        };
        let call = FunctionCall {
            export: export.to_owned(),
            args,
            deadline: clock::now() + Duration::from_secs(8),
        };
        let module: ModuleId = module.parse().unwrap();
        let tenant = module.name().to_owned();
        self.functions
            .call(&tenant, &module, None, (policy, limits), call)
            .await
    }

    async fn attack(&self, export: &str, args: Value) -> Answer {
        self.call("hostile@1.0.0", &granted(), export, numbers(args))
            .await
    }

    /// A neighbour's call; how long it took. It must be answered, and rightly.
    async fn neighbour(&self, salt: u64) -> Duration {
        let request = Bytes::from(
            format!("a request of {salt}")
                .into_bytes()
                .repeat(1 + salt as usize % 50),
        );
        let nothing = Policy::default();
        let begun = Instant::now();
        let answer = self.call(
            "neighbour@1.0.0",
            &nothing,
            "echo",
            FunctionArgs::Bytes(request.clone()),
        );
        let answer = answer.await.unwrap();
        let took = begun.elapsed();
        assert_eq!(answer.outcome, FunctionOutcome::Bytes(request));
        took
    }
}

type Answer = Result<FunctionAnswer, FunctionError>;

fn numbers(args: Value) -> FunctionArgs {
    FunctionArgs::Numbers(args.as_array().unwrap().clone())
}

/// Everything that there is to attack.
fn granted() -> Policy {
    let folder = Folder {
        write: true,
        files: [("f".to_owned(), "text".to_owned())].into(),
    };
    Policy {
        clock: Clock::Real,
        random: Random::Real,
        output: Output::Captured,
        folders: [("/data".to_owned(), folder)].into(),
        ..Policy::default()
    }
}

#[track_caller]
fn results(answer: Answer) -> Vec<i64> {
    match answer.unwrap().outcome {
        FunctionOutcome::Numbers(numbers) => numbers.iter().map(|n| n.as_i64().unwrap()).collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(answer: Answer) -> CallError {
    match answer.unwrap_err() {
        FunctionError::Call(error) => error,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn trapped(answer: Answer, words: &str, function: &str) {
    match failed(answer) {
        CallError::Trapped(trap) => {
            assert!(trap.message.contains(words), "{trap:?}");
            assert!(trap.function.contains(function), "{trap:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_time_for_ever_is_ended() {
    let node = node(&[]);
    assert_eq!(
        failed(node.attack("loop", json!([])).await),
        CallError::OutOfTime
    );
    assert_eq!(
        failed(node.attack("copy_for_ever", json!([])).await),
        CallError::OutOfTime
    );
    assert_eq!(
        failed(node.attack("log_for_ever", json!([])).await),
        CallError::OutOfTime
    );
    assert_eq!(
        failed(node.attack("random_for_ever", json!([])).await),
        CallError::OutOfTime
    );
    let asleep = failed(node.attack("sleep", json!([0])).await);
    assert_eq!(asleep, CallError::Late(Duration::from_secs(2)));
    trapped(
        node.attack("recurse", json!([])).await,
        "call stack exhausted",
        "recurse",
    );
    node.neighbour(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_all_memory_gets_its_limit_and_no_more() {
    let node = node(&[]);
    let pages = MEMORY_BYTES as i64 / 65_536;
    assert_eq!(results(node.attack("hoard", json!([])).await), [pages]);
    assert_eq!(
        results(node.attack("hoard_and_fill", json!([])).await),
        [pages]
    );
    assert_eq!(results(node.attack("grow_by", json!([65_535])).await), [-1]);
    assert_eq!(results(node.attack("grow_by", json!([-1])).await), [-1]);
    assert_eq!(results(node.attack("hoard_table", json!([])).await), [901]);
    let bounds = "out of bounds memory access";
    for (to, from, bytes) in [
        (0, 0, -1),
        (0, 1, i32::MAX),
        (65_535, 0, 2),
        (-1, 0, 1),
        (0, -1, 1),
    ] {
        let copied = node.attack("copy", json!([to, from, bytes])).await;
        trapped(copied, bounds, "function");
    }
    for (at, bytes) in [(0, -1), (0, i32::MAX), (65_535, 2), (-1, 1)] {
        let filled = node.attack("fill", json!([at, bytes])).await;
        trapped(filled, bounds, "function");
    }
    trapped(
        node.attack("load", json!([65_533])).await,
        bounds,
        "function",
    );
    trapped(node.attack("load", json!([-1])).await, bounds, "function");
    node.neighbour(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pointers_and_lengths_out_of_bounds_are_told_with_their_place() {
    let node = node(&[]);
    let attack = async |export: &str, request: &'static [u8]| {
        let args = FunctionArgs::Bytes(Bytes::from_static(request));
        node.call("hostile@1.0.0", &granted(), export, args).await
    };
    for export in ["answer_far", "answer_long", "answer_across", "message_far"] {
        match failed(attack(export, b"x").await) {
            CallError::OutOfBounds { memory, .. } => assert_eq!(memory, 65_536, "{export}"),
            other => panic!("{export}: {other:?}"),
        }
    }
    let huge = failed(attack("answer_huge", b"x").await);
    assert_eq!(huge, CallError::AnswerTooLarge(u32::MAX));
    match attack("message_endless", b"x").await.unwrap().outcome {
        FunctionOutcome::Failed { code, message } => {
            assert_eq!(code, 13);
            assert!(message.len() <= 4096, "{}", message.len());
        }
        other => panic!("{other:?}"),
    }
    // A request that its allocator places beyond its memory.
    let long: &'static [u8] = vec![7; 100_000].leak();
    let placed = failed(attack("message_long", long).await);
    assert!(
        matches!(
            placed,
            CallError::OutOfBounds {
                what: "request",
                ..
            }
        ),
        "{placed:?}"
    );
    let none = failed(attack("nothing", b"").await);
    assert_eq!(none, CallError::NoExport("nothing".into()));
    let hidden = failed(node.attack("__us_m0", json!([])).await);
    assert_eq!(hidden, CallError::NoExport("__us_m0".into()));
    let wrong = failed(attack("loop", b"").await);
    assert!(matches!(wrong, CallError::Signature { .. }), "{wrong:?}");
    let wrong = failed(node.attack("load", json!([1, 2])).await);
    assert!(matches!(wrong, CallError::Arguments(_)), "{wrong:?}");
    node.neighbour(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_functions_give_no_more_than_their_limits() {
    let node = node(&[]);
    let answer = node.attack("log_much", json!([])).await.unwrap();
    assert_eq!(answer.log.bytes.len(), LOG_BYTES_MAX);
    assert!(answer.log.dropped > 0);
    assert_eq!(
        results(node.attack("random", json!([0, 65_536])).await),
        [0]
    );
    let fault = 21;
    assert_eq!(
        results(node.attack("random", json!([0, -1])).await),
        [fault]
    );
    assert_eq!(
        results(node.attack("random", json!([-1, 2])).await),
        [fault]
    );
    let (opened, mfile) = (63 + 1, 33);
    assert_eq!(
        results(node.attack("open", json!([])).await),
        [opened, mfile]
    );
    // Without grants the same are denied, and told; but not twenty thousand times.
    let none = Policy::default();
    let reach = node
        .call("hostile@1.0.0", &none, "reach", numbers(json!([])))
        .await;
    assert_eq!(reach.unwrap().denied, 20_000);
    assert_eq!(node.told.load(Ordering::Relaxed), u64::from(DENIALS_MAX));
    let denied = node
        .call("hostile@1.0.0", &none, "open", numbers(json!([])))
        .await;
    assert_eq!(results(denied), [0, 2], "EACCES");
    node.neighbour(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_does_only_so_much_for_one_call() {
    let node = node(&[]);
    let limits = Limits {
        host_calls: 1_000,
        host_bytes: 100_000,
        ..Limits::default()
    };
    let ask = async |times: u32, bytes: u32| {
        let call = FunctionCall {
            export: "ask".to_owned(),
            args: numbers(json!([times, bytes])),
            deadline: clock::now() + Duration::from_secs(8),
        };
        let (id, policy) = ("hostile@1.0.0".parse().unwrap(), granted());
        let called = node
            .functions
            .call("hostile", &id, None, (&policy, limits), call);
        called.await
    };
    let exhausted = |what, most| CallError::HostLimit(Exhausted { what, most });
    assert_eq!(results(ask(1_000, 100).await), [0; 0]);
    let calls = failed(ask(1_001, 1).await);
    assert_eq!(calls, exhausted("functions used", 1_000));
    assert_eq!(calls.code(), "quota_exceeded");
    let bytes = failed(ask(2, 50_001).await);
    assert_eq!(bytes, exhausted("bytes copied", 100_000));
    // What is refused is not copied.
    assert_eq!(results(ask(10, 65_537).await), [0; 0]);
    node.neighbour(1).await;
}

/// Modules that nobody should compile, by name.
fn bad_modules() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = wat::parse_str(HOSTILE).unwrap();
    let import = r#"(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))"#;
    let parse = |wat: &str| wat::parse_str(wat).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 16].fill(0xff);
    vec![
        (
            "truncated@1.0.0",
            whole[..whole.len() - 7].to_vec(),
            "truncated",
        ),
        ("huge@1.0.0", vec![0; (32 << 20) + 1], "module_too_large"),
        ("malformed@1.0.0", flipped, "malformed"),
        ("text@1.0.0", b"#!/bin/sh\nrm -rf /".to_vec(), "not_wasm"),
        (
            "imports@1.0.0",
            parse(&format!("(module {})", import.repeat(2_000))),
            "too_many",
        ),
        ("memory@1.0.0", parse("(module (memory 65536))"), "too_many"),
        (
            "table@1.0.0",
            parse("(module (table 4000000000 funcref))"),
            "too_many",
        ),
        (
            "browser@1.0.0",
            parse(r#"(module (import "gojs" "x" (func)))"#),
            "gojs",
        ),
        (
            "old@1.0.0",
            parse(r#"(module (import "wasi_unstable" "fd_close" (func)))"#),
            "preview0",
        ),
        (
            "ours@1.0.0",
            parse(r#"(module (func (export "__us_x")))"#),
            "reserved_export",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_is_none_is_refused_before_it_is_compiled() {
    let bad = bad_modules();
    let shelf: Vec<_> = bad
        .iter()
        .map(|(name, wasm, _)| (*name, wasm.clone()))
        .collect();
    let node = node(&shelf);
    for (name, _, code) in &bad {
        for _ in 0..2 {
            let begun = Instant::now();
            let refused = node
                .call(name, &Policy::default(), "f", numbers(json!([])))
                .await;
            match refused.unwrap_err() {
                FunctionError::Load(LoadError::Invalid(error)) => {
                    assert_eq!(error.code(), *code, "{name}: {error}");
                    assert!(!error.next_step().is_empty());
                }
                other => panic!("{name}: {other:?}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{name}");
        }
    }
    node.neighbour(1).await;
}

#[tokio::test]
async fn a_known_version_with_another_hash_is_a_conflict() {
    let node = node(&[]);
    let id: ModuleId = "hostile@1.0.0".parse().unwrap();
    let wanted = ModuleHash::of(b"what I reviewed");
    let loaded = node.library.load("hostile", &id, Some(wanted)).await;
    let refused = loaded.unwrap_err();
    assert!(
        matches!(refused, LoadError::WrongHash { .. }),
        "{refused:?}"
    );
    assert_eq!(refused.code(), "conflict");
    let right = Module::new(wat::parse_str(HOSTILE).unwrap()).sha256();
    assert!(node.library.load("hostile", &id, Some(right)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_run_while_a_guest_begins_is_bounded_too() {
    let parse = |wat: &str| wat::parse_str(wat).unwrap();
    let node = node(&[
        (
            "start@1.0.0",
            parse(r#"(module (func $s (loop (br 0))) (start $s) (func (export "f")))"#),
        ),
        (
            "init@1.0.0",
            parse(r#"(module (func (export "_initialize") (loop (br 0))) (func (export "f")))"#),
        ),
        (
            "big@1.0.0",
            parse(r#"(module (memory 200) (func (export "f")))"#),
        ),
    ]);
    for name in ["start@1.0.0", "init@1.0.0"] {
        let ended = failed(
            node.call(name, &Policy::default(), "f", numbers(json!([])))
                .await,
        );
        assert_eq!(ended, CallError::OutOfTime, "{name}");
    }
    let big = node
        .call("big@1.0.0", &Policy::default(), "f", numbers(json!([])))
        .await;
    println!("a memory beyond the caller's limit: {big:?}");
    assert!(matches!(big, Err(FunctionError::Call(_))), "{big:?}");
    node.neighbour(1).await;
}

/// Functions with bodies that a compiler does not like: many blocks, each jumping to each.
fn slow_to_compile() -> Vec<u8> {
    let depth = 190;
    let mut body = "(block ".repeat(depth);
    for n in 0..depth {
        // So many blocks are open still.
        let targets: String = (0..depth - n).map(|n| format!("{n} ")).collect();
        body += &format!("(br_table {targets} (local.get 0))) ");
    }
    let functions: String = (0..40)
        .map(|_| format!("(func (param i32) {body})"))
        .collect();
    wat::parse_str(format!("(module {functions} (func (export \"f\")))")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_go_on_while_hostile_guests_run() {
    const PHASE: Duration = Duration::from_secs(4);
    let node = Arc::new(node(&[("slow@1.0.0", slow_to_compile())]));
    node.neighbour(0).await;
    let quiet = neighbours(&node, PHASE).await;

    let stop = Arc::new(AtomicBool::new(false));
    let attacks = Arc::new(AtomicU64::new(0));
    let mut attackers = JoinSet::new();
    let exports = [
        "loop",
        "copy_for_ever",
        "log_for_ever",
        "random_for_ever",
        "recurse",
        "hoard_and_fill",
    ];
    for export in exports
        .into_iter()
        .chain(["hoard_table", "open", "loop", "loop"])
    {
        let (node, stop, attacks) = (node.clone(), stop.clone(), attacks.clone());
        attackers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let _ = node.attack(export, json!([])).await;
                attacks.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let attacked = neighbours(&node, PHASE).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = attackers.join_next().await {
        ended.unwrap();
    }
    let attacks = attacks.load(Ordering::Relaxed);
    println!("neighbours, quiet:        {quiet}");
    println!("neighbours, under attack: {attacked}   ({attacks} attacks by 10 callers)");
    assert!(attacks > 10 && attacked.calls > 10);
    let after = neighbours(&node, Duration::from_secs(1)).await;
    println!("neighbours, afterwards:   {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_go_on_while_a_module_is_compiled_that_takes_for_ever() {
    let node = Arc::new(node(&[("slow@1.0.0", slow_to_compile())]));
    node.neighbour(0).await;
    let quiet = neighbours(&node, Duration::from_secs(1)).await;
    let mut compiling = JoinSet::new();
    let pushed = node.clone();
    compiling.spawn(async move {
        let begun = Instant::now();
        let nothing = Policy::default();
        let called = pushed
            .call("slow@1.0.0", &nothing, "f", numbers(json!([])))
            .await;
        (begun.elapsed(), called)
    });
    let meanwhile = neighbours(&node, Duration::from_secs(4)).await;
    println!("neighbours, quiet:        {quiet}");
    println!("neighbours, compiling:    {meanwhile}");
    let (took, called) = compiling.join_next().await.unwrap().unwrap();
    println!("the first call of the module: {took:?}, {:?}", called.err());
    assert!(took < Duration::from_secs(9), "the caller's deadline holds");
}

struct Latency {
    calls: usize,
    p50: Duration,
    p99: Duration,
    worst: Duration,
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Latency {
            calls,
            p50,
            p99,
            worst,
        } = self;
        write!(
            f,
            "p50 {p50:>10.1?}  p99 {p99:>10.1?}  worst {worst:>10.1?}  of {calls} calls"
        )
    }
}

/// Four neighbours who call now and then. Every answer must come, and be right.
async fn neighbours(node: &Arc<Node>, phase: Duration) -> Latency {
    let mut callers = JoinSet::new();
    for caller in 0..4 {
        let node = node.clone();
        callers.spawn(async move {
            let mut took = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < phase {
                took.push(node.neighbour(caller * 1_000 + took.len() as u64).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            took
        });
    }
    let mut took = Vec::new();
    while let Some(caller) = callers.join_next().await {
        took.extend(caller.unwrap());
    }
    took.sort_unstable();
    Latency {
        calls: took.len(),
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
        worst: took[took.len() - 1],
    }
}

/// The compiler's own refusals are kept apart from those of the reader before it.
#[tokio::test]
async fn what_only_the_compiler_refuses_is_told_as_such() {
    // Exports of one name twice are found by validation; so is everything else that can be said here.
    let refused = Engine::with_slots(1)
        .unwrap()
        .compile(b"\0asm\x01\0\0\0\x01\xff");
    assert!(matches!(
        refused,
        Err(CompileError::Rewrite(_) | CompileError::Invalid(_))
    ));
}
