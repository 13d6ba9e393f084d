//! A node, its warden and its helpers as real processes: killed, stopped, and lied to.
#![allow(clippy::unwrap_used)]
// Real processes die in real time: what must *not* happen can only be waited for.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{BufRead as _, BufReader, IoSlice, Write as _};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use understudy_protocol::id::{IncarnationId, UnitId};
use understudy_protocol::wire::codec::decode_whole;
use understudy_protocol::wire::heart::{DeathDigest, DeathNote, HeartMessage};
use understudy_warden::{NOTE_MARK, forget_note, kept_notes};

/// Longer than anything here takes on a machine with other work to do.
const PATIENCE: Duration = Duration::from_secs(20);

const EXE: &str = env!("CARGO_BIN_EXE_warden-test-node");

/// A node that obeys by its standard input; dies with the test.
struct Node {
    process: Child,
    input: ChildStdin,
    heard: Receiver<String>,
    /// Said while something else was waited for.
    unasked: Vec<String>,
    warden: Pid,
    digest: DeathDigest,
}

impl Node {
    fn start(notes: &Path) -> Node {
        let mut process = Command::new(EXE)
            .arg(notes)
            .arg("7")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (say, heard) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let hear = |word: &str| {
            let line = heard.recv_timeout(PATIENCE).unwrap();
            line.strip_prefix(word).unwrap().to_owned()
        };
        let warden = pid(&hear("warden "));
        let hex = hear("digest ");
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        }
        Node {
            input: process.stdin.take().unwrap(),
            process,
            heard,
            unasked: Vec::new(),
            warden,
            digest: DeathDigest(digest),
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The rest of the first line that begins like this and was not heard yet.
    fn hear(&mut self, beginning: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let is_it = |line: &String| line.starts_with(beginning);
            if let Some(at) = self.unasked.iter().position(is_it) {
                return self.unasked.remove(at).split_off(beginning.len());
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left) {
                Ok(line) => self.unasked.push(line),
                Err(_) => panic!("not {beginning:?}, but {:?}", self.unasked),
            }
        }
    }

