//! What the fuzz targets check, on kept inputs, on the golden frames and on seeded mutations of
//! both: the part of fuzzing that runs everywhere, in a second.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "../fuzz/properties.rs"]
mod properties;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use properties::{TARGETS, frame, stream};
use understudy_protocol::wire::codec::{HEADER_BYTES, decode_whole};
use understudy_protocol::wire::record::Record;

/// Mutations of each input: enough that every byte of a small frame is hit in most runs, few
/// enough for a second in a debug build.
const MUTATIONS: u64 = 60;

/// Larger inputs are replayed as they are; mutating them costs seconds and finds what small ones do.
const MUTATED_BYTES_MAX: usize = 4096;

#[test]
fn kept_inputs_keep_the_properties() {
    for (target, property) in TARGETS {
        let inputs = files(&manifest().join("fuzz/corpus").join(target));
        assert!(!inputs.is_empty(), "{target} has no inputs");
        for (_, bytes) in inputs {
            property(&bytes);
        }
    }
}

#[test]
fn golden_frames_keep_the_properties_as_frame_stream_and_payload() {
    for (_, bytes) in golden() {
        on_all(&bytes);
    }
}

#[test]
fn mutated_frames_keep_the_properties() {
    let golden = golden();
    let mut random = SplitMix(0x5EED);
    for (_, bytes) in golden
        .iter()
        .filter(|(_, bytes)| bytes.len() <= MUTATED_BYTES_MAX)
    {
        for _ in 0..MUTATIONS {
            let other = &golden[random.below(golden.len())].1;
            let mut mutated = bytes.clone();
            for _ in 0..=random.below(3) {
                mutate(&mut mutated, other, &mut random);
            }
            on_all(&mutated);
        }
    }
}

#[test]
fn every_target_is_a_fuzz_binary_and_the_other_way_round() {
    let targets: BTreeSet<_> = TARGETS
        .iter()
        .map(|(name, _)| format!("{name}.rs"))
        .collect();
    let binaries: BTreeSet<_> = files(&manifest().join("fuzz/targets"))
        .into_iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(targets, binaries);
}

/// The whole as frame and stream; what follows the header as each message's payload, so that a
/// mutation is not stopped by the checksum.
fn on_all(bytes: &[u8]) {
    frame(bytes);
    for cut in [1, 7, 255] {
        stream(&[&[cut], bytes].concat());
    }
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    for (target, property) in TARGETS {
        if !["frame", "stream"].contains(&target) {
            property(body);
        }
    }
    if let Ok(record) = decode_whole::<Record>(bytes) {
        properties::step(&record.body);
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut SplitMix) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        // Heads that claim much: arrays, maps, strings of the greatest length, indefinite ones.
        2 => bytes[at] = [0x9B, 0xBB, 0x5B, 0x7B, 0x9F, 0xBF, 0xFF, 0x80][random.below(8)],
        3 => bytes.truncate(at),
        4 => bytes.insert(at, random.next() as u8),
        5 => {
            bytes.remove(at);
        }
        _ => {
            let from = random.below(other.len());
            let until = (from + 1 + random.below(32)).min(other.len());
            bytes.splice(at..at, other[from..until].iter().copied());
        }
    }
}

fn golden() -> Vec<(PathBuf, Vec<u8>)> {
    let corpus = manifest().join("corpus");
    let mut all = files(&corpus.join("v1"));
    all.extend(files(&corpus.join("future")));
    assert!(all.len() > 50, "the golden frames are missing");
    all
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same mutations in every run.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
