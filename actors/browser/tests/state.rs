//! A session's state against a real Chromium and a real server: what is recorded, when, and what comes
//! back in another browser.

#![allow(clippy::unwrap_used)]

mod common;
mod site;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use understudy_browser::recorder::SWEEP_EVERY;
use understudy_browser::restore::Missed;
use understudy_browser::state::PageState;
use understudy_browser::{
    Browser, Cdp, CdpError, Delta, Jail, Recorder, Restored, Root, SessionState, restore,
};

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

    /// As [`Session::record`], after a restore.
    async fn resume(&self, known: &SessionState, restored: &Restored) -> Recorder {
        let (cdp, jail) = (self.cdp(), self.jail.clone());
        let resumed = Recorder::resume(cdp, jail, known.clone(), restored, || {});
        resumed.await.unwrap()
    }

    async fn restore(&self, state: &SessionState) -> Restored {
        restore(self.cdp(), &self.jail, state).await
    }

    async fn open(&self, url: &str) -> Tab {
        self.try_open(url).await.unwrap()
    }

    async fn try_open(&self, url: &str) -> Result<Tab, CdpError> {
        let params = json!({ "url": "about:blank", "browserContextId": self.jail.context() });
        let created: Value = self
            .cdp()
            .call(self.client.session(), "Target.createTarget", params)
            .await?;
        let tab = self
            .try_attach(created["targetId"].as_str().unwrap())
            .await?;
        tab.try_go(url).await?;
        Ok(tab)
    }

    async fn attach(&self, target: &str) -> Tab {
        self.try_attach(target).await.unwrap()
    }

    async fn try_attach(&self, target: &str) -> Result<Tab, CdpError> {
        let attach = json!({ "targetId": target, "flatten": true });
        let attached: Value = self
            .cdp()
            .call(self.client.session(), "Target.attachToTarget", attach)
            .await?;
        Ok(Tab {
            cdp: self.cdp().clone(),
            session: attached["sessionId"].as_str().unwrap().to_owned(),
        })
    }

    async fn tabs(&self, restored: &Restored) -> Vec<Tab> {
        let mut tabs = Vec::new();
        for page in &restored.pages {
            tabs.push(self.attach(page.target.as_ref().unwrap()).await);
        }
        tabs
    }
}

struct Tab {
    cdp: Cdp,
    session: String,
}

impl Tab {
    async fn call(&self, method: &str, params: Value) -> Value {
        self.cdp.call(&self.session, method, params).await.unwrap()
    }

    async fn eval(&self, expression: &str) -> Value {
        let evaluated = self.try_eval(expression).await.unwrap();
        assert!(evaluated.get("exceptionDetails").is_none(), "{evaluated}");
        evaluated["result"]["value"].clone()
    }

