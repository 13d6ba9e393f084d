//! What this machine has and lacks, and what to type.
//!
//! Owns: the two ways of saying it. Never changes anything: installing is done by the command that
//! needs the thing, or by whoever reads this.

use crate::console::say;
use crate::needs::{Machine, NEEDS, Need, Remedy, Task, is_present, plan};

/// Looks and tells. An error when a command lacks something it cannot do without.
pub(crate) fn run(json: bool) -> Result<(), String> {
    let machine = Machine::look();
    let rows: Vec<Row> = NEEDS
        .iter()
        .map(|need| Row::new(need, is_present(&need.probe), &machine))
        .collect();
    say(&if json { as_json(&rows) } else { as_text(&rows) });
    let lacking: Vec<_> = rows.iter().filter(|row| row.state() == "missing").collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = lacking.iter().map(|row| row.need.name).collect();
    Err(format!("missing: {}", names.join(", ")))
}

struct Row {
    need: &'static Need,
    present: bool,
    /// What to type; empty when it is there, or when nothing that is typed here would help.
    command: String,
    /// What else is to be said about it.
    note: String,
}

impl Row {
    fn new(need: &'static Need, present: bool, machine: &Machine) -> Row {
        let (command, note) = match need.remedy {
            _ if present => (String::new(), String::new()),
            Remedy::Optional { package, instead } => (
                format!("cargo install --locked {package}"),
                format!("without it, {instead}"),
            ),
            Remedy::System(_) | Remedy::Component(_) | Remedy::Wheel => {
                match plan(&[need], machine) {
                    Ok(lines) => {
                        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
                        (lines.join(" && "), String::new())
                    }
                    Err(why) => (String::new(), why.to_string()),
                }
            }
        };
        Row {
            need,
            present,
            command,
            note,
        }
    }

    /// One word: `present`, `missing` (a command cannot do without it), `optional`, or `later` (no
    /// command of this version uses it).
    fn state(&self) -> &'static str {
        match (self.present, self.need.wanted_by, &self.need.remedy) {
            (true, ..) => "present",
            (false, [], Remedy::Optional { .. }) | (false, [Task::Peers | Task::Guests], _) => {
                "optional"
            }
            (false, [], _) => "later",
            (false, ..) => "missing",
        }
    }
}

fn as_text(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        text.push_str(&format!(
            "{:<9} {:<24} {}\n",
            row.state(),
            row.need.name,
            row.need.what_for
        ));
        let wanted = matches!(row.state(), "missing" | "optional");
        if wanted && !row.command.is_empty() {
            text.push_str(&format!("{:<9} type: {}\n", "", row.command));
        }
        if wanted && !row.note.is_empty() {
            text.push_str(&format!("{:<9} {}\n", "", row.note));
        }
    }
    text
}

fn as_json(rows: &[Row]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let wanted_by: Vec<_> = row
                .need
                .wanted_by
                .iter()
                .map(|task| quoted(task.name()))
                .collect();
            format!(
                "{{\"name\":{},\"state\":{},\"what_for\":{},\"wanted_by\":[{}],\"type\":{},\"note\":{}}}",
                quoted(row.need.name),
                quoted(row.state()),
                quoted(row.need.what_for),
                wanted_by.join(","),
                quoted(&row.command),
                quoted(&row.note)
            )
        })
        .collect();
    format!("{{\"items\":[\n{}\n]}}", rows.join(",\n"))
}

/// A JSON string (RFC 8259, section 7).
fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Task::Test => "test",
            Task::Demo => "demo",
            Task::Bench => "bench",
            Task::Peers => "bench (peers)",
            Task::Guests => "test (guests)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Machine = Machine {
        apt_get: true,
        root: false,
        sudo: false,
        rustup: true,
        terminal: false,
    };

    fn row(name: &str, present: bool) -> Row {
        let need = NEEDS.iter().find(|need| need.name == name).expect(name);
        Row::new(need, present, &USER)
    }

    #[test]
    fn a_row_says_whether_a_command_has_to_have_it() {
        let check =
            |name, present, expect| assert_eq!(row(name, present).state(), expect, "{name}");
        check("cc", true, "present");
        check("cc", false, "missing");
        check("cargo-deny", false, "optional");
        check("erlang", false, "optional");
        check("ziglang", false, "optional");
        check("lavapipe", false, "later");
        check("lavapipe", true, "present");
    }

    #[test]
    fn what_is_missing_comes_with_what_to_type() {
        let text = as_text(&[
            row("cc", true),
            row("clippy", false),
            row("cargo-nextest", false),
        ]);
        assert!(text.contains("type: rustup component add clippy"), "{text}");
        assert!(
            text.contains("without it, plain `cargo test` serves"),
            "{text}"
        );
        assert!(!text.contains("build-essential"), "{text}");
    }

    #[test]
    fn json_is_json_whatever_the_text_holds() {
        assert_eq!(quoted("a \"b\" \\ \n"), "\"a \\\"b\\\" \\\\ \\u000a\"");
        let rows: Vec<Row> = NEEDS
            .iter()
            .map(|need| Row::new(need, false, &USER))
            .collect();
        let read: serde_json::Value =
            serde_json::from_str(&as_json(&rows)).expect("doctor writes JSON");
        assert_eq!(read["items"].as_array().map(Vec::len), Some(NEEDS.len()));
        assert_eq!(read["items"][0]["name"], "cc");
        assert_eq!(read["items"][0]["wanted_by"][1], "demo");
        assert_eq!(read["items"][0]["type"], "", "without root nothing helps");
        let note = read["items"][0]["note"].as_str().unwrap_or_default();
        assert!(note.contains("\n  apt-get install"), "{note}");
    }
}
