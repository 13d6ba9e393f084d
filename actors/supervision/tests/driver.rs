//! The driver with real actors: what a child does, and what no child can do to others.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use understudy_protocol::id::{ChildId, IncarnationId};
use understudy_protocol::supervision::{Exit, RestartType};
use understudy_protocol::wire::content::{Content, Pieces, VALUE_BYTES_MAX};
use understudy_protocol::wire::envelope::{CallId, CallKey, Envelope};
use understudy_supervision::counter::Counter;
use understudy_supervision::driver::{Driver, DriverEvent, Kinds, STOP_LIMIT};
use understudy_supervision::values::{KeepError, MemoryValues};
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError, testing,
};

/// Longer than anything here may take, so that what never comes is a failure and no hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A driver, and what it says.
struct Stage {
    driver: Driver,
    events: mpsc::Receiver<DriverEvent>,
    calls: u64,
}

impl Stage {
    fn new(kinds: Kinds) -> Stage {
        let (sender, events) = mpsc::channel(16);
        let driver = Driver::new(testing::register(kinds.with("counter", Counter)), sender);
        Stage {
            driver,
            events,
            calls: 0,
        }
    }

    async fn next(&mut self) -> DriverEvent {
        let event = timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event comes").expect("the driver lives")
    }

    async fn up(&mut self, child: &str) -> ChildId {
        let child = id(child);
        self.driver.start(child.clone(), None, Vec::new(), None);
        assert_eq!(self.next().await, DriverEvent::Started(child.clone()));
        child
    }

    fn ask(&mut self, child: &ChildId, body: &str, snapshot: bool) -> CallId {
        self.calls += 1;
        let envelope = envelope(self.calls, child, body);
        let call = envelope.call;
        let snapshot = snapshot.then(Vec::new);
        self.driver.execute(child, envelope, snapshot);
        call
    }

    /// Asks, and waits for the answer.
    async fn answer(&mut self, child: &ChildId, body: &str) -> String {
        let asked = self.ask(child, body, false);
        match self.next().await {
            DriverEvent::Executed { call, answer, .. } => {
                assert_eq!(call, asked);
                String::from_utf8(inline(answer)).unwrap()
            }
            other => panic!("{other:?} instead of an answer"),
        }
    }

    async fn end_of(&mut self, of: &ChildId) -> (Exit, String) {
        match self.next().await {
            DriverEvent::Ended {
                child,
                exit,
                reason,
            } if child == *of => (exit, reason),
            other => panic!("{other:?} instead of the end of {of}"),
        }
    }