    /// Starts a shell as a helper; what it writes to descriptor 3 is heard as `helper says`.
    fn sh(&mut self, script: &str) -> Pid {
        self.tell(&format!("sh {script}"));
        let started = self.hear("HelperStarted { id: ");
        pid(started
            .split("pid: ")
            .nth(1)
            .unwrap()
            .trim_end_matches(" }"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its warden ends by itself, a second later; the notes' directory goes then.
        let end = Instant::now() + PATIENCE;
        while !has_ended(self.warden) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

fn lives(pid: Pid) -> bool {
    // A zombie is not gone: it has not been reaped.
    test_kill_process(pid).is_ok()
}

/// Dead, whether or not somebody else's parent has reaped it yet.
fn has_ended(pid: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    state.is_ok_and(|line| line.contains(") Z ")) || !lives(pid)
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn gone(what: &str, pid: Pid) {
    until(&format!("{what} ({pid:?}) is gone"), || !lives(pid));
}

fn voter() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive_note(voter: &UdpSocket) -> DeathNote {
    let mut buffer = [0; 2_000];
    let length = voter.recv(&mut buffer).unwrap();
    assert_eq!(buffer[0], NOTE_MARK);
    match decode_whole(&buffer[1..length]).unwrap() {
        HeartMessage::DeathNote(note) => note,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_killed_node_leaves_no_helper_and_a_note_that_proves_its_death() {
    let notes = tempfile::tempdir().unwrap();
    let voter = voter();
    let mut node = Node::start(notes.path());
    node.tell(&format!("voter {}", voter.local_addr().unwrap()));
    node.tell("feed 3600000");
    for order in ["at-work 5", "at-work 6", "at-rest 5"] {
        node.tell(order);
    }
    let helpers = [node.sh("exec sleep 1000"), node.sh("exec sleep 1000")];
    assert!(helpers.iter().all(|helper| lives(*helper)));
    assert_eq!(kept_notes(notes.path()).unwrap(), []);

    node.kill();
    let note = receive_note(&voter);
    // The note came after the last helper was reaped, and after it was on disk.
    assert!(!helpers.iter().any(|helper| lives(*helper)));
    assert_eq!(
        kept_notes(notes.path()).unwrap(),
        std::slice::from_ref(&note)
    );
    assert!(note.proves(&node.digest));
    assert_eq!(note.incarnation, IncarnationId(7));
    assert_eq!(note.at_work, [UnitId(6)]);
    // A lost datagram is no lost note.
    assert_eq!(receive_note(&voter), note);
    until("the warden is gone", || has_ended(node.warden));

    forget_note(notes.path(), note.incarnation).unwrap();
    assert_eq!(fs::read_dir(notes.path()).unwrap().count(), 0);
}

#[test]
fn the_folder_of_a_helper_goes_with_the_helper_and_with_a_killed_node() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    node.tell("feed 60000");
    let folder = |name: &str| {
        let folder = notes.path().join(name);
        fs::create_dir_all(folder.join("deep/er")).unwrap();
        folder
    };
    let ends = folder("ends");
    // What it leaves behind writes on until it is killed.
    let script = "(while :; do echo x > deep/$RANDOM$$; done) & sleep 0.2; exit 0";
    node.tell(&format!("sh-in {} {script}", ends.display()));
    node.hear("HelperEnded");
    until("its folder is gone", || !ends.exists());
    let never = folder("never");
    node.tell(&format!(
        "sh-in {} exec sleep 60",
        never.join("nowhere").display()
    ));
    node.hear("HelperRefused");
    assert!(never.exists(), "only the folder itself is the helper's");
    let (one, two) = (folder("one"), folder("two"));
    for folder in [&one, &two] {
        node.tell(&format!("sh-in {} exec sleep 60", folder.display()));
        node.hear("HelperStarted");
    }
    assert!(one.exists() && two.exists());
    node.kill();
    until("both folders are gone", || !one.exists() && !two.exists());
}

#[test]
fn a_warden_that_was_behind_knows_afterwards_who_is_at_work() {
    let notes = tempfile::tempdir().unwrap();
    let voter = voter();
    let mut node = Node::start(notes.path());
    node.tell(&format!("voter {}", voter.local_addr().unwrap()));
    node.tell("feed 3600000");
    kill_process(node.warden, Signal::STOP).unwrap();
    // Far more than the line holds.
    node.tell("busy 1000");
    node.tell("sync");
    node.hear("synced");
    kill_process(node.warden, Signal::CONT).unwrap();
    // The heart feeds at its own pace, and what was not told goes along.
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(10));
        node.tell("feed 3600000");
    }
    node.tell("sync");
    node.hear("synced");
    node.kill();
    assert_eq!(receive_note(&voter).at_work, [UnitId(1_000)]);
}

#[test]
fn the_helpers_of_a_stopped_node_die_at_the_deadline() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    node.tell("feed 3600000");
    let helper = node.sh("exec sleep 1000");
    // An earlier end changes nothing; so the node that follows is fed anew.
    node.tell("feed 1");
    std::thread::sleep(Duration::from_millis(100));
    assert!(lives(helper));

    let mut node = Node::start(notes.path());
    node.tell("feed 1500");
    let helper = node.sh("exec sleep 1000");
    node.tell("feed-for-ever 1500");
    std::thread::sleep(Duration::from_secs(2));
    assert!(lives(helper), "it is fed, and its helper dies");
    node.signal(Signal::STOP);
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    assert!(lives(helper), "the lease is not over yet");
    gone("the helper", helper);
    assert!(stopped.elapsed() > Duration::from_secs(1));
    assert!(lives(node.warden));
    // A stopped node is not a dead one: nothing is said of it.
    assert_eq!(kept_notes(notes.path()).unwrap(), []);
    node.kill();
    until("the warden is gone", || has_ended(node.warden));
    assert_eq!(kept_notes(notes.path()).unwrap().len(), 1);
}

#[test]
fn a_killed_warden_takes_its_helpers_along_and_the_node_hears_of_it() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    let helper = node.sh("exec sleep 1000");
    kill_process(node.warden, Signal::KILL).unwrap();
    node.hear("Gone");
    // Without its warden the helper is init's to reap.
    until("the helper is dead", || has_ended(helper));
    node.tell("feed 1000");
    assert_eq!(node.hear("failed "), "the warden is gone");
    assert_eq!(kept_notes(notes.path()).unwrap(), []);
}

#[test]
fn what_a_helper_set_loose_dies_with_the_node() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    node.sh("(sleep 1000 & echo $! >&3); exec sleep 1000");
    let orphan = pid(&node.hear("helper says "));
    node.sh("sh -c 'echo $$ >&3; trap : TERM HUP; while :; do sleep 1; done' & sleep 1000");
    let grandchild = pid(&node.hear("helper says "));
    assert!(lives(orphan) && lives(grandchild));
    node.kill();
    until("the warden is gone", || has_ended(node.warden));
    assert!(!lives(orphan) && !lives(grandchild));
    assert_eq!(kept_notes(notes.path()).unwrap().len(), 1);
}

#[test]
fn what_outlives_its_helper_is_killed_and_so_is_a_daemon() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    // It leaves its helper's session: nobody answers for it any more.
    node.sh("(sh -c 'echo $$ >&3; exec setsid sleep 1000' &); exec sleep 1000");
    gone("the daemon", pid(&node.hear("helper says ")));

    node.sh("sleep 1000 & echo $! >&3");
    let left = pid(&node.hear("helper says "));
    assert_eq!(
        node.hear("HelperEnded { id: "),
        "HelperId(2), end: Exited(0) }"
    );
    gone("what the helper left", left);

    node.sh("sleep 1000 & echo $! >&3; wait");
    let child = pid(&node.hear("helper says "));
    node.tell("kill 3");
    assert_eq!(
        node.hear("HelperEnded { id: "),
        "HelperId(3), end: Killed(9) }"
    );
    gone("the child of the killed helper", child);
}

