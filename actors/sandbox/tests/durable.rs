//! What is kept of a guest, what is refused, and what a sandbox answers as a child.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Kept, Shelf, bytes, create, engine, head, numbers, shelf, start};
use serde_json::{Value, json};
use understudy_sandbox::abi::CallError;
use understudy_sandbox::durable::{CallFailed, DurableError};
use understudy_sandbox::snapshot::{Delta, Image, SnapshotError};
use understudy_sandbox::{Args, Compiled, Durable, Engine, Library, Outcome, Sandbox, Setup};
use understudy_supervision::{Checkpoint, StartError, testing};

fn setup() -> Setup {
    Setup::of("acme", "s")
}

fn compile(wat: &str) -> Compiled {
    engine().compile(&wat::parse_str(wat).unwrap()).unwrap()
}

async fn durable(wat: &str) -> Durable {
    Durable::create(&compile(wat), setup()).await.unwrap()
}

async fn call(guest: &mut Durable, export: &str, args: Value) -> Result<Value, CallFailed> {
    let args = args.as_array().unwrap();
    let done = guest.call(export, Args::Numbers(args), |outcome| match outcome {
        Outcome::Numbers(numbers) => Value::Array(numbers),
        other => panic!("{other:?}"),
    });
    done.await
}

/// Thirty-two MiB, of which calls touch what they are told to.
const WIDE: &str = r#"(module (memory 512)
    (global $n (mut i32) (i32.const 0))
    (data (i32.const 5000) "something")
    (func (export "poke") (param $page i32) (param $value i32)
        (i32.store (i32.mul (local.get $page) (i32.const 4096)) (local.get $value)))
    (func (export "peek") (param $page i32) (result i32)
        (i32.load (i32.mul (local.get $page) (i32.const 4096))))
    (func (export "count") (result i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
    (func (export "spin") (param $page i32)
        (i32.store (i32.mul (local.get $page) (i32.const 4096)) (i32.const -1))
        (loop $l (br $l)))
    (func (export "trap") (param $page i32)
        (i32.store (i32.mul (local.get $page) (i32.const 4096)) (i32.const -1))
        (drop (call $grow)) unreachable)
    (func $grow (result i32) (memory.grow (i32.const 4))))"#;

#[tokio::test]
async fn a_delta_holds_the_pages_that_changed_and_no_others() {
    let mut guest = durable(WIDE).await;
    let first = Delta::decode(&guest.take_delta().await.unwrap())
        .await
        .unwrap();
    assert_eq!(
        (first.sequence, &first.changed, &first.zeros),
        (1, &vec![], &vec![])
    );
    for page in [3, 4, 5, 8000] {
        call(&mut guest, "poke", json!([page, 7])).await.unwrap();
    }
    let delta = guest.take_delta().await.unwrap();
    assert!(delta.len() < 300, "{} bytes", delta.len());
    let delta = Delta::decode(&delta).await.unwrap();
    assert_eq!(delta.changed, [(3, 3), (8000, 1)]);
    // Written, but with what was there; and back to zeros.
    call(&mut guest, "poke", json!([3, 7])).await.unwrap();
    assert_eq!(guest.take_delta().await, None);
    call(&mut guest, "poke", json!([100, 0])).await.unwrap();
    assert_eq!(guest.take_delta().await, None);
    call(&mut guest, "poke", json!([4, 0])).await.unwrap();
    let delta = Delta::decode(&guest.take_delta().await.unwrap())
        .await
        .unwrap();
    assert_eq!((delta.changed, delta.zeros), (vec![], vec![(4, 1)]));
    // A global alone is a change too.
    call(&mut guest, "count", json!([])).await.unwrap();
    let delta = Delta::decode(&guest.take_delta().await.unwrap())
        .await
        .unwrap();
    assert_eq!((delta.changed, delta.sequence), (vec![], 4));
    let parts = (delta.rest.globals, delta.rest.tables, delta.rest.wasi);
    assert_eq!(parts, (Some(vec![1, 0, 0, 0]), None, None));
    call(&mut guest, "peek", json!([3])).await.unwrap();
    assert_eq!(guest.take_delta().await, None);
}

#[tokio::test]
async fn what_was_not_taken_yet_is_in_the_next_delta() {
    let mut guest = durable(WIDE).await;
    let mut deltas = vec![guest.take_delta().await.unwrap()];
    for page in 0..5 {
        call(&mut guest, "poke", json!([page, page + 1]))
            .await
            .unwrap();
    }
    call(&mut guest, "count", json!([])).await.unwrap();
    deltas.push(guest.take_delta().await.unwrap());
    let mut restored = Durable::restore(&compile(WIDE), setup(), None, &deltas)
        .await
        .unwrap();
    assert_eq!(restored.memory(), guest.memory());
    assert_eq!(
        call(&mut restored, "count", json!([])).await.unwrap(),
        json!([2])
    );
}

#[tokio::test]
async fn a_call_that_fails_leaves_everything_as_it_was() {
    let mut guest = durable(WIDE).await;
    call(&mut guest, "poke", json!([9, 9])).await.unwrap();
    call(&mut guest, "count", json!([])).await.unwrap();
    guest.take_delta().await;
    let (memory, rest) = (guest.memory().to_vec(), guest.rest().clone());
    let failed = call(&mut guest, "trap", json!([9])).await.unwrap_err();
    assert!(
        matches!(failed, CallFailed::Call(CallError::Trapped(_))),
        "{failed}"
    );
    assert_eq!(guest.take_delta().await, None);
    assert!(guest.memory() == memory);
    assert_eq!(guest.rest(), &rest);
    assert_eq!(
        call(&mut guest, "peek", json!([9])).await.unwrap(),
        json!([9])
    );
    assert_eq!(
        call(&mut guest, "count", json!([])).await.unwrap(),
        json!([2])
    );
}

#[tokio::test]
async fn a_caller_who_goes_away_in_the_middle_has_called_nothing() {
    let mut guest = durable(WIDE).await;
    call(&mut guest, "poke", json!([9, 9])).await.unwrap();
    guest.take_delta().await;
    let gone = call(&mut guest, "spin", json!([9]));
    assert!(
        tokio::time::timeout(Duration::from_millis(25), gone)
            .await
            .is_err()
    );
    assert_eq!(
        call(&mut guest, "peek", json!([9])).await.unwrap(),
        json!([9])
    );
    assert_eq!(guest.take_delta().await, None);
}

#[tokio::test]
async fn a_state_that_is_not_the_next_of_this_module_is_refused() {
    let module = compile(WIDE);
    let mut guest = Durable::create(&module, setup()).await.unwrap();
    let mut deltas = vec![guest.take_delta().await.unwrap()];
    for page in 0..3 {
        call(&mut guest, "poke", json!([page, 1])).await.unwrap();
        deltas.push(guest.take_delta().await.unwrap());
    }
    let image = guest.image(b"").await.unwrap();
    let refusal = async |image: Option<&[u8]>, deltas: &[&Vec<u8>]| {
        let image = image.map(|image| Image::open(image).unwrap());
        let restored = Durable::restore(&module, setup(), image.as_ref(), deltas).await;
        match restored.unwrap_err() {
            DurableError::Snapshot(error) => error,
            other => panic!("{other}"),
        }
    };
    let [a, b, c, d] = &deltas[..] else { panic!() };
    let gap = |expected, found| SnapshotError::Gap { expected, found };
    assert_eq!(refusal(None, &[a, c]).await, gap(2, 3));
    assert_eq!(refusal(None, &[b, c]).await, gap(1, 2));
    assert_eq!(refusal(None, &[a, b, b]).await, gap(3, 2));
    assert_eq!(refusal(Some(&image), &[d]).await, gap(5, 4));
    assert!(matches!(
        refusal(None, &[]).await,
        SnapshotError::Malformed(..)
    ));
    let mut damaged = b.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(
        refusal(None, &[a, &damaged]).await,
        SnapshotError::Checksum("delta")
    );
    // Another module, whose guest would make nonsense of it.
    let other = compile(r#"(module (memory 512))"#);
    let restored = Durable::restore(&other, setup(), None, &[a])
        .await
        .unwrap_err();
    assert!(matches!(
        restored,
        DurableError::Snapshot(SnapshotError::WrongModule(_))
    ));
    let decoded = Image::open(&image).unwrap();
    let none: [&[u8]; 0] = [];
    let restored = Durable::restore(&other, setup(), Some(&decoded), none)
        .await
        .unwrap_err();
    assert!(matches!(
        restored,
        DurableError::Snapshot(SnapshotError::WrongModule(_))
    ));
}

#[tokio::test]
async fn a_state_with_too_few_globals_or_functions_that_are_none_is_refused() {
    let wat = r#"(module (memory 1) (global (mut i64) (i64.const 0)) (table 1 funcref)
        (func (export "f") (table.set (i32.const 0) (ref.null func))))"#;
    let module = compile(wat);
    let mut guest = Durable::create(&module, setup()).await.unwrap();
    let delta = Delta::decode(&guest.take_delta().await.unwrap())
        .await
        .unwrap();
    let forge = async |change: &dyn Fn(&mut Delta)| {
        let mut delta = delta.clone();
        change(&mut delta);
        let restored = Durable::restore(&module, setup(), None, [delta.encode().await]).await;
        restored.map(|_| ()).unwrap_err()
    };
    let malformed = |error: &DurableError| {
        matches!(error, DurableError::Snapshot(SnapshotError::Malformed(..)))
    };
    assert!(malformed(
        &forge(&|delta| delta.rest.globals = Some(vec![0; 4])).await
    ));
    assert!(malformed(
        &forge(&|delta| delta.rest.tables = Some(vec![vec![77]])).await
    ));
    assert!(malformed(&forge(&|delta| delta.rest.tables = None).await));
    assert!(malformed(
        &forge(&|delta| delta.rest.memory_pages = 0).await
    ));
    assert!(malformed(
        &forge(&|delta| delta.rest.wasi = Some(vec![0xff; 3])).await
    ));
    let error = forge(&|delta| delta.rest.memory_pages = 4000).await;
    assert!(matches!(error, DurableError::DoesNotFit(_)), "{error}");
}

#[tokio::test]
async fn of_two_images_the_pieces_that_did_not_change_are_equal() {
    let mut guest = durable(WIDE).await;
    call(&mut guest, "poke", json!([4000, 1])).await.unwrap();
    let before = guest.image(b"about").await.unwrap();
    call(&mut guest, "poke", json!([160, 2])).await.unwrap();
    let after = guest.image(b"about").await.unwrap();
    let pieces =
        |image: &[u8]| -> Vec<Vec<u8>> { image.chunks(64 << 10).map(<[u8]>::to_vec).collect() };
    let (before, after) = (pieces(&before), pieces(&after));
    let differ = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    // The one that was written, and the last, which has the trailer.
    assert_eq!((before.len(), after.len(), differ), (252, 252, 2));
}

#[tokio::test]
async fn a_guest_that_cannot_be_kept_can_still_be_called() {
    let wat = r#"(module (memory 1) (data $d "x")
        (func (export "f") (result i32) (data.drop $d) (i32.const 5)))"#;
    let module = compile(wat);
    let error = Durable::create(&module, setup()).await.unwrap_err();
    assert!(matches!(error, DurableError::Obstacle(_)), "{error}");
    let mut once = understudy_sandbox::Instance::create(&module, setup())
        .await
        .unwrap();
    let done = once.call("f", Args::Numbers(&[]), |outcome| format!("{outcome:?}"));
    assert_eq!(done.await.unwrap(), "Numbers([Number(5)])");
}