    async fn silence(&mut self) {
        let event = timeout(Duration::from_millis(100), self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }
}

fn id(child: &str) -> ChildId {
    ChildId::parse(child).unwrap()
}

fn envelope(number: u64, to: &ChildId, body: &str) -> Envelope {
    let gateway = IncarnationId(1);
    Envelope {
        call: CallId { gateway, number },
        to: to.clone(),
        key: CallKey::Internal { gateway, number },
        request_hash: 0,
        patience_ms: 1_000,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn bytes(text: &str) -> Content {
    Bytes::copy_from_slice(text.as_bytes()).into()
}

fn inline(content: Content) -> Vec<u8> {
    match content {
        Content::Inline(bytes) => bytes.to_vec(),
        Content::Pieces(pieces) => panic!("{pieces:?} where bytes belong"),
    }
}

#[tokio::test]
async fn a_counter_goes_on_from_its_base_and_the_steps_after_it() {
    let mut stage = Stage::new(Kinds::new());
    let child = id("t/counter/a");
    let steps = vec![bytes("5"), bytes("-2")];
    stage
        .driver
        .start(child.clone(), Some(bytes("100")), steps.clone(), None);
    assert_eq!(stage.next().await, DriverEvent::Started(child.clone()));
    assert_eq!(stage.answer(&child, "get").await, "103");
}

#[tokio::test]
async fn a_step_comes_with_its_effect_and_with_the_state_when_it_is_asked_for() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/counter/a").await;
    for (body, snapshot, answer, effect, state) in [
        ("add 4", false, "4", Some("4"), None),
        ("add 3", true, "7", Some("3"), Some("7")),
        ("get", true, "7", None, None),
        ("add -8", true, "-1", Some("-8"), Some("-1")),
    ] {
        let call = stage.ask(&child, body, snapshot);
        let expected = DriverEvent::Executed {
            child: child.clone(),
            call,
            answer: bytes(answer),
            effect: effect.map(bytes),
            state: state.map(bytes),
            durable: true,
        };
        assert_eq!(stage.next().await, expected, "{body}");
    }
}

#[tokio::test]
async fn a_wrong_request_is_answered_and_changes_nothing() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/counter/a").await;
    for body in [
        "",
        "add",
        "add one",
        "add 1 2",
        "sub 1",
        "add 99999999999999999999",
    ] {
        let answer = stage.answer(&child, body).await;
        assert!(answer.starts_with("error: "), "{body:?}: {answer}");
    }
    assert_eq!(
        stage.answer(&child, &format!("add {}", i64::MAX)).await,
        i64::MAX.to_string()
    );
    assert_eq!(
        stage.answer(&child, "add 1").await,
        "error: the sum would not fit 64 bits"
    );
    assert_eq!(stage.answer(&child, "get").await, i64::MAX.to_string());
}

#[tokio::test]
async fn a_checkpoint_that_the_kind_did_not_write_ends_the_start() {
    let mut stage = Stage::new(Kinds::new());
    let child = id("t/counter/a");
    for (base, steps) in [
        (Some("seven"), vec![]),
        (None, vec!["1", ""]),
        (Some("9223372036854775807"), vec!["1"]),
    ] {
        let steps = steps.into_iter().map(bytes).collect();
        stage
            .driver
            .start(child.clone(), base.map(bytes), steps, None);
        let (exit, reason) = stage.end_of(&child).await;
        assert_eq!(exit, Exit::Abnormal);
        assert!(reason.contains("checkpoint cannot be read"), "{reason}");
    }
}

#[tokio::test]
async fn a_panic_or_an_error_ends_the_child_and_not_the_driver() {
    let mut stage = Stage::new(Kinds::new());
    let bystander = stage.up("t/counter/a").await;
    for (body, why) in [
        ("panic", "it panicked: it was asked to"),
        ("fail", "the child is broken: it was asked to"),
    ] {
        let child = stage.up("t/testing-faulty/a").await;
        stage.ask(&child, body, false);
        assert_eq!(
            stage.end_of(&child).await,
            (Exit::Abnormal, why.to_owned()),
            "{body}"
        );
    }
    assert_eq!(stage.answer(&bystander, "add 1").await, "1");
    let again = stage.up("t/testing-faulty/a").await;
    assert_eq!(stage.answer(&again, "anything").await, "alive");
}

#[tokio::test]
async fn a_child_ends_itself_after_its_answer() {
    let mut stage = Stage::new(Kinds::new());
    for (body, exit, why) in [
        ("end", Exit::Normal, "its work is done"),
        ("break", Exit::Abnormal, "its process is gone"),
    ] {
        let child = stage.up("t/testing-faulty/a").await;
        assert_eq!(stage.answer(&child, body).await, "alive");
        assert_eq!(stage.end_of(&child).await, (exit, why.to_owned()), "{body}");
        stage.ask(&child, "anything", false);
        stage.driver.stop(&child);
        stage.silence().await;
    }
}

#[tokio::test]
async fn a_stopped_child_answers_its_call_and_then_ends_once() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/testing-slow/a").await;
    let asked = stage.ask(&child, "sleep 200", false);
    stage.driver.stop(&child);
    stage.driver.stop(&child);
    match stage.next().await {
        DriverEvent::Executed { call, .. } => assert_eq!(call, asked),
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.end_of(&child).await.0, Exit::Shutdown);
    stage.silence().await;
    assert!(stage.driver.is_empty());
}

