//! What a guest or its host writes is in the next delta, however it was written and however written pages
//! are found.
//!
//! The reference is the plainest there is: a copy of the whole memory from before the call, compared with
//! the whole memory after it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Chance, comparing, engine, scanning};
use serde_json::{Value, json};
use understudy_sandbox::dirty::{Method, Scanner};
use understudy_sandbox::durable::CallFailed;
use understudy_sandbox::snapshot::{Delta, Image, PAGE};
use understudy_sandbox::{Args, Compiled, Durable, Engine, Setup};

/// Two MiB, half of it an image, written in every way that there is.
const WRITER: &str = r#"(module (memory 32 128)
    (data (i32.const 0) "\01")
    (data (i32.const 70000) "an image")
    (data $passive "passively kept until it is wanted")
    (global $room (mut i32) (i32.const 1048576))
    (func (export "store") (param $at i32) (param $value i32)
        (i32.store8 (local.get $at) (local.get $value)))
    (func (export "vector") (param $at i32)
        (v128.store (local.get $at) (i32x4.splat (local.get $at))))
    (func (export "fill") (param $at i32) (param $length i32) (param $value i32)
        (memory.fill (local.get $at) (local.get $value) (local.get $length)))
    (func (export "copy") (param $to i32) (param $from i32) (param $length i32)
        (memory.copy (local.get $to) (local.get $from) (local.get $length)))
    (func (export "init") (param $at i32) (param $length i32)
        (memory.init $passive (local.get $at) (i32.const 0) (local.get $length)))
    (func (export "grow") (param $pages i32) (result i32)
        (memory.grow (local.get $pages)))
    (func (export "grow_and_store") (param $pages i32) (param $value i32) (result i32)
        (local $old i32)
        (local.set $old (memory.grow (local.get $pages)))
        (if (i32.ne (local.get $old) (i32.const -1)) (then
            (i32.store8 (i32.mul (local.get $old) (i32.const 65536)) (local.get $value))))
        (local.get $old))
    (func (export "read") (param $at i32) (result i32)
        (i32.load8_u (local.get $at)))
    (func (export "trap") (param $at i32)
        (i32.store8 (local.get $at) (i32.const 255))
        (drop (memory.grow (i32.const 1)))
        unreachable)
    ;; Room is never given back, so that each request lies where none was written before.
    (func (export "us_alloc") (param $length i32) (result i32)
        (global.get $room)
        (global.set $room (i32.and (i32.add (global.get $room) (i32.add (local.get $length)
            (i32.const 5000))) (i32.const 0x17ffff))))
    (func (export "take") (param i32 i32) (result i32 i32 i32)
        (i32.const 0) (i32.const 0) (i32.const 0)))"#;

fn compile(engine: &Engine) -> Compiled {
    engine.compile(&wat::parse_str(WRITER).unwrap()).unwrap()
}

/// The engines that this kernel makes possible, the best first.
fn engines() -> Vec<Engine> {
    if Scanner::new().method() != Method::Watching {
        eprintln!("SKIPPED in part: this kernel does not watch for written pages");
    }
    vec![engine(), scanning(), comparing()]
}

async fn guest(engine: &Engine) -> Durable {
    let setup = Setup::of("acme", "s");
    let mut guest = Durable::create(&compile(engine), setup).await.unwrap();
    guest.take_delta().await.unwrap();
    guest
}

async fn call(guest: &mut Durable, export: &str, args: &Value) -> Result<(), CallFailed> {
    match args {
        Value::Array(numbers) => guest.call(export, Args::Numbers(numbers), |_| ()).await,
        Value::String(bytes) => {
            guest
                .call(export, Args::Bytes(bytes.as_bytes()), |_| ())
                .await
        }
        other => panic!("{other}"),
    }
}

/// Which pages of one memory are not as in the other, which may be shorter.
fn differing(before: &[u8], after: &[u8]) -> Vec<u32> {
    let zeros = [0; PAGE];
    let pages = after.chunks(PAGE).enumerate();
    let changed = pages.filter(|(number, page)| {
        let before = before.get(number * PAGE..(number + 1) * PAGE);
        before.unwrap_or(&zeros) != *page
    });
    changed.map(|(number, _)| number as u32).collect()
}

fn told(delta: &Delta) -> Vec<u32> {
    let mut told: Vec<u32> = delta.each_page().map(|(number, _)| number).collect();
    told.sort_unstable();
    told
}

/// Carries a call out and holds the delta against the memories. Returns which pages changed.
async fn check(guest: &mut Durable, export: &str, args: Value) -> Vec<u32> {
    let before = guest.memory().to_vec();
    call(guest, export, &args).await.unwrap();
    let expected = differing(&before, guest.memory());
    let found = match guest.take_delta().await {
        Some(delta) => told(&Delta::decode(&delta).await.unwrap()),
        None => Vec::new(),
    };
    assert_eq!(found, expected, "{export} {args}");
    found
}

#[tokio::test]
async fn every_way_of_writing_is_found_and_found_again() {
    for engine in engines() {
        let mut guest = guest(&engine).await;
        for value in [7, 8, 8, 0] {
            check(&mut guest, "store", json!([9000, value])).await;
            check(&mut guest, "store", json!([70001, value])).await;
            check(&mut guest, "vector", json!([PAGE - 8 + value])).await;
            check(&mut guest, "fill", json!([20_000, 9000, value])).await;
            check(&mut guest, "copy", json!([300_000, 20_100, 5000])).await;
            check(&mut guest, "init", json!([400_000 + value, 20])).await;
            check(&mut guest, "grow", json!([1])).await;
            check(&mut guest, "grow_and_store", json!([1, value])).await;
            check(&mut guest, "read", json!([500_000])).await;
        }
    }
}

