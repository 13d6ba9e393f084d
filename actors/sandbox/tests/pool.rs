//! Functions: calls without a state, in as many instances as they need.
#![allow(clippy::unwrap_used)]

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Shelf;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use understudy_protocol::workload::lifecycle::State;
use understudy_sandbox::abi::CallError;
use understudy_sandbox::module::{ModuleHash, ModuleId};
use understudy_sandbox::policy::{Policy, log_denials};
use understudy_sandbox::pool::{
    FunctionArgs, FunctionCall, FunctionError, FunctionOutcome, FunctionPool, Functions,
};
use understudy_sandbox::{Engine, Library, Limits, Setup};
use understudy_supervision::clock;

const COUNTER: &str = r#"(module
    (memory (export "memory") 1)
    (global $count (mut i32) (i32.const 0))
    (func (export "count") (result i32)
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.store (i32.const 0) (global.get $count))
        (global.get $count))
    (func (export "spin") (loop (br 0)))
    (func (export "work") (param $n i64) (result i64)
        (loop
            (local.set $n (i64.sub (local.get $n) (i64.const 1)))
            (br_if 0 (i64.gt_s (local.get $n) (i64.const 0))))
        (local.get $n))
    (func (export "trap") unreachable))"#;

const BROKEN: &str = r#"(module (func (export "_initialize") unreachable) (func (export "f")))"#;

fn call(export: &str, args: Value, millis: u64) -> FunctionCall {
    FunctionCall {
        export: export.to_owned(),
        args: FunctionArgs::Numbers(args.as_array().unwrap().clone()),
        deadline: clock::now() + Duration::from_millis(millis),
    }
}

fn pool_of(wat: &str, slots: u32, instances: u32) -> FunctionPool {
    let engine = Engine::with_slots(slots).unwrap();
    let compiled = engine.compile(&wat::parse_str(wat).unwrap()).unwrap();
    let setup = Setup::of("acme", "function");
    FunctionPool::start(
        compiled,
        setup,
        NonZeroU32::new(instances).unwrap(),
        common::threads(),
    )
}

