//! What a sandbox costs beside bare wasmtime, and a checkpoint beside copying everything.
//!
//! Owns: the rounds and the rows. Both sides of a comparison take turns in each round, in one process,
//! with the same settings of wasmtime: pooled instances, copy-on-write images, epochs.
//!
//! `bench-sandbox [ROUNDS]`

mod bare;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use understudy_benches::report::{Row, Target, quantile, report};
use understudy_sandbox::abi::Args;
use understudy_sandbox::{Compiled, Durable, Engine, Instance, Setup};

use bare::Bare;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse().context("ROUNDS is a number")?,
        None => ROUNDS,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(rounds))
}

async fn run(rounds: usize) -> Result<()> {
    let engine = Engine::new()?;
    let guest = guest(1)?;
    let small = engine.compile(&guest)?;
    let bare = Bare::new(&guest)?;
    let mut measured: Vec<Measured> = Vec::new();
    for round in 1..=rounds {
        let fresh = fresh(&small).await?;
        let bare_fresh = bare.fresh(COUNT).await?;
        let warm = warm(&small).await?;
        let bare_warm = bare.warm(CALLERS, WARM).await?;
        let mut checkpoints = Vec::new();
        for (mib, pages) in CHECKPOINTS {
            checkpoints.push(checkpoint(&engine, mib, pages).await?);
        }
        let mut images = Vec::new();
        for mib in IMAGES {
            images.push(image(&engine, mib).await?);
        }
        let round_measured = Measured {
            fresh,
            bare_fresh,
            warm,
            bare_warm,
            checkpoints,
            images,
        };
        eprintln!("round {round}: {round_measured:?}");
        measured.push(round_measured);
    }
    let of = |pick: &dyn Fn(&Measured) -> f64| measured.iter().map(pick).collect::<Vec<f64>>();
    let mut rows = vec![
        Row::new(
            "a fresh instance and one call, p50",
            "us",
            of(&|round| round.fresh.0),
            of(&|round| round.bare_fresh.0),
            Some(Target::AtMost(10.0)),
        ),
        Row::new(
            "a fresh instance and one call, p99",
            "us",
            of(&|round| round.fresh.1),
            of(&|round| round.bare_fresh.1),
            None,
        ),
        Row::new(
            format!("warm calls, {CALLERS} callers"),
            "calls/s",
            of(&|round| round.warm),
            of(&|round| round.bare_warm),
            Some(Target::AtLeast(1_000_000.0)),
        ),
    ];
    for (nth, (mib, pages)) in CHECKPOINTS.into_iter().enumerate() {
        rows.push(Row::new(
            format!("checkpoint after {pages} pages of {mib} MiB, by copying and hashing all"),
            "us",
            of(&|round| round.checkpoints[nth].0),
            of(&|round| round.checkpoints[nth].1),
            Some(Target::RatioAtMost(0.05)),
        ));
    }
    for (nth, mib) in IMAGES.into_iter().enumerate() {
        rows.push(Row::new(
            format!("image of {mib} MiB, by copying and hashing all"),
            "us",
            of(&|round| round.images[nth].0),
            of(&|round| round.images[nth].1),
            None,
        ));
    }
    report("sandbox", &rows)?;
    Ok(())
}

/// One round; times in microseconds, p50 and p99 or ours and the peer's.
#[derive(Debug)]
struct Measured {
    fresh: (f64, f64),
    bare_fresh: (f64, f64),
    warm: f64,
    bare_warm: f64,
    checkpoints: Vec<(f64, f64)>,
    images: Vec<(f64, f64)>,
}

/// A policed instance is made, called once and dropped.
async fn fresh(compiled: &Compiled) -> Result<(f64, f64)> {
    let args = [json!(2), json!(3)];
    let mut took = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let began = Instant::now();
        let mut instance = Instance::create(compiled, Setup::of("bench", "fresh")).await?;
        let sum = instance.call("add", Args::Numbers(&args), |_| ()).await;
        drop(instance);
        took.push(micros(began.elapsed()));
        sum?;
    }
    p50_and_p99(&took)
}

/// Calls a second of instances that are there already, each caller with its own.
async fn warm(compiled: &Compiled) -> Result<f64> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let compiled = compiled.clone();
        callers.spawn(async move {
            let mut instance = Instance::create(&compiled, Setup::of("bench", "warm")).await?;
            let args = [json!(2), json!(3)];
            let mut calls = 0_u64;
            let until = Instant::now() + WARM;
            while Instant::now() < until {
                for _ in 0..BATCH {
                    instance.call("add", Args::Numbers(&args), |_| ()).await?;
                }
                calls += BATCH;
                tokio::task::yield_now().await;
            }
            Ok::<u64, anyhow::Error>(calls)
        });
    }
    let mut calls = 0;
    while let Some(called) = callers.join_next().await {
        calls += called??;
    }
    Ok(calls as f64 / began.elapsed().as_secs_f64())
}

