//! A guest that is killed and restored at any time answers as one that was left alone.
//!
//! Each schedule is a random list of calls. One child carries them out undisturbed. Another carries out
//! the same calls while, as chance has it, it is killed between two calls, killed when a call is done but
//! not recorded (whose caller then asks again), or has its steps replaced by a snapshot. Every answer
//! must be the same, and at the end the two snapshots must be the same bytes: memory, globals, tables,
//! clock, chance, and the number of steps.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "guests/mod.rs"]
mod guests;

use common::{Chance, Kept, LEDGER, bytes, create, engine, head, numbers, shelf};
use serde_json::json;
use understudy_sandbox::snapshot::Delta;
use understudy_sandbox::{Args, Durable, Engine, Library, Outcome, Sandbox, Setup};
use understudy_supervision::Kind;

const SCHEDULES: u64 = 200;
const CALLS: u64 = 30;

/// A call of the guest in WAT, whose state hides in globals and a table.
fn hidden(chance: &mut Chance) -> Vec<u8> {
    let place = chance.below(4);
    match chance.below(12) {
        0..4 => numbers("draw", json!([])),
        4 => numbers("apply", json!([place, chance.below(1000)])),
        5 => numbers("swap", json!([place, chance.below(4)])),
        6 => numbers("widen", json!([])),
        7 => numbers("grow", json!([])),
        8 => numbers("clear", json!([chance.below(16)])),
        9 => numbers("peek", json!([chance.below(65536)])),
        10 => numbers("world", json!([])),
        _ => numbers("spoil", json!([])),
    }
}

/// A call of the guest in C, whose state is on its heap.
fn ledger(chance: &mut Chance) -> Vec<u8> {
    let long = "n".repeat(3000);
    let names = ["ada", "grace", "barbara", "", &long];
    let name = names[chance.below(5) as usize].as_bytes();
    match chance.below(10) {
        0..6 => bytes("draw", name),
        6..8 => bytes("read", name),
        8 => bytes("close", name),
        _ => numbers("spoil", json!([chance.below(100)])),
    }
}

/// A call of the guest in Go: as those of the one in C, and a list that a goroutine makes.
fn accounts(chance: &mut Chance) -> Vec<u8> {
    match chance.below(8) {
        0 => bytes("list", b""),
        _ => ledger(chance),
    }
}

async fn run(kind: &impl Kind, module: &str, seed: u64, call: fn(&mut Chance) -> Vec<u8>) -> u64 {
    let mut calls = Chance(seed);
    let mut mishaps = Chance(!seed);
    let mut calm = Kept::begin(kind).await;
    let mut disturbed = Kept::begin(kind).await;
    let create = create(module);
    assert_eq!(head(&calm.call(&create).await), json!({"ok": true}));
    assert_eq!(head(&disturbed.call(&create).await), json!({"ok": true}));
    let mut kills = 0;
    for number in 0..CALLS {
        let body = call(&mut calls);
        let expected = calm.call(&body).await;
        match mishaps.below(8) {
            0 | 1 => {
                disturbed.kill().await;
                kills += 1;
            }
            2 => {
                disturbed.perform(&body).await;
                disturbed.kill().await;
                kills += 1;
            }
            3 => disturbed.rebase().await,
            _ => {}
        }
        let answer = disturbed.call(&body).await;
        let what = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(answer, expected, "schedule {seed}, call {number}: {what}");
    }
    disturbed.kill().await;
    calm.rebase().await;
    disturbed.rebase().await;
    let same = calm.records.base == disturbed.records.base;
    assert!(same, "schedule {seed}: the final states differ");
    kills + 1
}

async fn all(engine: Engine, schedules: u64) {
    let kind = Sandbox::new(Library::new(engine, common::threads(), shelf()));
    let mut kills = 0;
    for seed in 0..schedules {
        kills += run(&kind, "hidden@1.0.0", seed, hidden).await;
        kills += run(&kind, "ledger@1.0.0", seed, ledger).await;
    }
    println!("{schedules} schedules of each guest, {kills} kills, no difference");
    assert!(kills > schedules);
}

#[tokio::test]
async fn a_guest_that_is_killed_at_any_time_answers_as_one_that_is_not() {
    all(engine(), SCHEDULES).await;
}

/// Go's runtime keeps half of itself in globals, and moves what it likes between two calls.
#[tokio::test]
async fn the_same_holds_for_a_guest_with_goroutines_and_a_garbage_collector() {
    let Some(wasm) = guests::module(guests::LEDGER_GO) else {
        return;
    };
    let mut modules = shelf();
    modules.0.insert("go@1.0.0".to_owned(), wasm);
    let kind = Sandbox::new(Library::new(engine(), common::threads(), modules));
    let mut kills = 0;
    for seed in 0..SCHEDULES / 10 {
        kills += run(&kind, "go@1.0.0", seed, accounts).await;
    }
    println!(
        "{} schedules of a guest in Go, {kills} kills, no difference",
        SCHEDULES / 10
    );
}

#[tokio::test]
async fn the_same_holds_where_the_kernel_does_not_say_what_was_written() {
    all(common::comparing(), SCHEDULES / 10).await;
    all(common::scanning(), SCHEDULES / 10).await;
}

/// What the schedules prove would be worth little if a guest without its globals answered as well.
#[tokio::test]
async fn a_guest_that_is_restored_without_its_globals_is_another_guest() {
    let hidden = wat::parse_str(common::HIDDEN).unwrap();
    let compiled = engine().compile(&hidden).unwrap();
    let setup = Setup::of("acme", "s");
    let mut first = Durable::create(&compiled, setup.clone()).await.unwrap();
    let mut deltas = vec![first.take_delta().await.unwrap()];
    let initial = Delta::decode(&deltas[0]).await.unwrap().rest.globals;
    for _ in 0..3 {
        draw(&mut first).await;
        deltas.push(first.take_delta().await.unwrap());
    }
    let mut last = Delta::decode(&deltas[3]).await.unwrap();
    assert_ne!(last.rest.globals, initial);
    last.rest.globals = initial;
    let mut forged = deltas[..3].to_vec();
    forged.push(last.encode().await);
    let whole = Durable::restore(&compiled, setup.clone(), None, &deltas).await;
    let poorer = Durable::restore(&compiled, setup, None, &forged).await;
    let (mut whole, mut poorer) = (whole.unwrap(), poorer.unwrap());
    assert_eq!(whole.memory(), poorer.memory());
    let expected = draw(&mut first).await;
    assert_eq!(draw(&mut whole).await, expected);
    assert_ne!(draw(&mut poorer).await, expected);
}

async fn draw(guest: &mut Durable) -> String {
    let done = guest.call("draw", Args::Numbers(&[]), |outcome| match outcome {
        Outcome::Numbers(numbers) => numbers[0].to_string(),
        other => panic!("{other:?}"),
    });
    done.await.unwrap()
}

#[test]
fn the_guest_in_c_hides_its_stack_pointer() {
    let compiled = engine().compile(LEDGER).unwrap();
    assert_eq!(compiled.layout().globals.len(), 1);
}