#[test]
fn a_helper_that_cannot_start_is_refused_and_holds_nothing_up() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    node.tell("run /nonexistent");
    assert!(
        node.hear("HelperRefused { id: HelperId(1)")
            .contains("No such file")
    );
    node.tell("run relative");
    assert!(node.hear("failed ").contains("absolute"));
    node.tell("run /bin/true");
    assert_eq!(
        node.hear("HelperEnded { id: "),
        "HelperId(2), end: Exited(0) }"
    );
    node.tell("feed 1");
    std::thread::sleep(Duration::from_millis(50));
    // The deadline was passed before the first lease: the machine waits for a new one.
    node.kill();
    until("the warden is gone", || has_ended(node.warden));
    assert_eq!(kept_notes(notes.path()).unwrap().len(), 1);
}

#[test]
fn helpers_get_what_they_were_given_and_nothing_else() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    node.sh("echo $(ls /proc/self/fd) $(nice) $(cut -d' ' -f6 /proc/self/stat) $$ $(env | wc -l) $HOME >&3");
    let said = node.hear("helper says ");
    let words: Vec<&str> = said.split(' ').collect();
    // `ls` reads one directory and writes into a pipe; three are standard and one was given.
    let [fds @ .., nice, session, own, _] = &words[..] else {
        panic!("{said}")
    };
    assert_eq!(fds, ["0", "1", "2", "3", "4"], "{said}");
    assert_eq!((*nice, session), ("10", own), "{said}");
}

#[test]
fn a_stop_meant_for_the_node_leaves_the_warden_but_not_its_helpers() {
    let notes = tempfile::tempdir().unwrap();
    let mut node = Node::start(notes.path());
    let helper = node.sh("exec sleep 1000");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(node.warden, signal).unwrap();
    }
    kill_process(helper, Signal::TERM).unwrap();
    assert_eq!(
        node.hear("HelperEnded { id: "),
        "HelperId(1), end: Killed(15) }"
    );
    assert!(lives(node.warden));
}

#[test]
fn the_secret_is_out_of_reach() {
    let notes = tempfile::tempdir().unwrap();
    let node = Node::start(notes.path());
    let owner = fs::metadata(format!("/proc/{}/mem", node.warden.as_raw_pid())).unwrap();
    // A process that may be dumped belongs to its user here; one that may not, to root.
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
    assert!(node.process.id() != node.warden.as_raw_nonzero().get() as u32);
}

/// A warden whose line the test holds itself.
fn bare_warden() -> (Child, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let warden = Command::new(EXE)
        .args(["warden", "--fd", "0"])
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    (warden, ours)
}

fn send(line: &OwnedFd, bytes: &[u8]) {
    let mut nothing = rustix::net::SendAncillaryBuffer::default();
    let packet = [IoSlice::new(bytes)];
    rustix::net::sendmsg(line, &packet, &mut nothing, SendFlags::empty()).unwrap();
}

fn answer(line: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 4_096];
    let (_, length) = rustix::net::recv(line, &mut buffer[..], RecvFlags::empty()).unwrap();
    buffer.truncate(length);
    buffer
}

/// `Begin` as it stands on the line.
fn begin(notes: &str) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::new());
    encoder.array(2).unwrap().u8(0).unwrap();
    encoder.array(3).unwrap().u8(2).unwrap().u8(7).unwrap();
    encoder.bytes(notes.as_bytes()).unwrap();
    encoder.into_writer()
}

#[test]
fn a_warden_that_is_greeted_with_garbage_does_not_begin() {
    for first in [
        &b"GET / HTTP/1.1"[..],
        &[0xff; 3],
        &begin("relative"),
        &[0; 70_000],
    ] {
        let (mut warden, line) = bare_warden();
        send(&line, first);
        assert_eq!(warden.wait().unwrap().code(), Some(1));
        assert_eq!(answer(&line), b"");
    }
}

#[test]
fn garbage_on_the_line_is_refused_and_the_warden_guards_on() {
    let notes = tempfile::tempdir().unwrap();
    let hello = begin(notes.path().to_str().unwrap());
    let (mut warden, line) = bare_warden();
    send(&line, &hello);
    let ready = answer(&line);
    assert_eq!(&ready[..2], [0x82, 0x00]);
    let deep = [0x81; 60_000];
    let huge_claim = [
        0x82, 0x04, 0x81, 0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let trailing = [0x82, 0x01, 0x81, 0x05, 0x00];
    for garbage in [
        &b"x"[..],
        &[0xff],
        &deep,
        &huge_claim,
        &trailing,
        &hello,
        &[0; 70_000],
    ] {
        send(&line, garbage);
        let refusal = answer(&line);
        assert_eq!(&refusal[..2], [0x82, 0x04], "{garbage:?}: {refusal:?}");
    }
    // Feeding is still understood, and the end of the line is not the end of the node.
    send(&line, &trailing[..4]);
    drop(line);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(warden.try_wait().unwrap(), None);
    assert_eq!(kept_notes(notes.path()).unwrap(), []);
    warden.kill().unwrap();
    warden.wait().unwrap();
}