#[tokio::test]
async fn a_failed_call_is_undone_in_a_pool_without_a_free_slot() {
    let engine = Engine::with_slots(1).unwrap();
    let module = engine.compile(&wat::parse_str(WIDE).unwrap()).unwrap();
    let mut guest = Durable::create(&module, setup()).await.unwrap();
    for _ in 0..3 {
        let failed = call(&mut guest, "trap", json!([1])).await.unwrap_err();
        assert!(matches!(failed, CallFailed::Call(_)), "{failed}");
    }
    assert_eq!(
        call(&mut guest, "peek", json!([1])).await.unwrap(),
        json!([0])
    );
    assert_eq!(engine.live(), 1);
}

// As a child.

fn sandboxes(modules: Shelf) -> Sandbox<Shelf> {
    Sandbox::new(Library::new(engine(), common::threads(), modules))
}

#[tokio::test]
async fn both_guests_come_back_as_the_kinds_promise_wants_it() {
    let kind = sandboxes(shelf());
    let create = create("hidden@1.0.0");
    let draw = numbers("draw", json!([]));
    let swap = numbers("swap", json!([0, 2]));
    let world = numbers("world", json!([]));
    let spoil = numbers("spoil", json!([]));
    let requests: [&[u8]; 6] = [&create, &draw, &swap, &spoil, &world, &draw];
    testing::comes_back(&kind, &requests).await.unwrap();
    let create = common::create("ledger@1.0.0");
    let (draw, spoil) = (bytes("draw", b"ada"), numbers("spoil", json!([1])));
    let requests: [&[u8]; 4] = [&create, &draw, &spoil, &draw];
    testing::comes_back(&kind, &requests).await.unwrap();
}