/// What a checkpoint adds to a call that wrote so many pages of a memory: ours (finding and keeping the
/// pages, and making the delta), and the peer's (copying the memory and naming the copy).
async fn checkpoint(engine: &Engine, mib: u64, pages: u64) -> Result<(f64, f64)> {
    let compiled = engine.compile(&guest(mib * 16)?)?;
    let mut durable = Durable::create(&compiled, Setup::of("bench", "durable")).await?;
    let mut plain = Instance::create(&compiled, Setup::of("bench", "plain")).await?;
    // All of it is in use, as it is in a guest that has run for a while.
    let all = [json!(mib * 256), json!(1)];
    durable.call("touch", Args::Numbers(&all), |_| ()).await?;
    plain.call("touch", Args::Numbers(&all), |_| ()).await?;
    durable.take_delta().await;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for nth in 0..CHECKPOINT_CALLS {
        let args: [Value; 2] = [json!(pages), json!(nth + 2)];
        let began = Instant::now();
        plain.call("touch", Args::Numbers(&args), |_| ()).await?;
        let call = began.elapsed();

        let began = Instant::now();
        durable.call("touch", Args::Numbers(&args), |_| ()).await?;
        let delta = durable.take_delta().await;
        ours.push(micros(began.elapsed().saturating_sub(call)));
        delta.context("the call changed something")?;

        let began = Instant::now();
        let copy = plain.memory().to_vec();
        let name = Sha256::digest(&copy);
        peers.push(micros(began.elapsed()));
        std::hint::black_box(name);
    }
    let p50 = |took: &[f64]| quantile(took, 0.5).ok_or_else(|| anyhow!("nothing was measured"));
    Ok((p50(&ours)?, p50(&peers)?))
}

/// What the base of a chain of deltas costs, all of the memory being in use and ten pages written since the
/// last one: ours, and the peer's copy.
async fn image(engine: &Engine, mib: u64) -> Result<(f64, f64)> {
    let compiled = engine.compile(&guest(mib * 16)?)?;
    let mut durable = Durable::create(&compiled, Setup::of("bench", "durable")).await?;
    let all = [json!(mib * 256), json!(1)];
    durable.call("touch", Args::Numbers(&all), |_| ()).await?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for nth in 0..IMAGE_CALLS {
        let args: [Value; 2] = [json!(10), json!(nth + 2)];
        durable.call("touch", Args::Numbers(&args), |_| ()).await?;
        durable.take_delta().await;

        let began = Instant::now();
        let image = durable.image(b"").await?;
        ours.push(micros(began.elapsed()));
        std::hint::black_box(image);

        let began = Instant::now();
        let copy = durable.memory().to_vec();
        let name = Sha256::digest(&copy);
        peers.push(micros(began.elapsed()));
        std::hint::black_box(name);
    }
    let p50 = |took: &[f64]| quantile(took, 0.5).ok_or_else(|| anyhow!("nothing was measured"));
    Ok((p50(&ours)?, p50(&peers)?))
}

/// The guest with a memory of so many pages of 64 KiB.
fn guest(pages: u64) -> Result<Vec<u8>> {
    Ok(wat::parse_str(GUEST.replace("PAGES", &pages.to_string()))?)
}

fn p50_and_p99(took: &[f64]) -> Result<(f64, f64)> {
    let at = |share| quantile(took, share).ok_or_else(|| anyhow!("nothing was measured"));
    Ok((at(0.5)?, at(0.99)?))
}

fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}

/// Adds; and writes one word to each of so many pages.
const GUEST: &str = r#"
(module
  (memory (export "memory") PAGES)
  (global $calls (mut i64) (i64.const 0))
  (func (export "add") (param i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 1)))
  (func (export "touch") (param $pages i32) (param $value i32) (result i64)
    (local $at i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $pages)))
        (local.set $pages (i32.sub (local.get $pages) (i32.const 1)))
        (i32.store (i32.mul (local.get $pages) (i32.const 4096)) (local.get $value))
        (br $next)))
    (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
    (global.get $calls)))
"#;

/// Rounds, alternating.
const ROUNDS: usize = 7;

/// Fresh instances in one round.
const COUNT: usize = 5_000;

/// Callers of warm instances.
const CALLERS: usize = 64;

/// How long they call in one round.
const WARM: Duration = Duration::from_millis(500);

/// Calls between two looks at the clock.
const BATCH: u64 = 1_000;

/// MiB of memory and pages written by a call.
const CHECKPOINTS: [(u64, u64); 4] = [(2, 1), (2, 10), (32, 10), (32, 100)];

/// MiB of memory of which an image is made.
const IMAGES: [u64; 2] = [2, 32];

/// Images in one round and size.
const IMAGE_CALLS: u64 = 10;

/// Checkpoints in one round and size.
const CHECKPOINT_CALLS: u64 = 50;
