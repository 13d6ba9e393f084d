//! The golden frames: what version 1 ever wrote is read for ever, and what later versions may send
//! is handled by the rule for change.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod samples;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use minicbor::Encoder;
use samples::directory::entry;
use samples::{append, chain, child, envelope, promise, renewal, reply, request, slots};
use understudy_protocol::cluster::directory::{Command, Directory, Entry};
use understudy_protocol::id::NodeId;
use understudy_protocol::supervision::ChildState;
use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::DecodeError::{self, *};
use understudy_protocol::wire::codec::{Message, MessageType, decode_exact, decode_whole};
use understudy_protocol::wire::envelope::{CallKey, Outcome, Reply};
use understudy_protocol::wire::heart::{HeartMessage, Verdict};
use understudy_protocol::wire::record::Record;
use understudy_protocol::wire::replica::{Ask, ReplicaRequest, Scope};
use understudy_protocol::wire::step::Step;

#[test]
fn frames_are_byte_for_byte_what_version_one_wrote_and_decode_to_what_they_were() {
    let samples = samples::all();
    for sample in &samples {
        golden("v1", &sample.name, &sample.frame);
        let bytes = std::fs::read(path("v1", &sample.name)).unwrap();
        assert!((sample.reads_back)(&bytes), "{}", sample.name);
    }
    no_file_without_a_sample("v1", samples.iter().map(|sample| sample.name.clone()));
}

#[test]
fn every_type_known_here_has_a_golden_frame() {
    let seen: BTreeSet<_> = samples::all().iter().map(|sample| sample.kind).collect();
    for kind in MessageType::ALL {
        assert!(seen.contains(&kind), "{kind:?}");
    }
}

/// The sample is worth keeping only while it holds what is rare.
#[test]
fn the_busy_snapshot_holds_every_state_that_is_hard_to_come_by() {
    let busy = samples::directory::busy();
    let states: Vec<ChildState> = busy
        .supervisors()
        .values()
        .flat_map(|entry| entry.supervisor.children())
        .map(|(_, _, state)| state)
        .collect();
    for wanted in [
        |state: &ChildState| matches!(state, ChildState::Starting),
        |state: &ChildState| matches!(state, ChildState::Running { .. }),
        |state: &ChildState| matches!(state, ChildState::Stopping),
        |state: &ChildState| matches!(state, ChildState::Waiting { .. }),
        |state: &ChildState| matches!(state, ChildState::Held),
        |state: &ChildState| matches!(state, ChildState::Quarantined),
    ] {
        assert!(states.iter().any(wanted), "{states:?}");
    }
    let strategies: BTreeSet<_> = busy
        .supervisors()
        .values()
        .map(|entry| entry.supervisor.policy().strategy)
        .collect();
    assert_eq!(strategies.len(), 3);
    let units: Vec<_> = busy.units().values().collect();
    assert!(units.iter().any(|unit| unit.move_to.is_some()));
    assert!(units.iter().any(|unit| unit.needs.pin.is_some()));
    let excepts = |scope: &Scope| matches!(scope, Scope::Slots { except, .. } if except.len() == 1);
    assert!(units.iter().any(|unit| excepts(&unit.scope)));
    assert!(
        busy.incarnations()
            .values()
            .any(|start| start.expelled.is_some())
    );
    assert!(busy.stores().values().any(|store| store.retired));
    assert!(
        busy.nodes()
            .values()
            .any(|node| node.draining && node.works)
    );
    assert!(busy.voters().outgoing.is_some());
    let lost = busy.units().keys().max().unwrap().0 as usize > units.len();
    assert!(lost, "no unit is gone");
}

