//! The demo: three real nodes, callers, and kills; or a simulated failover, told as it happens.
//!
//! Owns: what is built and which program is run. The demo itself is `tests/demo`, the story is the
//! simulator's.

use crate::line::Line;

/// What a guest is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Real nodes.
    Nodes {
        /// Where to write what was measured.
        json: Option<String>,
        /// So many rounds of faults.
        rounds: u64,
    },
    /// The simulator's story of this seed.
    Story(u64),
}

/// The story that is told when no other is asked for.
pub(crate) const SEED: u64 = 1;

impl Default for Show {
    fn default() -> Show {
        let (json, rounds) = (None, 1);
        Show::Nodes { json, rounds }
    }
}

/// Shows it.
pub(crate) fn run(show: &Show) -> Result<(), String> {
    for line in lines(show) {
        line.run().map_err(|why| why.to_string())?;
    }
    Ok(())
}

fn lines(show: &Show) -> Vec<Line> {
    match show {
        Show::Nodes { json, rounds } => {
            let run = Line::cargo("run --quiet -p understudy-tests --bin understudy-demo --")
                .and(&format!("--rounds {rounds}"));
            let run = match json {
                Some(path) => run.word("--json").word(path),
                None => run,
            };
            vec![Line::cargo("build --quiet -p understudy --bins"), run]
        }
        Show::Story(seed) => {
            let line = Line::cargo("run --quiet -p understudy-sim -- --story");
            vec![line.and(&format!("--seed {seed}"))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(show: Show, expect: &[&str]) {
        let shown: Vec<String> = lines(&show).iter().map(Line::to_string).collect();
        assert_eq!(shown, expect);
    }

    #[test]
    fn the_node_is_built_before_the_demo_runs_it() {
        let build = "cargo build --quiet -p understudy --bins";
        let run = "cargo run --quiet -p understudy-tests --bin understudy-demo -- --rounds 1";
        check(Show::default(), &[build, run]);
        let json = Some("demo.json".to_owned());
        let rounds = 1;
        check(
            Show::Nodes { json, rounds },
            &[build, &format!("{run} --json demo.json")],
        );
    }

    #[test]
    fn the_seed_reaches_the_simulator() {
        check(
            Show::Story(7),
            &["cargo run --quiet -p understudy-sim -- --story --seed 7"],
        );
    }
}
