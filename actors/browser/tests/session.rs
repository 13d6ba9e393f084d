//! A whole session as a node sees it: started, used, killed with its browser, and started again from
//! what it handed out.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use understudy_browser::SessionState;
use understudy_browser::egress::EgressPolicy;
use understudy_browser::host::{Browsers, Sharing};
use understudy_browser::process::Direct;
use understudy_browser::session::{Given, NotHere, Session, Sessions, Told};
use understudy_browser::state::{PageKey, PageState};
use understudy_browser::tunnel::End;
use understudy_protocol::id::{ChildId, IncarnationId};
use understudy_protocol::wire::envelope::CallKey;
use understudy_protocol::workload::egress::Allow;
use understudy_supervision::{Checkpoint, Child as _, Context, Kind as _, Request, StartError};

use common::{Place, eventually};

/// Sessions of one node, and what people heard of them.
struct Node {
    place: Place,
    sessions: Sessions,
    browsers: Browsers,
    told: Arc<Mutex<Vec<Told>>>,
    may_act: Arc<std::sync::atomic::AtomicBool>,
}

impl Node {
    fn new(allow: &[&str]) -> Node {
        Node::with(allow, Sharing::Tenant, 64)
    }

    fn with(allow: &[&str], sharing: Sharing, sessions: usize) -> Node {
        let place = Place::new();
        let browsers = Browsers::new(place.setup(), sharing, Arc::new(Direct));
        let told = Arc::<Mutex<Vec<Told>>>::default();
        let may_act = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let allow = allow
            .iter()
            .map(|allow| Allow::parse(allow).unwrap())
            .collect();
        let (telling, acting) = (told.clone(), may_act.clone());
        let given = Given {
            browsers: browsers.clone(),
            sessions,
            policy: Arc::new(EgressPolicy::new(allow)),
            permit: Arc::new(move |_| acting.load(std::sync::atomic::Ordering::SeqCst)),
            told: Arc::new(move |_, what| telling.lock().unwrap().push(what)),
        };
        Node {
            place,
            sessions: Sessions::new(given).with_hang_limit(HANG),
            browsers,
            told,
            may_act,
        }
    }

    async fn start(&self, child: &str, checkpoint: Checkpoint) -> Session {
        let context = Context::new(ChildId::parse(child).unwrap(), |_, _| {});
        self.sessions.start(context, checkpoint).await.unwrap()
    }
}

async fn ask(session: &mut Session, ask: Value) -> (Value, Bytes) {
    let gateway = IncarnationId(1);
    let key = CallKey::Internal { gateway, number: 1 };
    let request = Request::new(key, ask.to_string().into());
    let answer = session.handle(request).await.unwrap().answer;
    let line = answer.iter().position(|byte| *byte == b'\n');
    let line = line.unwrap_or(answer.len());
    let head = serde_json::from_slice(&answer[..line]).unwrap();
    (head, answer.slice((line + 1).min(answer.len())..))
}

/// What the session has to say by itself.
async fn step(session: &mut Session) -> Option<Bytes> {
    session.handle(Request::prod()).await.unwrap().effect
}

/// A page whose storage, cookie and form are set by a query, and which says what its first script saw.
async fn site() -> (u16, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 8192];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut asked).await;
            let body = "<!doctype html><title>site</title><script>document.title = 'basket ' + \
                localStorage.getItem('basket')</script><input id=name><div style='height:3000px'></div>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nset-cookie: visitor=viola; HttpOnly\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
        }
    });
    (port, tasks)
}

/// A client of a session that speaks over the channels of `serve`.
struct Speaker {
    say: mpsc::Sender<Bytes>,
    hear: mpsc::Receiver<Bytes>,
    serving: tokio::task::JoinSet<End>,
    last: u64,
}

impl Speaker {
    async fn attach(node: &Node, session: &mut Session, child: &str) -> Speaker {
        let (head, _) = ask(session, json!({ "op": "attach" })).await;
        let child = ChildId::parse(child).unwrap();
        let client = node
            .sessions
            .admit(&child, head["ticket"].as_str().unwrap())
            .unwrap();
        let (say, from) = mpsc::channel(64);
        let (to, hear) = mpsc::channel(64);
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(client.serve(from, to));
        Speaker {
            say,
            hear,
            serving,
            last: 0,
        }
    }