/// What a later version may send, and what this one makes of it.
#[test]
fn frames_of_the_future_are_handled_by_the_rule_for_change() {
    use MessageType as Kind;
    let mut futures = Futures::default();

    // A tolerant type: added fields are skipped, at every depth.
    let known = HeartMessage::Renewal(renewal());
    let more = [ext(1), vec![0xA1, 0x01, 0x82, 0x00, 0xF5]].concat(); // 1 and {1: [0, true]}
    let extra = edited(&known, &[1, 0], |fields| fields.extend(items(&more)));
    futures.row("heart-added-fields", Kind::Heart, 1, &extra, Ok(known));
    let known = envelope(key(), vec![1, 2, 3].into());
    let extra = edited(&known, &[], |fields| fields.push(ext(2_000_000)));
    futures.row("envelope-added-field", Kind::Envelope, 1, &extra, Ok(known));
    let known = envelope(key(), vec![1].into());
    let extra = edited(&known, &[0], |fields| fields.push(ext(7)));
    futures.row(
        "envelope-added-field-inside",
        Kind::Envelope,
        1,
        &extra,
        Ok(known),
    );
    let known = reply(Outcome::Conflict);
    let extra = edited(&known, &[1, 1], |fields| fields.push(ext(3)));
    futures.row(
        "reply-variant-with-a-field",
        Kind::Reply,
        1,
        &extra,
        Ok(known),
    );
    let known = request(Ask::Confirm { scope: slots(0) });
    let extra = edited(&known, &[4, 1], |fields| fields.push(ext(3)));
    futures.row(
        "request-added-field",
        Kind::ReplicaRequest,
        1,
        &extra,
        Ok(known),
    );

    // A tolerant type: an added variant costs that message.
    let known = HeartMessage::Renewal(renewal());
    let other = edited(&known, &[], |variant| variant[0] = ext(99));
    futures.refused::<HeartMessage>("heart-added-variant", 1, &other, UnknownVariant);
    let known = HeartMessage::Promise(promise(Verdict::Promised));
    let other = edited(&known, &[1, 0, 3], |variant| variant[0] = ext(99));
    futures.refused::<HeartMessage>("heart-added-verdict", 1, &other, UnknownVariant);
    let known = reply(Outcome::Unknown);
    let other = edited(&known, &[1], |variant| variant[0] = ext(99));
    futures.refused::<Reply>("reply-added-outcome", 1, &other, UnknownVariant);
    let known = request(Ask::Confirm { scope: slots(0) });
    let other = edited(&known, &[4], |variant| variant[0] = ext(99));
    futures.refused::<ReplicaRequest>("request-added-ask", 1, &other, UnknownVariant);

    // A newer version is refused whatever it holds, even what could be read.
    let payload = minicbor::to_vec(HeartMessage::Renewal(renewal())).unwrap();
    futures.refused::<HeartMessage>(
        "heart-newer-version",
        2,
        &payload,
        NewerVersion {
            kind: Kind::Heart,
            seen: 2,
            known: 1,
        },
    );
    let (_, record) = samples::records().swap_remove(0);
    let payload = minicbor::to_vec(&record).unwrap();
    futures.refused::<Record>(
        "record-newer-version",
        2,
        &payload,
        NewerVersion {
            kind: Kind::Record,
            seen: 2,
            known: 1,
        },
    );
    futures.refused_as::<Record>("unknown-type", 99, 1, &payload, UnknownType { seen: 99 });

    // An exact type: nothing unknown is skipped, wherever it travels.
    let extra = edited(&record, &[], |fields| fields.push(ext(1)));
    futures.refused::<Record>("record-added-field", 1, &extra, NotExact);
    let extra = edited(&record, &[4], |head| head.push(ext(1)));
    futures.refused::<Record>("record-added-field-inside", 1, &extra, NotExact);
    let extra = edited(&record, &[5, 1], |fields| fields.push(ext(1)));
    futures.refused::<Record>("record-kind-with-a-field", 1, &extra, NotExact);
    let other = edited(&record, &[5], |variant| variant[0] = ext(9));
    futures.refused::<Record>("record-added-kind", 1, &other, UnknownVariant);
    let known = request(Ask::Append(append(chain(&child("acme/cart/u-1"), 2, 5))));
    let extra = edited(&known, &[4, 1, 0, 3, 1], |fields| fields.push(ext(1)));
    futures.refused::<ReplicaRequest>("append-record-with-a-field", 1, &extra, NotExact);

    futures_of_the_directory(&mut futures);
    futures_of_bodies(&mut futures);

    no_file_without_a_sample("future", futures.names.into_iter());
}

