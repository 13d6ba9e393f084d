//! The command line against real gateways. Behind them stands a directory without a cluster.
#![allow(clippy::unwrap_used)]

#[path = "../../gateway/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use understudy::cli::{self, Answer, Exit, Screen};
use understudy_control::events::Events;
use understudy_control::handle::Handle;
use understudy_gateway::{Reach, Token, serve};
use understudy_protocol::cluster::directory::Directory;
use understudy_protocol::id::{Epoch, NodeId, UnitId};

const TOKEN: &str = "us_test_0123456789abcdef";

struct Node {
    server: String,
    events: Events,
    _tasks: JoinSet<()>,
}

impl Node {
    async fn start() -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let (asks, asked) = mpsc::channel(16);
        let (shown, view) = watch::channel(Arc::new(common::view(&Directory::default())));
        let events = Events::default();
        let handle = Handle::new(asks, view, events.clone());
        let guests = common::Guests::new();
        let functions = guests.functions();
        let mut tasks = JoinSet::new();
        tasks.spawn(common::core(asked, shown, guests));
        let token = Token::new(TOKEN).unwrap();
        tasks.spawn(async {
            let served = serve(
                listener,
                handle,
                functions,
                token,
                Reach::Loopback,
                std::future::pending(),
            );
            served.await.unwrap();
        });
        Node {
            server,
            events,
            _tasks: tasks,
        }
    }

    async fn formed() -> Node {
        let node = Node::start().await;
        node.says("cluster init --single", "2 of 2 live").await;
        node
    }

    async fn ask(&self, line: &str) -> Answer {
        let line = format!("understudy {line} --server {} --token {TOKEN}", self.server);
        ask(&line, 100).await.0
    }

    /// The command is carried out and prints this somewhere.
    async fn says(&self, line: &str, part: &str) -> String {
        let answer = self.ask(line).await;
        assert_eq!(answer.exit, Exit::Done, "{line}: {answer:?}");
        assert_eq!(answer.err, "", "{line}");
        let text = String::from_utf8(answer.out).unwrap();
        assert!(text.contains(part), "{line}: {part:?} is not in\n{text}");
        text
    }

    async fn refuses(&self, line: &str, exit: Exit, part: &str) {
        let answer = self.ask(line).await;
        assert_eq!(answer.exit, exit, "{line}: {answer:?}");
        assert!(answer.out.is_empty(), "{line}: {answer:?}");
        assert!(answer.err.contains(part), "{line}: {}", answer.err);
    }

    async fn json(&self, line: &str) -> Value {
        let text = self.says(&format!("{line} --json"), "").await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{line}: {text}"))
    }
}

async fn ask(line: &str, columns: usize) -> (Answer, String) {
    let cli = cli::parse(line.split_whitespace()).unwrap_or_else(|no| panic!("{line}: {no:?}"));
    let mut live = Vec::new();
    let mut screen = Screen {
        columns,
        is_terminal: false,
        live: &mut live,
        aside: None,
    };
    let answer = cli::answer(&cli, &mut screen).await;
    (answer, String::from_utf8(live).unwrap())
}

#[tokio::test]
async fn a_cluster_is_formed_and_shown() {
    let node = Node::start().await;
    node.says("cluster show", "understudy cluster init").await;
    node.refuses("node list", Exit::Failed, "understudy cluster init")
        .await;
    node.says("cluster init --single", "4 of 4 serving").await;
    node.refuses("cluster init --single", Exit::Failed, "already")
        .await;
    let text = node.says("cluster show", "leader").await;
    assert!(text.lines().any(|line| line == "leader   a"), "{text}");
    assert_eq!(node.json("cluster show").await["formed"], true);
}

#[tokio::test]
async fn nodes_units_and_the_tree_are_tables_that_fit() {
    let node = Node::formed().await;
    let text = node.says("node list", "NAME").await;
    let first = text.lines().nth(1).unwrap();
    assert!(first.starts_with("a     live   4"), "{text}");
    node.says(
        "unit create @t1/counter/a-rather-long-name-for-a-child",
        "is serving on a",
    )
    .await;
    let text = node.says("unit list", "slots 0..4096").await;
    assert_eq!(text.lines().count(), 6, "{text}");
    node.says("unit list --kind counter", "@t1/counter").await;
    node.says("unit list --kind none", "No such unit").await;
    let tree = node.says("tree", "slots 0..16384 (4 shards)").await;
    assert!(tree.starts_with("sup-0 one_for_one\n├─ slots"), "{tree}");
    assert!(
        tree.contains("└─ sup-1 one_for_one\n   └─ @t1/counter"),
        "{tree}"
    );
    let all = node.says("tree --all", "slots 4096..8192").await;
    assert_eq!(all.lines().count(), 7, "{all}");
    for line in ["tree", "tree --all", "unit list", "node list"] {
        let line = format!("understudy {line} --server {} --token {TOKEN}", node.server);
        let (answer, _) = ask(&line, 60).await;
        let text = String::from_utf8(answer.out).unwrap();
        for row in text.lines() {
            assert!(row.chars().count() <= 60, "{row:?} of\n{text}");
        }
    }
}

