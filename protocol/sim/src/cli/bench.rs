//! How fast the simulator is: virtual seconds a real second, on one thread.
//!
//! Owns: the rounds and the rows. Never compares with a peer: nobody else runs these machines.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use understudy_sim::run::{VIRTUAL, run};

/// Measures, prints a table and writes the rows; true when the target is met.
pub(crate) fn measure() -> io::Result<bool> {
    // The first run pays for cold caches and is no round.
    run(1, None);
    let mut ratios = Vec::new();
    let mut steps = Vec::new();
    for round in 0..ROUNDS {
        let began = Instant::now();
        let mut taken = 0;
        for seed in 1..=SEEDS {
            let outcome = run(seed, None);
            if outcome.violation.is_some() {
                return Err(io::Error::other(format!(
                    "a run did not hold: {}",
                    outcome.command()
                )));
            }
            taken += outcome.figures.steps;
        }
        let took = began.elapsed().as_secs_f64();
        ratios.push(VIRTUAL.as_secs_f64() * SEEDS as f64 / took);
        steps.push(taken as f64 / took);
        writeln!(
            io::stderr(),
            "round {} of {ROUNDS}: {SEEDS} clusters in {took:.2} s",
            round + 1
        )?;
    }
    let rows = [
        Row::new(
            "virtual time to real time, one thread",
            "s/s",
            ratios,
            Some(TARGET),
        ),
        Row::new("steps, one thread", "1/s", steps, None),
    ];
    let mut out = io::stdout();
    writeln!(
        out,
        "{:<40} {:>5} {:>12} {:>25} {:>8}  met",
        "name", "unit", "median", "least to most", "target"
    )?;
    for row in &rows {
        let spread = format!("{:.0} to {:.0}", row.least(), row.most());
        let target = row
            .target
            .map_or("-".into(), |target| format!("{target:.0}"));
        let met = row.met().map_or("-", |met| if met { "yes" } else { "no" });
        writeln!(
            out,
            "{:<40} {:>5} {:>12.0} {spread:>25} {target:>8}  {met}",
            row.name,
            row.unit,
            row.median()
        )?;
    }
    let folder = Path::new("target/bench");
    fs::create_dir_all(folder)?;
    let file = folder.join("simulator.json");
    fs::write(&file, json(&rows))?;
    writeln!(
        out,
        "{SEEDS} seeds a round, {ROUNDS} rounds; rows in {}",
        file.display()
    )?;
    Ok(rows.iter().all(|row| row.met() != Some(false)))
}

struct Row {
    name: &'static str,
    unit: &'static str,
    /// In rising order.
    rounds: Vec<f64>,
    target: Option<f64>,
}

impl Row {
    fn new(
        name: &'static str,
        unit: &'static str,
        mut rounds: Vec<f64>,
        target: Option<f64>,
    ) -> Row {
        rounds.sort_by(f64::total_cmp);
        Row {
            name,
            unit,
            rounds,
            target,
        }
    }

    fn median(&self) -> f64 {
        self.rounds[self.rounds.len() / 2]
    }

    fn least(&self) -> f64 {
        self.rounds[0]
    }

    fn most(&self) -> f64 {
        self.rounds[self.rounds.len() - 1]
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|target| self.median() >= target)
    }
}

/// The rows as every bench writes them. Names and units are our own: nothing needs escaping.
fn json(rows: &[Row]) -> String {
    let mut text = String::from("[");
    for (nth, row) in rows.iter().enumerate() {
        let comma = if nth > 0 { "," } else { "" };
        let target = row
            .target
            .map_or("null".into(), |target| target.to_string());
        let met = row.met().map_or("null".into(), |met| met.to_string());
        let rounds: Vec<String> = row
            .rounds
            .iter()
            .map(|round| format!("{round:.1}"))
            .collect();
        let _ = write!(
            text,
            "{comma}\n  {{\"name\": \"{}\", \"unit\": \"{}\", \"ours\": {:.1}, \"peer\": null, \
             \"ratio\": null, \"target\": {target}, \"met\": {met}, \"rounds\": [{}], \
             \"spread\": [{:.1}, {:.1}]}}",
            row.name,
            row.unit,
            row.median(),
            rounds.join(", "),
            row.least(),
            row.most()
        );
    }
    text.push_str("\n]\n");
    text
}

const ROUNDS: usize = 5;

/// A round of some seconds: long enough that one slow seed does not make it.
const SEEDS: u64 = 60;

/// A thousand times real time: thousands of failovers in a test that one still waits for.
const TARGET: f64 = 1_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_its_median_and_whether_it_meets_its_target() {
        let row = Row::new("fast", "s/s", vec![5.0, 1.0, 3.0], Some(3.0));
        assert_eq!((row.median(), row.least(), row.most()), (3.0, 1.0, 5.0));
        assert_eq!(row.met(), Some(true));
        assert_eq!(
            Row::new("slow", "s/s", vec![2.0], Some(3.0)).met(),
            Some(false)
        );
        let expected = "[\n  {\"name\": \"fast\", \"unit\": \"s/s\", \"ours\": 3.0, \"peer\": null, \
                        \"ratio\": null, \"target\": 3, \"met\": true, \"rounds\": [1.0, 3.0, 5.0], \
                        \"spread\": [1.0, 5.0]}\n]\n";
        assert_eq!(json(&[row]), expected);
    }
}