/// Whoever skipped a part of an entry would have another directory than its peers for ever.
fn futures_of_the_directory(futures: &mut Futures) {
    let tick = entry(Command::Tick);
    let other = edited(&tick, &[2], |variant| variant[0] = ext(99));
    futures.refused::<Entry>("command-added-variant", 1, &other, UnknownVariant);
    let extra = edited(&tick, &[], |fields| fields.push(ext(1)));
    futures.refused::<Entry>("command-added-field", 1, &extra, NotExact);
    let extra = edited(&tick, &[2, 1], |fields| fields.push(ext(1)));
    futures.refused::<Entry>("command-variant-with-a-field", 1, &extra, NotExact);
    let node = NodeId(1);
    let drain = entry(Command::Drain {
        node,
        draining: true,
    });
    let less = edited(&drain, &[2, 1], |fields| fields.truncate(1));
    let missing = Malformed("a field is missing");
    futures.refused::<Entry>("command-field-gone", 1, &less, missing);
    let newer = |kind| NewerVersion {
        kind,
        seen: 2,
        known: 1,
    };
    let payload = minicbor::to_vec(&tick).unwrap();
    let error = newer(MessageType::DirectoryCommand);
    futures.refused::<Entry>("command-newer-version", 2, &payload, error);

    let (_, formed) = samples::directory::snapshots().swap_remove(1);
    let extra = edited(&formed, &[], |fields| fields.push(ext(1)));
    futures.refused::<Directory>("snapshot-added-field", 1, &extra, NotExact);
    let extra = edited(&formed, &[1], |fields| fields.push(ext(1)));
    futures.refused::<Directory>("snapshot-added-field-inside", 1, &extra, NotExact);
    let other = edited(&formed, &[], |fields| fields[0] = ext(2));
    let error = Invalid("a directory of another version");
    futures.refused::<Directory>("snapshot-other-version-inside", 1, &other, error);
    let payload = minicbor::to_vec(&formed).unwrap();
    let error = newer(MessageType::DirectorySnapshot);
    futures.refused::<Directory>("snapshot-newer-version", 2, &payload, error);
}

/// The record is sound, so its store keeps it; its child is not started from it.
fn futures_of_bodies(futures: &mut Futures) {
    let (_, step) = samples::steps().swap_remove(1);
    let body = minicbor::to_vec(&step).unwrap();
    let extra = [vec![0x80], ext(1)]; // no earlier calls, and something new
    let added = edited_bytes(&body, &[], |fields| fields.extend(extra));
    let more = [vec![0xF6], ext(1)]; // no record, and something new
    let inside = edited_bytes(&body, &[0], |fields| fields.extend(more));
    let variant = edited_bytes(&body, &[0, 0], |variant| variant[0] = ext(9));
    let derailed = Malformed("a value is of another type");
    for (name, body, error) in [
        ("step-added-field", added, NotExact),
        ("step-added-field-inside", inside, NotExact),
        // An unknown variant in an `Option` of a struct derails: see the rule for change.
        ("step-added-kind-of-key", variant, derailed),
    ] {
        assert_eq!(decode_exact::<Step>(&body), Err(error), "{name}");
        let (_, mut record) = samples::records().swap_remove(1);
        let (epoch, config) = (record.epoch, record.config);
        let (child, kind, body) = (record.child, record.kind, body.into());
        record = Record::chained(child, epoch, config, record.prev, kind, 1, body);
        let payload = minicbor::to_vec(&record).unwrap();
        futures.row(name, MessageType::Record, 1, &payload, Ok(record));
    }
}

#[derive(Default)]
struct Futures {
    names: Vec<String>,
}

