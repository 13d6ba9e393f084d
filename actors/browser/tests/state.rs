//! A session's state against a real Chromium and a real server: what is recorded, when, and what comes
//! back in another browser.

#![allow(clippy::unwrap_used)]

mod common;
mod site;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_browser::restore::Missed;
use understudy_browser::state::PageState;
use understudy_browser::{Browser, Cdp, Delta, Jail, Recorder, Restored, Root, SessionState, restore};

use common::Place;
use site::Site;

/// A session's context in a browser of its own, and a client that uses it.
struct Session {
    browser: Browser,
    jail: Arc<Jail>,
    client: Root,
}

impl Session {
    async fn start(place: &Place) -> Session {
        let browser = place.browser().await;
        let cdp = browser.cdp();
        let created: Value = cdp
            .call("", "Target.createBrowserContext", json!({}))
            .await
            .unwrap();
        let context = created["browserContextId"].as_str().unwrap().to_owned();
        let client = cdp.root().await.unwrap();
        let jail = Arc::new(Jail::new(context, PathBuf::new()));
        Session {
            browser,
            jail,
            client,
        }
    }

    fn cdp(&self) -> &Cdp {
        self.browser.cdp()
    }

    async fn record(&self, known: SessionState) -> Recorder {
        Recorder::start(self.cdp(), self.jail.clone(), known, || {})
            .await
            .unwrap()
    }

    async fn restore(&self, state: &SessionState) -> Restored {
        restore(self.cdp(), &self.jail, state).await
    }

    async fn open(&self, url: &str) -> Tab<'_> {
        let params = json!({ "url": "about:blank", "browserContextId": self.jail.context() });
        let created: Value = self
            .cdp()
            .call(self.client.session(), "Target.createTarget", params)
            .await
            .unwrap();
        let tab = self.attach(created["targetId"].as_str().unwrap()).await;
        tab.go(url).await;
        tab
    }

    async fn attach(&self, target: &str) -> Tab<'_> {
        let attach = json!({ "targetId": target, "flatten": true });
        let attached: Value = self
            .cdp()
            .call(self.client.session(), "Target.attachToTarget", attach)
            .await
            .unwrap();
        Tab {
            cdp: self.cdp(),
            session: attached["sessionId"].as_str().unwrap().to_owned(),
            target: target.to_owned(),
        }
    }

    async fn tabs(&self, restored: &Restored) -> Vec<Tab<'_>> {
        let mut tabs = Vec::new();
        for page in &restored.pages {
            tabs.push(self.attach(page.target.as_ref().unwrap()).await);
        }
        tabs
    }
}

struct Tab<'a> {
    cdp: &'a Cdp,
    session: String,
    target: String,
}

