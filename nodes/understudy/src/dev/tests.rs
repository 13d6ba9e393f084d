//! Real processes are kept: they are started again, and none is left.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::keep::keep;
use super::*;

fn shell(script: &str, dir: &Path) -> Program {
    Program {
        name: "a".to_owned(),
        exe: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        log: dir.join("log"),
    }
}

struct Kept {
    heard: mpsc::Receiver<Told>,
    stop: watch::Sender<Stop>,
    keeper: JoinSet<()>,
}

impl Kept {
    fn start(program: Program) -> Kept {
        let (told, heard) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(Stop::No);
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(program, stopped, told));
        Kept {
            heard,
            stop,
            keeper,
        }
    }

    async fn next(&mut self) -> Told {
        let next = tokio::time::timeout(Duration::from_secs(20), self.heard.recv());
        next.await.unwrap().unwrap()
    }

    async fn pid(&mut self) -> u32 {
        match self.next().await {
            Told::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    async fn end(mut self, how: Stop) {
        self.stop.send(how).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.keeper.join_next());
        ended.await.unwrap().unwrap().unwrap();
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for a line in the log, which says how far the script is.
async fn until_logged(dir: &Path, line: &str) {
    for _ in 0..200 {
        if home::tail_of(&dir.join("log"), 100).contains(line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{line:?} was not logged");
}

#[tokio::test]
async fn a_process_that_ends_is_started_again_after_a_longer_wait_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::start(shell("echo began; exit 3", dir.path()));
    let mut waits = Vec::new();
    for nth in 0..3 {
        match kept.next().await {
            Told::Started { again, .. } => assert_eq!(again, nth > 0),
            other => panic!("{other:?}"),
        }
        match kept.next().await {
            Told::Ended { status, wait, .. } => {
                assert_eq!(how(status), "ended with exit code 3");
                waits.push(wait.as_millis());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(waits, [100, 200, 400]);
    kept.end(Stop::Gently).await;
    let log = home::tail_of(&dir.path().join("log"), 100);
    assert_eq!(log, "began\nbegan\nbegan");
}

#[tokio::test]
async fn a_process_that_is_killed_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::start(shell("exec sleep 100", dir.path()));
    let pid = kept.pid().await;
    let killed = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    match kept.next().await {
        Told::Ended { status, .. } => assert_eq!(how(status), "was ended by signal 9"),
        other => panic!("{other:?}"),
    }
    let next = kept.pid().await;
    assert_ne!(next, pid);
    kept.end(Stop::Gently).await;
    assert!(!is_there(next));
}

#[tokio::test]
async fn a_process_may_end_its_work_when_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'echo last words; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let mut kept = Kept::start(shell(script, dir.path()));
    let pid = kept.pid().await;
    until_logged(dir.path(), "ready").await;
    kept.end(Stop::Gently).await;
    assert!(!is_there(pid));
    until_logged(dir.path(), "last words").await;
}

#[tokio::test]
async fn a_process_that_does_not_stop_is_killed_when_told_so_twice() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let mut kept = Kept::start(shell(script, dir.path()));
    let pid = kept.pid().await;
    until_logged(dir.path(), "ready").await;
    kept.stop.send(Stop::Gently).unwrap();
    assert!(is_there(pid));
    kept.end(Stop::Now).await;
    assert!(!is_there(pid));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_tried_again_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program {
        exe: dir.path().join("nothing"),
        ..shell("", dir.path())
    };
    let mut kept = Kept::start(program);
    for _ in 0..2 {
        let told = kept.next().await;
        assert!(matches!(told, Told::NotStarted { .. }), "{told:?}");
    }
    kept.end(Stop::Gently).await;
}

#[test]
fn a_node_that_ends_three_times_before_the_cluster_stands_is_given_up() {
    let mut nodes = Nodes(vec![Process {
        name: "a".to_owned(),
        pid: None,
        ended: 0,
    }]);
    for nth in 0..3 {
        assert_eq!(nodes.fails_to_start(), None, "{nth}");
        nodes.note(&Told::NotStarted {
            name: "a".to_owned(),
            error: std::io::ErrorKind::NotFound.into(),
            wait: Duration::ZERO,
        });
    }
    assert_eq!(nodes.fails_to_start().as_deref(), Some("a"));
}