#[tokio::test]
async fn a_unit_is_created_explained_moved_drained_and_removed() {
    let node = Node::formed().await;
    let child = "@t1/counter/a";
    node.says(
        &format!("unit create {child} --restart transient"),
        "is serving on a",
    )
    .await;
    node.refuses(
        &format!("unit create {child}"),
        Exit::Failed,
        "another restart type",
    )
    .await;
    let text = node
        .says(&format!("unit explain {child}"), "a serves it")
        .await;
    assert!(text.contains("  * a is chosen"), "{text}");
    assert!(text.contains("  - b "), "{text}");
    node.says(&format!("unit move {child} b --wait 5s"), "is serving on b")
        .await;
    node.refuses(
        &format!("unit move {child} zebra"),
        Exit::Failed,
        "understudy node list",
    )
    .await;
    node.says("node drain b --wait 5s", "b owns nothing").await;
    node.says("node drain b --undo", "takes units again").await;
    node.says(&format!("unit remove {child}"), "gone for good")
        .await;
    node.refuses("unit remove unit-1", Exit::Usage, "is a shard")
        .await;
    assert_eq!(
        node.json("unit explain unit-1").await["unit"]["id"],
        "unit-1"
    );
}

#[tokio::test]
async fn a_call_prints_the_answer_and_nothing_else() {
    let node = Node::formed().await;
    let text = node.says("call t1/counter/a increment --key k1", "").await;
    assert_eq!(text, "k1increment");
    let drawn = node.says("call t1/counter/a", "").await;
    assert_eq!(drawn.len(), 32, "a key was drawn: {drawn}");
    let answer = node.json("call t1/counter/a x --key k").await;
    assert_eq!(
        answer,
        serde_json::json!({"body": "kx", "reflects": 7, "node": "a", "durable": true})
    );
    node.refuses("call t1/counter/full", Exit::Refused, "send it again after")
        .await;
}

#[tokio::test]
async fn each_way_to_fail_has_its_exit_code() {
    let node = Node::formed().await;
    node.refuses(
        "call t1/counter/late --timeout 250ms",
        Exit::TimedOut,
        "same",
    )
    .await;
    node.refuses(
        "call t1/counter/dumb --timeout 100ms",
        Exit::TimedOut,
        "same",
    )
    .await;
    node.refuses("unit explain unit-99", Exit::Failed, "understudy unit list")
        .await;
    let line = format!("understudy tree --server {} --token {TOKEN}x", node.server);
    let (answer, _) = ask(&line, 80).await;
    assert_eq!(answer.exit, Exit::Refused);
    assert!(answer.err.contains("UNDERSTUDY_TOKEN"), "{}", answer.err);
}

#[tokio::test]
async fn servers_are_tried_in_turn() {
    let (unformed, node) = (Node::start().await, Node::formed().await);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = gone.local_addr().unwrap();
    drop(gone);
    // One is not there, one is there and cannot say: the third answers.
    for (line, part) in [("node list", "NAME"), ("call t/counter/a x --key k", "kx")] {
        let servers = format!("{at},{},{}", unformed.server, node.server);
        let line = format!("understudy {line} --server {servers} --token {TOKEN}");
        let (answer, _) = ask(&line, 80).await;
        assert_eq!(answer.exit, Exit::Done, "{line}: {answer:?}");
        assert!(String::from_utf8(answer.out).unwrap().contains(part));
    }
    // What is not asked twice ends at the first that may have done it.
    let servers = format!("{at},{},{}", unformed.server, node.server);
    let line = format!("understudy unit remove unit-1 --server {servers} --token {TOKEN}");
    let (answer, _) = ask(&line, 80).await;
    assert_eq!(answer.exit, Exit::Failed, "{answer:?}");
    assert!(answer.err.contains("not formed"), "{}", answer.err);
}

