//! The gateway over real sockets. Behind it stands a directory without a cluster: see `common`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

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

use common::{core, view};

const TOKEN: &str = "us_test_0123456789abcdef";

struct Served {
    at: SocketAddr,
    http: Client,
    events: Events,
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
        let handle = Handle::new(asks, view, events.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(core(asked, shown));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let token = Token::new(TOKEN).unwrap();
        tasks.spawn(async {
            serve(listener, handle, token, Reach::Loopback, shutdown)
                .await
                .unwrap();
        });
        Served {
            at,
            http: Client::new(),
            events,
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
        let served = serve(listener, handle, token, reach, async {}).await;
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
