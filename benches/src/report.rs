//! What a bench prints and writes.
//!
//! Owns: rows, medians with their spread, the table, and `target/bench/NAME.json`. Never measures.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In which unit.
    pub unit: &'static str,
    /// The median of our rounds.
    pub ours: f64,
    /// The median of the peer's rounds, measured in the same run.
    pub peer: Option<f64>,
    /// Ours by the peer's.
    pub ratio: Option<f64>,
    /// What it should be, in words with a number.
    pub target: Option<String>,
    /// Whether it is.
    pub met: Option<bool>,
    /// Our rounds, in the order of their running.
    pub rounds: Vec<f64>,
    /// The peer's rounds, in the order of their running.
    pub peer_rounds: Vec<f64>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Ours at most this.
    AtMost(f64),
    /// Ours at least this.
    AtLeast(f64),
    /// Ours by the peer's at most this.
    RatioAtMost(f64),
    /// Ours by the peer's at least this.
    RatioAtLeast(f64),
}

impl Row {
    /// A row of rounds that alternated with the peer's (none when there is no peer).
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        rounds: Vec<f64>,
        peer_rounds: Vec<f64>,
        target: Option<Target>,
    ) -> Row {
        let ours = median(&rounds).unwrap_or(f64::NAN);
        let peer = median(&peer_rounds);
        let ratio = peer.map(|peer| ours / peer);
        let met = target.and_then(|target| match target {
            Target::AtMost(limit) => Some(ours <= limit),
            Target::AtLeast(limit) => Some(ours >= limit),
            Target::RatioAtMost(limit) => ratio.map(|ratio| ratio <= limit),
            Target::RatioAtLeast(limit) => ratio.map(|ratio| ratio >= limit),
        });
        let target = target.map(|target| match target {
            Target::AtMost(limit) => format!("at most {limit}"),
            Target::AtLeast(limit) => format!("at least {limit}"),
            Target::RatioAtMost(limit) => format!("ratio at most {limit:.2}"),
            Target::RatioAtLeast(limit) => format!("ratio at least {limit}"),
        });
        Row {
            name: name.into(),
            unit,
            ours,
            peer,
            ratio,
            target,
            met,
            rounds,
            peer_rounds,
        }
    }
}

/// Prints the table and writes `target/bench/NAME.json`; where it was written.
pub fn report(name: &str, rows: &[Row]) -> Result<PathBuf> {
    println!(
        "{:<44} {:>6} {:>11} {:>11} {:>7} {:>20}  met   least to most",
        name, "unit", "ours", "peer", "ratio", "target"
    );
    for row in rows {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let least = row.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!(
            "{:<44} {:>6} {:>11} {:>11} {:>7} {:>20}  {:<4}  {least:.1} to {most:.1} ({} rounds)",
            row.name,
            row.unit,
            number(Some(row.ours), 1),
            number(row.peer, 1),
            number(row.ratio, 2),
            row.target.as_deref().unwrap_or("-"),
            row.met.map_or("-", |met| if met { "yes" } else { "no" }),
            row.rounds.len()
        );
    }
    let folder = Path::new("target/bench");
    std::fs::create_dir_all(folder).context("target/bench")?;
    let file = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(rows)?;
    std::fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
    println!("rows in {}", file.display());
    Ok(file)
}

/// The middle of the values; of an even count the upper of the two.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which a share of the values lies (nearest rank).
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ours: &[f64], peer: &[f64], target: Target, ratio: Option<f64>, met: Option<bool>) {
        let row = Row::new("row", "s", ours.to_vec(), peer.to_vec(), Some(target));
        assert_eq!(
            (row.ratio, row.met),
            (ratio, met),
            "{ours:?} {peer:?} {target:?}"
        );
    }

    #[test]
    fn a_row_says_whether_it_meets_its_target_and_nothing_where_the_peer_is_missing() {
        check(&[1.0, 9.0, 2.0], &[], Target::AtMost(2.0), None, Some(true));
        check(
            &[1.0, 9.0, 2.0],
            &[],
            Target::AtLeast(3.0),
            None,
            Some(false),
        );
        check(
            &[2.0],
            &[4.0],
            Target::RatioAtMost(0.5),
            Some(0.5),
            Some(true),
        );
        check(
            &[2.0],
            &[4.0],
            Target::RatioAtLeast(1.0),
            Some(0.5),
            Some(false),
        );
        check(&[2.0], &[], Target::RatioAtLeast(1.0), None, None);
    }
}