#[tokio::test]
async fn events_are_lines_and_the_history_ends() {
    let node = Node::formed().await;
    let unit = Some((UnitId(3), Epoch(5)));
    node.events.tell(
        "unit_serving",
        Some(NodeId(1)),
        unit,
        "a serves unit-3".into(),
    );
    node.events.tell("test", None, None, "x\x1b[2Jy".into());
    let line = format!("understudy events --server {} --token {TOKEN}", node.server);
    let (answer, live) = ask(&line, 80).await;
    assert_eq!(answer.exit, Exit::Done, "{answer:?}");
    let lines: Vec<&str> = live.lines().map(|line| &line[12..]).collect();
    assert_eq!(
        lines,
        [
            " a unit-3 e5 unit_serving: a serves unit-3",
            " test: x?[2Jy"
        ]
    );
    let (answer, live) = ask(&format!("{line} --after 1 --json"), 80).await;
    assert_eq!(answer.exit, Exit::Done, "{answer:?}");
    let event: Value = serde_json::from_str(live.trim()).unwrap();
    assert_eq!(
        (&event["type"], &event["id"]),
        (&"test".into(), &"65.2".into())
    );
}

/// A guest that counts, and says where it failed.
const GUEST: &str = r#"(module
  (global $sum (mut i64) (i64.const 0))
  (func (export "add") (param i64) (result i64)
    (global.set $sum (i64.add (global.get $sum) (local.get 0)))
    (global.get $sum))
  (func $inner (unreachable))
  (func $outer (export "fail") (call $inner)))"#;

#[tokio::test]
async fn modules_sandboxes_and_functions_are_made_called_and_listed() {
    let node = Node::formed().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let wasm = file("a.wasm", &wat::parse_str(GUEST).unwrap());
    node.says("module list", "understudy module push").await;
    node.says("sandbox list", "understudy sandbox create").await;

    let said = node
        .says(
            &format!("module push {wasm} sum@1.2.0"),
            "sum@1.2.0 is there",
        )
        .await;
    assert!(said.contains("SHA-256"), "{said}");
    let pushed = node.json(&format!("module push {wasm} sum@1.2.0")).await;
    assert_eq!(pushed["state"], "sealed");
    let text = node.says("module list", "sealed").await;
    assert!(
        text.lines().nth(1).unwrap().starts_with("sum@1.2.0"),
        "{text}"
    );
    assert_eq!(
        node.json("module list").await["items"][0]["id"],
        "sum@1.2.0"
    );
    let text = node.says("module inspect sum@1.2.0", "exports").await;
    assert!(text.contains("  add(i64) -> (i64)"), "{text}");
    assert!(text.contains("1, 1 of them mutable"), "{text}");

    let policy = file("policy.json", br#"{"clock":"virtual"}"#);
    let create =
        format!("sandbox create s --module sum --policy {policy} --durability interval=250ms");
    node.says(&create, "s runs sum@1.2.0 on a").await;
    assert_eq!(node.json(&create).await["durability"]["interval_ms"], 250);
    node.says("sandbox call s add 5", "5\n").await;
    node.says("sandbox call s add -3 --key k", "2\n").await;
    let called = node.json("sandbox call s add 1").await;
    assert_eq!(called["results"][0], 3, "{called}");
    assert_eq!(
        (&called["durable"], &called["node"]),
        (&true.into(), &"a".into())
    );
    assert!(called["reflects"].as_u64().unwrap() > 0);
    assert!(node.says("sandbox list", "SANDBOX").await.contains("\ns "));
    node.says("function call sum add 5", "5\n").await;
    node.says("function call sum@1.2.0 add 5", "5\n").await;

    let said = node.ask("sandbox call s fail").await;
    assert_eq!(said.exit, Exit::Failed, "{said:?}");
    assert!(said.err.contains("trapped in inner"), "{}", said.err);
    assert!(
        said.err.contains("\n    in inner\n    in outer\n"),
        "{}",
        said.err
    );
    let bad = file("bad.json", br#"{"network":true}"#);
    let text = file("text.wasm", GUEST.as_bytes());
    for (line, exit, part) in [
        (
            "sandbox call s add five",
            Exit::Usage,
            "`five` is no number",
        ),
        (
            "sandbox call s add",
            Exit::Usage,
            "takes 1 arguments, not 0",
        ),
        ("sandbox call none add 1", Exit::Failed, "not created"),
        ("function call none add 1", Exit::Failed, "no module `none`"),
        (
            "module inspect sum@9.9.9",
            Exit::Failed,
            "understudy module push",
        ),
        (
            "module push /nonexistent.wasm a@1.0.0",
            Exit::Usage,
            "/nonexistent.wasm",
        ),
        (
            &format!("module push {text} a@1.0.0"),
            Exit::Usage,
            "the .wasm file",
        ),
        (
            &format!("sandbox create t --module sum --policy {bad}"),
            Exit::Usage,
            "network",
        ),
    ] {
        node.refuses(line, exit, part).await;
    }
}