#[tokio::test]
async fn a_hung_child_is_killed_at_the_limit() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/testing-slow/a").await;
    stage.ask(&child, "hang", false);
    let told = Instant::now();
    stage.driver.stop(&child);
    let (exit, reason) = stage.end_of(&child).await;
    assert_eq!(exit, Exit::Abnormal);
    assert!(reason.contains("killed"), "{reason}");
    assert!(told.elapsed() >= STOP_LIMIT, "{:?}", told.elapsed());
    let again = stage.up("t/testing-slow/a").await;
    assert_eq!(stage.answer(&again, "sleep 1").await, "alive");
}

#[tokio::test]
async fn a_second_call_at_once_is_refused_and_the_first_is_answered() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/testing-slow/a").await;
    let first = stage.ask(&child, "sleep 100", false);
    stage.ask(&child, "sleep 1", false);
    match stage.next().await {
        DriverEvent::Executed { call, .. } => assert_eq!(call, first),
        other => panic!("{other:?}"),
    }
    stage.silence().await;
    assert_eq!(stage.answer(&child, "sleep 1").await, "alive");
}

#[tokio::test]
async fn a_child_that_is_up_is_not_started_again() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/counter/a").await;
    assert_eq!(stage.answer(&child, "add 7").await, "7");
    stage.driver.start(child.clone(), None, Vec::new(), None);
    stage.silence().await;
    assert_eq!(stage.answer(&child, "get").await, "7");
}

#[tokio::test]
async fn an_unknown_kind_is_refused_with_the_names_of_the_known() {
    let mut stage = Stage::new(Kinds::new());
    let child = id("t/abacus/a");
    stage.driver.start(child.clone(), None, Vec::new(), None);
    let (exit, reason) = stage.end_of(&child).await;
    assert_eq!(exit, Exit::Abnormal);
    assert_eq!(
        reason,
        "there is no kind \"abacus\" here; there are: counter, testing-faulty, testing-large, testing-loose, testing-poison, testing-slow"
    );
}

#[tokio::test]
async fn an_event_that_waits_for_room_holds_up_its_own_child_alone() {
    let (sender, events) = mpsc::channel(1);
    let driver = Driver::new(Kinds::new().with("counter", Counter), sender);
    let mut stage = Stage {
        driver,
        events,
        calls: 0,
    };
    let children: Vec<ChildId> = (0..100).map(|n| id(&format!("t/counter/{n}"))).collect();
    // None of these waits, though nobody receives.
    for child in &children {
        stage.driver.start(child.clone(), None, Vec::new(), None);
        stage.ask(child, "add 1", false);
        stage.driver.stop(child);
    }
    let mut heard: BTreeMap<ChildId, Vec<&str>> = BTreeMap::new();
    for _ in 0..3 * children.len() {
        let (child, what) = match stage.next().await {
            DriverEvent::Recalled { child, .. } => (child, "recalled"),
            DriverEvent::Started(child) => (child, "started"),
            DriverEvent::Executed { child, .. } => (child, "executed"),
            DriverEvent::Unkept { child, .. } => (child, "unkept"),
            DriverEvent::Prod(child) => (child, "wants a prod"),
            DriverEvent::Prodded { child, .. } => (child, "prodded"),
            DriverEvent::Ended { child, .. } => (child, "ended"),
        };
        heard.entry(child).or_default().push(what);
    }
    for child in &children {
        assert_eq!(heard[child], ["started", "executed", "ended"], "{child}");
    }
}

/// Counts the children that are in memory, and misbehaves where the others cannot.
struct Awkward(Arc<AtomicUsize>);

struct AwkwardChild(Arc<AtomicUsize>);

impl Kind for Awkward {
    type Child = AwkwardChild;

    async fn start(&self, context: Context, _: Checkpoint) -> Result<AwkwardChild, StartError> {
        match context.child().key() {
            "hangs" => pending().await,
            "panics" => panic!("no start"),
            _ => {}
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(AwkwardChild(self.0.clone()))
    }

    fn needs_own_unit(&self) -> bool {
        true
    }

    fn restart(&self) -> RestartType {
        RestartType::Temporary
    }
}

impl Child for AwkwardChild {
    async fn handle(&mut self, _: Request) -> Result<Handled, ChildError> {
        Ok(Handled::step("done", "done"))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        panic!("no snapshot")
    }