#[tokio::test]
async fn only_what_changed_something_takes_a_step() {
    let kind = sandboxes(shelf());
    let mut kept = Kept::begin(&kind).await;
    kept.call(&create("ledger@1.0.0")).await;
    let steps = [
        (bytes("draw", b"ada"), true),
        (bytes("draw", b""), true), // it failed, and drew no number, but its heap has moved
        (numbers("spoil", json!([5])), false),
        (numbers("nobody", json!([])), false),
        (b"{\"op\":\"about\"}".to_vec(), false),
        (create("ledger@1.0.0"), false),
    ];
    for (body, takes_a_step) in steps {
        let handled = kept.perform(&body).await;
        let what = String::from_utf8_lossy(&body).into_owned();
        if what.contains("\"draw\"") {
            continue;
        }
        assert_eq!(handled.effect.is_some(), takes_a_step, "{what}");
    }
    let handled = kept.perform(&bytes("draw", b"ada")).await;
    let effect = handled.effect.unwrap();
    assert!(effect.len() < 1024, "{} bytes", effect.len());
}

#[tokio::test]
async fn answers_have_bytes_errors_have_names_and_a_trap_says_where() {
    let kind = sandboxes(shelf());
    let mut kept = Kept::begin(&kind).await;
    kept.call(&create("ledger@1.0.0")).await;
    let drawn = kept.call(&bytes("draw", b"ada")).await;
    let read = kept.call(&bytes("read", b"ada")).await;
    assert!(drawn.starts_with(b"{\"ok\":true}\n"), "{drawn:?}");
    assert_eq!(drawn, read);
    let missing = head(&kept.call(&bytes("read", b"eve")).await);
    let expected = json!({"ok": false, "error": {"code": "guest_failed", "error_code": 2,
        "failure": "NotFound", "detail": "there is no such account"}});
    assert_eq!(missing, expected);
    let trapped = head(&kept.call(&numbers("spoil", json!([1]))).await);
    assert_eq!(trapped["error"]["code"], "guest_trapped");
    assert_eq!(
        trapped["error"]["trap"],
        "wasm `unreachable` instruction executed"
    );
    assert_eq!(kept.call(&bytes("read", b"ada")).await, read);
}

