//! A hostile client of one session, beside another session of the same browser: everything that it
//! may try to see, attach to, close, read or kill, on every kind of session it can have. The table is
//! printed; after each row the other session's page and the browser still work, and the client has
//! never been told an id or a cookie of the other session.

#![allow(clippy::unwrap_used)]

mod common;
mod jailed;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_browser::door::HOLD_LIMIT;
use understudy_browser::filter::MESSAGE_BYTES_MAX;
use understudy_browser::{Browser, Door, Ended, Jail};

use common::Place;
use jailed::Line;

/// What has to come of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Must {
    /// An error.
    Refuse,
    /// An answer, that of a browser in which the other session is not.
    Blind,
    /// Either: what matters is that the other session does not notice.
    Harmless,
}
use Must::{Blind, Harmless, Refuse};

/// Where a row is tried.
const ROOT: &[&str] = &["root", "sub-root"];
const PAGE: &[&str] = &["page"];
const ALL: &[&str] = &["root", "sub-root", "page"];

type Row = (&'static str, Value, Must, &'static [&'static str]);

fn table(foreign: &Foreign, own: &Own) -> Vec<Row> {
    let target = &foreign.target;
    let context = &foreign.context;
    let pages = &foreign.pages;
    let cookie = json!([{ "name": "planted", "value": "1", "url": pages }]);
    let mut rows: Vec<Row> = vec![
        // To see.
        ("Target.getTargets", json!({}), Blind, ALL),
        ("Target.getTargets", json!({ "filter": [{}] }), Blind, ALL),
        ("Target.getBrowserContexts", json!({}), Blind, ALL),
        ("Target.getTargetInfo", json!({}), Blind, ALL),
        (
            "Target.getTargetInfo",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Target.setDiscoverTargets",
            json!({ "discover": true, "filter": [{}] }),
            Blind,
            ALL,
        ),
        (
            "Target.setAutoAttach",
            json!({ "autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true }),
            Blind,
            ALL,
        ),
        (
            "Target.getDevToolsTarget",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Browser.getWindowForTarget",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Browser.getWindowBounds",
            json!({ "windowId": foreign.window }),
            Refuse,
            ALL,
        ),
        // To attach.
        (
            "Target.attachToTarget",
            json!({ "targetId": target, "flatten": true }),
            Refuse,
            ALL,
        ),
        (
            "Target.attachToTarget",
            json!({ "targetId": own.target }),
            Refuse,
            ALL,
        ),
        (
            "Target.attachToTarget",
            json!({ "targetId": own.target, "flatten": false }),
            Refuse,
            ALL,
        ),
        (
            "Target.setAutoAttach",
            json!({ "autoAttach": true, "waitForDebuggerOnStart": false }),
            Refuse,
            ALL,
        ),
        (
            "Target.autoAttachRelated",
            json!({ "targetId": target, "waitForDebuggerOnStart": true }),
            Refuse,
            ALL,
        ),
        (
            "Target.exposeDevToolsProtocol",
            json!({ "targetId": own.target, "inheritPermissions": true }),
            Refuse,
            ALL,
        ),
        (
            "Target.setRemoteLocations",
            json!({ "locations": [{ "host": "127.0.0.1", "port": 9222 }] }),
            Refuse,
            ALL,
        ),
        (
            "Target.openDevTools",
            json!({ "targetId": own.target }),
            Refuse,
            ALL,
        ),
        (
            "Target.sendMessageToTarget",
            json!({ "targetId": target, "message": "{\"id\":1,\"method\":\"Page.close\"}" }),
            Refuse,
            ALL,
        ),
        (
            "Target.sendMessageToTarget",
            json!({ "sessionId": own.session, "message": "{\"id\":1,\"method\":\"Browser.crash\"}" }),
            Refuse,
            ALL,
        ),
        // To close and to kill.
        (
            "Target.closeTarget",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Target.activateTarget",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Target.detachFromTarget",
            json!({ "sessionId": foreign.session }),
            Refuse,
            ALL,
        ),
        (
            "Target.detachFromTarget",
            json!({ "targetId": target }),
            Refuse,
            ALL,
        ),
        (
            "Target.disposeBrowserContext",
            json!({ "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Target.disposeBrowserContext",
            json!({ "browserContextId": own.context }),
            Refuse,
            ALL,
        ),
        (
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Browser.setWindowBounds",
            json!({ "windowId": foreign.window, "bounds": { "width": 1, "height": 1 } }),
            Refuse,
            ALL,
        ),
        (
            "Browser.setContentsSize",
            json!({ "windowId": foreign.window, "width": 1, "height": 1 }),
            Refuse,
            ALL,
        ),
        ("Browser.crash", json!({}), Refuse, ALL),
        ("Browser.crashGpuProcess", json!({}), Refuse, ALL),
        (
            "Browser.executeBrowserCommand",
            json!({ "commandId": "closeTabSearch" }),
            Refuse,
            ALL,
        ),
        ("Memory.prepareForLeakDetection", json!({}), Refuse, ALL),
        (
            "Memory.simulatePressureNotification",
            json!({ "level": "critical" }),
            Refuse,
            ALL,
        ),
        (
            "Emulation.removeScreen",
            json!({ "screenId": "1" }),
            Refuse,
            ALL,
        ),
        // Cookies, permissions and downloads of the other.
        ("Storage.getCookies", json!({}), Blind, ALL),
        (
            "Storage.getCookies",
            json!({ "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Storage.setCookies",
            json!({ "cookies": cookie, "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Storage.setCookies",
            json!({ "cookies": cookie }),
            Blind,
            ALL,
        ),
        (
            "Storage.clearCookies",
            json!({ "browserContextId": context }),
            Refuse,
            ALL,
        ),
        ("Storage.clearCookies", json!({}), Blind, ALL),
        ("Network.getAllCookies", json!({}), Blind, PAGE),
        (
            "Network.getCookies",
            json!({ "urls": [pages] }),
            Blind,
            PAGE,
        ),
        ("Network.clearBrowserCookies", json!({}), Blind, PAGE),
        (
            "Storage.clearDataForOrigin",
            json!({ "origin": pages, "storageTypes": "all" }),
            Blind,
            PAGE,
        ),
        (
            "Storage.clearDataForOrigin",
            json!({ "origin": pages, "storageTypes": "all" }),
            Refuse,
            ROOT,
        ),
        (
            "Browser.setDownloadBehavior",
            json!({ "behavior": "deny", "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Browser.grantPermissions",
            json!({ "permissions": ["geolocation"], "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Browser.resetPermissions",
            json!({ "browserContextId": context }),
            Refuse,
            ALL,
        ),
        (
            "Browser.cancelDownload",
            json!({ "guid": "1", "browserContextId": context }),
            Refuse,
            ALL,
        ),
        // The machine, its process, its files.
        ("Browser.getBrowserCommandLine", json!({}), Refuse, ALL),
        ("Browser.getHistograms", json!({}), Refuse, ALL),
        ("SystemInfo.getInfo", json!({}), Refuse, ALL),
        ("SystemInfo.getProcessInfo", json!({}), Refuse, ALL),
        (
            "Tracing.start",
            json!({ "transferMode": "ReturnAsStream" }),
            Refuse,
            ALL,
        ),
        ("Tracing.getCategories", json!({}), Refuse, ALL),
        ("Tethering.bind", json!({ "port": 9222 }), Refuse, ALL),
        (
            "Extensions.loadUnpacked",
            json!({ "path": "/tmp" }),
            Refuse,
            ALL,
        ),
        ("PWA.launch", json!({ "manifestId": pages }), Refuse, ALL),
        ("DeviceAccess.enable", json!({}), Refuse, ALL),
        (
            "BluetoothEmulation.enable",
            json!({ "state": "powered-on", "leSupported": true }),
            Refuse,
            ALL,
        ),
        ("IO.read", json!({ "handle": "1" }), Refuse, ALL),
        ("Fetch.enable", json!({}), Refuse, ROOT),
        ("Network.enable", json!({}), Refuse, ROOT),
        (
            "Runtime.evaluate",
            json!({ "expression": "1" }),
            Refuse,
            ROOT,
        ),
        ("Nonsense.nothing", json!({}), Refuse, ALL),
        ("nonsense", json!({}), Refuse, ALL),
        (
            "Target.createBrowserContext",
            json!({ "originsWithUniversalNetworkAccess": [pages] }),
            Refuse,
            ALL,
        ),
        (
            "DOM.setFileInputFiles",
            json!({ "objectId": own.input, "files": ["/etc/passwd"] }),
            Refuse,
            PAGE,
        ),
        (
            "DOM.setFileInputFiles",
            json!({ "objectId": own.input, "files": ["../../etc/passwd"] }),
            Refuse,
            PAGE,
        ),
        (
            "DOM.setFileInputFiles",
            json!({ "objectId": own.input, "files": [format!("{}/../x", own.folder)] }),
            Refuse,
            PAGE,
        ),
        (
            "DOM.setFileInputFiles",
            json!({ "objectId": own.input, "files": ["mine.txt", "/etc/passwd"] }),
            Refuse,
            PAGE,
        ),
        (
            "Input.dispatchDragEvent",
            json!({ "type": "drop", "x": 1, "y": 1,
                "data": { "items": [], "files": ["/etc/passwd"], "dragOperationsMask": 1 } }),
            Refuse,
            PAGE,
        ),
        (
            "Network.loadNetworkResource",
            json!({ "frameId": own.target, "url": "file:///etc/passwd",
                "options": { "disableCache": true, "includeCredentials": false } }),
            Refuse,
            PAGE,
        ),
        (
            "Fetch.continueRequest",
            json!({ "requestId": "1", "url": "file:///etc/passwd" }),
            Refuse,
            PAGE,
        ),
    ];
    rows.extend([
        // Allowed, and no harm to others.
        ("Target.attachToBrowserTarget", json!({}), Harmless, PAGE),
        (
            "Target.createBrowserContext",
            json!({ "proxyServer": "http://127.0.0.1:1", "disposeOnDetach": false }),
            Harmless,
            ALL,
        ),
        (
            "Target.createTarget",
            json!({ "url": "about:blank", "enableBeginFrameControl": true }),
            Harmless,
            ALL,
        ),
        (
            "Target.createTarget",
            json!({ "url": "about:blank", "width": i32::MAX, "height": i32::MAX }),
            Harmless,
            ALL,
        ),
        (
            "Target.createTarget",
            json!({ "url": "about:blank", "hidden": true, "forTab": true, "focus": true }),
            Harmless,
            ALL,
        ),
        (
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": 9_999_999, "height": 9_999_999, "deviceScaleFactor": 4,
                "mobile": false }),
            Harmless,
            PAGE,
        ),
        (
            "Emulation.clearDeviceMetricsOverride",
            json!({}),
            Harmless,
            PAGE,
        ),
        (
            "Page.captureScreenshot",
            json!({ "clip": { "x": 0, "y": 0, "width": 1e6, "height": 1e6, "scale": 4 } }),
            Harmless,
            PAGE,
        ),
        ("Network.clearBrowserCache", json!({}), Harmless, PAGE),
        (
            "Storage.overrideQuotaForOrigin",
            json!({ "origin": pages, "quotaSize": 1 }),
            Harmless,
            PAGE,
        ),
        (
            "Storage.getStorageKeyForFrame",
            json!({ "frameId": target }),
            Refuse,
            PAGE,
        ),
        (
            "Page.getResourceContent",
            json!({ "frameId": target, "url": pages }),
            Refuse,
            PAGE,
        ),
        (
            "Page.createIsolatedWorld",
            json!({ "frameId": target }),
            Refuse,
            PAGE,
        ),
        (
            "Page.navigate",
            json!({ "url": pages, "frameId": target }),
            Refuse,
            PAGE,
        ),
        (
            "DOM.getFrameOwner",
            json!({ "frameId": target }),
            Refuse,
            PAGE,
        ),
        ("ServiceWorker.enable", json!({}), Harmless, PAGE),
        ("ServiceWorker.stopAllWorkers", json!({}), Harmless, PAGE),
        ("Fetch.enable", json!({}), Harmless, PAGE),
        ("Fetch.disable", json!({}), Harmless, PAGE),
    ]);
    for url in FORBIDDEN {
        rows.push(("Page.navigate", json!({ "url": url }), Refuse, PAGE));
        rows.push(("Target.createTarget", json!({ "url": url }), Refuse, ALL));
    }
    rows
}

const FORBIDDEN: &[&str] = &[
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    " \u{1}fi\nle:///etc/passwd",
    "chrome://version",
    "chrome-untrusted://terminal",
    "about:version",
    "devtools://devtools/bundled/inspector.html",
    "view-source:file:///etc/passwd",
    "view-source:http://127.0.0.1/",
    "filesystem:file:///temporary/x",
    "blob:file:///x",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop/x",
    "/etc/passwd",
];

/// What a page may try by itself, and where it must not get.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "fetch a file",
        "fetch('file:///etc/passwd').then(r => r.text(), () => 'refused')",
    ),
    (
        "XMLHttpRequest of a file",
        "new Promise(done => { const x = new XMLHttpRequest(); x.open('GET', 'file:///etc/passwd');
            x.onload = () => done(x.responseText); x.onerror = () => done('refused'); x.send() })",
    ),
    (
        "window.open of a file",
        "try { window.open('file:///etc/passwd') } catch {}; 'refused'",
    ),
    (
        "window.open of chrome:",
        "try { window.open('chrome://version') } catch {}; 'refused'",
    ),
    (
        "window.open of view-source:",
        "try { window.open('view-source:file:///etc/passwd') } catch {}; 'refused'",
    ),
    (
        "location to a file",
        "try { location.href = 'file:///etc/passwd' } catch {}; 'refused'",
    ),
    (
        "location to chrome:",
        "try { location.href = 'chrome://version' } catch {}; 'refused'",
    ),
    (
        "a link to a file",
        "const a = document.createElement('a'); a.href = 'file:///etc/passwd';
            document.documentElement.append(a); a.click(); 'refused'",
    ),
    (
        "a frame of a file",
        "new Promise(done => { const f = document.createElement('iframe');
            f.src = 'file:///etc/passwd'; document.documentElement.append(f);
            setTimeout(() => { let text = 'refused';
                try { text = f.contentDocument?.body?.innerText || text } catch {}
                done(text) }, 200) })",
    ),
    (
        "a worker of a file",
        "new Promise(done => { try { const w = new Worker('file:///etc/passwd');
            w.onerror = () => done('refused'); w.onmessage = m => done(m.data)
        } catch { done('refused') } })",
    ),
];

/// Messages that are no commands: what is answered.
fn malformed() -> Vec<(&'static str, Vec<u8>, i64)> {
    let deep = |at: &str| {
        let nested = "[".repeat(100_000) + &"]".repeat(100_000);
        at.replace("DEEP", &nested).into_bytes()
    };
    let large = format!(
        r#"{{"id":1,"method":"Browser.getVersion","params":{{"x":"{}"}}}}"#,
        "x".repeat(MESSAGE_BYTES_MAX)
    );
    let many: Vec<_> = (0..100_000).map(|n| format!("\"p{n}\":0")).collect();
    let many = format!(
        r#"{{"id":1,"method":"Page.enable","params":{{{}}}}}"#,
        many.join(",")
    );
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("nothing", text(""), -32700),
        ("no JSON", text("hello"), -32700),
        (
            "cut off",
            text(r#"{"id":1,"method":"Browser.getVer"#),
            -32700,
        ),
        (
            "two at once",
            text(r#"{"id":1,"method":"A.b"}{"id":2,"method":"A.b"}"#),
            -32700,
        ),
        (
            "no UTF-8",
            b"{\"id\":1,\"method\":\"\xff\xfe\"}".to_vec(),
            -32700,
        ),
        (
            "a zero byte in a text",
            b"{\"id\":1,\"method\":\"A.b\",\"params\":{\"x\":\"\0\"}}".to_vec(),
            -32700,
        ),
        (
            "a second message behind a zero byte",
            b"{\"id\":1,\"method\":\"A.b\"}\0{\"id\":2,\"method\":\"Browser.crash\"}".to_vec(),
            -32700,
        ),
        ("a list", text("[1]"), -32600),
        ("a number", text("7"), -32600),
        ("null", text("null"), -32600),
        ("no id", text(r#"{"method":"Browser.getVersion"}"#), -32600),
        (
            "an id that is text",
            text(r#"{"id":"1","method":"Browser.getVersion"}"#),
            -32600,
        ),
        (
            "an id that is a fraction",
            text(r#"{"id":1.5,"method":"Browser.getVersion"}"#),
            -32600,
        ),
        (
            "an id above all numbers",
            text(r#"{"id":99999999999999999999,"method":"Browser.getVersion"}"#),
            -32600,
        ),
        ("no method", text(r#"{"id":1}"#), -32600),
        (
            "a method that is a number",
            text(r#"{"id":1,"method":7}"#),
            -32600,
        ),
        (
            "a method that occurs twice",
            text(r#"{"id":1,"method":"Browser.getVersion","method":"Browser.crash"}"#),
            -32600,
        ),
        (
            "parameters that are a list",
            text(r#"{"id":1,"method":"Browser.getVersion","params":[]}"#),
            -32600,
        ),
        (
            "a session that is a number",
            text(r#"{"id":1,"method":"Browser.getVersion","sessionId":7}"#),
            -32600,
        ),
        (
            "an unknown session",
            text(r#"{"id":1,"method":"Browser.getVersion","sessionId":"ABC"}"#),
            -32001,
        ),
        (
            "an empty session",
            text(r#"{"id":1,"method":"Browser.getVersion","sessionId":""}"#),
            -32001,
        ),
        (
            "a parameter that occurs twice",
            text(
                r#"{"id":1,"method":"Target.closeTarget","params":{"targetId":"a","target\u0049d":"b"}}"#,
            ),
            -32602,
        ),
        (
            "a target that is a number",
            text(r#"{"id":1,"method":"Target.closeTarget","params":{"targetId":7}}"#),
            -32602,
        ),
        (
            "half a letter in an address",
            text(r#"{"id":1,"method":"Target.createTarget","params":{"url":"http://\ud800/"}}"#),
            -32602,
        ),
        (
            "an escaped method",
            text(r#"{"id":1,"method":"Browser\u002ecrash"}"#),
            -32000,
        ),
        ("a hundred thousand parameters", many.into_bytes(), -32602),
        (
            "parameters too deep",
            deep(r#"{"id":1,"method":"Browser.getVersion","params":{"x":DEEP}}"#),
            -32700,
        ),
        ("a message too deep", deep("DEEP"), -32600),
        (
            "an id too deep",
            deep(r#"{"id":DEEP,"method":"Browser.getVersion"}"#),
            -32600,
        ),
        ("more than 16 MiB", large.into_bytes(), -32600),
    ]
}

/// The session that is not to be touched.
struct Foreign {
    line: Line,
    pages: String,
    target: String,
    context: String,
    session: String,
    window: i64,
}

/// What the hostile client has of its own.
struct Own {
    target: String,
    session: String,
    context: String,
    input: String,
    folder: String,
}

struct Attacker {
    line: Line,
    places: BTreeMap<&'static str, Option<String>>,
    own: Own,
}

/// How long an answer is waited for.
const OWN_LIMIT: Duration = Duration::from_secs(5);

const SECRET: &str = "not-for-you";

impl Foreign {
    async fn new(world: &World) -> Foreign {
        let (browser, pages) = (&world.browser, &*world.pages);
        let jail = jailed::session_with_door(browser, &world.door, Path::new("/nowhere")).await;
        let mut line = Line::new(browser, &jail);
        let (target, session) = line.page(pages).await;
        let script = format!("document.cookie = 'secret={SECRET}; Max-Age=3600'");
        line.evaluate(&session, &script).await.unwrap();
        let named = json!({ "targetId": target });
        let window = line.call(None, "Browser.getWindowForTarget", named).await;
        Foreign {
            line,
            pages: pages.to_owned(),
            target,
            context: jail.context().to_owned(),
            session,
            window: window.unwrap()["windowId"].as_i64().unwrap(),
        }
    }

    /// Its page, its cookie and the browser are as they were.
    async fn check(&mut self, after: &str) {
        let state = "document.title + ' ' + document.cookie + ' ' + (innerWidth > 100)";
        let state = self.line.evaluate(&self.session, state).await;
        let state = state.unwrap_or_else(|error| panic!("after {after}: {error}"));
        assert_eq!(
            state,
            format!("index secret={SECRET} true"),
            "after {after}"
        );
        let all = self
            .line
            .call(None, "Target.getTargets", json!({}))
            .await
            .unwrap();
        let count = all["targetInfos"].as_array().unwrap().len();
        assert_eq!(count, 1, "after {after}: {all}");
    }
}

impl Attacker {
    async fn new(browser: &Browser, jail: &Arc<Jail>, pages: &str) -> Attacker {
        let mut line = Line::new(browser, jail);
        let (target, session) = line.page(pages).await;
        let sub = line
            .call(None, "Target.attachToBrowserTarget", json!({}))
            .await;
        let sub = sub.unwrap()["sessionId"].as_str().unwrap().to_owned();
        let find = json!({ "expression": "document.querySelector('#file')" });
        let input = line.call(Some(&session), "Runtime.evaluate", find).await;
        let input = input.unwrap()["result"]["objectId"]
            .as_str()
            .unwrap()
            .to_owned();
        let own = Own {
            target,
            session: session.clone(),
            context: jail.context().to_owned(),
            input,
            folder: jail.downloads().to_str().unwrap().to_owned(),
        };
        let places = [
            ("root", None),
            ("sub-root", Some(sub)),
            ("page", Some(session)),
        ];
        Attacker {
            line,
            places: places.into(),
            own,
        }
    }

    fn check_ignorance(&self, foreign: &Foreign, after: &str) {
        let known = |what: &str| self.line.told.contains(what);
        for secret in [&*foreign.target, &foreign.context, &foreign.session, SECRET] {
            assert!(!known(secret), "after {after}: it knows {secret}");
        }
        assert!(!known("root:x:0"), "after {after}: it has read /etc/passwd");
    }
}

struct World {
    _place: Place,
    _folder: tempfile::TempDir,
    _served: tokio::task::JoinSet<()>,
    browser: Browser,
    door: Arc<Door>,
    jail: Arc<Jail>,
    pages: String,
}

async fn world() -> World {
    let place = Place::new();
    let browser = place.browser().await;
    let folder = tempfile::tempdir().unwrap();
    let (pages, served) = jailed::pages().await;
    let door = jailed::door(&browser).await;
    World {
        jail: jailed::session_with_door(&browser, &door, folder.path()).await,
        door,
        _place: place,
        _folder: folder,
        _served: served,
        browser,
        pages,
    }
}

#[tokio::test]
async fn no_command_reaches_another_session_a_file_or_the_browser_itself() {
    let world = world().await;
    let mut foreign = Foreign::new(&world).await;
    let mut attacker = Attacker::new(&world.browser, &world.jail, &world.pages).await;
    let mut printed = String::new();
    let mut tries = 0;
    let rows = table(&foreign, &attacker.own);
    for (method, params, must, places) in &rows {
        let mut answers = String::new();
        for place in *places {
            let session = attacker.places[place].clone();
            let call = attacker
                .line
                .call(session.as_deref(), method, params.clone());
            let outcome = match (must, tokio::time::timeout(OWN_LIMIT, call).await) {
                (_, Ok(outcome)) => outcome,
                // Of what it does to its own page it may be the victim.
                (Harmless, Err(_)) => Err(json!({ "code": "no answer" })),
                (_, Err(_)) => panic!("{method} {params} on the {place}: no answer"),
            };
            let row = format!("{method} {params} on the {place}");
            match (must, &outcome) {
                (Refuse, Err(_)) | (Blind, Ok(_)) | (Harmless, _) => {}
                _ => panic!("{row}: {outcome:?}"),
            }
            let answer = match &outcome {
                Ok(_) => format!("{must:?}"),
                Err(error) => error["code"].to_string(),
            };
            let _ = write!(answers, " {place} {answer};");
            attacker.check_ignorance(&foreign, &row);
            foreign.check(&row).await;
            tries += 1;
        }
        let shown: String = params.to_string().chars().take(90).collect();
        let _ = writeln!(printed, "{method} {shown}\n   {answers}");
    }
    println!(
        "{printed}{} hostile calls, {tries} tries: none got through",
        rows.len()
    );
    assert!(rows.len() >= 40);
    // The other session's client speaks of its session, its windows and its root by ids that are
    // nobody else's, and its new pages wait for nobody.
    for session in [&*foreign.session, "0123456789ABCDEF0123456789ABCDEF"] {
        let spoken = attacker
            .line
            .call(Some(session), "Page.reload", json!({}))
            .await;
        assert_eq!(spoken.unwrap_err()["code"], -32001);
    }
    let session = foreign.session.clone();
    let picture = foreign
        .line
        .call(Some(&session), "Page.captureScreenshot", json!({}));
    assert!(picture.await.unwrap()["data"].is_string());
    let since = Instant::now();
    let (target, _) = foreign.line.page(&world.pages).await;
    assert!(
        since.elapsed() < HOLD_LIMIT,
        "the other session's page was held"
    );
    let close = json!({ "targetId": target });
    let closed = foreign.line.call(None, "Target.closeTarget", close).await;
    assert!(closed.is_ok(), "{closed:?}");
    let barrier = attacker
        .line
        .call(None, "Browser.getVersion", json!({}))
        .await;
    assert!(barrier.is_ok());
    assert!(
        !attacker.line.told.contains(&target),
        "it was told of a new page"
    );
    attacker.check_ignorance(&foreign, "a new page of the other session");
    // Those that have to work, lest all of this proves nothing.
    let version = attacker
        .line
        .call(None, "Browser.getVersion", json!({}))
        .await;
    assert!(version.unwrap()["product"].is_string());
    std::fs::write(world.jail.downloads().join("mine.txt"), "mine").unwrap();
    let files = json!({ "objectId": attacker.own.input, "files": ["mine.txt"] });
    let session = attacker.own.session.clone();
    let line = &mut attacker.line;
    line.call(Some(&session), "DOM.setFileInputFiles", files)
        .await
        .unwrap();
    let name = "document.querySelector('#file').files[0].name";
    assert_eq!(line.evaluate(&session, name).await.unwrap(), "mine.txt");
}

#[tokio::test]
async fn a_message_that_is_no_command_is_answered_and_the_line_goes_on() {
    let world = world().await;
    let mut foreign = Foreign::new(&world).await;
    let mut attacker = Attacker::new(&world.browser, &world.jail, &world.pages).await;
    let line = &mut attacker.line;
    for (what, message, code) in malformed() {
        line.send_raw(message).await;
        let answer = line.event(|message| message["error"].is_object()).await;
        println!("{what}: {}", answer["error"]);
        assert_eq!(answer["error"]["code"], code, "{what}: {answer}");
        let version = line.call(None, "Browser.getVersion", json!({})).await;
        assert!(version.is_ok(), "after {what}: {version:?}");
        foreign.check(what).await;
    }
}

#[tokio::test]
async fn a_page_cannot_get_by_itself_to_what_its_client_may_not_send_it_to() {
    let world = world().await;
    let mut foreign = Foreign::new(&world).await;
    let mut attacker = Attacker::new(&world.browser, &world.jail, &world.pages).await;
    for start in [&*world.pages, "about:blank", "data:text/html,x"] {
        for (what, script) in SCRIPTS {
            let (target, session) = attacker.line.page(start).await;
            let outcome = attacker.line.evaluate(&session, script).await;
            // A page that went away has no answer.
            let outcome = outcome.unwrap_or_else(|mut error| error["message"].take());
            println!("{what}, from {start}: {outcome}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let all = attacker
                .line
                .call(None, "Target.getTargets", json!({}))
                .await;
            let all = all.unwrap()["targetInfos"].take();
            for info in all.as_array().unwrap() {
                let url = info["url"].as_str().unwrap();
                let is_fine = ["http:", "about:blank", "data:", ""]
                    .iter()
                    .any(|fine| url == *fine || (!fine.is_empty() && url.starts_with(fine)));
                assert!(is_fine, "{what}, from {start}: a page is at {url}");
                let opened = info["targetId"] != attacker.own.target;
                if opened && info["type"] == "page" {
                    let close = json!({ "targetId": info["targetId"] });
                    let _ = attacker.line.call(None, "Target.closeTarget", close).await;
                }
            }
            let _ = target;
            attacker.check_ignorance(&foreign, what);
        }
    }
    foreign.check("all scripts").await;
}

#[tokio::test]
async fn a_redirect_that_a_client_makes_up_leads_to_no_file() {
    let world = world().await;
    let mut attacker = Attacker::new(&world.browser, &world.jail, &world.pages).await;
    let session = attacker.own.session.clone();
    let line = &mut attacker.line;
    line.call(Some(&session), "Fetch.enable", json!({}))
        .await
        .unwrap();
    let url = json!({ "url": format!("{}/popup", world.pages) });
    let navigation = line.send(Some(&session), "Page.navigate", url).await;
    let paused = line
        .event(|message| message["method"] == "Fetch.requestPaused")
        .await;
    let redirect = json!({
        "requestId": paused["params"]["requestId"],
        "responseCode": 302,
        "responseHeaders": [{ "name": "Location", "value": "file:///etc/passwd" }],
    });
    line.call(Some(&session), "Fetch.fulfillRequest", redirect)
        .await
        .unwrap();
    let outcome = line.answer(navigation).await;
    println!("a redirect to a file: {outcome:?}");
    let text = line
        .evaluate(&session, "document.documentElement.innerText")
        .await;
    assert!(!text.unwrap().to_string().contains("root:x:0"));
}

#[tokio::test]
async fn closing_the_browser_on_any_session_ends_the_client_and_nobody_else() {
    let world = world().await;
    let mut foreign = Foreign::new(&world).await;
    for place in ALL {
        let mut attacker = Attacker::new(&world.browser, &world.jail, &world.pages).await;
        let session = attacker.places[place].clone();
        let close = attacker
            .line
            .call(session.as_deref(), "Browser.close", json!({}));
        close.await.unwrap();
        assert_eq!(attacker.line.ended().await, Ended::Released);
        foreign
            .check(&format!("Browser.close on the {place}"))
            .await;
    }
}
