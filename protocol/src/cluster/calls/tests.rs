//! The table of remembered calls, and its way through bases and takeovers.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::wire::content::{PieceName, Pieces};
use alloc::vec;
use bytes::Bytes;

fn key(name: &str) -> CallKey {
    CallKey::Client(name.into())
}

fn internal(number: u64) -> CallKey {
    CallKey::Internal {
        gateway: IncarnationId(3),
        number,
    }
}

fn call(key: CallKey, request_hash: u64) -> Remembered {
    Remembered {
        key,
        request_hash,
        answer: Bytes::from_static(b"five").into(),
        seq: None,
    }
}

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1_000)
}

#[test]
fn the_same_key_gets_the_first_answer_and_another_body_a_conflict() {
    let mut calls = Calls::new(Sealing::default());
    assert_eq!(calls.admit(at(0), &key("a"), 1, false), Admission::Fresh);
    calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
    let answered = Admission::Answered {
        answer: Bytes::from_static(b"five").into(),
        seq: Seq(4),
    };
    assert_eq!(calls.admit(at(599), &key("a"), 1, false), answered);
    assert_eq!(
        calls.admit(at(599), &key("a"), 2, false),
        Admission::Conflict
    );
}

#[test]
fn a_clients_key_is_forgotten_after_its_time_and_not_before() {
    let mut calls = Calls::new(Sealing::default());
    calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
    assert_ne!(calls.admit(at(599), &key("a"), 1, false), Admission::Fresh);
    assert_eq!(calls.admit(at(600), &key("a"), 1, false), Admission::Fresh);
}

#[test]
fn an_internal_key_is_kept_until_its_gateway_confirms_or_is_gone() {
    let mut calls = Calls::new(Sealing::default());
    for number in 1..=3 {
        calls.remember(at(0), call(internal(number), 1), Seq(number), KEY_KEPT);
    }
    assert_ne!(
        calls.admit(at(90_000), &internal(1), 1, false),
        Admission::Fresh
    );
    calls.confirmed(IncarnationId(3), 2);
    assert_eq!(
        calls.admit(at(90_000), &internal(2), 1, false),
        Admission::Fresh
    );
    assert_ne!(
        calls.admit(at(90_000), &internal(3), 1, false),
        Admission::Fresh
    );
    calls.gateway_gone(IncarnationId(3));
    assert!(calls.is_empty());
}

#[test]
fn a_full_table_refuses_and_says_until_when() {
    let mut calls = Calls::new(Sealing::default());
    let name = |number: u64| key(&alloc::format!("k{number}"));
    for number in 0..CALLS_MAX as u64 {
        let now = Time::from_millis(number);
        assert_eq!(calls.admit(now, &name(number), 1, false), Admission::Fresh);
        calls.remember(now, call(name(number), 1), Seq(number), KEY_KEPT);
        if number % 40 == 0 {
            let _ = based(&mut calls, now, &mut Kept::new());
        }
    }
    let (now, new) = (at(599), key("new"));
    let full = Admission::Full { until: at(600) };
    assert_eq!(calls.admit(now, &new, 1, false), full);
    let first = calls.admit(now, &name(0), 1, false);
    assert_ne!(first, Admission::Fresh, "nothing is evicted early");
    assert_eq!(calls.admit(now, &name(0), 2, false), Admission::Conflict);
    assert_eq!(calls.admit(at(600), &new, 1, false), Admission::Fresh);
}

#[test]
fn where_a_node_is_crowded_only_who_remembers_much_is_refused() {
    let mut calls = Calls::new(Sealing::default());
    for number in 0..CALLS_ALWAYS as u64 {
        let name = key(&alloc::format!("k{number}"));
        assert_eq!(calls.admit(at(0), &name, 1, true), Admission::Fresh);
        calls.remember(at(0), call(name, 1), Seq(number), KEY_KEPT);
    }
    let full = Admission::Full { until: at(600) };
    assert_eq!(calls.admit(at(1), &key("new"), 1, true), full);
    assert_eq!(calls.admit(at(1), &key("new"), 1, false), Admission::Fresh);
}