#[tokio::test]
async fn a_sandbox_tells_what_it_was_created_as() {
    let kind = sandboxes(shelf());
    let mut kept = Kept::begin(&kind).await;
    let limits = json!({"slices": 7});
    let create = json!({"op": "create", "module": "hidden@1.0.0", "limits": limits,
        "durability": {"interval_ms": 250}, "policy": {"clock": "virtual"}});
    kept.call(create.to_string().as_bytes()).await;
    kept.kill().await;
    kept.rebase().await;
    kept.kill().await;
    let told = head(&kept.call(b"{\"op\":\"about\"}").await);
    let about = &told["about"];
    assert_eq!(about["durability"], json!({"interval_ms": 250}));
    assert_eq!(
        (&about["limits"]["slices"], &about["policy"]["clock"]),
        (&json!(7), &json!("virtual"))
    );
    assert_eq!(about["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        (&told["sequence"], &told["memory_bytes"]),
        (&json!(1), &json!(65536))
    );
}

#[tokio::test]
async fn wrong_requests_are_answered_with_a_code_and_leave_nothing_behind() {
    let mut modules = shelf();
    let dropping = r#"(module (memory 1) (data $d "x") (func (data.drop $d)))"#;
    let dropping = wat::parse_str(dropping).unwrap();
    modules.0.insert("dropping@1.0.0".into(), dropping);
    modules
        .0
        .insert("broken@1.0.0".into(), b"\0asm\x01\0\0\0\x01".to_vec());
    let kind = sandboxes(modules);
    let mut kept = Kept::begin(&kind).await;
    let long = vec![b' '; 300 << 10];
    let other = "0".repeat(64);
    let other = json!({"op": "create", "module": "hidden@1.0.0", "sha256": other}).to_string();
    let refusals: [(Vec<u8>, &str); 13] = [
        (b"".to_vec(), "invalid"),
        (b"{\"op\":\"fly\"}".to_vec(), "invalid"),
        (long, "invalid"),
        (numbers("draw", json!([])), "not_found"),
        (b"{\"op\":\"about\"}".to_vec(), "not_found"),
        (create("hidden"), "invalid"),
        (create("hidden@2.0.0"), "not_found"),
        (create("broken@1.0.0"), "invalid"),
        (create("dropping@1.0.0"), "state_not_checkpointable"),
        (
            b"{\"op\":\"create\",\"module\":\"hidden@1.0.0\",\"sha256\":\"00\"}".to_vec(),
            "invalid",
        ),
        (other.into_bytes(), "conflict"),
        (
            b"{\"op\":\"create\",\"module\":\"hidden@1.0.0\",\"policy\":{\"net\":1}}".to_vec(),
            "invalid",
        ),
        (
            b"{\"op\":\"create\",\"module\":\"hidden@1.0.0\",\"oops\":1}".to_vec(),
            "invalid",
        ),
    ];
    for (body, code) in refusals {
        let handled = kept.perform(&body).await;
        assert_eq!(handled.effect, None);
        let head = head(&handled.answer);
        let what = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(head["error"]["code"], code, "{what}: {head}");
    }
    kept.call(&create("hidden@1.0.0")).await;
    // What is repeated of a request is not as long as the request.
    let long = "\u{1}".repeat(40_000);
    for body in [numbers(&long, json!([])), numbers("clear", json!([long]))] {
        let refused = kept.call(&body).await;
        assert!(refused.len() < 32 << 10, "{} bytes", refused.len());
    }
    let other = kept.call(&create("ledger@1.0.0")).await;
    assert_eq!(head(&other)["error"]["code"], "conflict");
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_is_an_error_and_never_a_fresh_start() {
    let kind = sandboxes(shelf());
    let mut kept = Kept::begin(&kind).await;
    kept.call(&create("hidden@1.0.0")).await;
    kept.call(&numbers("draw", json!([]))).await;
    let refused = async |records: Checkpoint| {
        let started = start(&kind, &records).await;
        assert!(matches!(started, Err(StartError::BadCheckpoint(_))));
    };
    let steps = kept.records.steps.clone();
    refused(Checkpoint::new(Some("nonsense".into()), vec![])).await;
    refused(Checkpoint::new(None, vec!["nonsense".into()])).await;
    refused(Checkpoint::new(None, steps[1..].to_vec())).await;
    refused(Checkpoint::new(
        None,
        vec![steps[0].clone(), steps[0].clone()],
    ))
    .await;
    kept.rebase().await;
    let base = kept.records.base.clone().unwrap();
    refused(Checkpoint::new(Some(base.clone()), vec![steps[1].clone()])).await;
    refused(Checkpoint::new(Some(base.slice(..base.len() - 1)), vec![])).await;
    let gone = sandboxes(Shelf::default());
    let started = start(&gone, &kept.records).await;
    assert!(matches!(started, Err(StartError::Failed(_))));
}