async fn numbers(pool: &FunctionPool, call: FunctionCall) -> Result<Value, FunctionError> {
    match pool.call(call).await?.outcome {
        FunctionOutcome::Numbers(numbers) => Ok(Value::Array(numbers)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_call_begins_in_the_first_state() {
    let pool = pool_of(COUNTER, 16, 2);
    for _ in 0..50 {
        assert_eq!(
            numbers(&pool, call("count", json!([]), 5_000)).await,
            Ok(json!([1]))
        );
    }
    // The answer leaves before its instance is put back.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let stats = pool.stats();
    assert_eq!((stats.answered, stats.failed, stats.refused), (50, 0, 0));
    assert_eq!(stats.instances, 1, "one at a time needs one");
    assert_eq!(stats.entered[State::Running as usize], 50);
    assert_eq!(stats.entered[State::Idle as usize], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_pool_grows_and_answers_everybody() {
    let pool = Arc::new(pool_of(COUNTER, 16, 4));
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        let pool = pool.clone();
        calls.spawn(async move { numbers(&pool, call("work", json!([30_000_000]), 20_000)).await });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut most = 0;
    while let Some(done) = calls.join_next().await {
        assert_eq!(done.unwrap(), Ok(json!([0])));
        most = most.max(pool.stats().instances);
    }
    assert!((2..=4).contains(&most), "{most} instances");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_than_queues_hold_are_refused_with_a_time() {
    let pool = Arc::new(pool_of(COUNTER, 16, 1));
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        let pool = pool.clone();
        calls.spawn(async move { numbers(&pool, call("spin", json!([]), 900)).await });
    }
    let (mut refused, mut late, mut out_of_time) = (0, 0, 0);
    while let Some(done) = calls.join_next().await {
        match done.unwrap().unwrap_err() {
            FunctionError::Overloaded { retry_after } => {
                assert!(retry_after > Duration::ZERO);
                refused += 1;
            }
            FunctionError::DeadlineExceeded => late += 1,
            FunctionError::Call(CallError::OutOfTime) => out_of_time += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{refused} refused, {late} late, {out_of_time} out of time");
    assert!(refused >= 40 && late > 0, "{refused} refused, {late} late");
    // Those whose callers are gone are not run: the next is answered as soon as they are looked through.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    assert_eq!(
        numbers(&pool, call("count", json!([]), 5_000)).await,
        Ok(json!([1]))
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_its_instance_with_it() {
    let pool = pool_of(COUNTER, 16, 1);
    let begun = Instant::now();
    let late = numbers(&pool, call("spin", json!([]), 60)).await;
    assert_eq!(late, Err(FunctionError::DeadlineExceeded));
    assert!(begun.elapsed() < Duration::from_millis(1_000));
    assert_eq!(
        numbers(&pool, call("count", json!([]), 5_000)).await,
        Ok(json!([1]))
    );
    let past = numbers(&pool, call("count", json!([]), 0)).await;
    assert_eq!(past, Err(FunctionError::DeadlineExceeded));
}

#[tokio::test]
async fn a_caller_who_goes_away_frees_the_instance() {
    let pool = pool_of(COUNTER, 16, 1);
    let gone = tokio::time::timeout(
        Duration::from_millis(50),
        numbers(&pool, call("spin", json!([]), 10_000)),
    );
    assert!(gone.await.is_err());
    let begun = Instant::now();
    assert_eq!(
        numbers(&pool, call("count", json!([]), 5_000)).await,
        Ok(json!([1]))
    );
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "the first still ran"
    );
}

#[tokio::test]
async fn a_trap_is_told_and_the_instance_replaced() {
    let pool = pool_of(COUNTER, 16, 1);
    let Err(FunctionError::Call(CallError::Trapped(trap))) =
        numbers(&pool, call("trap", json!([]), 5_000)).await
    else {
        panic!("it did not trap");
    };
    assert!(trap.message.contains("unreachable"));
    let no_export = numbers(&pool, call("nothing", json!([]), 5_000)).await;
    assert!(matches!(
        no_export,
        Err(FunctionError::Call(CallError::NoExport(_)))
    ));
    assert_eq!(
        numbers(&pool, call("count", json!([]), 5_000)).await,
        Ok(json!([1]))
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    let stats = pool.stats();
    assert_eq!(stats.entered[State::Disposed as usize], 1);
    assert_eq!((stats.answered, stats.failed), (1, 2));
}

#[tokio::test]
async fn a_module_that_cannot_begin_says_why() {
    let pool = pool_of(BROKEN, 16, 1);
    for _ in 0..2 {
        let failed = numbers(&pool, call("f", json!([]), 5_000)).await;
        assert!(
            matches!(failed, Err(FunctionError::Call(CallError::Trapped(_)))),
            "{failed:?}"
        );
    }
}

#[tokio::test]
async fn a_full_engine_makes_calls_wait_not_fail() {
    let engine = Engine::with_slots(1).unwrap();
    let compiled = engine.compile(&wat::parse_str(COUNTER).unwrap()).unwrap();
    let setup = Setup::of("acme", "function");
    let holder = understudy_sandbox::Instance::create(&compiled, setup.clone())
        .await
        .unwrap();
    let pool = FunctionPool::start(compiled, setup, NonZeroU32::MIN, common::threads());
    let waits = numbers(&pool, call("count", json!([]), 8_000));
    let frees = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(holder);
    };
    let (answered, ()) = tokio::join!(waits, frees);
    assert_eq!(answered, Ok(json!([1])));
}

#[tokio::test]
async fn functions_of_a_node_are_found_by_name_version_and_hash() {
    let counter = wat::parse_str(COUNTER).unwrap();
    let mut shelf = Shelf::default();
    shelf.0.insert("counter@1.0.0".into(), counter.clone());
    shelf
        .0
        .insert("bad@1.0.0".into(), b"\0asm\x01\0\0\0\x01".to_vec());
    let library = Library::new(Engine::with_slots(16).unwrap(), common::threads(), shelf);
    let functions = Functions::new(library.clone(), log_denials());
    let policy = Policy::default();
    let ask = async |module: &str, sha256: Option<ModuleHash>| {
        let module: ModuleId = module.parse().unwrap();
        let count = call("count", json!([]), 5_000);
        let grants = (&policy, Limits::default());
        functions.call("acme", &module, sha256, grants, count).await
    };
    let answer = ask("counter@1.0.0", None).await.unwrap();
    assert_eq!(answer.outcome, FunctionOutcome::Numbers(vec![json!(1)]));
    assert!(
        ask("counter@1.0.0", Some(ModuleHash::of(&counter)))
            .await
            .is_ok()
    );
    let codes = [
        (
            ask("counter@1.0.0", Some(ModuleHash::of(b"other"))).await,
            "conflict",
        ),
        (ask("counter@2.0.0", None).await, "not_found"),
        (ask("bad@1.0.0", None).await, "invalid"),
        (ask("bad@1.0.0", None).await, "invalid"),
    ];
    for (answer, code) in codes {
        assert_eq!(answer.unwrap_err().code(), code);
    }
    assert_eq!(
        library.size().0,
        2,
        "the counter, and that the bad one is bad"
    );
    assert_eq!(functions.stats().len(), 1);
}

/// What a policed call costs beside its work: for people, not asserted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_calls_are_counted_in_thousands() {
    let pool = Arc::new(pool_of(COUNTER, 128, 5));
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let pool = pool.clone();
        callers.spawn(async move {
            for _ in 0..20 {
                let mut answer = numbers(&pool, call("count", json!([]), 10_000)).await;
                // Before there is any instance, only so many may wait.
                while let Err(FunctionError::Overloaded { retry_after }) = answer {
                    tokio::time::sleep(retry_after).await;
                    answer = numbers(&pool, call("count", json!([]), 10_000)).await;
                }
                assert_eq!(answer, Ok(json!([1])));
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    let each = begun.elapsed() / 1280;
    println!(
        "64 callers: {:.0} calls a second (unoptimised build)",
        1.0 / each.as_secs_f64()
    );
}
