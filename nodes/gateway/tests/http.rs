//! The gateway over real sockets. Behind it stands a directory without a cluster: see `common`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use understudy_control::events::Events;
use understudy_control::handle::Handle;
use understudy_gateway::{CALL_BODY_MAX, Reach, ServeError, Token, serve};
use understudy_protocol::cluster::directory::Directory;
use understudy_protocol::id::NodeId;

use common::{Guests, core, view};

const TOKEN: &str = "us_test_0123456789abcdef";

struct Served {
    at: SocketAddr,
    http: Client,
    events: Events,
    /// Whether the node's store turns records away.
    full: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

impl Served {
    async fn start() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (asks, asked) = mpsc::channel(16);
        let (shown, view) = watch::channel(Arc::new(view(&Directory::default())));
        let events = Events::default();
        let full = Arc::<AtomicBool>::default();
        let handle = Handle::new(asks, view, events.clone()).with_fullness(full.clone());
        let guests = Guests::new();
        let functions = guests.functions();
        let mut tasks = JoinSet::new();
        tasks.spawn(core(asked, shown, guests));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let token = Token::new(TOKEN).unwrap();
        tasks.spawn(async {
            serve(
                listener,
                handle,
                functions,
                token,
                Reach::Loopback,
                shutdown,
            )
            .await
            .unwrap();
        });
        Served {
            at,
            http: Client::new(),
            events,
            full,
            stop: Some(stop),
            tasks,
        }
    }

    async fn formed() -> Served {
        let served = Served::start().await;
        served
            .check(Method::POST, "/v1/cluster/init", Some(json!({})), 200)
            .await;
        served
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self
            .http
            .request(method, format!("http://{}{path}", self.at))
            .bearer_auth(TOKEN);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn check(&self, method: Method, path: &str, body: Option<Value>, status: u16) -> Value {
        let what = format!("{method} {path}");
        let response = self.send(method, path, body).await;
        let got = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(got, status, "{what}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{what}: {text}"))
    }

    async fn refuses(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        status: u16,
        kind: &str,
    ) {
        let what = format!("{method} {path}");
        let answer = self.check(method, path, body, status).await;
        assert_eq!(answer["type"], kind, "{what}: {answer}");
        assert_eq!(answer["status"], status, "{what}: {answer}");
        assert!(answer["hint"].is_string(), "{what}: {answer}");
    }

    async fn get(&self, path: &str) -> Value {
        self.check(Method::GET, path, None, 200).await
    }