    async fn call(&mut self, page: Option<&str>, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(page) = page {
            message["sessionId"] = page.into();
        }
        self.say.send(message.to_string().into()).await.unwrap();
        loop {
            let heard = tokio::time::timeout(Duration::from_secs(20), self.hear.recv()).await;
            let heard: Value = serde_json::from_slice(&heard.unwrap().unwrap()).unwrap();
            if heard["id"] == json!(self.last) {
                return heard;
            }
        }
    }

    async fn page(&mut self) -> String {
        let targets = self.call(None, "Target.getTargets", json!({})).await;
        let pages = targets["result"]["targetInfos"].as_array().unwrap().clone();
        let page = pages
            .iter()
            .find(|target| target["type"] == "page")
            .unwrap();
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", attach).await;
        attached["result"]["sessionId"].as_str().unwrap().to_owned()
    }

    async fn evaluate(&mut self, page: &str, expression: &str) -> Value {
        let ask = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let said = self.call(Some(page), "Runtime.evaluate", ask).await;
        said["result"]["result"]["value"].clone()
    }
}

/// Until a page is begun anew that does not answer.
const HANG: Duration = Duration::from_secs(2);

const CHILD: &str = "@acme/session/shop";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_from_its_last_step_in_another_browser() {
    let (port, _site) = site().await;
    let url = format!("http://127.0.0.1:{port}/");
    let node = Node::new(&[&format!("127.0.0.1:{port}")]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let (opened, _) = ask(&mut session, json!({ "op": "open", "url": url })).await;
    assert_eq!(
        opened,
        json!({ "ok": true }),
        "{:?}",
        node.told.lock().unwrap()
    );
    let mut client = Speaker::attach(&node, &mut session, CHILD).await;
    let page = client.page().await;
    let title = "new Promise(done => { const look = () => document.title.startsWith('basket') ? \
        done(document.title) : setTimeout(look, 20); look(); })";
    assert_eq!(client.evaluate(&page, title).await, json!("basket null"));
    let fill = "localStorage.setItem('basket', 'crown'); \
        document.getElementById('name').value = 'Feste'; \
        document.getElementById('name').dispatchEvent(new Event('input', {bubbles: true})); scrollTo(0, 700)";
    client.evaluate(&page, fill).await;
    let mut steps = Vec::new();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        steps.extend(step(&mut session).await);
    }
    assert!(!steps.is_empty());
    let (about, _) = ask(&mut session, json!({ "op": "about" })).await;
    assert_eq!(about["about"]["pages"][0]["url"], json!(url));
    assert_eq!(about["about"]["clients"], json!(1));

    // Its browser dies: the client hears of it, with the code that says "connect again".
    let (_, pid) = node.browsers.running().pop().unwrap();
    common::kill(pid);
    let end = client.serving.join_next().await.unwrap().unwrap();
    assert_eq!(end.code, 1012, "{end:?}");
    drop(session);

    let again = Checkpoint::new(None, steps);
    let mut session = node.start(CHILD, again).await;
    let mut client = Speaker::attach(&node, &mut session, CHILD).await;
    let page = client.page().await;
    // What the page's first script saw.
    assert_eq!(client.evaluate(&page, title).await, json!("basket crown"));
    let look = "document.getElementById('name').value + ' ' + Math.round(scrollY)";
    assert_eq!(client.evaluate(&page, look).await, json!("Feste 700"));
    let cookies = client.call(None, "Storage.getCookies", json!({})).await;
    assert_eq!(cookies["result"]["cookies"][0]["value"], json!("viola"));
    let (shot, png) = ask(&mut session, json!({ "op": "screenshot" })).await;
    assert_eq!(shot["ok"], json!(true));
    assert_eq!(&png[..4], b"\x89PNG");

    // From a base instead of steps it is the same.
    let base = session.snapshot().await.unwrap();
    drop(session);
    let mut session = node
        .start(CHILD, Checkpoint::new(Some(base), Vec::new()))
        .await;
    let mut client = Speaker::attach(&node, &mut session, CHILD).await;
    let page = client.page().await;
    assert_eq!(client.evaluate(&page, look).await, json!("Feste 700"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_numbered_as_they_are_shown() {
    let (port, _site) = site().await;
    let node = Node::new(&[&format!("127.0.0.1:{port}")]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let mut client = Speaker::attach(&node, &mut session, CHILD).await;
    // Each is as high as it is late, so that a picture of all of it tells which it is.
    for nth in 1..4 {
        let high = 700 + 100 * nth;
        let url = format!(
            "data:text/html,<title>page {nth}</title><body style='margin:0;height:{high}px'>"
        );
        client
            .call(None, "Target.createTarget", json!({ "url": url }))
            .await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        step(&mut session).await;
    }
    let (about, _) = ask(&mut session, json!({ "op": "about" })).await;
    let titles: Vec<&str> = about["about"]["pages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|page| page["title"].as_str().unwrap())
        .collect();
    assert_eq!(titles, ["", "page 1", "page 2", "page 3"]);
    let url = format!("http://127.0.0.1:{port}/");
    let (opened, _) = ask(&mut session, json!({ "op": "open", "url": url })).await;
    assert_eq!(opened, json!({ "ok": true }));
    tokio::time::sleep(Duration::from_millis(700)).await;
    step(&mut session).await;
    let (about, _) = ask(&mut session, json!({ "op": "about" })).await;
    assert_eq!(about["about"]["pages"][0]["url"], json!(url), "{about}");
    let height = |png: &Bytes| u32::from_be_bytes(png[20..24].try_into().unwrap());
    for (page, high) in [(1, 800), (2, 900), (3, 1000)] {
        let take = json!({ "op": "screenshot", "page": page, "full": true });
        let (_, png) = ask(&mut session, take).await;
        assert_eq!(height(&png), high, "page {page}");
    }
    let (_, png) = ask(&mut session, json!({ "op": "screenshot", "page": 3 })).await;
    assert_eq!(height(&png), 600, "only what is in view");
    let (_, png) = ask(&mut session, json!({ "op": "screenshot", "full": true })).await;
    assert!(height(&png) > 3000, "the first page is long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pages_are_not_back_in_time_does_not_start_without_them() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut silent = tokio::task::JoinSet::new();
    silent.spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let mut state = SessionState::default();
    let page = PageState {
        url: format!("http://127.0.0.1:{port}/"),
        history: vec![format!("http://127.0.0.1:{port}/")],
        ..PageState::default()
    };
    state.pages.insert(PageKey(1), page);
    let mut node = Node::new(&[&format!("127.0.0.1:{port}")]);
    node.sessions = node.sessions.with_restore_limit(Duration::from_secs(2));
    let context = Context::new(ChildId::parse(CHILD).unwrap(), |_, _| {});
    let checkpoint = Checkpoint::new(Some(state.encode()), Vec::new());
    let refused = node.sessions.start(context, checkpoint).await;
    let refused = refused.err().expect("it started without its page");
    assert!(
        refused.to_string().contains("not all back within 2s"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_may_not_reach_is_refused_and_told() {
    let (port, _site) = site().await;
    let node = Node::new(&[]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let url = format!("http://127.0.0.1:{port}/");
    let _ = ask(&mut session, json!({ "op": "open", "url": url })).await;
    let told = node.told.clone();
    eventually("the denial is told", || {
        let told = told.lock().unwrap();
        told.iter()
            .any(|told| matches!(told, Told::Denied(text) if text.contains("127.0.0.1")))
    })
    .await;
    for (url, code) in [
        ("file:///etc/passwd", "invalid"),
        ("chrome://version", "invalid"),
        ("no address", "invalid"),
    ] {
        let (said, _) = ask(&mut session, json!({ "op": "open", "url": url })).await;
        assert_eq!(said["error"]["code"], json!(code), "{url}: {said}");
    }
    let (said, _) = ask(&mut session, json!({ "op": "screenshot", "page": 7 })).await;
    assert_eq!(said["error"]["code"], json!("not_found"), "{said}");
    let (said, _) = ask(&mut session, json!({ "op": "dance" })).await;
    assert_eq!(said["error"]["code"], json!("invalid"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_once_the_node_may_not_act() {
    let (port, _site) = site().await;
    let node = Node::new(&[&format!("127.0.0.1:{port}")]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    node.may_act
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let mut client = Speaker::attach(&node, &mut session, CHILD).await;
    let page = client.page().await;
    let url = format!("http://127.0.0.1:{port}/");
    client
        .call(Some(&page), "Page.navigate", json!({ "url": url }))
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let title = client.evaluate(&page, "document.title").await;
    assert!(
        !title.as_str().unwrap_or_default().starts_with("basket"),
        "{title}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_one_client_in_once() {
    let node = Node::new(&[]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let child = ChildId::parse(CHILD).unwrap();
    let (head, _) = ask(&mut session, json!({ "op": "attach" })).await;
    let ticket = head["ticket"].as_str().unwrap();
    assert!(node.sessions.admit(&child, ticket).is_ok());
    assert_eq!(
        node.sessions.admit(&child, ticket).err(),
        Some(NotHere::BadTicket)
    );
    assert_eq!(
        node.sessions.admit(&child, "guess").err(),
        Some(NotHere::BadTicket)
    );
    drop(session);
    assert_eq!(
        node.sessions.admit(&child, ticket).err(),
        Some(NotHere::NoSession)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_sessions_share_a_process_and_two_tenants_do_not() {
    let node = Node::new(&[]);
    let mut sessions = BTreeMap::new();
    for child in ["@acme/session/a", "@acme/session/b", "@other/session/a"] {
        sessions.insert(child, node.start(child, Checkpoint::default()).await);
    }
    assert_eq!(node.browsers.running().len(), 2);
    assert_eq!(node.place.profiles(), 2);
    drop(sessions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_shares_with_nobody_has_a_process_of_its_own() {
    let node = Node::with(&[], Sharing::Nobody, 64);
    let a = node.start("@acme/session/a", Checkpoint::default()).await;
    let b = node.start("@acme/session/b", Checkpoint::default()).await;
    assert_eq!(node.browsers.running().len(), 2);
    assert_eq!(node.place.profiles(), 2);
    // It ends with its session, and the other does not.
    drop(a);
    eventually("the first one's process is gone", || {
        node.browsers.running().len() == 1
    })
    .await;
    assert_eq!(node.browsers.running()[0].0, "@acme/session/b");
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_more_than_a_node_may_run_is_refused_until_one_ends() {
    let node = Node::with(&[], Sharing::Tenant, 1);
    let first = node.start(CHILD, Checkpoint::default()).await;
    let other = ChildId::parse("@acme/session/other").unwrap();
    let start = || {
        let context = Context::new(other.clone(), |_, _| {});
        node.sessions.start(context, Checkpoint::default())
    };
    match start().await.err() {
        Some(StartError::Full(why)) => assert!(why.contains("`[browser] sessions` is 1"), "{why}"),
        error => panic!("{error:?}"),
    }
    drop(first);
    start().await.unwrap();
}

/// A session with two pages: one at the site, with something in its form, and one beside it. The client,
/// the page's session, and the steps so far.
async fn filled(node: &Node, session: &mut Session, url: &str) -> (Speaker, String) {
    ask(session, json!({ "op": "open", "url": url })).await;
    let mut client = Speaker::attach(node, session, CHILD).await;
    let page = client.page().await;
    let fill = "new Promise(done => { const look = () => document.getElementById('name') ? done() : \
        setTimeout(look, 20); look(); }).then(() => { localStorage.setItem('basket', 'crown'); \
        document.getElementById('name').value = 'Feste'; \
        document.getElementById('name').dispatchEvent(new Event('input', {bubbles: true})); })";
    client.evaluate(&page, fill).await;
    let beside = json!({ "url": "data:text/html,<title>beside</title>" });
    client.call(None, "Target.createTarget", beside).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        step(session).await;
    }
    (client, page)
}

/// Prods the session, as its own timer does, until a page was begun anew and is seen.
async fn mended(node: &Node, session: &mut Session) -> String {
    let told = || {
        let told = node.told.lock().unwrap();
        told.iter().find_map(|told| match told {
            Told::PageLost(text) => Some(text.clone()),
            _ => None,
        })
    };
    for _ in 0..400 {
        step(session).await;
        if let Some(text) = told() {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                step(session).await;
            }
            return text;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no page was begun anew");
}

/// The page is as it was filled, the one beside it is the same target, and the order did not change.
async fn is_whole(node: &Node, session: &mut Session, url: &str) {
    let (about, _) = ask(session, json!({ "op": "about" })).await;
    let pages = about["about"]["pages"].as_array().unwrap();
    let titles: Vec<&str> = pages
        .iter()
        .map(|page| page["title"].as_str().unwrap())
        .collect();
    assert_eq!(titles, ["basket crown", "beside"], "{about}");
    let mut client = Speaker::attach(node, session, CHILD).await;
    let targets = client.call(None, "Target.getTargets", json!({})).await;
    let targets = targets["result"]["targetInfos"].as_array().unwrap().clone();
    let targets = targets.iter().filter(|target| target["type"] == "page");
    assert_eq!(targets.clone().count(), 2);
    let found = targets
        .clone()
        .find(|target| target["url"] == json!(url))
        .unwrap();
    let attach = json!({ "targetId": found["targetId"], "flatten": true });
    let attached = client.call(None, "Target.attachToTarget", attach).await;
    let page = attached["result"]["sessionId"].as_str().unwrap();
    let name = client
        .evaluate(page, "document.getElementById('name').value")
        .await;
    assert_eq!(name, json!("Feste"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_crashed_is_begun_anew_alone() {
    let (port, _site) = site().await;
    let url = format!("http://127.0.0.1:{port}/");
    let node = Node::new(&[&format!("127.0.0.1:{port}")]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let (client, page) = filled(&node, &mut session, &url).await;
    let crash = json!({ "id": 999, "method": "Page.crash", "sessionId": page });
    client.say.send(crash.to_string().into()).await.unwrap();
    let told = mended(&node, &mut session).await;
    assert_eq!(
        told,
        format!("{url}: its process crashed; it was begun anew")
    );
    is_whole(&node, &mut session, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_loops_for_ever_is_begun_anew_and_one_that_shows_a_dialog_is_not() {
    let (port, _site) = site().await;
    let url = format!("http://127.0.0.1:{port}/");
    let node = Node::new(&[&format!("127.0.0.1:{port}")]);
    let mut session = node.start(CHILD, Checkpoint::default()).await;
    let (mut client, page) = filled(&node, &mut session, &url).await;
    client.call(Some(&page), "Page.enable", json!({})).await;
    let shown = client
        .evaluate(&page, "setTimeout(() => alert('well?')), 1")
        .await;
    assert_eq!(shown, json!(1));
    let began = std::time::Instant::now();
    while began.elapsed() < 3 * HANG {
        step(&mut session).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(node.told.lock().unwrap().is_empty(), "{:?}", node.told);
    let accept = json!({ "accept": true });
    client
        .call(Some(&page), "Page.handleJavaScriptDialog", accept)
        .await;
    assert_eq!(client.evaluate(&page, "1 + 1").await, json!(2));

    let hang = json!({ "id": 999, "method": "Runtime.evaluate", "sessionId": page,
        "params": { "expression": "for (;;) {}" } });
    client.say.send(hang.to_string().into()).await.unwrap();
    let told = mended(&node, &mut session).await;
    assert!(
        told.contains("it has not answered for 2 s; it was begun anew"),
        "{told}"
    );
    is_whole(&node, &mut session, &url).await;
}