    async fn try_eval(&self, expression: &str) -> Result<Value, CdpError> {
        let params = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": true,
        });
        self.cdp
            .call(&self.session, "Runtime.evaluate", params)
            .await
    }

    async fn go(&self, url: &str) {
        self.try_go(url).await.unwrap();
    }

    async fn try_go(&self, url: &str) -> Result<(), CdpError> {
        let to = json!({ "url": url });
        let _: Value = self.cdp.call(&self.session, "Page.navigate", to).await?;
        self.try_loaded(url).await
    }

    async fn loaded(&self, url: &str) {
        self.try_loaded(url).await.unwrap();
    }

    async fn try_loaded(&self, url: &str) -> Result<(), CdpError> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_eval("[location.href, document.readyState]").await {
                Ok(now) if now["result"]["value"] == json!([url, "complete"]) => return Ok(()),
                Err(CdpError::Gone(method)) => return Err(CdpError::Gone(method)),
                _ => assert!(Instant::now() < until, "{url} was not loaded"),
            }
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
        assert!(
            from.elapsed() < Duration::from_secs(10),
            "{what}: {state:#?}"
        );
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
    document.getElementsByName('localName')[0].value = 'a name in the way';
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
    first.go(&two.url("/a")).await;
    first.eval("sessionStorage.setItem('on the way', 1)").await;
    first.go(&one.url("/b?x=1")).await;
    first
        .eval("history.pushState({ n: 7 }, '', '/pushed')")
        .await;
    let second = session.open(&two.url("/c")).await;
    let third = session.open(&one.url("/d")).await;
    let closed = Site::start().await;
    let fourth = session.open(&closed.url("/e")).await;
    for tab in [&first, &second, &third, &fourth] {
        tab.eval(FILL).await;
    }
    // Its local storage stays, though no page is at it any more; all that an origin may store.
    fourth
        .eval("localStorage.setItem('big', 'x'.repeat(5e6))")
        .await;
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
    let names: Vec<_> = state
        .cookies
        .cookies
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["__Host-part", "hidden", "kept", "session"]);
    let cookie = |name: &str| {
        state
            .cookies
            .cookies
            .iter()
            .find(|c| c.name == name)
            .unwrap()
    };
    assert!(cookie("hidden").http_only);
    assert!(cookie("session").expires.is_none() && cookie("kept").expires.is_some());
    assert!(cookie("__Host-part").partition_key.is_some());
    let page = &pages(&state)[0];
    // Chromium may or may not keep the blank page that a page begins with.
    let history: Vec<_> = page
        .history
        .iter()
        .filter(|url| *url != "about:blank")
        .collect();
    assert_eq!(history.len(), 4, "{history:?}");
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
    let mut recorder = other.resume(&state, &restored).await;
    recorder.last_delta().await;
    let again = recorder.state();
    assert_eq!(pages(&state), pages(again));
    assert_eq!(&state, again);
    // Without knowing what was restored, the addresses say which page is which.
    drop(recorder);
    let mut recorder = other.record(state.clone()).await;
    assert_eq!(recorder.last_delta().await, None);
    assert_eq!(&state, recorder.state());
    // Each page's first script saw everything, and each was asked for once, by a GET.
    let mut requests = saw(&one).split_off(before.0);
    requests.extend(saw(&two).split_off(before.1));
    requests.sort();
    let requests: Vec<_> = requests.iter().map(String::as_str).collect();
    assert_eq!(requests, ["GET /c", "GET /d", "GET /pushed"]);
    let mut tabs = other.tabs(&restored).await;
    for (tab, page) in tabs.iter_mut().zip(pages(&state)) {
        let saw = "(() => { const saw = JSON.parse(document.documentElement.dataset.saw); \
            saw.local.odd = saw.local.odd === 'half \\ud800 a pair'; return saw })()";
        let saw = tab.eval(saw).await;
        assert_eq!(saw["local"]["odd"], true, "{saw}");
        assert_eq!(
            saw["local"]["user"].as_str().unwrap().split(' ').next(),
            Some("ada")
        );
        assert!(saw["session"]["tab"].is_string(), "{} {saw}", page.url);
        let cookie = saw["cookie"].as_str().unwrap();
        assert!(
            cookie.contains("kept=2") && cookie.contains("session=1"),
            "{cookie}"
        );
        let half = "localStorage.odd === 'half \\ud800 a pair' && secret.value === ''";
        assert_eq!(tab.eval(half).await, true);
        assert_eq!(tab.eval("document.activeElement.id").await, "text");
    }
    assert_eq!(tabs[0].eval("history.state.n").await, 7);
    assert_eq!(tabs[0].eval("history.length").await, page.history.len());
    let seen = tabs[0]
        .eval("JSON.parse(document.documentElement.dataset.saw).state.n")
        .await;
    assert_eq!(seen, 7, "the first script sees the state of its entry");
    // The answer may be lost on the way.
    let _ = tabs[0].try_eval("history.back()").await;
    tabs[0].loaded(&one.url("/b?x=1")).await;
    tabs[0].go(&two.url("/a")).await;
    assert_eq!(tabs[0].eval("sessionStorage['on the way']").await, "1");
    // The origin without a page has its storage, too.
    let fourth = other.open(&closed.url("/e")).await;
    assert_eq!(fourth.eval("localStorage.big.length").await, 5_000_000);
    assert_eq!(
        fourth.eval("localStorage.user").await,
        format!("ada {}", closed.port())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_in_a_delta_soon_and_what_does_not_is_in_none() {
    let place = Place::new();
    let site = Site::start().await;
    let session = Session::start(&place).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let changed = move || _ = counted.fetch_add(1, Ordering::Relaxed);
    let known = SessionState::default();
    let mut recorder = Recorder::start(session.cdp(), session.jail.clone(), known, changed)
        .await
        .unwrap();
    let tab = session.open(&site.url("/login")).await;
    let at = |path: &str| {
        let url = site.url(path);
        move |state: &SessionState| state.pages.values().any(|page| page.url == url)
    };
    recorded(&mut recorder, "the page", at("/login")).await;
    recorded(&mut recorder, "cookies", |state| {
        state.cookies.cookies.len() == 4
    })
    .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    recorder.last_delta().await;
    for _ in 0..20 {
        let from = Instant::now();
        let delta = recorder.delta().await;
        println!("clean tick: {:?}", from.elapsed());
        assert_eq!(delta, None);
    }
    assert_eq!(recorder.last_delta().await, None);

    let origin = site.url("");
    let page = |state: &SessionState| state.pages.values().next().unwrap().clone();
    type Seen<'a> = Box<dyn Fn(&SessionState) -> bool + 'a>;
    let rows: Vec<(&str, Seen<'_>)> = vec![
        (
            "localStorage.setItem('a', 'one')",
            Box::new(|state| {
                state
                    .origins
                    .get(&origin)
                    .is_some_and(|o| o.items["a"] == "one")
            }),
        ),
        (
            "localStorage.setItem('a', '\\ufffd')",
            Box::new(|state| state.origins[&origin].items["a"] == "\u{fffd}"),
        ),
        (
            "localStorage.clear()",
            Box::new(|state| !state.origins.contains_key(&origin)),
        ),
        (
            "sessionStorage.setItem('s', 'x'.repeat(100000))",
            Box::new(|state| {
                let session = page(state).session;
                session
                    .get(&origin)
                    .is_some_and(|s| s.items["s"].len() == 100_000)
            }),
        ),
        (
            "sessionStorage.removeItem('s')",
            Box::new(|state| page(state).session.is_empty()),
        ),
        (
            "text.focus(); document.execCommand('insertText', false, 'typed')",
            Box::new(|state| page(state).fields.len() == 1 && page(state).focus.is_some()),
        ),
        (
            "check.click()",
            Box::new(|state| page(state).fields.len() == 2),
        ),
        (
            "scrollTo(0, 777)",
            Box::new(|state| page(state).scroll_y == 777),
        ),
        (
            "document.cookie = 'js=1; path=/'",
            Box::new(|state| state.cookies.cookies.len() == 5),
        ),
        (
            "fetch('/cookie').then((r) => r.text())",
            Box::new(|state| state.cookies.cookies.len() == 6),
        ),
        (
            "history.pushState({ deep: [1] }, '', '/pushed')",
            Box::new(|state| page(state).state.is_some() && page(state).url.ends_with("/pushed")),
        ),
        (
            "history.replaceState(null, '', '/replaced')",
            Box::new(|state| page(state).state.is_none() && page(state).url.ends_with("/replaced")),
        ),
        (
            "document.getElementsByTagName('title')[0].textContent = 'another'",
            Box::new(|state| page(state).title == "another"),
        ),
        (
            "void open('/popup')",
            Box::new(|state| {
                let popup = state.pages.values().nth(1);
                popup.is_some_and(|page| page.url.ends_with("/popup") && page.title == "a page")
            }),
        ),
    ];
    for (what, is_so) in &rows {
        tab.eval(what).await;
        let took = recorded(&mut recorder, what, is_so).await;
        println!("delta after {what:.40}: {took:?}");
        // Chromium does not always tell of a title; then the sweep finds it.
        let limit = if what.contains("title") {
            SWEEP_EVERY + SOON
        } else {
            SOON
        };
        assert!(took < limit, "{what} took {took:?}");
    }
    assert_eq!(recorder.state().left_out(), 0);
    tokio::time::sleep(2 * Duration::from_millis(300)).await;
    let before = calls.load(Ordering::Relaxed);
    let busy = "let n = 0; const t = setInterval(() => { localStorage.n = n++; if (n > 200) clearInterval(t) }, 5)";
    tab.eval(busy).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let calls = calls.load(Ordering::Relaxed) - before;
    assert!(
        (2..=8).contains(&calls),
        "changed was called {calls} times in 2 s"
    );
    // Nothing of it shows in the page, and a dialog is closed by the browser as it is without anybody.
    assert_eq!(tab.eval("alert('to nobody'); 5").await, 5);
    let seen =
        "Object.getOwnPropertyNames(window).filter((name) => /understudy/i.test(name)).length";
    assert_eq!(tab.eval(seen).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_loops_or_has_crashed_holds_up_no_other_and_stays_as_it_was() {
    let place = Place::new();
    let site = Site::start().await;
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    // In processes of their own.
    let looping = session.open(&site.url("/loops")).await;
    let crashing = session.open(&site.url("/crashes")).await;
    let well = session.open(&site.url("/well")).await;
    for tab in [&looping, &crashing] {
        tab.eval("text.value = 'kept'; scrollTo(0, 50)").await;
    }
    let is_kept = |state: &SessionState| {
        let pages = state.pages.values();
        pages
            .filter(|page| page.fields.len() == 1 && page.scroll_y == 50)
            .count()
            == 2
    };
    recorded(&mut recorder, "both", is_kept).await;
    let spin = json!({ "expression": "text.value = 'lost'; while (true) {}" });
    let spin = session
        .cdp()
        .call::<Value>(&looping.session, "Runtime.evaluate", spin);
    let spin = tokio::time::timeout(Duration::from_millis(200), spin).await;
    assert!(spin.is_err(), "it loops");
    let crash = session
        .cdp()
        .call::<Value>(&crashing.session, "Page.crash", json!({}));
    assert!(crash.await.is_err());
    // While the loop is found out, a delta takes its limit at most; afterwards nobody waits for it.
    let from = Instant::now();
    let mut slowest = Duration::ZERO;
    while from.elapsed() < Duration::from_secs(4) {
        let at = Instant::now();
        recorder.delta().await;
        slowest = slowest.max(at.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("delta beside a loop, the slowest: {slowest:?}");
    assert!(slowest < Duration::from_millis(1200), "{slowest:?}");
    well.eval("text.value = 'new'; text.dispatchEvent(new Event('input', { bubbles: true }))")
        .await;
    let is_new = |state: &SessionState| state.pages.values().nth(2).unwrap().fields.len() == 1;
    let took = recorded(&mut recorder, "the third page", is_new).await;
    assert!(took < SOON, "{took:?}");
    assert!(is_kept(recorder.state()), "{:#?}", recorder.state());
    let health = recorder.health(Duration::from_secs(1));
    assert_eq!(health.len(), 2, "{health:?}");
    assert!(health[0].silent > Duration::from_secs(1) && !health[0].is_crashed);
    assert!(health[1].is_crashed);
    // One that begins beside them is held up no longer, and takes over what is known of them.
    let from = Instant::now();
    let mut second = session.record(recorder.state().clone()).await;
    println!("start beside a loop and a crash: {:?}", from.elapsed());
    assert!(
        from.elapsed() < Duration::from_millis(1500),
        "{:?}",
        from.elapsed()
    );
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let delta = second.last_delta().await;
    assert_eq!(delta, None);
    let health = second.health(Duration::from_secs(1));
    assert_eq!(health.len(), 2, "{health:?}");
    assert!(health[1].is_crashed, "{health:?}");
    drop(second);
    // A page that crashed lives again.
    crashing
        .call("Page.navigate", json!({ "url": site.url("/lives") }))
        .await;
    let lives = |state: &SessionState| {
        let page = state.pages.values().nth(1).unwrap();
        page.url == site.url("/lives") && page.scroll_y == 0
    };
    recorded(&mut recorder, "it lives", lives).await;
    let health = recorder.health(Duration::from_secs(1));
    assert_eq!(health.len(), 1, "{health:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_was_posted_is_not_posted_again_and_a_lost_server_loses_no_state() {
    let place = Place::new();
    let (site, lost) = (Site::start().await, Site::start().await);
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let posted = session.open(&site.url("/form")).await;
    let gone = session.open(&lost.url("/gone")).await;
    gone.eval(FILL).await;
    posted.eval("document.forms[0].submit()").await;
    posted.loaded(&site.url("/posted")).await;
    let is_posted = |state: &SessionState| {
        let mut pages = state.pages.values();
        pages.any(|page| page.is_posted) && pages.any(|page| page.scroll_y == 1234)
    };
    recorded(&mut recorder, "both", is_posted).await;
    recorder.last_delta().await;
    let state = recorder.state().clone();
    assert_eq!(site.count("POST /posted"), 1);
    drop(recorder);
    drop(session);
    drop(lost);

    let other = Session::start(&place).await;
    let restored = other.restore(&state).await;
    assert_eq!(restored.pages[0].missed, [Missed::Posted]);
    assert!(
        matches!(&restored.pages[1].missed[..], [Missed::Loaded(_)]),
        "{restored:#?}"
    );
    assert_eq!(site.count("POST /posted"), 1);
    assert_eq!(site.count("GET /posted"), 1);
    let mut recorder = other.resume(&state, &restored).await;
    recorder.last_delta().await;
    assert_eq!(
        recorder.state().pages.values().nth(1),
        state.pages.values().nth(1),
        "a page that is not there now may be there later"
    );
    assert_eq!(recorder.state().origins, state.origins);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_builds_itself_later_is_filled_and_one_that_never_loads_is_given_up() {
    let place = Place::new();
    let site = Site::start().await;
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let late = session.open(&site.url("/late")).await;
    let until = Instant::now() + Duration::from_secs(5);
    while late.eval("!!document.getElementById('late')").await != true {
        assert!(Instant::now() < until);
    }
    late.eval("document.getElementById('late').value = 'filled'; scrollTo(0, 900)")
        .await;
    let other = session.open(&site.url("/well")).await;
    other.eval("text.value = 'kept'; scrollTo(0, 50)").await;
    let is_there = |state: &SessionState| {
        state.pages.len() == 2 && state.pages.values().all(|page| page.fields.len() == 1)
    };
    recorded(&mut recorder, "both", is_there).await;
    let mut state = recorder.state().clone();
    let second = state.pages.values_mut().nth(1).unwrap();
    second.url = site.url("/endless");
    second.history = vec![site.url("/endless")];
    drop(recorder);
    drop(session);

    let session = Session::start(&place).await;
    let from = Instant::now();
    let restored = session.restore(&state).await;
    assert!(
        from.elapsed() < Duration::from_secs(15),
        "{:?}",
        from.elapsed()
    );
    assert_eq!(restored.pages[0].missed, [], "{restored:#?}");
    assert_eq!(restored.pages[1].missed, [Missed::Finished]);
    let tabs = session.tabs(&restored).await;
    assert_eq!(
        tabs[0].eval("document.getElementById('late').value").await,
        "filled"
    );
    assert_eq!(tabs[0].eval("scrollY").await, 900);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_leads_elsewhere_now_is_not_filled_in() {
    let place = Place::new();
    let site = Site::start().await;
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let tab = session.open(&site.url("/moves")).await;
    tab.eval("document.cookie = 'session=1; path=/'; text.value = 'private'")
        .await;
    recorder.last_delta().await;
    let state = recorder.state().clone();
    let other = Session::start(&place).await;
    let restored = other.restore(&state).await;
    let to = site.url("/elsewhere");
    assert_eq!(restored.pages[0].missed, [Missed::Moved(to)]);
    let tabs = other.tabs(&restored).await;
    assert_eq!(tabs[0].eval("text.value").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_gone_back_to_is_watched_again() {
    let place = Place::new();
    let sites = [Site::start().await, Site::start().await];
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let tab = session.open(&sites[0].url("/a")).await;
    tab.eval("text.value = 'first'").await;
    tab.go(&sites[1].url("/b")).await;
    let is_second = |state: &SessionState| pages(state)[0].url == sites[1].url("/b");
    recorded(&mut recorder, "the second", is_second).await;
    // The answer may be lost on the way.
    let _ = tab.try_eval("history.back()").await;
    tab.loaded(&sites[0].url("/a")).await;
    tab.eval("scrollTo(0, 321)").await;
    let is_first = |state: &SessionState| {
        let page = &pages(state)[0];
        page.url == sites[0].url("/a") && page.scroll_y == 321
    };
    recorded(&mut recorder, "the first", is_first).await;
    assert!(
        pages(recorder.state())[0]
            .history
            .contains(&sites[1].url("/b"))
    );
    // One that goes is gone.
    tab.call("Page.close", json!({})).await;
    recorded(&mut recorder, "none", |state| state.pages.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_is_told_to_end_takes_no_page_out_of_the_session() {
    let place = Place::new();
    let site = Site::start().await;
    let session = Session::start(&place).await;
    let mut recorder = session.record(SessionState::default()).await;
    let tab = session.open(&site.url("/a")).await;
    tab.eval("text.value = 'kept'").await;
    recorder.last_delta().await;
    assert_eq!(recorder.state().pages.len(), 1);
    let from = Instant::now();
    // It may end before it answers.
    let _ = session
        .cdp()
        .call::<Value>("", "Browser.close", json!({}))
        .await;
    while !session.cdp().is_closed() {
        let _ = recorder.delta().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("a browser ends in {:?}", from.elapsed());
    recorder.delta().await;
    assert_eq!(pages(recorder.state())[0].fields.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_that_is_cut_off_for_reading_too_slowly_asks_anew() {
    let place = Place::new();
    let sites = [Site::start().await, Site::start().await];
    let session = Session::start(&place).await;
    // It must not block; this one does, once, and more comes meanwhile than may wait.
    let (block, blocks) = std::sync::mpsc::sync_channel::<()>(1);
    let blocks = std::sync::Mutex::new(blocks);
    let is_blocking = Arc::new(AtomicBool::new(false));
    let armed = is_blocking.clone();
    let changed = move || {
        if armed.swap(false, Ordering::SeqCst) {
            tokio::task::block_in_place(|| {
                let _ = blocks.lock().unwrap().recv_timeout(Duration::from_secs(60));
            });
        }
    };
    let known = SessionState::default();
    let mut recorder = Recorder::start(session.cdp(), session.jail.clone(), known, changed)
        .await
        .unwrap();
    let floods = session.open(&sites[0].url("/a")).await;
    let other = session.open(&sites[1].url("/b")).await;
    let closes = session.open(&sites[1].url("/c")).await;
    recorder.last_delta().await;
    assert_eq!(recorder.state().pages.len(), 3);
    let keys: Vec<_> = recorder.state().pages.keys().copied().collect();
    is_blocking.store(true, Ordering::SeqCst);
    let flood = "for (let i = 0; i < 30; i++) localStorage.setItem('big', 'x'.repeat(2e6) + i);
        localStorage.setItem('last', 1)";
    floods.eval(flood).await;
    other
        .eval("localStorage.setItem('small', 1); scrollTo(0, 10)")
        .await;
    closes.call("Page.close", json!({})).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!is_blocking.load(Ordering::SeqCst), "it never blocked");
    block.send(()).unwrap();
    let is_all = |state: &SessionState| {
        let item =
            |site: &Site, key: &str| state.origins.get(&site.url(""))?.items.get(key).cloned();
        item(&sites[0], "last").is_some()
            && item(&sites[0], "big").is_some_and(|big| big.ends_with("x29"))
            && item(&sites[1], "small").is_some()
            && state.pages.keys().eq(&keys[..2])
            && state.pages[&keys[1]].scroll_y == 10
    };
    let from = Instant::now();
    while !is_all(recorder.state()) {
        recorder.delta().await;
        assert!(from.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "after a flood of 60 MB all was known in {:?}",
        from.elapsed()
    );
    let took = {
        other.eval("scrollTo(0, 20)").await;
        let is_moved = |state: &SessionState| state.pages[&keys[1]].scroll_y == 20;
        recorded(&mut recorder, "it is watched on", is_moved).await
    };
    assert!(took < SOON, "{took:?}");
}

/// Random changes, and the browser is killed at a random moment: what comes back is the last delta.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_at_any_moment_the_last_delta_handed_out_comes_back() {
    const SEEDS: u64 = 20;
    let place = Place::new();
    let sites = [Site::start().await, Site::start().await];
    let from = Instant::now();
    let mut stored_pages = 0;
    for seed in 0..SEEDS {
        let mut random = Random(seed + 1);
        let session = Session::start(&place).await;
        let mut recorder = session.record(SessionState::default()).await;
        let mut stored = SessionState::default();
        let pid = session.browser.pid();
        let after = Duration::from_millis(200 + random.below(1500));
        let mut killer = JoinSet::new();
        killer.spawn(async move {
            tokio::time::sleep(after).await;
            common::kill(pid);
        });
        let mut tabs = Vec::new();
        for step in 0.. {
            if session.cdp().is_closed() {
                break;
            }
            if tabs.is_empty() || (random.below(6) == 0 && tabs.len() < 4) {
                let url = sites[random.index(2)].url(PATHS[random.index(PATHS.len())]);
                tabs.extend(session.try_open(&url).await);
            }
            let change = random.change(step);
            if let Some(tab) = tabs.get(random.index(tabs.len().max(1))) {
                // The browser may be gone.
                let _ = tab.try_eval(&change).await;
            }
            if random.below(2) == 0
                && let Some(delta) = recorder.delta().await
            {
                stored.apply(&Delta::decode(&delta.encode()).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        }
        killer.join_next().await.unwrap().unwrap();
        // What is handed out after the death is what was known before it.
        if let Some(delta) = recorder.delta().await {
            stored.apply(&delta);
        }
        assert_eq!(&stored, recorder.state(), "seed {seed}");
        stored_pages += stored.pages.len();
        drop(recorder);
        drop(session);

        let session = Session::start(&place).await;
        let restored = session.restore(&stored).await;
        assert!(restored.is_whole(), "seed {seed}: {restored:#?}");
        // Nothing is known beforehand: all that is recorded now came from the browser.
        let mut recorder = session.record(SessionState::default()).await;
        recorder.last_delta().await;
        let now = recorder.state();
        assert_eq!(stored.cookies, now.cookies, "seed {seed}");
        let open: Vec<_> = stored.pages.values().map(|page| page.url.clone()).collect();
        let local = |state: &SessionState| {
            let origins = state.origins.clone().into_iter();
            let of_page = |origin: &str| open.iter().any(|url| url.starts_with(origin));
            origins
                .filter(|(origin, _)| of_page(origin))
                .collect::<Vec<_>>()
        };
        assert_eq!(local(&stored), local(now), "seed {seed}");
        let sorted = |state: &SessionState| {
            let mut pages = pages(state);
            for page in &mut pages {
                // One that was killed as it came had no title yet.
                page.title.clear();
            }
            pages.sort_by_key(|page| format!("{page:?}"));
            pages
        };
        assert_eq!(sorted(&stored), sorted(now), "seed {seed}");
    }
    assert!(stored_pages > 20, "{stored_pages} pages in all");
    println!("random schedules: {SEEDS} in {:?}", from.elapsed());
}

const PATHS: [&str; 3] = ["/login", "/a", "/b?x=1"];

/// Debounced by 100 ms in the page; the rest is for a busy machine.
const SOON: Duration = Duration::from_millis(600);

/// xorshift: the same seed, the same schedule.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        for _ in 0..3 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
        }
        self.0 % limit
    }

    fn change(&mut self, step: u32) -> String {
        match self.below(8) {
            0 => format!("localStorage.setItem('k{}', 'v{step}')", self.below(4)),
            1 => format!("sessionStorage.setItem('k{}', 'v{step}')", self.below(4)),
            2 => format!("localStorage.removeItem('k{}')", self.below(4)),
            3 => format!("document.cookie = 'c{}={step}; path=/'", self.below(4)),
            4 => format!("scrollTo(0, {})", self.below(3000)),
            5 => format!(
                "text.value = 'v{step}'; text.dispatchEvent(new Event('input', {{ bubbles: true }}))"
            ),
            6 => format!("history.pushState({step}, '', '/at{step}')"),
            _ => "check.click()".to_owned(),
        }
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }
}
