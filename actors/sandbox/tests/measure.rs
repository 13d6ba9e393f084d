//! Roughly how fast it is, in one process and by turns with what it is compared with:
//! `cargo test -p understudy-sandbox --test measure -- --ignored --nocapture`.
//!
//! No bench: a bench runs optimised, and at rest. It says whether something has become ten times slower.
#![allow(clippy::unwrap_used)]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{Kept, LEDGER, bytes, create, engine, shelf};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use understudy_sandbox::{Args, Compiled, Durable, Instance, Library, Outcome, Sandbox, Setup};
use wasmtime::{InstanceAllocationStrategy, Linker, Module, PoolingAllocationConfig, Store};

const ROUNDS: usize = 5;

fn guest(pages: u32) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module (memory {pages})
            (global $n (mut i32) (i32.const 0))
            (func (export "count") (result i32)
                (global.set $n (i32.add (global.get $n) (i32.const 1)))
                (i32.store (i32.const 64) (global.get $n)) (global.get $n))
            (func (export "touch") (param $every i32) (param $value i32)
                (local $at i32)
                (loop $l
                    (i32.store (local.get $at) (local.get $value))
                    (local.set $at (i32.add (local.get $at) (local.get $every)))
                    (br_if $l (i32.lt_u (local.get $at)
                        (i32.mul (memory.size) (i32.const 65536)))))))"#
    ))
    .unwrap()
}

fn median(mut of: Vec<Duration>) -> Duration {
    of.sort();
    of[of.len() / 2]
}

async fn call(guest: &mut Instance, export: &str, args: &[Value]) {
    let done = guest.call(export, Args::Numbers(args), |outcome| {
        black_box(outcome);
    });
    done.await.unwrap();
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_fresh_instance_and_a_call_beside_bare_wasmtime() {
    let wasm = guest(16);
    let ours = engine().compile(&wasm).unwrap();
    let mut config = wasmtime::Config::new();
    config
        .epoch_interruption(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(
            PoolingAllocationConfig::new(),
        ));
    let bare = wasmtime::Engine::new(&config).unwrap();
    let module = Module::new(&bare, &wasm).unwrap();
    let pre = Linker::<()>::new(&bare).instantiate_pre(&module).unwrap();
    for round in 0..ROUNDS {
        let mut theirs = Vec::new();
        let mut mine = Vec::new();
        for _ in 0..2000 {
            let begun = Instant::now();
            let mut store = Store::new(&bare, ());
            store.set_epoch_deadline(1 << 40);
            let instance = pre.instantiate_async(&mut store).await.unwrap();
            let count = instance.get_typed_func::<(), i32>(&mut store, "count");
            count.unwrap().call_async(&mut store, ()).await.unwrap();
            drop(store);
            theirs.push(begun.elapsed());
            let begun = Instant::now();
            let mut fresh = Instance::create(&ours, Setup::of("acme", "f"))
                .await
                .unwrap();
            call(&mut fresh, "count", &[]).await;
            drop(fresh);
            mine.push(begun.elapsed());
        }
        println!(
            "round {round}: fresh instance and call p50: {:?}, bare wasmtime {:?}",
            median(mine),
            median(theirs)
        );
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn warm_calls_a_second() {
    let compiled = engine().compile(&guest(16)).unwrap();
    let mut warm = Instance::create(&compiled, Setup::of("acme", "f"))
        .await
        .unwrap();
    let mut ledger = engine().compile(LEDGER).map(Some).unwrap();
    let ledger = ledger.take().unwrap();
    let mut ledger = Instance::create(&ledger, Setup::of("acme", "f"))
        .await
        .unwrap();
    let mut kept = Durable::create(&compiled, Setup::of("acme", "f"))
        .await
        .unwrap();
    let kind = Sandbox::new(Library::new(engine(), common::threads(), shelf()));
    let mut child = Kept::begin(&kind).await;
    child.call(&create("ledger@1.0.0")).await;
    let request = bytes("draw", b"ada");
    let calls = 20_000u32;
    for round in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..calls {
            call(&mut warm, "count", &[]).await;
        }
        let numbers = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..calls {
            let done = ledger.call("draw", Args::Bytes(b"ada"), |outcome| {
                assert!(matches!(outcome, Outcome::Bytes(_)));
            });
            done.await.unwrap();
        }
        let in_c = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..calls {
            kept.call("count", Args::Numbers(&[]), |_| ())
                .await
                .unwrap();
            kept.take_delta().await.unwrap();
        }
        let durable = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..calls {
            black_box(child.perform(&request).await.effect.unwrap());
        }
        let whole = begun.elapsed();
        let rate = |took: Duration| (f64::from(calls) / took.as_secs_f64()) as u64;
        println!(
            "round {round}, calls a second: numbers {}, bytes in C {}, durable with a delta {}, the kind {}",
            rate(numbers),
            rate(in_c),
            rate(durable),
            rate(whole)
        );
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_checkpoint_beside_copying_and_hashing_everything() {
    for (name, pages) in [("2 MiB", 32), ("32 MiB", 512)] {
        let compiled = engine().compile(&guest(pages)).unwrap();
        // Of all pages: none but one, one of 64, one of 8.
        for (every, dirty) in [(1 << 30, 1), (64 * 4096, pages / 4), (8 * 4096, pages * 2)] {
            checkpoint(&compiled, name, every, dirty).await;
        }
    }
}

async fn checkpoint(compiled: &Compiled, name: &str, every: i32, dirty: u32) {
    let mut kept = Durable::create(compiled, Setup::of("acme", "f"))
        .await
        .unwrap();
    kept.take_delta().await;
    let (mut calls, mut deltas, mut full, mut hashed) = (vec![], vec![], vec![], vec![]);
    let mut instance = Instance::create(compiled, Setup::of("acme", "f"))
        .await
        .unwrap();
    let mut bytes = 0;
    for round in 0..41 {
        let args = [json!(every), json!(round)];
        let begun = Instant::now();
        call(&mut instance, "touch", &args).await;
        let alone = begun.elapsed();
        let begun = Instant::now();
        kept.call("touch", Args::Numbers(&args), |_| ())
            .await
            .unwrap();
        calls.push(begun.elapsed().saturating_sub(alone));
        let begun = Instant::now();
        bytes = kept.take_delta().await.map_or(0, |delta| delta.len());
        deltas.push(begun.elapsed());
        let begun = Instant::now();
        let copy = black_box(kept.memory().to_vec());
        full.push(begun.elapsed());
        let begun = Instant::now();
        black_box(Sha256::digest(&copy));
        hashed.push(begun.elapsed());
    }
    let (found, written) = (median(calls), median(deltas));
    let (copied, hashed) = (median(full), median(hashed));
    let ratio = (copied + hashed).as_secs_f64() / (found + written).as_secs_f64();
    println!(
        "{name}, {dirty} dirty pages: found in {found:?}, written in {written:?} ({bytes} bytes); \
         everything copied in {copied:?} and hashed in {hashed:?}: {ratio:.0} times as long"
    );
}