    async fn stop(&mut self) {
        panic!("no stop")
    }
}

impl Drop for AwkwardChild {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        if !std::thread::panicking() {
            panic!("no drop");
        }
    }
}

#[tokio::test]
async fn panics_in_start_snapshot_stop_and_drop_end_the_child_alone() {
    let in_memory = Arc::new(AtomicUsize::new(0));
    let mut stage = Stage::new(Kinds::new().with("awkward", Awkward(in_memory.clone())));

    let child = id("@t/awkward/panics");
    stage.driver.start(child.clone(), None, Vec::new(), None);
    let ended = stage.end_of(&child).await;
    assert_eq!(ended, (Exit::Abnormal, "it panicked: no start".to_owned()));

    let child = stage.up("@t/awkward/a").await;
    stage.ask(&child, "", true);
    let ended = stage.end_of(&child).await;
    assert_eq!(
        ended,
        (Exit::Abnormal, "it panicked: no snapshot".to_owned())
    );

    let child = stage.up("@t/awkward/a").await;
    stage.driver.stop(&child);
    let ended = stage.end_of(&child).await;
    assert_eq!(ended, (Exit::Abnormal, "it panicked: no stop".to_owned()));

    let bystander = stage.up("t/counter/a").await;
    assert_eq!(stage.answer(&bystander, "add 1").await, "1");
    assert_eq!(
        in_memory.load(Ordering::SeqCst),
        0,
        "an end is said when the child is gone"
    );
}

#[tokio::test]
async fn a_start_that_hangs_is_killed_when_it_is_stopped() {
    let mut stage = Stage::new(Kinds::new().with("awkward", Awkward(Arc::default())));
    let child = id("@t/awkward/hangs");
    stage.driver.start(child.clone(), None, Vec::new(), None);
    stage.driver.stop(&child);
    let (exit, reason) = stage.end_of(&child).await;
    assert_eq!(exit, Exit::Abnormal);
    assert!(reason.contains("killed"), "{reason}");
}

#[tokio::test]
async fn a_kind_that_needs_a_unit_of_its_own_is_refused_under_a_light_id() {
    let kinds = Kinds::new().with("awkward", Awkward(Arc::default()));
    let about = kinds.about("awkward").unwrap();
    assert!(about.needs_own_unit);
    assert_eq!(about.restart, RestartType::Temporary);
    let mut stage = Stage::new(kinds);
    let child = id("t/awkward/a");
    stage.driver.start(child.clone(), None, Vec::new(), None);
    let (_, reason) = stage.end_of(&child).await;
    assert_eq!(
        reason,
        "a child of the kind \"awkward\" needs a unit of its own: @t/awkward/a"
    );
    let light_kind = stage.up("@t/counter/a").await;
    assert_eq!(stage.answer(&light_kind, "get").await, "0");
}

#[tokio::test]
async fn shutdown_ends_every_child_and_a_dropped_driver_kills_them() {
    let mut stage = Stage::new(Kinds::new());
    for n in 0..10 {
        stage.up(&format!("t/counter/{n}")).await;
    }
    let Stage {
        driver, mut events, ..
    } = stage;
    let counted = async {
        let mut ends = 0;
        while let Some(event) = events.recv().await {
            assert!(matches!(
                event,
                DriverEvent::Ended {
                    exit: Exit::Shutdown,
                    ..
                }
            ));
            ends += 1;
        }
        ends
    };
    let both = async { tokio::join!(driver.shutdown(), counted) };
    assert_eq!(timeout(PATIENCE, both).await.unwrap(), ((), 10));

    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/testing-slow/a").await;
    stage.ask(&child, "hang", false);
    drop(stage.driver);
    // The actor held the last sender but ours: that it is gone closes the channel.
    let closed = timeout(PATIENCE, stage.events.recv()).await.unwrap();
    assert_eq!(closed, None);
}