impl Tab<'_> {
    async fn call(&self, method: &str, params: Value) -> Value {
        self.cdp.call(&self.session, method, params).await.unwrap()
    }

    async fn eval(&self, expression: &str) -> Value {
        let params = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": true,
        });
        let evaluated = self.call("Runtime.evaluate", params).await;
        assert!(evaluated.get("exceptionDetails").is_none(), "{evaluated}");
        evaluated["result"]["value"].clone()
    }

    async fn go(&self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
        self.loaded(url).await;
    }

    async fn loaded(&self, url: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let params = json!({ "expression": "[location.href, document.readyState]", "returnByValue": true });
            let now = self.cdp.call::<Value>(&self.session, "Runtime.evaluate", params);
            if let Ok(now) = now.await
                && now["result"]["value"] == json!([url, "complete"])
            {
                return;
            }
            assert!(Instant::now() < until, "{url} was not loaded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Asks for deltas until the state is as wanted; gives back the state and how long it took.
async fn recorded(
    recorder: &mut Recorder,
    what: &str,
    is_so: impl Fn(&SessionState) -> bool,
) -> Duration {
    let from = Instant::now();
    loop {
        let mut state = recorder.state().clone();
        if let Some(delta) = recorder.delta().await {
            let delta = Delta::decode(&delta.encode()).unwrap();
            state.apply(&delta);
        }
        assert_eq!(&state, recorder.state(), "a delta says all that changed");
        if is_so(&state) {
            return from.elapsed();
        }
        assert!(from.elapsed() < Duration::from_secs(10), "{what}: {state:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const FILL: &str = "
    localStorage.setItem('user', 'ada ' + location.port);
    localStorage.setItem('odd', 'half \\ud800 a pair');
    localStorage.setItem('gone', 1); localStorage.removeItem('gone');
    localStorage.setItem('__proto__', 'x');
    sessionStorage.setItem('tab', location.href);
    text.value = 'hello'; area.value = 'two\\nlines'; one.value = 'b';
    many.options[0].selected = many.options[2].selected = true;
    check.checked = true; uncheck.checked = false; radio2.checked = true;
    secret.value = 'hunter2';
    rich.innerHTML = 'some <b>bold</b>'; rich.dispatchEvent(new Event('input', { bubbles: true }));
    text.focus({ preventScroll: true });
    scrollTo(0, 1234);
";

/// As tests compare pages: each by what is in it.
fn pages(state: &SessionState) -> Vec<PageState> {
    state.pages.values().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_comes_back_in_another_browser_before_the_pages_own_scripts_run() {
    let place = Place::new();
    let (one, two) = (Site::start().await, Site::start().await);
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let first = session.open(&one.url("/login")).await;
    first.go(&one.url("/a")).await;
    first.go(&one.url("/b?x=1")).await;
    first.eval("history.pushState({ n: 7 }, '', '/pushed')").await;
    let second = session.open(&two.url("/c")).await;
    let third = session.open(&one.url("/d")).await;
    let closed = Site::start().await;
    let fourth = session.open(&closed.url("/e")).await;
    for tab in [&first, &second, &third, &fourth] {
        tab.eval(FILL).await;
    }
    // Its local storage stays, though no page is at it any more.
    fourth.call("Page.close", json!({})).await;
    let is_full = |state: &SessionState| {
        state.pages.len() == 3 && state.pages.values().all(|page| page.scroll_y == 1234)
    };
    recorded(&mut recorder, "three pages", is_full).await;
    let from = Instant::now();
    recorder.last_delta().await;
    println!("save of all: {:?}", from.elapsed());
    let state = recorder.state().clone();
    println!("bytes: {}", state.encode().len());
    let state = SessionState::decode(&state.encode()).unwrap();
    assert_eq!(state.origins.len(), 3);
    assert_eq!(state.left_out(), 0);
    assert!(!String::from_utf8_lossy(&state.encode()).contains("hunter2"));
    let names: Vec<_> = state.cookies.cookies.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["__Host-part", "hidden", "kept", "session"]);
    let cookie = |name: &str| state.cookies.cookies.iter().find(|c| c.name == name).unwrap();
    assert!(cookie("hidden").http_only);
    assert!(cookie("session").expires.is_none() && cookie("kept").expires.is_some());
    assert!(cookie("__Host-part").partition_key.is_some());
    let page = &pages(&state)[0];
    assert_eq!(page.history.len(), 4, "{:?}", page.history);
    assert_eq!(page.fields.len(), 10, "{:#?}", page.fields);
    drop(recorder);
    drop(session);

    let saw = |site: &Site| site.requests.lock().unwrap().clone();
    let before = (saw(&one).len(), saw(&two).len());
    let other = Session::start(&place).await;
    let from = Instant::now();
    let restored = other.restore(&state).await;
    println!("restore: {:?}", from.elapsed());
    assert!(restored.is_whole(), "{restored:#?}");
    let mut recorder = Recorder::resume(other.cdp(), other.jail.clone(), state.clone(), &restored, || {})
        .await
        .unwrap();
    recorder.last_delta().await;
    let again = recorder.state();
    assert_eq!(pages(&state), pages(again));
    assert_eq!(&state, again);
    // Each page's first script saw everything, and each was asked for once, by a GET.
    let mut requests = saw(&one).split_off(before.0);
    requests.extend(saw(&two).split_off(before.1));
    requests.sort();
    let requests: Vec<_> = requests
        .iter()
        .filter(|request| !request.contains("/saw"))
        .map(String::as_str)
        .collect();
    assert_eq!(requests, ["GET /c", "GET /d", "GET /pushed"]);
    let mut tabs = other.tabs(&restored).await;
    for (tab, page) in tabs.iter_mut().zip(pages(&state)) {
        let saw = tab.eval("JSON.parse(document.documentElement.dataset.saw)").await;
        assert_eq!(saw["local"]["odd"], "half \u{fffd} a pair", "{saw}");
        assert_eq!(saw["local"]["user"].as_str().unwrap().split(' ').next(), Some("ada"));
        assert!(saw["session"]["tab"].is_string(), "{} {saw}", page.url);
        let cookie = saw["cookie"].as_str().unwrap();
        assert!(cookie.contains("kept=2") && cookie.contains("session=1"), "{cookie}");
        let half = "localStorage.odd === 'half \\ud800 a pair' && secret.value === ''";
        assert_eq!(tab.eval(half).await, true);
        assert_eq!(tab.eval("document.activeElement.id").await, "text");
    }
    assert_eq!(tabs[0].eval("history.state.n").await, 7);
    assert_eq!(tabs[0].eval("history.length").await, 4);
    let seen = tabs[0].eval("JSON.parse(document.documentElement.dataset.saw).state.n").await;
    assert_eq!(seen, 7, "the first script sees the state of its entry");
    tabs[0].eval("history.back()").await;
    tabs[0].loaded(&one.url("/b?x=1")).await;
    // The origin without a page has its storage, too.
    let fourth = other.open(&closed.url("/e")).await;
    assert_eq!(
        fourth.eval("localStorage.user").await,
        format!("ada {}", closed.port())
    );
}