#[tokio::test]
async fn a_page_is_in_each_delta_before_which_it_was_written() {
    for engine in engines() {
        let mut guest = guest(&engine).await;
        for value in 1..5 {
            assert_eq!(check(&mut guest, "store", json!([9000, value])).await, [2]);
        }
        // Two calls, one delta; and the later of the two changes nothing.
        call(&mut guest, "store", &json!([9000, 77])).await.unwrap();
        call(&mut guest, "store", &json!([50_000, 1]))
            .await
            .unwrap();
        call(&mut guest, "read", &json!([9000])).await.unwrap();
        let delta = guest.take_delta().await.unwrap();
        assert_eq!(told(&Delta::decode(&delta).await.unwrap()), [2, 12]);
    }
}

#[tokio::test]
async fn what_the_host_writes_into_a_guest_is_found() {
    for engine in engines() {
        let mut guest = guest(&engine).await;
        for length in [1, 4096, 30_000, 200_000] {
            let request = "r".repeat(length);
            let pages = check(&mut guest, "take", json!(request)).await;
            assert!(pages.len() >= length / PAGE, "{length}: {pages:?}");
        }
    }
}

#[tokio::test]
async fn after_a_restore_and_after_a_failed_call_nothing_is_missed() {
    for engine in engines() {
        let module = compile(&engine);
        let setup = Setup::of("acme", "s");
        let mut guest = guest(&engine).await;
        for value in 1..4 {
            check(&mut guest, "fill", json!([10_000, 100_000, value])).await;
            check(&mut guest, "grow_and_store", json!([1, value])).await;
            call(&mut guest, "trap", &json!([9000])).await.unwrap_err();
            assert_eq!(guest.take_delta().await, None);
            assert_eq!(check(&mut guest, "store", json!([9000, value])).await, [2]);
            assert_eq!(check(&mut guest, "store", json!([40_000, 50])).await, [9]);
            let image = guest.image(b"").await.unwrap();
            let opened = Image::open(&image).unwrap();
            let none: [&[u8]; 0] = [];
            let restored = Durable::restore(&module, setup.clone(), Some(&opened), none).await;
            let restored = restored.unwrap();
            assert!(restored.memory() == guest.memory());
            guest = restored;
            assert_eq!(check(&mut guest, "store", json!([9000, 60])).await, [2]);
            let unchanged = check(&mut guest, "store", json!([40_000, 50])).await;
            assert!(unchanged.is_empty());
        }
    }
}

fn any(chance: &mut Chance) -> (&'static str, Value) {
    let place = chance.below(1_400_000);
    let other = chance.below(1_400_000);
    let length = chance.below(30_000);
    let value = chance.below(3);
    match chance.below(20) {
        0..7 => ("store", json!([place, value])),
        7 | 8 => ("vector", json!([place])),
        9 | 10 => ("fill", json!([place, length, value])),
        11 | 12 => ("copy", json!([place, other, length])),
        13 => ("init", json!([place, chance.below(33)])),
        14 => ("grow", json!([value])),
        15 => ("grow_and_store", json!([value, value + 1])),
        16 => ("trap", json!([place])),
        17 | 18 => ("take", json!("q".repeat(length as usize))),
        _ => ("read", json!([place])),
    }
}

/// Guests in one pool, so that each comes into the place of another that was watched, or was not.
#[tokio::test]
async fn at_random_all_methods_tell_the_same_deltas() {
    let engines = engines();
    let mut pages = 0;
    for seed in 0..12 {
        let mut chance = Chance(seed);
        let mut guests = Vec::new();
        for engine in &engines {
            guests.push(guest(engine).await);
        }
        for number in 0..120 {
            let (export, args) = any(&mut chance);
            let take = chance.below(3) > 0;
            let before = guests[0].memory().to_vec();
            let mut deltas = Vec::new();
            let mut ended = Vec::new();
            for guest in &mut guests {
                let pending = guest.has_pending();
                ended.push(call(guest, export, &args).await.is_ok());
                if !take {
                    continue;
                }
                let delta = guest.take_delta().await;
                if let (Some(delta), false) = (&delta, pending) {
                    let delta = Delta::decode(delta).await.unwrap();
                    assert_eq!(told(&delta), differing(&before, guest.memory()));
                    pages += told(&delta).len();
                }
                deltas.push(delta);
            }
            let what = format!("seed {seed}, call {number}: {export}");
            let same = |all: &[bool]| all.iter().all(|one| *one == all[0]);
            assert!(same(&ended), "{what}");
            assert!(deltas.iter().all(|delta| *delta == deltas[0]), "{what}");
            if chance.below(10) == 0 {
                // Its checksums are in part those of the image before.
                for guest in &mut guests {
                    let image = guest.image(b"").await.unwrap();
                    let image = Image::open(&image).unwrap();
                    image.verify().await.unwrap();
                    let stored = image.memory.len();
                    assert!(image.memory == &guest.memory()[..stored], "{what}");
                }
            }
            let memory = guests[0].memory();
            assert!(
                guests.iter().all(|guest| guest.memory() == memory),
                "{what}"
            );
        }
    }
    println!("{pages} pages told");
    assert!(pages > 1000);
}