#[test]
fn internal_keys_fill_the_table_before_they_outgrow_half_a_record() {
    let mut calls = Calls::new(Sealing::default());
    let long = Bytes::from(alloc::vec![7; 4_000]);
    let mut remembered = 0;
    while calls.admit(at(0), &internal(remembered), 1, false) == Admission::Fresh {
        let call = Remembered {
            answer: long.clone().into(),
            ..call(internal(remembered), 1)
        };
        calls.remember(at(0), call, Seq(remembered), KEY_KEPT);
        remembered += 1;
    }
    assert_eq!(remembered, 9);
    calls.confirmed(IncarnationId(3), 0);
    assert_eq!(
        calls.admit(at(0), &internal(99), 1, false),
        Admission::Fresh,
        "there is room again"
    );
}

#[test]
fn remembered_calls_survive_a_snapshot() {
    let mut calls = Calls::new(Sealing::default());
    calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
    let mut again = Calls::new(Sealing::default());
    for call in calls.base(at(0)).0 {
        let seq = call.seq.expect("a remembered call names its record");
        again.remember(at(100), call, seq, KEY_KEPT);
    }
    assert_ne!(
        again.admit(at(699), &key("a"), 1, false),
        Admission::Fresh,
        "counted anew"
    );
}

/// What is kept somewhere under its name.
type Kept = BTreeMap<PieceName, Bytes>;

/// What a base says.
type Said = (Vec<Remembered>, Option<Older>);

/// Writes a base.
fn based(calls: &mut Calls, now: Time, kept: &mut Kept) -> Said {
    kept.extend(calls.seal(now, &BTreeSet::new()));
    let base = calls.base(now);
    calls.sealed();
    base
}

/// The pieces of a value, put together from what is kept.
fn joined(pieces: &Pieces, kept: &Kept) -> Bytes {
    let list = pieces.list().map(|list| &kept[&list][..]);
    let names = pieces.names(list).unwrap();
    pieces.join(&names, |name| kept.get(&name)).unwrap()
}

/// Goes on from a base, somewhere else.
fn taken_over(of: &Calls, (calls, older): Said, kept: &Kept, now: Time, time: Duration) -> Calls {
    let mut again = Calls::new(of.sealing);
    for call in calls {
        let seq = call.seq.unwrap();
        again.remember(now, call, seq, time);
    }
    if let Some(older) = older {
        again.expect(&older);
        let value = joined(&older.calls, kept);
        for piece in value.chunks(PIECE_BYTES) {
            assert!(!again.is_recalled());
            again.recall(now, piece, time).unwrap();
        }
    }
    assert!(again.is_recalled());
    again
}

fn numbered(number: u64) -> Remembered {
    Remembered {
        answer: Bytes::from(number.to_be_bytes().to_vec()).into(),
        ..call(key(&alloc::format!("key {number}")), number)
    }
}

fn is_known(calls: &mut Calls, now: Time, number: u64) -> bool {
    let Remembered { key, answer, .. } = numbered(number);
    let seq = Seq(number);
    calls.admit(now, &key, number, false) == Admission::Answered { answer, seq }
}

#[test]
fn thousands_of_calls_are_known_after_a_takeover_and_their_time_is_counted_anew() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    let mut last = None;
    for number in 0..10_000 {
        calls.remember(at(0), numbered(number), Seq(number), KEY_KEPT);
        if number % 40 == 39 {
            last = Some(based(&mut calls, at(0), &mut kept));
        }
    }
    let last = last.unwrap();
    assert!(last.0.len() < 300, "the base holds {} itself", last.0.len());
    let mut again = taken_over(&calls, last, &kept, at(500), KEY_KEPT);
    assert_eq!(again.len(), 10_000);
    for number in 0..10_000 {
        assert!(is_known(&mut again, at(1_099), number), "{number}");
    }
    let conflict = again.admit(at(1_099), &key("key 0"), 7, false);
    assert_eq!(conflict, Admission::Conflict);
    assert_eq!(
        again.clone().admit(at(1_100), &key("key 0"), 0, false),
        Admission::Fresh
    );
    // It goes on where the other was.
    for number in 10_000..11_000 {
        again.remember(at(500), numbered(number), Seq(number), KEY_KEPT);
    }
    let base = based(&mut again, at(501), &mut kept);
    let mut third = taken_over(&again, base, &kept, at(600), KEY_KEPT);
    for number in 0..11_000 {
        assert!(is_known(&mut third, at(601), number), "{number}");
    }
}