#[tokio::test]
async fn a_poisonous_child_takes_its_whole_process_with_it() {
    if std::env::var_os("UNDERSTUDY_TEST_DIES").is_some() {
        let mut stage = Stage::new(Kinds::new());
        let child = stage.up("@t/testing-poison/a").await;
        assert_eq!(stage.answer(&child, "are you there").await, "alive");
        stage.ask(&child, "die", false);
        stage.next().await;
        unreachable!("the process lives on");
    }
    use std::os::unix::process::ExitStatusExt;
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_poisonous_child_takes_its_whole_process_with_it",
        ])
        .env("UNDERSTUDY_TEST_DIES", "1")
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .status();
    let status = timeout(PATIENCE, status).await.unwrap().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
}

#[tokio::test]
async fn a_counter_comes_back_as_it_was() {
    let requests: [&[u8]; 5] = [b"add 3", b"get", b"add -10", b"nonsense", b"add 1"];
    let answers = testing::comes_back(&Counter, &requests).await.unwrap();
    assert_eq!(answers.last().unwrap(), &Bytes::from_static(b"-6"));
}

/// A kind whose steps are commands: it adds whatever the shared dice show when it is replayed.
struct Dice(AtomicUsize);

struct Thrown(usize);

impl Kind for Dice {
    type Child = Thrown;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Thrown, StartError> {
        let throws = checkpoint.steps.len();
        Ok(Thrown(self.0.fetch_add(throws, Ordering::SeqCst)))
    }
}

impl Child for Thrown {
    async fn handle(&mut self, _: Request) -> Result<Handled, ChildError> {
        self.0 += 1;
        Ok(Handled::step("thrown", "throw the dice"))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.0.to_string().into())
    }
}