impl Futures {
    fn refused<T: Message + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        version: u8,
        payload: &[u8],
        error: DecodeError,
    ) {
        self.refused_as::<T>(name, T::TYPE.number(), version, payload, error);
    }

    fn refused_as<T: Message + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        kind: u8,
        version: u8,
        payload: &[u8],
        error: DecodeError,
    ) {
        assert!(!error.ends_stream(), "{name}: the connection lives");
        self.check::<T>(name, kind, version, payload, Err(error));
    }

    fn row<T: Message + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        kind: MessageType,
        version: u8,
        payload: &[u8],
        expected: Result<T, DecodeError>,
    ) {
        self.check(name, kind.number(), version, payload, expected);
    }

    fn check<T: Message + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        kind: u8,
        version: u8,
        payload: &[u8],
        expected: Result<T, DecodeError>,
    ) {
        let mut frame = vec![0xF5, 0x55, kind, version];
        frame.extend((payload.len() as u32).to_be_bytes());
        let sum = checksum(&[&frame[..], payload].concat());
        frame.extend(sum.to_be_bytes());
        frame.extend(payload);
        golden("future", name, &frame);
        let bytes = std::fs::read(path("future", name)).unwrap();
        assert_eq!(decode_whole::<T>(&bytes), expected, "{name}");
        self.names.push(name.to_owned());
    }
}

/// The encoding of `value` with the items of one array in it changed: `way` says which array, by
/// the places of the arrays that hold it.
fn edited<T: Message>(value: &T, way: &[usize], edit: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    edited_bytes(&minicbor::to_vec(value).unwrap(), way, edit)
}

fn edited_bytes(array: &[u8], way: &[usize], edit: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let mut decoder = minicbor::Decoder::new(array);
    decoder.array().unwrap().unwrap();
    let mut parts = items(&array[decoder.position()..]);
    match way {
        [] => edit(&mut parts),
        [place, rest @ ..] => parts[*place] = edited_bytes(&parts[*place], rest, edit),
    }
    let mut encoder = Encoder::new(Vec::new());
    encoder.array(parts.len() as u64).unwrap();
    [encoder.into_writer(), parts.concat()].concat()
}

fn items(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let mut items = Vec::new();
    while decoder.position() < bytes.len() {
        let start = decoder.position();
        decoder.skip().unwrap();
        items.push(bytes[start..decoder.position()].to_vec());
    }
    items
}

fn ext(number: u32) -> Vec<u8> {
    minicbor::to_vec(number).unwrap()
}

fn key() -> CallKey {
    CallKey::Client("key".to_owned())
}

fn golden(folder: &str, name: &str, bytes: &[u8]) {
    let path = path(folder, name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        return;
    }
    let kept = std::fs::read(&path).unwrap_or_else(|_| {
        panic!(
            "{} is missing. If `{name}` is new, add it with UPDATE_GOLDEN=1; if it was removed, \
             bring it back: old nodes and old disks still hold such frames",
            path.display()
        )
    });
    assert!(
        kept == bytes,
        "`{name}` is no longer encoded as {} has it. Nodes and disks out there hold the old bytes: \
         undo the change, or make it by the rule in wire/codec.rs (a new optional field, a new \
         variant, or a new version of the type with a corpus folder of its own). Only if no such \
         frame was ever written outside a test, rewrite it with UPDATE_GOLDEN=1.\n kept: {:02x?}\n  \
         now: {:02x?}",
        path.display(),
        &kept[..kept.len().min(96)],
        &bytes[..bytes.len().min(96)],
    );
}

fn no_file_without_a_sample(folder: &str, names: impl Iterator<Item = String>) {
    let names: Vec<String> = names.collect();
    let known: BTreeSet<String> = names.iter().map(|name| format!("{name}.bin")).collect();
    assert_eq!(known.len(), names.len(), "two samples share a name");
    for entry in std::fs::read_dir(path(folder, "x").parent().unwrap()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            known.contains(&file),
            "{folder}/{file} has no sample: what was once written stays readable, so keep both"
        );
    }
}

fn path(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(folder)
        .join(format!("{name}.bin"))
}