#[test]
fn what_a_base_costs_does_not_grow_with_what_is_remembered() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    let mut costs = Vec::new();
    for number in 0..100_000u64 {
        calls.remember(Time::ZERO, numbered(number), Seq(number), KEY_KEPT);
        if number % 40 == 39 {
            let parts = calls.seal(Time::ZERO, &BTreeSet::new());
            let new: usize = parts
                .into_iter()
                .filter_map(|(name, part)| {
                    kept.insert(name, part.clone()).is_none().then_some(part)
                })
                .map(|part| part.len())
                .sum();
            let (inline, older) = calls.base(Time::ZERO);
            calls.sealed();
            let inline: usize = inline.iter().map(Remembered::room).sum();
            let older = older.map_or(0, |older| minicbor::to_vec(older).unwrap().len());
            assert!(inline <= 20 * 1024 && older <= 3 * 1024, "{inline} {older}");
            costs.push(new + inline + older);
        }
    }
    let mean = |costs: &[usize]| costs.iter().sum::<usize>() / costs.len();
    let (first, last) = (mean(&costs[..500]), mean(&costs[2_000..]));
    assert!(
        last < 2 * first,
        "{first} bytes a base at first, {last} at last"
    );
}

#[test]
fn a_piece_goes_when_all_in_it_have_expired() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    let mut most = 0;
    for number in 0..40_000 {
        // Ten thousand in each ten minutes.
        let now = Time::from_millis(number * 60);
        let name = numbered(number).key;
        assert_eq!(calls.admit(now, &name, number, false), Admission::Fresh);
        calls.remember(now, numbered(number), Seq(number), KEY_KEPT);
        if number % 40 == 39 {
            let (_, older) = based(&mut calls, now, &mut kept);
            most = most.max(older.map_or(0, |older| older.calls.length()));
        }
    }
    assert!(calls.len() <= 10_001);
    let pieces = most.div_ceil(PIECE_BYTES as u64);
    assert!(pieces < 16, "{pieces} pieces for ten thousand short calls");
    let (_, older) = based(&mut calls, at(1_000_000), &mut kept);
    assert_eq!(older, None);
}

#[test]
fn answers_in_pieces_are_named_by_the_base_while_their_calls_are() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    let long = |number: u64| {
        let mut value = vec![1; 70_000];
        value[..8].copy_from_slice(&number.to_be_bytes());
        Pieces::cut(&value.into()).unwrap()
    };
    for number in 0..700 {
        assert_eq!(
            calls.admit(at(0), &numbered(number).key, number, false),
            Admission::Fresh
        );
        let answer = Content::Pieces(long(number).pieces);
        let call = Remembered {
            answer,
            ..numbered(number)
        };
        calls.remember(at(0), call, Seq(number), KEY_KEPT);
        if number == 500 {
            let (inline, older) = based(&mut calls, at(0), &mut kept);
            assert_eq!(inline, []);
            let answers = older.unwrap().answers.unwrap();
            let list = answers.list().map(|list| &kept[&list][..]);
            let names = answers.names(list).unwrap();
            assert_eq!(names.len(), 1_002);
            for number in 0..=500 {
                let own = long(number).pieces.names(None).unwrap();
                assert!(own.iter().all(|name| names.contains(name)));
            }
        }
    }
    // There is room for the names of 1,024 pieces.
    let said = based(&mut calls, at(0), &mut kept);
    assert_eq!(said.0.len(), 700 - 512, "the base holds the others itself");
    let mut again = taken_over(&calls, said, &kept, at(0), KEY_KEPT);
    let answered = again.admit(at(0), &numbered(3).key, 3, false);
    let answer = Content::Pieces(long(3).pieces);
    assert_eq!(
        answered,
        Admission::Answered {
            answer,
            seq: Seq(3)
        }
    );
    let (_, older) = based(&mut again, at(599), &mut kept);
    assert!(older.unwrap().answers.is_some());
    assert_eq!(based(&mut again, at(601), &mut kept).1, None);
}

#[test]
fn what_no_record_holds_yet_is_in_no_piece() {
    let sealing = Sealing {
        at_bytes: 1,
        ..Sealing::default()
    };
    let mut calls = Calls::new(sealing);
    for number in 0..3 {
        calls.remember(at(0), numbered(number), Seq(number), KEY_KEPT);
    }
    let loose = BTreeSet::from([numbered(1).key]);
    assert!(!calls.seal(at(0), &loose).is_empty());
    let (inline, older) = calls.base(at(0));
    assert_eq!(
        inline,
        [Remembered {
            seq: Some(Seq(1)),
            ..numbered(1)
        }]
    );
    assert!(older.is_some());
    calls.sealed();
    calls.recorded(&loose, Seq(9));
    let _ = calls.seal(at(0), &BTreeSet::new());
    assert_eq!(calls.base(at(0)).0, []);
}