    async fn call(&self, child: &str, key: Option<&str>, body: Vec<u8>) -> Response {
        let request = self
            .http
            .post(format!("http://{}/v1/children/{child}/call", self.at))
            .bearer_auth(TOKEN)
            .body(body);
        let request = match key {
            Some(key) => request.header("Idempotency-Key", key),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn nothing_under_v1_is_answered_without_the_token() {
    let served = Served::start().await;
    for path in ["/v1/cluster", "/v1/units", "/v1/nowhere", "/v1/events"] {
        for token in [None, Some("us_test_0123456789abcdeF"), Some("")] {
            let request = served.http.get(format!("http://{}{path}", served.at));
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let problem: Value = response.json().await.unwrap();
            assert_eq!(problem["type"], "unauthenticated");
        }
    }
    let health = served.http.get(format!("http://{}/healthz", served.at));
    assert_eq!(health.send().await.unwrap().text().await.unwrap(), "ok\n");
    served.stop().await;
}

#[tokio::test]
async fn a_node_is_ready_only_when_the_cluster_is_formed() {
    let served = Served::start().await;
    served
        .refuses(Method::GET, "/readyz", None, 503, "unavailable")
        .await;
    for path in [
        "/v1/nodes",
        "/v1/units",
        "/v1/tree",
        "/v1/units/unit-1/explain",
    ] {
        served
            .refuses(Method::GET, path, None, 503, "unavailable")
            .await;
    }
    assert_eq!(served.get("/v1/cluster").await["formed"], false);
    let body = Some(json!({"single": true}));
    let formed = served
        .check(Method::POST, "/v1/cluster/init", body.clone(), 200)
        .await;
    assert_eq!(formed["formed"], true);
    served
        .refuses(Method::POST, "/v1/cluster/init", body, 409, "conflict")
        .await;
    let ready = served.send(Method::GET, "/readyz", None).await;
    assert_eq!(ready.text().await.unwrap(), "ready\n");
    served.stop().await;
}

#[tokio::test]
async fn children_come_in_pages_and_who_did_not_answer_is_named() {
    let served = Served::formed().await;
    let page = served.get("/v1/children?kind=counter&limit=1").await;
    let listed = json!({ "id": "t1/counter/a", "node": "a", "record": 3 });
    assert_eq!(page["items"], json!([listed]));
    assert_eq!(
        (&page["next"], &page["silent"]),
        (&json!("t1/counter/a"), &json!(["a"]))
    );
    let page = served.get("/v1/children?after=t1/counter/a").await;
    assert_eq!((&page["items"], &page["next"]), (&json!([]), &Value::Null));
    for bad in ["/v1/children?after=no", "/v1/children?knd=counter"] {
        let response = served.send(Method::GET, bad, None).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    served.stop().await;
}

#[tokio::test]
async fn nodes_and_units_are_found_by_each_of_their_names() {
    let served = Served::formed().await;
    let nodes = served.get("/v1/nodes").await;
    assert_eq!(nodes["items"][0]["name"], "a");
    assert_eq!(nodes["items"][0]["live"], true);
    assert_eq!(nodes["items"][0]["units_serving"], 4);
    for name in ["a", "node-1", "0000000000000001"] {
        let node = served.get(&format!("/v1/nodes/{name}")).await;
        assert_eq!(node["id"], "node-1", "{name}");
    }
    let page = served.get("/v1/units?limit=3").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    assert_eq!(page["next"], "unit-3");
    let page = served.get("/v1/units?limit=3&after=unit-3").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert_eq!(page["next"], Value::Null);
    assert_eq!(served.get("/v1/units?node=b").await["items"], json!([]));
    for name in ["unit-1", "1", "t%2Fcounter%2Fx"] {
        assert!(served.get(&format!("/v1/units/{name}")).await["id"].is_string());
    }
    let explained = served.get("/v1/units/unit-1/explain").await;
    assert!(explained["sentences"].as_array().unwrap().len() >= 4);
    let tree = served.get("/v1/tree").await;
    assert_eq!(tree["children"].as_array().unwrap().len(), 4);
    served.stop().await;
}

#[tokio::test]
async fn a_pinned_child_runs_on_its_node_though_no_agent_can_be_asked() {
    let served = Served::formed().await;
    let new = Some(json!({"child": "@t/counter/x", "node": "b"}));
    let unit = served
        .check(Method::POST, "/v1/units", new.clone(), 201)
        .await;
    assert_eq!(unit["owner"], "b");
    served.check(Method::POST, "/v1/units", new, 200).await;
    // The same child elsewhere is another wish.
    let elsewhere = Some(json!({"child": "@t/counter/x", "node": "a"}));
    served
        .refuses(Method::POST, "/v1/units", elsewhere, 409, "conflict")
        .await;
    served
        .check(Method::POST, "/v1/nodes/b/drain", None, 202)
        .await;
    let new = Some(json!({"child": "@t/counter/y", "node": "b"}));
    served
        .refuses(Method::POST, "/v1/units", new, 409, "conflict")
        .await;
    served.stop().await;
}

#[tokio::test]
async fn what_is_not_there_or_not_meant_is_refused_in_words() {
    let served = Served::formed().await;
    for (method, path, body, status, kind) in [
        (Method::GET, "/v1/nodes/zebra", None, 404, "not_found"),
        (Method::GET, "/v1/units/unit-99", None, 404, "not_found"),
        (
            Method::GET,
            "/v1/units/@t%2Fcounter%2Fx",
            None,
            404,
            "not_found",
        ),
        (Method::GET, "/v1/units/a%2Fb", None, 400, "invalid"),
        (Method::GET, "/v1/units/%ff", None, 400, "invalid"),
        (Method::GET, "/v1/units?color=red", None, 400, "invalid"),
        (Method::GET, "/v1/units?limit=many", None, 400, "invalid"),
        (Method::GET, "/v1/units?after=zebra", None, 400, "invalid"),
        (Method::GET, "/v1/events?after=zebra", None, 400, "invalid"),
        (Method::GET, "/v1/nowhere", None, 404, "not_found"),
        (Method::GET, "/nowhere", None, 404, "not_found"),
        (Method::PATCH, "/v1/nodes", None, 405, "method_not_allowed"),
        (Method::POST, "/v1/units", None, 400, "invalid"),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "t/counter/x"})),
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "@t/counter"})),
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "@t/counter/x", "restart": "never"})),
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "@t/counter/x", "colour": "red"})),
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "@t/counter/x", "labels": {"": null}})),
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "x".repeat(70_000)})),
            413,
            "too_large",
        ),
        (
            Method::POST,
            "/v1/units",
            Some(json!({"child": "@t/counter/x", "node": "zebra"})),
            404,
            "not_found",
        ),
        (Method::DELETE, "/v1/units/unit-1", None, 400, "invalid"),
        (
            Method::POST,
            "/v1/units/unit-1/move",
            Some(json!({"to": "zebra"})),
            404,
            "not_found",
        ),
        (
            Method::POST,
            "/v1/nodes/a/drain?wait=5",
            None,
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/nodes/a/drain?wait=0s",
            None,
            400,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/nodes/a/drain?wait=1000m",
            None,
            400,
            "invalid",
        ),
    ] {
        served.refuses(method, path, body, status, kind).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn a_child_is_created_once_moved_and_removed() {
    let served = Served::formed().await;
    let new = || Some(json!({"child": "@t/counter/x", "restart": "transient"}));
    let unit = served.check(Method::POST, "/v1/units", new(), 201).await;
    assert_eq!(unit["child"], "@t/counter/x");
    let again = served.check(Method::POST, "/v1/units", new(), 200).await;
    assert_eq!(again["id"], unit["id"]);
    let other = Some(json!({"child": "@t/counter/x"}));
    served
        .refuses(Method::POST, "/v1/units", other, 409, "conflict")
        .await;
    let second = Some(json!({"child": "@t/counter/y"}));
    served.check(Method::POST, "/v1/units", second, 201).await;
    let tree = served.get("/v1/tree").await;
    let supervisors = tree["children"].as_array().unwrap().iter();
    let supervisors: Vec<_> = supervisors
        .filter(|child| child["supervisor"].is_object())
        .collect();
    assert_eq!(supervisors.len(), 1, "{tree}");
    let found = served.get("/v1/units?kind=counter&tenant=t").await;
    assert_eq!(found["items"].as_array().unwrap().len(), 2);

    let path = "/v1/units/@t%2Fcounter%2Fx";
    let to = |name: &str| Some(json!({ "to": name }));
    let moved = served
        .check(Method::POST, &format!("{path}/move?wait=5s"), to("b"), 200)
        .await;
    assert_eq!(moved["owner"], "b");
    assert_eq!(moved["state"], "serving");
    let path_there = format!("{path}/move");
    served.check(Method::POST, &path_there, to("b"), 200).await;
    let removed = served.check(Method::DELETE, path, None, 200).await;
    assert_eq!(removed["removed"], true);
    served
        .refuses(Method::GET, path, None, 404, "not_found")
        .await;
    served.stop().await;
}

#[tokio::test]
async fn a_drain_waits_until_the_node_owns_nothing() {
    let served = Served::formed().await;
    let drained = served
        .check(Method::POST, "/v1/nodes/a/drain?wait=5s", None, 200)
        .await;
    assert_eq!(
        (&drained["units"], &drained["draining"]),
        (&json!(0), &json!(true))
    );
    let to = Some(json!({"to": "a"}));
    served
        .refuses(Method::POST, "/v1/units/unit-1/move", to, 409, "conflict")
        .await;
    let back = served
        .check(Method::DELETE, "/v1/nodes/a/drain", None, 200)
        .await;
    assert_eq!(back["draining"], false);
    served.stop().await;
}

#[tokio::test]
async fn a_call_brings_its_answer_or_its_problem() {
    let served = Served::formed().await;
    let response = served
        .call("t/counter/x", Some("k1"), b"body".to_vec())
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers();
    assert_eq!(headers["understudy-reflects"], "7");
    assert_eq!(headers["understudy-node"], "a");
    assert_eq!(headers["understudy-durable"], "true");
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(response.bytes().await.unwrap(), "k1body");
    let loose = served.call("t/counter/loose", None, Vec::new()).await;
    assert_eq!(loose.headers()["understudy-durable"], "false");
    let longest = served
        .call("t/counter/x", None, vec![7; CALL_BODY_MAX])
        .await;
    assert_eq!(longest.bytes().await.unwrap().len(), CALL_BODY_MAX);
    for (child, key, bytes, status, kind, after) in [
        (
            "t/counter/x",
            None,
            CALL_BODY_MAX + 1,
            413,
            "too_large",
            None,
        ),
        ("t/counter/x", Some(""), 1, 400, "invalid", None),
        ("t/counter/x", Some("has space"), 1, 400, "invalid", None),
        ("t/counter/full", None, 1, 429, "overloaded", Some("1")),
        ("t/counter/late", None, 1, 504, "deadline_exceeded", None),
        ("t/counter/a%20b", None, 1, 400, "invalid", None),
    ] {
        let response = served.call(child, key, vec![0; bytes]).await;
        assert_eq!(response.status(), status, "{child}");
        let header = response.headers().get("retry-after");
        assert_eq!(
            header.map(|after| after.to_str().unwrap()),
            after,
            "{child}"
        );
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["type"], kind, "{child}");
    }
    let key = "k".repeat(65);
    let response = served.call("t/counter/x", Some(&key), Vec::new()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    served.stop().await;
}

#[tokio::test]
async fn a_call_that_the_node_never_answers_ends_in_the_caller_s_time() {
    let served = Served::formed().await;
    let path = "/v1/children/t/counter/dumb/call?timeout=100ms";
    served
        .refuses(Method::POST, path, None, 504, "deadline_exceeded")
        .await;
    served.full.store(true, Ordering::Relaxed);
    let late = served.check(Method::POST, path, None, 504).await;
    assert_eq!(late["reason"], "disk_full");
    for (field, says) in [("detail", "more than 85 % full"), ("hint", "make room")] {
        assert!(late[field].as_str().unwrap().contains(says), "{late}");
    }
    for timeout in ["0s", "61s", "soon"] {
        let path = format!("/v1/children/t/counter/x/call?timeout={timeout}");
        served
            .refuses(Method::POST, &path, None, 400, "invalid")
            .await;
    }
    served.stop().await;
}

#[tokio::test]
async fn events_are_followed_from_where_one_left_off() {
    let served = Served::start().await;
    for nth in 1..=3 {
        let text = format!("nth {nth}");
        served.events.tell("test", Some(NodeId(1)), None, text);
    }
    let path = "/v1/events?after=1&follow=false";
    let text = served
        .send(Method::GET, path, None)
        .await
        .text()
        .await
        .unwrap();
    assert!(!text.contains("nth 1"), "{text}");
    for part in [
        "id: 65.2\n",
        "event: event\n",
        "\"text\":\"nth 2\"",
        "id: 65.3\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let request = served.http.get(format!("http://{}/v1/events", served.at));
    let request = request.bearer_auth(TOKEN).header("Last-Event-ID", "65.2");
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut heard = String::new();
    while !heard.contains("nth 3") {
        heard.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    served.events.tell("test", None, None, "live".to_owned());
    while !heard.contains("live") {
        heard.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    // A follower does not keep a node from stopping.
    served.stop().await;
    assert!(matches!(response.chunk().await, Ok(None)));
}

#[tokio::test]
async fn a_listener_open_to_other_machines_is_refused_unless_it_is_meant() {
    for (reach, refused) in [(Reach::Loopback, true), (Reach::Anyone, false)] {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let (asks, _asked) = mpsc::channel(1);
        let (_shown, view) = watch::channel(Arc::new(view(&Directory::default())));
        let handle = Handle::new(asks, view, Events::default());
        let token = Token::new(TOKEN).unwrap();
        let served = serve(
            listener,
            handle,
            Guests::new().functions(),
            token,
            reach,
            async {},
        )
        .await;
        assert_eq!(
            matches!(served, Err(ServeError::NotLoopback(_))),
            refused,
            "{reach:?}"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_and_a_broken_request_harms_nobody() {
    let served = Served::start().await;
    let long = format!(
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(64 * 1024)
    );
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    for (request, answer) in [
        (long.as_bytes(), "HTTP/1.1 431"),
        (many.as_bytes(), "HTTP/1.1 431"),
        (
            &b"\xf5\x55\x01\x01\0\0\0\0\0\0\0\0\r\n\r\n"[..],
            "HTTP/1.1 400",
        ),
    ] {
        let mut stream = TcpStream::connect(served.at).await.unwrap();
        // The other side may hang up before it has read all.
        let _ = stream.write_all(request).await;
        let mut heard = vec![0; answer.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), answer);
    }
    assert_eq!(served.get("/v1/cluster").await["formed"], false);
    served.stop().await;
}

/// A guest that adds, traps, and speaks the convention of bytes.
const GUEST: &str = r#"(module
  (memory (export "memory") 1)
  (global $sum (mut i64) (i64.const 0))
  (global $free (mut i32) (i32.const 4096))
  (func (export "add") (param i64) (result i64)
    (global.set $sum (i64.add (global.get $sum) (local.get 0)))
    (global.get $sum))
  (func (export "half") (param f64) (result f64 f64)
    (f64.mul (local.get 0) (f64.const 0.5))
    (f64.div (f64.const 0) (f64.const 0)))
  (func $deep (export "trap") (unreachable))
  (func (export "spin") (loop (br 0)))
  (func (export "us_alloc") (param $len i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (global.get $free) (local.get $len)))
    (local.get $at))
  ;; The request, behind its length.
  (func (export "echo") (param $at i32) (param $len i32) (result i32 i32 i32)
    (i32.store (i32.const 0) (local.get $len))
    (memory.copy (i32.const 4) (local.get $at) (local.get $len))
    (i32.const 0) (i32.const 0) (i32.const 0)
    drop drop drop
    (i32.store (i32.const 1024) (local.get $len))
    (memory.copy (i32.const 1028) (local.get $at) (local.get $len))
    (i32.const 1024) (i32.const 0) (i32.const 0))
  (func (export "refuse") (param i32 i32) (result i32 i32 i32)
    (i32.const 0) (i32.const 13) (i32.const 2048))
  (func (export "miss") (param i32 i32) (result i32 i32 i32)
    (i32.const 0) (i32.const 2) (i32.const 2048))
  (data (i32.const 2048) "not to you\00"))"#;

fn guest() -> Vec<u8> {
    wat::parse_str(GUEST).unwrap()
}

impl Served {
    async fn push(&self, id: &str, query: &str, wasm: Vec<u8>) -> Response {
        let path = format!("http://{}/v1/modules/{id}{query}", self.at);
        let request = self.http.put(path).bearer_auth(TOKEN).body(wasm);
        request.send().await.unwrap()
    }

    async fn pushed(&self, id: &str, query: &str, wasm: Vec<u8>, status: u16) -> Value {
        let response = self.push(id, query, wasm).await;
        let got = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(got, status, "{id}{query}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn guest_call(&self, path: &str, content: &str, body: &[u8]) -> Response {
        let request = self
            .http
            .post(format!("http://{}{path}", self.at))
            .bearer_auth(TOKEN)
            .header("Content-Type", content)
            .header("Idempotency-Key", "k")
            .body(body.to_vec());
        request.send().await.unwrap()
    }

    async fn guest_refuses(&self, path: &str, body: Value, status: u16, kind: &str) -> Value {
        let body = body.to_string();
        let response = self
            .guest_call(path, "application/json", body.as_bytes())
            .await;
        let got = response.status().as_u16();
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(
            (got, &answer["type"]),
            (status, &json!(kind)),
            "{path}: {answer}"
        );
        assert!(answer["hint"].is_string(), "{path}: {answer}");
        answer
    }
}

fn sha256(bytes: &[u8]) -> String {
    understudy_sandbox::module::ModuleHash::of(bytes).to_string()
}

#[tokio::test]
async fn a_module_is_pushed_listed_and_looked_at() {
    let served = Served::formed().await;
    let wasm = guest();
    let hash = sha256(&wasm);
    let with_hash = format!("?sha256={hash}");
    let pushed = served
        .pushed("sum/1.2.0", &with_hash, wasm.clone(), 201)
        .await;
    assert_eq!(pushed["state"], "sealed");
    assert_eq!(pushed["sha256"], json!(hash));
    assert_eq!(pushed["bytes"], json!(wasm.len()));
    // The same again changes nothing; without a hash it is read whole first.
    served
        .pushed("sum/1.2.0", &with_hash, wasm.clone(), 200)
        .await;
    served.pushed("sum/1.2.0", "", wasm.clone(), 200).await;
    served.pushed("sum/1.10.0", "", wasm.clone(), 201).await;
    served
        .pushed("sum/2.0.0-rc.1", "?tenant=acme", wasm.clone(), 201)
        .await;

    let list = served.get("/v1/modules").await;
    let ids: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["sum@2.0.0-rc.1", "sum@1.10.0", "sum@1.2.0"]);
    assert_eq!(list["items"][2]["sha256"], json!(hash));
    let of_acme = served.get("/v1/modules?tenant=acme").await;
    assert_eq!(of_acme["items"].as_array().unwrap().len(), 1);
    let page = served.get("/v1/modules?limit=2").await;
    let next = page["next"].as_str().unwrap();
    let rest = served.get(&format!("/v1/modules?after={next}")).await;
    assert_eq!(rest["items"][0]["id"], "sum@1.2.0");

    // The versions of one, the newest first: by number, not by letter.
    served.pushed("sum/1.2.0-rc.1", "", wasm.clone(), 201).await;
    served.pushed("sum-x/3.0.0", "", wasm.clone(), 201).await;
    let versions = async |query: &str| {
        let list = served.get(&format!("/v1/modules/sum{query}")).await;
        let items = list["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["sha256"] == json!(hash)));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let versions = items.iter().filter_map(|item| text(&item["version"]));
        (versions.collect::<Vec<_>>(), text(&list["next"]))
    };
    let all = ["1.10.0", "1.2.0", "1.2.0-rc.1"];
    assert_eq!(versions("").await.0, all);
    assert_eq!(versions("?tenant=acme").await.0, ["2.0.0-rc.1"]);
    let (first, next) = versions("?limit=2").await;
    assert_eq!(first, all[..2]);
    let rest = format!("?after={}", next.unwrap());
    assert_eq!(versions(&rest).await, (vec![all[2].to_owned()], None));
    for (path, status, kind) in [
        ("/v1/modules/some", 404, "not_found"),
        ("/v1/modules/sum?tenant=nobody", 404, "not_found"),
        ("/v1/modules/Sum", 400, "invalid"),
        ("/v1/modules/sum?tenant=a/b", 400, "invalid"),
        ("/v1/modules/sum?after=x", 400, "invalid"),
        ("/v1/modules/sum?state=blue", 400, "invalid"),
    ] {
        served.refuses(Method::GET, path, None, status, kind).await;
    }

    let one = served.get("/v1/modules/sum/1.2.0").await;
    let exports = one["about"]["exports"].as_array().unwrap();
    let add = exports
        .iter()
        .find(|export| export["name"] == "add")
        .unwrap();
    assert_eq!(add["type"], "(i64) -> (i64)");
    served.stop().await;
}

#[tokio::test]
async fn a_push_that_is_not_right_is_refused_by_name() {
    let served = Served::formed().await;
    let wasm = guest();
    served.pushed("sum/1.0.0", "", wasm.clone(), 201).await;
    let mut other = wasm.clone();
    // A custom section without content: another module, as valid as the first.
    other.extend_from_slice(&[0, 2, 1, b'x']);
    let zeros = format!("?sha256={}", "0".repeat(64));
    for (id, query, wasm, status, kind) in [
        ("sum/1.0.0", "", other.clone(), 409, "conflict"),
        ("sum/1.0.1", &*zeros, wasm.clone(), 400, "invalid"),
        ("sum/1.0.2", "?sha256=abc", wasm.clone(), 400, "invalid"),
        ("sum/one", "", wasm.clone(), 400, "invalid"),
        ("Sum/1.0.0", "", wasm.clone(), 400, "invalid"),
        (
            "sum/1.0.3",
            "",
            b"not a module, but longer than eight".to_vec(),
            400,
            "invalid",
        ),
        (
            "sum/1.0.4",
            "",
            wasm[..wasm.len() / 2].to_vec(),
            400,
            "invalid",
        ),
        ("sum/1.0.5", "", Vec::new(), 507, "quota_exceeded"),
        (
            "sum/1.0.6",
            "?tenant=a/counter",
            wasm.clone(),
            400,
            "invalid",
        ),
        ("sum/1.0.7", "?tenent=a", wasm.clone(), 400, "invalid"),
    ] {
        let answer = served.pushed(id, query, wasm, status).await;
        assert_eq!(answer["type"], kind, "{id}{query}: {answer}");
        assert!(answer["hint"].is_string(), "{id}{query}: {answer}");
    }
    // What was refused is on no list, unless somebody asks for it.
    for path in ["/v1/modules", "/v1/modules/sum"] {
        let states = async |query: &str| {
            let list = served.get(&format!("{path}{query}")).await;
            let items = list["items"].as_array().unwrap().clone();
            let states = items.iter().map(|item| item["state"].as_str().unwrap());
            states.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(states("").await, ["sealed"]);
        let empty = states("?state=empty").await;
        assert!(empty.len() >= 2 && empty.iter().all(|state| state == "empty"));
        assert_eq!(states("?state=all").await.len(), 1 + empty.len());
    }
    served
        .refuses(
            Method::GET,
            "/v1/modules/sum?state=uploading",
            None,
            404,
            "not_found",
        )
        .await;
    let far = vec![0; understudy_gateway::MODULE_BYTES_MAX + 1];
    let answer = served.pushed("sum/1.0.8", "", far, 413).await;
    assert_eq!(answer["type"], "too_large");
    for id in ["1.0.1", "1.0.3", "1.0.8"] {
        served
            .refuses(
                Method::GET,
                &format!("/v1/modules/sum/{id}"),
                None,
                404,
                "not_found",
            )
            .await;
    }
    served.stop().await;
}

#[tokio::test]
async fn a_body_that_is_longer_than_a_part_arrives_whole() {
    let served = Served::formed().await;
    // Three parts and a little: what fills it is a section that means nothing.
    let mut wasm = guest();
    let filling = vec![7; 1_700_000];
    let length = filling.len() + 2;
    wasm.push(0);
    wasm.extend([
        0x80 | length as u8 & 0x7F,
        0x80 | (length >> 7) as u8 & 0x7F,
        (length >> 14) as u8,
    ]);
    wasm.extend([1, b'x']);
    wasm.extend(filling);
    let with_hash = format!("?sha256={}", sha256(&wasm));
    let pushed = served
        .pushed("big/1.0.0", &with_hash, wasm.clone(), 201)
        .await;
    assert_eq!(pushed["bytes"], json!(wasm.len()));
    let digits = sha256(b"other");
    let answer = served
        .pushed("big/1.0.1", &format!("?sha256={digits}"), wasm, 400)
        .await;
    assert_eq!(answer["reason"], "wrong_hash", "{answer}");
    served.stop().await;
}

#[tokio::test]
async fn a_sandbox_keeps_what_its_calls_changed() {
    let served = Served::formed().await;
    served.pushed("sum/1.0.0", "", guest(), 201).await;
    let new = json!({ "name": "s", "module": "sum", "policy": { "clock": "virtual" } });
    let made = served
        .check(Method::POST, "/v1/sandboxes", Some(new.clone()), 201)
        .await;
    assert_eq!(made["module"], "sum@1.0.0", "{made}");
    assert_eq!(made["durability"], "every-call", "{made}");
    assert_eq!(made["node"], "a");
    // The same again is the same; another one is not.
    served
        .check(Method::POST, "/v1/sandboxes", Some(new), 201)
        .await;
    let other = json!({ "name": "s", "module": "sum@1.0.0" });
    served
        .guest_refuses("/v1/sandboxes", other, 409, "conflict")
        .await;

    for sum in [5, 10] {
        let path = "/v1/sandboxes/s/call/add";
        let response = served
            .guest_call(path, "application/json; charset=utf-8", b" [5]")
            .await;
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["understudy-node"], "a");
        assert_eq!(response.headers()["understudy-durable"], "true");
        assert_eq!(response.text().await.unwrap(), format!("[{sum}]"));
    }
    let halved = served
        .guest_call("/v1/sandboxes/s/call/half", "application/json", b"[3]")
        .await;
    assert_eq!(halved.text().await.unwrap(), r#"[1.5,"NaN"]"#);
    let echoed = served
        .guest_call("/v1/sandboxes/s/call/echo", "text/plain", b"[5]")
        .await;
    assert_eq!(echoed.headers()["content-type"], "application/octet-stream");
    assert_eq!(echoed.text().await.unwrap(), "[5]");

    let list = served.get("/v1/sandboxes?tenant=default").await;
    assert_eq!(list["items"][0]["id"], "s");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        served.get("/v1/sandboxes?tenant=acme").await["items"],
        json!([])
    );
    assert_eq!(
        served.get("/v1/sandboxes/s").await["memory_bytes"],
        json!(65_536)
    );
    served.stop().await;
}

#[tokio::test]
async fn what_a_guest_does_wrong_has_a_name() {
    let served = Served::formed().await;
    served.pushed("sum/1.0.0", "", guest(), 201).await;
    let limits = json!({ "memory_bytes": 1 << 20, "slices": 3 });
    let new = json!({ "name": "s", "module": "sum@1.0.0", "limits": limits });
    served
        .check(Method::POST, "/v1/sandboxes", Some(new), 201)
        .await;
    let trapped = served
        .guest_refuses("/v1/sandboxes/s/call/trap", json!([]), 502, "guest_trapped")
        .await;
    assert_eq!(trapped["function"], "deep", "{trapped}");
    assert_eq!(trapped["backtrace"], json!(["deep"]), "{trapped}");
    let denied = served
        .guest_refuses(
            "/v1/sandboxes/s/call/refuse",
            json!({}),
            403,
            "guest_denied",
        )
        .await;
    assert_eq!(
        (&denied["error_code"], &denied["detail"]),
        (&json!(13), &json!("not to you"))
    );
    let failed = served
        .guest_refuses("/v1/sandboxes/s/call/miss", json!({}), 422, "guest_failed")
        .await;
    assert_eq!(failed["failure"], "NotFound");
    for (path, body, status, kind) in [
        (
            "/v1/sandboxes/s/call/spin",
            json!([]),
            504,
            "deadline_exceeded",
        ),
        ("/v1/sandboxes/s/call/nowhere", json!([]), 404, "not_found"),
        ("/v1/sandboxes/s/call/add", json!([]), 400, "invalid"),
        ("/v1/sandboxes/s/call/add", json!(["x"]), 400, "invalid"),
        ("/v1/sandboxes/s/call/add", json!({}), 400, "invalid"),
        ("/v1/sandboxes/none/call/add", json!([1]), 404, "not_found"),
        (
            "/v1/functions/sum/call/nowhere",
            json!([]),
            404,
            "not_found",
        ),
        (
            "/v1/functions/sum/call/trap",
            json!([]),
            502,
            "guest_trapped",
        ),
        (
            "/v1/functions/sum/call/refuse",
            json!({}),
            403,
            "guest_denied",
        ),
        ("/v1/functions/none/call/add", json!([1]), 404, "not_found"),
        (
            "/v1/functions/sum@1.0.1/call/add",
            json!([1]),
            404,
            "not_found",
        ),
        ("/v1/functions/Sum/call/add", json!([1]), 400, "invalid"),
        // A tenant is a name and not the way to another kind's children.
        (
            "/v1/functions/sum@1.0.0/call/add?tenant=a/counter",
            json!([1]),
            400,
            "invalid",
        ),
        (
            "/v1/functions/sum@1.0.0/call/add?tenant=@a",
            json!([1]),
            400,
            "invalid",
        ),
        (
            "/v1/sandboxes",
            json!({"name": "t", "module": "none@1.0.0"}),
            404,
            "not_found",
        ),
        (
            "/v1/sandboxes",
            json!({"name": "t", "module": "none"}),
            404,
            "not_found",
        ),
        (
            "/v1/sandboxes",
            json!({"name": "", "module": "sum"}),
            400,
            "invalid",
        ),
        (
            "/v1/sandboxes",
            json!({"name": "t", "module": "sum", "policy": {"net": 1}}),
            400,
            "invalid",
        ),
        (
            "/v1/sandboxes",
            json!({"name": "t", "module": "sum", "sha256": "0".repeat(64)}),
            409,
            "conflict",
        ),
    ] {
        served.guest_refuses(path, body, status, kind).await;
    }
    served
        .refuses(Method::GET, "/v1/sandboxes/none", None, 404, "not_found")
        .await;
    // None of it was taken for a change.
    let response = served
        .guest_call("/v1/sandboxes/s/call/add", "application/json", b"[1]")
        .await;
    assert_eq!(response.text().await.unwrap(), "[1]");
    served.stop().await;
}

#[tokio::test]
async fn a_function_begins_anew_with_each_call_and_a_bare_name_is_its_highest_version() {
    let served = Served::formed().await;
    let two = GUEST.replace("i64.add", "i64.sub");
    served.pushed("sum/1.2.0", "", guest(), 201).await;
    served
        .pushed("sum/1.10.0", "", wat::parse_str(two).unwrap(), 201)
        .await;
    served.pushed("sum/2.0.0-rc.1", "", guest(), 201).await;
    for (name, sum) in [
        ("sum", -5),
        ("sum@1.2.0", 5),
        ("sum", -5),
        ("sum@1.10.0", -5),
    ] {
        let path = format!("/v1/functions/{name}/call/add");
        let response = served.guest_call(&path, "application/json", b"[5]").await;
        assert_eq!(response.headers()["understudy-durable"], "false");
        assert_eq!(response.headers()["understudy-node"], "a");
        assert_eq!(response.text().await.unwrap(), format!("[{sum}]"), "{name}");
    }
    let echoed = served
        .guest_call("/v1/functions/sum/call/echo", "text/plain", b"hello")
        .await;
    assert_eq!(echoed.text().await.unwrap(), "hello");
    served.stop().await;
}