#[tokio::test]
async fn a_kind_whose_steps_are_commands_is_found_out() {
    let dice = Dice(AtomicUsize::new(0));
    let why = testing::comes_back(&dice, &[b"throw"]).await.unwrap_err();
    assert!(why.contains("started from its steps is another"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_children_start_work_and_stop() {
    const CHILDREN: usize = 10_000;
    let (sender, events) = mpsc::channel(1_024);
    let driver = Driver::new(Kinds::new().with("counter", Counter), sender);
    let mut stage = Stage {
        driver,
        events,
        calls: 0,
    };
    let children: Vec<ChildId> = (0..CHILDREN)
        .map(|n| id(&format!("t/counter/{n}")))
        .collect();
    let before = resident_bytes();
    let began = Instant::now();
    for child in &children {
        stage.driver.start(child.clone(), None, Vec::new(), None);
    }
    for _ in &children {
        assert!(matches!(stage.next().await, DriverEvent::Started(_)));
    }
    let started = began.elapsed();
    let each = resident_bytes().saturating_sub(before) / CHILDREN;
    assert_eq!(stage.driver.len(), CHILDREN);
    for child in &children {
        stage.ask(child, "add 1", true);
    }
    for _ in &children {
        assert!(matches!(stage.next().await, DriverEvent::Executed { .. }));
    }
    for child in &children {
        stage.driver.stop(child);
    }
    for _ in &children {
        assert!(matches!(
            stage.next().await,
            DriverEvent::Ended {
                exit: Exit::Shutdown,
                ..
            }
        ));
    }
    assert!(stage.driver.is_empty());
    println!("{CHILDREN} children: {each} bytes each while idle, all up after {started:?}");
}

fn resident_bytes() -> usize {
    const PAGE: usize = 4_096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap();
    pages * PAGE
}

#[tokio::test]
async fn long_bytes_leave_in_pieces_and_the_next_start_has_every_byte_of_them() {
    let (sender, events) = mpsc::channel(16);
    let values = MemoryValues::default();
    let kinds = testing::register(Kinds::new());
    let driver = Driver::keeping(kinds, Arc::new(values.clone()), sender);
    let mut stage = Stage {
        driver,
        events,
        calls: 0,
    };
    let child = stage.up("t/testing-large/a").await;
    let mut steps = Vec::new();
    let mut base = None;
    for (body, snapshot, is_long) in [
        ("set 300 1", false, true),
        ("patch 3 1 2", false, false),
        ("patch 100 50 3", true, true),
        ("answer 20 4", false, false),
    ] {
        stage.ask(&child, body, snapshot);
        let DriverEvent::Executed {
            answer,
            effect,
            state,
            ..
        } = stage.next().await
        else {
            panic!("{body} is carried out");
        };
        let effect = effect.expect("a step");
        assert_eq!(effect.pieces().is_some(), is_long, "{body}");
        let long_answer = body.starts_with("answer");
        assert_eq!(answer.pieces().is_some(), long_answer, "{body}");
        steps.push(effect);
        if let Some(state) = state {
            assert!(state.pieces().is_some());
            base = Some((state, steps.len()));
        }
    }
    let mut expected = testing::noise(300, 1);
    expected[3 * 1024..4 * 1024].copy_from_slice(&testing::noise(1, 2));
    expected[100 * 1024..150 * 1024].copy_from_slice(&testing::noise(50, 3));
    let (state, after) = base.expect("a snapshot");
    for (name, base, steps) in [
        ("b", None, steps.clone()),
        ("c", Some(state.clone()), steps[after..].to_vec()),
    ] {
        let child = id(&format!("t/testing-large/{name}"));
        stage.driver.start(child.clone(), base, steps, None);
        assert_eq!(stage.next().await, DriverEvent::Started(child.clone()));
        stage.ask(&child, "read 0 300", false);
        let DriverEvent::Executed { answer, .. } = stage.next().await else {
            panic!("it is read");
        };
        assert!(
            inline(answer) == testing::hex(&expected).into_bytes(),
            "a byte of {name} differs"
        );
    }

    values.forget();
    let child = id("t/testing-large/d");
    stage
        .driver
        .start(child.clone(), Some(state), Vec::new(), None);
    let (exit, reason) = stage.end_of(&child).await;
    assert_eq!(exit, Exit::Abnormal);
    assert!(reason.contains("not to be had"), "{reason}");
}

#[tokio::test]
async fn remembered_calls_are_kept_before_a_state_leaves_and_told_in_pieces_before_the_next_start()
{
    let (sender, events) = mpsc::channel(16);
    let values = MemoryValues::default();
    let kinds = Kinds::new().with("counter", Counter);
    let driver = Driver::keeping(kinds, Arc::new(values.clone()), sender);
    let mut stage = Stage {
        driver,
        events,
        calls: 0,
    };
    let child = stage.up("t/counter/a").await;
    let remembered = Bytes::from(testing::noise(100, 1));
    let cut = Pieces::cut(&remembered).unwrap();
    let envelope = envelope(1, &child, "get");
    let snapshot = Some(cut.parts.clone());
    stage.driver.execute(&child, envelope.clone(), snapshot);
    let DriverEvent::Executed { state, .. } = stage.next().await else {
        panic!("it is read");
    };
    assert_eq!(
        (state, values.len()),
        (None, 0),
        "there is no base to name it"
    );
    let envelope = Envelope {
        body: Bytes::from_static(b"add 1"),
        ..envelope
    };
    stage
        .driver
        .execute(&child, envelope.clone(), Some(cut.parts.clone()));
    let DriverEvent::Executed { state, .. } = stage.next().await else {
        panic!("it is carried out");
    };
    assert!(state.is_some());
    assert_eq!(values.len(), cut.parts.len());

    let child = id("t/counter/b");
    let calls = Some(cut.pieces.clone());
    stage.driver.start(child.clone(), state, Vec::new(), calls);
    for piece in [remembered.slice(..65_536), remembered.slice(65_536..)] {
        let child = child.clone();
        assert_eq!(stage.next().await, DriverEvent::Recalled { child, piece });
    }
    assert_eq!(stage.next().await, DriverEvent::Started(child.clone()));

    values.refuse(Some("the disk is full".into()));
    stage.driver.execute(&child, envelope, Some(cut.parts));
    let unkept = stage.next().await;
    assert!(matches!(unkept, DriverEvent::Unkept { .. }), "{unkept:?}");
    values.forget();
    let child = id("t/counter/c");
    let calls = Some(cut.pieces);
    stage.driver.start(child.clone(), None, Vec::new(), calls);
    let (exit, reason) = stage.end_of(&child).await;
    assert_eq!(exit, Exit::Abnormal);
    assert!(reason.contains("not to be had"), "{reason}");
}

/// Answers everything with a step, and has a state, of so many bytes.
struct TooLong {
    effect: usize,
    state: usize,
}

impl Kind for TooLong {
    type Child = TooLong;

    async fn start(&self, _: Context, _: Checkpoint) -> Result<TooLong, StartError> {
        let TooLong { effect, state } = *self;
        Ok(TooLong { effect, state })
    }
}

impl Child for TooLong {
    async fn handle(&mut self, _: Request) -> Result<Handled, ChildError> {
        Ok(Handled::step("done", vec![0; self.effect]))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(vec![0; self.state].into())
    }
}

#[tokio::test]
async fn what_is_too_long_or_cannot_be_kept_is_said_and_its_call_does_not_count() {
    let (longest, longer) = (VALUE_BYTES_MAX, VALUE_BYTES_MAX + 1);
    for (effect, state, fits) in [
        (longest, longest, true),
        (longer, 1, false),
        (1, longer, false),
    ] {
        let mut stage = Stage::new(Kinds::new().with("long", TooLong { effect, state }));
        let child = stage.up("t/long/a").await;
        let asked = stage.ask(&child, "do", true);
        match stage.next().await {
            DriverEvent::Executed { .. } => assert!(fits, "{effect} {state}"),
            DriverEvent::Unkept { call, reason, .. } => {
                assert!(!fits, "{effect} {state}: {reason}");
                assert_eq!(call, Some(asked));
                assert!(matches!(reason, KeepError::TooLong(_)), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }

    let (sender, events) = mpsc::channel(16);
    let values = MemoryValues::default();
    values.refuse(Some("the disk is full".into()));
    let kinds = testing::register(Kinds::new());
    let driver = Driver::keeping(kinds, Arc::new(values), sender);
    let calls = 0;
    let mut stage = Stage {
        driver,
        events,
        calls,
    };
    let child = stage.up("t/testing-large/a").await;
    stage.ask(&child, "set 300 1", false);
    let said = stage.next().await;
    assert!(
        matches!(
            &said,
            DriverEvent::Unkept {
                reason: KeepError::Refused(_),
                ..
            }
        ),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_child_is_prodded_when_it_wants_to_be_and_hands_out_what_it_held() {
    let mut stage = Stage::new(Kinds::new());
    let child = stage.up("t/testing-loose/a").await;
    let loose = |call, sum| DriverEvent::Executed {
        child: id("t/testing-loose/a"),
        call,
        answer: bytes(sum),
        effect: None,
        state: None,
        durable: false,
    };
    let call = stage.ask(&child, "hold 4", true);
    assert_eq!(stage.next().await, loose(call, "4"));
    let call = stage.ask(&child, "add 3", false);
    assert_eq!(stage.next().await, loose(call, "7"));
    assert_eq!(stage.next().await, DriverEvent::Prod(child.clone()));
    let call = stage.ask(&child, "add 1", false);
    assert_eq!(stage.next().await, loose(call, "8"));
    stage.driver.prod(&child, Some(Vec::new()));
    let prodded = |effect: Option<&str>, state: Option<&str>| DriverEvent::Prodded {
        child: id("t/testing-loose/a"),
        effect: effect.map(bytes),
        state: state.map(bytes),
        durable: true,
    };
    // It wanted it twice before it came: that was said once.
    assert_eq!(stage.next().await, prodded(Some("8"), Some("8")));
    stage.driver.prod(&child, Some(Vec::new()));
    assert_eq!(stage.next().await, prodded(None, None));
    stage.driver.stop(&child);
    assert_eq!(stage.end_of(&child).await.0, Exit::Shutdown);
}