#[test]
fn a_base_that_was_not_written_leaves_everything_as_it_was() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    for number in 0..1_000 {
        calls.remember(at(0), numbered(number), Seq(number), KEY_KEPT);
    }
    let _ = based(&mut calls, at(0), &mut kept);
    for number in 1_000..2_000 {
        calls.remember(at(0), numbered(number), Seq(number), KEY_KEPT);
    }
    let before = calls.clone();
    assert!(!calls.seal(at(0), &BTreeSet::new()).is_empty());
    calls.unsealed();
    assert_eq!(calls, before);
}

#[test]
fn a_piece_that_is_not_what_the_base_names_is_refused_and_changes_nothing() {
    let (mut calls, mut kept) = (Calls::new(Sealing::default()), Kept::new());
    for number in 0..4_000 {
        calls.remember(at(0), numbered(number), Seq(number), KEY_KEPT);
    }
    let (_, older) = based(&mut calls, at(0), &mut kept);
    let older = older.unwrap();
    let value = joined(&older.calls, &kept);
    let mut again = Calls::new(Sealing::default());
    assert!(
        again
            .recall(at(0), &value[..PIECE_BYTES], KEY_KEPT)
            .is_err(),
        "none is to come"
    );
    again.expect(&older);
    let mut bad = value[..PIECE_BYTES].to_vec();
    bad[PIECE_BYTES - 1] = 1;
    let no_call = vec![0x80; PIECE_BYTES];
    for piece in [&value[..100], &value[..], &bad, &no_call] {
        let before = again.clone();
        assert!(again.recall(at(0), piece, KEY_KEPT).is_err());
        assert_eq!(again, before);
    }
    again
        .recall(at(0), &value[..PIECE_BYTES], KEY_KEPT)
        .unwrap();
    assert!(!again.is_recalled());
}

/// Against a table that simply remembers, in small pieces.
#[test]
fn whatever_happens_a_key_is_known_for_its_time() {
    let time = Duration::from_secs(60);
    for seed in 1..60u64 {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let sealing = Sealing {
            at_bytes: 50 + draw(400) as u32,
            piece_bytes: 120 + draw(400) as u32,
        };
        let (mut calls, mut kept) = (Calls::new(sealing), Kept::new());
        // By number: when it was remembered.
        let mut model: BTreeMap<u64, Time> = BTreeMap::new();
        let (mut now, mut next) = (at(0), 0);
        for _ in 0..400 {
            now = now + Duration::from_millis(draw(1_500));
            match draw(20) {
                0 => {
                    // What was done since the last base is in steps, and comes after it.
                    let said = based(&mut calls, now, &mut kept);
                    let since = draw(6);
                    calls = taken_over(&calls, said, &kept, now, time);
                    for _ in 0..since {
                        calls.remember(now, numbered(next), Seq(next), time);
                        model.insert(next, now);
                        next += 1;
                    }
                    model.retain(|_, then| *then + time > now);
                    model.values_mut().for_each(|then| *then = now);
                }
                1 => {
                    let _ = calls.seal(now, &BTreeSet::new());
                    calls.unsealed();
                }
                2 | 3 => drop(based(&mut calls, now, &mut kept)),
                4 if next > 0 => {
                    // Used again, after its time.
                    let number = draw(next);
                    let key = numbered(number).key;
                    if calls.admit(now, &key, number, false) == Admission::Fresh {
                        calls.remember(now, numbered(number), Seq(number), time);
                        model.insert(number, now);
                    }
                }
                _ => {
                    calls.remember(now, numbered(next), Seq(next), time);
                    model.insert(next, now);
                    next += 1;
                }
            }
            model.retain(|_, then| *then + time > now);
            for number in model.keys() {
                assert!(
                    is_known(&mut calls, now, *number),
                    "seed {seed}, key {number}"
                );
            }
            assert!(calls.len() <= next as usize);
        }
        assert!(kept.len() > 20, "seed {seed} wrote {} pieces", kept.len());
    }
}
