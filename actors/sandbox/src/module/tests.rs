//! The kind in one process: pushes in parts, again, and of what is no module.

#![allow(clippy::unwrap_used)]

use understudy_protocol::id::{ChildId, IncarnationId};
use understudy_protocol::wire::envelope::CallKey;
use understudy_supervision::testing::comes_back;
use understudy_supervision::{Checkpoint, Child, Context, Kind, Request};

use super::stored::{Content, Step, packed};
use super::*;
use crate::validate::Limits;

/// A valid module of about `bytes` bytes.
fn wasm(bytes: usize, salt: u8) -> Module {
    let mut wasm =
        wat::parse_str(r#"(module (func (export "f") (result i32) (i32.const 1)))"#).unwrap();
    let content = bytes.saturating_sub(wasm.len() + 16);
    wasm.push(0);
    let mut size = content + 2;
    while size >= 0x80 {
        wasm.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    wasm.push(size as u8);
    wasm.extend_from_slice(&[1, b'x']);
    wasm.extend((0..content).map(|n| (n as u8).wrapping_mul(31) ^ salt));
    Module::new(wasm)
}

async fn child(checkpoint: Checkpoint) -> Stored {
    let id = ChildId::parse("acme/module/hash@1.0.0").unwrap();
    let context = Context::new(id, |_, _| {});
    Modules::default().start(context, checkpoint).await.unwrap()
}

/// Asks, and gives the effect too.
async fn ask(child: &mut Stored, ask: &Ask, raw: &[u8]) -> (Answer, Bytes, Option<Bytes>) {
    let key = CallKey::Internal {
        gateway: IncarnationId(1),
        number: 1,
    };
    let handled = child
        .handle(Request::new(key, encode(ask, raw)))
        .await
        .unwrap();
    let (answer, raw) = decode(&handled.answer).unwrap();
    (answer, raw, handled.effect)
}

#[track_caller]
fn refused(answer: &Answer) -> &str {
    match answer {
        Answer::Error(refusal) => {
            assert!(!refusal.next_step.is_empty());
            &refusal.reason
        }
        Answer::Ok(told) => panic!("it was done: {told:?}"),
    }
}

/// Pushes through a child, and gives its effects.
async fn pushed(child: &mut Stored, module: &Module) -> (Result<Told, String>, Vec<Bytes>) {
    let shared = tokio::sync::Mutex::new((child, Vec::new()));
    let told = push(module, async |request| {
        let mut shared = shared.lock().await;
        let key = CallKey::Internal {
            gateway: IncarnationId(1),
            number: 1,
        };
        let handled = shared.0.handle(Request::new(key, request)).await.unwrap();
        shared.1.extend(handled.effect);
        Ok::<_, std::convert::Infallible>(handled.answer)
    })
    .await;
    let told = told.map_err(|error| error.to_string());
    (told, shared.into_inner().1)
}

#[tokio::test]
async fn a_pushed_module_is_read_back_as_it_was() {
    let module = wasm(1_300_000, 1);
    let mut child = child(Checkpoint::default()).await;
    let (told, effects) = pushed(&mut child, &module).await;
    let told = told.unwrap();
    assert_eq!(
        (told.state, told.sha256),
        (Stage::Sealed, Some(module.sha256))
    );
    let about = told.about.unwrap();
    assert_eq!(about.exports[0].type_text, "() -> (i32)");
    assert_eq!(effects.len(), 1 + 3 + 1, "begin, three parts, seal");
    let (again, effects) = pushed(&mut child, &module).await;
    assert_eq!(again.unwrap().state, Stage::Sealed);
    assert!(effects.is_empty(), "the same push again changes nothing");
    let shared = tokio::sync::Mutex::new(&mut child);
    let back = pull(async |request| {
        let key = CallKey::Internal {
            gateway: IncarnationId(1),
            number: 1,
        };
        let handled = shared
            .lock()
            .await
            .handle(Request::new(key, request))
            .await
            .unwrap();
        Ok::<_, std::convert::Infallible>(handled.answer)
    });
    assert_eq!(back.await.unwrap(), module);
}

#[tokio::test]
async fn a_module_comes_back_after_every_request() {
    let module = wasm(700, 1);
    let (sha256, bytes) = (module.sha256, module.wasm.len() as u64);
    let (head, rest) = module.wasm.split_at(300);
    let requests = [
        encode(&Ask::Begin { sha256, bytes }, &[]),
        encode(&Ask::Part { sha256, offset: 0 }, head),
        encode(&Ask::Part { sha256, offset: 0 }, head),
        encode(
            &Ask::Part {
                sha256,
                offset: 300,
            },
            rest,
        ),
        encode(&Ask::Seal { sha256 }, &[]),
        encode(&Ask::About {}, &[]),
    ];
    let requests: Vec<&[u8]> = requests.iter().map(|request| &request[..]).collect();
    let answers = comes_back(&Modules::default(), &requests).await.unwrap();
    let (last, _) = decode(&answers[5]).unwrap();
    assert!(matches!(
        last,
        Answer::Ok(Told {
            state: Stage::Sealed,
            ..
        })
    ));
}

#[tokio::test]
async fn a_push_goes_on_where_it_was() {
    let module = wasm(1_300_000, 1);
    let (sha256, bytes) = (module.sha256, module.wasm.len() as u64);
    let mut before = child(Checkpoint::default()).await;
    let begun = ask(&mut before, &Ask::Begin { sha256, bytes }, &[]).await;
    let part = &module.wasm[..PART_BYTES_MAX];
    let one = ask(&mut before, &Ask::Part { sha256, offset: 0 }, part).await;
    let steps = vec![begun.2.unwrap(), one.2.unwrap()];
    let mut restarted = child(Checkpoint::new(None, steps)).await;
    let (told, effects) = pushed(&mut restarted, &module).await;
    assert_eq!(told.unwrap().state, Stage::Sealed);
    assert_eq!(
        effects.len(),
        2 + 1,
        "only the parts that were missing, and the seal"
    );
}

#[tokio::test]
async fn a_version_never_changes() {
    let (module, other) = (wasm(700, 1), wasm(700, 2));
    let mut child = child(Checkpoint::default()).await;
    pushed(&mut child, &module).await.0.unwrap();
    let (sha256, bytes) = (other.sha256, other.wasm.len() as u64);
    for request in [
        Ask::Begin { sha256, bytes },
        Ask::Part { sha256, offset: 0 },
        Ask::Seal { sha256 },
    ] {
        let (answer, _, effect) = ask(&mut child, &request, &[]).await;
        assert_eq!(refused(&answer), "conflict", "{request:?}");
        assert_eq!(effect, None);
    }
}

#[tokio::test]
async fn bytes_of_another_hash_are_never_sealed() {
    let (module, other) = (wasm(700, 1), wasm(700, 2));
    let mut child = child(Checkpoint::default()).await;
    let lied = Module {
        wasm: other.wasm.clone(),
        sha256: module.sha256,
    };
    let (told, effects) = pushed(&mut child, &lied).await;
    assert!(told.unwrap_err().contains("SHA-256"));
    assert_eq!(effects.len(), 3, "begin, a part, and that it was given up");
    let (answer, ..) = ask(&mut child, &Ask::Read { offset: 0, len: 1 }, &[]).await;
    assert_eq!(refused(&answer), "not_sealed");
    pushed(&mut child, &module).await.0.unwrap();
}

#[tokio::test]
async fn what_is_no_module_is_never_sealed() {
    let mut child = child(Checkpoint::default()).await;
    for text in [
        &b"#!/bin/sh\necho hello"[..],
        b"\0asm\x01\0\0\0\xff\xff\xff\xff",
    ] {
        let (told, _) = pushed(&mut child, &Module::new(text.to_vec())).await;
        assert!(told.is_err(), "{text:?}");
        assert!(matches!(child.content, Content::Empty));
    }
}

#[tokio::test]
async fn parts_that_do_not_fit_are_refused_and_change_nothing() {
    let module = wasm(900_000, 1);
    let (sha256, bytes) = (module.sha256, module.wasm.len() as u64);
    let mut child = child(Checkpoint::default()).await;
    let check = async |child: &mut Stored, request: Ask, raw: &[u8], code: &str| {
        let before = packed(&child.content);
        let (answer, _, effect) = ask(child, &request, raw).await;
        assert_eq!(refused(&answer), code, "{request:?}");
        assert_eq!((effect, packed(&child.content)), (None, before));
    };
    check(&mut child, Ask::Part { sha256, offset: 0 }, b"x", "no_push").await;
    check(&mut child, Ask::Seal { sha256 }, b"", "no_push").await;
    for bytes in [0, 7, u64::MAX, Limits::NODE.bytes as u64 + 1] {
        check(&mut child, Ask::Begin { sha256, bytes }, b"", "module_size").await;
    }
    ask(&mut child, &Ask::Begin { sha256, bytes }, &[]).await;
    ask(
        &mut child,
        &Ask::Part { sha256, offset: 0 },
        &module.wasm[..100],
    )
    .await;
    let part = |offset| Ask::Part { sha256, offset };
    check(&mut child, part(101), b"x", "gap").await;
    check(&mut child, part(50), &module.wasm[50..150], "gap").await;
    check(&mut child, part(0), b"another", "part_differs").await;
    check(&mut child, part(u64::MAX), b"xx", "part_too_long").await;
    let long = vec![0; PART_BYTES_MAX + 1];
    check(&mut child, part(100), &long, "part_too_long").await;
    check(&mut child, Ask::Seal { sha256 }, b"", "incomplete").await;
    check(
        &mut child,
        Ask::Read { offset: 0, len: 9 },
        b"",
        "not_sealed",
    )
    .await;
}

#[tokio::test]
async fn two_who_push_at_once_do_not_mix_their_bytes() {
    let (one, two) = (wasm(700, 1), wasm(700, 2));
    let bytes = one.wasm.len() as u64;
    let mut child = child(Checkpoint::default()).await;
    let begin = |of: &Module| Ask::Begin {
        sha256: of.sha256,
        bytes,
    };
    let part = |of: &Module, offset| Ask::Part {
        sha256: of.sha256,
        offset,
    };
    ask(&mut child, &begin(&one), &[]).await;
    ask(&mut child, &part(&one, 0), &one.wasm[..200]).await;
    ask(&mut child, &begin(&two), &[]).await;
    let (answer, ..) = ask(&mut child, &part(&one, 200), &one.wasm[200..]).await;
    assert_eq!(refused(&answer), "no_push");
    pushed(&mut child, &two).await.0.unwrap();
}

#[tokio::test]
async fn what_is_no_request_is_answered_so() {
    let mut child = child(Checkpoint::default()).await;
    let key = CallKey::Internal {
        gateway: IncarnationId(1),
        number: 1,
    };
    for body in [
        "",
        "{",
        "{}",
        "{\"erase\":{}}",
        "{\"seal\":{\"sha256\":\"12\"}}",
        "\0\0\n",
    ] {
        let request = Request::new(key.clone(), Bytes::copy_from_slice(body.as_bytes()));
        let handled = child.handle(request).await.unwrap();
        let (answer, _) = decode(&handled.answer).unwrap();
        assert_eq!(refused(&answer), "bad_request", "{body:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_is_none_is_refused() {
    let id = ChildId::parse("acme/module/hash@1.0.0").unwrap();
    let start = async |base: Option<&'static [u8]>, steps: &[Step]| {
        let steps = steps
            .iter()
            .map(|step| minicbor::to_vec(step).unwrap().into());
        let checkpoint = Checkpoint::new(base.map(Bytes::from_static), steps.collect());
        let context = Context::new(id.clone(), |_, _| {});
        Modules::default().start(context, checkpoint).await.err()
    };
    for base in [
        &b"x"[..],
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"abcd\x04\0\0\0",
    ] {
        assert!(start(Some(base), &[]).await.is_some(), "{base:?}");
    }
    let part = Step::Part {
        offset: 0,
        bytes: vec![1],
    };
    for step in [part, Step::Seal, Step::Discard] {
        assert!(start(None, &[step]).await.is_some());
    }
}

#[test]
fn a_module_is_named_by_name_and_semantic_version() {
    let id: ModuleId = "hash-it.v2@1.2.3-rc.1+build7".parse().unwrap();
    assert_eq!((id.name(), id.version().major), ("hash-it.v2", 1));
    assert_eq!(id.to_string(), "hash-it.v2@1.2.3-rc.1+build7");
    let older: ModuleId = "a@1.9.0".parse().unwrap();
    let newer: ModuleId = "a@1.10.0".parse().unwrap();
    assert!(older < newer);
    for bad in [
        "",
        "a",
        "a@",
        "a@1",
        "a@1.2",
        "@1.2.3",
        "A@1.2.3",
        "a b@1.2.3",
        "-a@1.2.3",
        "a/b@1.2.3",
    ] {
        assert!(bad.parse::<ModuleId>().is_err(), "{bad:?}");
    }
    let long = format!("{}@1.2.3", "a".repeat(NAME_BYTES_MAX + 1));
    assert!(long.parse::<ModuleId>().is_err());
    let hash = ModuleHash::of(b"x");
    assert_eq!(hash.to_string().parse(), Ok(hash));
    assert_eq!("zz".parse::<ModuleHash>(), Err(NoHash));
}
