//! One client, and several, of one session: the protocol as they see it, against a real Chromium.

#![allow(clippy::unwrap_used)]

mod common;
mod jailed;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_browser::door::HOLD_LIMIT;
use understudy_browser::{Ended, Heard};

use common::{Place, eventually};
use jailed::Line;

#[tokio::test]
async fn a_target_that_a_client_makes_is_attached_before_its_answer() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    auto_attach(&mut line).await;
    for _ in 0..10 {
        let params = json!({ "url": "about:blank" });
        let id = line.send(None, "Target.createTarget", params).await;
        let first = line
            .event(|message| message["method"] == "Target.attachedToTarget" || message["id"] == id);
        let first = first.await;
        assert_eq!(first["method"], "Target.attachedToTarget", "{first}");
        assert!(first.get("sessionId").is_none(), "{first}");
        let made = line.answer(id).await.unwrap();
        assert_eq!(first["params"]["targetInfo"]["targetId"], made["targetId"]);
    }
}

#[tokio::test]
async fn a_client_finds_what_another_left_and_sees_what_it_does() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut first = Line::new(&browser, &jail);
    let (target, session) = first.page("data:text/html,<title>kept</title>").await;
    first.evaluate(&session, "window.kept = 42").await.unwrap();
    let mut second = Line::new(&browser, &jail);
    let attached = auto_attach(&mut second).await;
    let [attached] = attached.as_slice() else {
        panic!("one page is there, not {attached:?}")
    };
    assert_eq!(attached["targetInfo"]["targetId"], target);
    let theirs = attached["sessionId"].as_str().unwrap();
    assert_ne!(theirs, session);
    let kept = second.evaluate(theirs, "window.kept").await.unwrap();
    assert_eq!(kept, 42);
    assert_eq!(first.leave().await, Ended::Left);
    let kept = second.evaluate(theirs, "window.kept").await.unwrap();
    assert_eq!(kept, 42);
    let foreign = second.evaluate(&session, "window.kept").await.unwrap_err();
    assert_eq!(foreign["code"], -32001);
}

#[tokio::test]
async fn a_popup_is_attached_wherever_it_was_opened() {
    let place = Place::new();
    let browser = place.browser().await;
    let (pages, _served) = jailed::pages().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    auto_attach(&mut line).await;
    let (target, session) = line.page(&pages).await;
    let open = format!("window.open('{pages}/popup'), 1");
    line.evaluate(&session, &open).await.unwrap();
    let popup = line
        .event(|message| message["params"]["targetInfo"]["openerId"] == target)
        .await;
    assert_eq!(popup["method"], "Target.attachedToTarget", "{popup}");
    let popup = popup["params"]["sessionId"].as_str().unwrap().to_owned();
    assert_eq!(line.evaluate(&popup, "1 + 1").await.unwrap(), 2);
}

#[tokio::test]
async fn contexts_that_a_client_made_go_with_it_and_the_sessions_own_stays() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    let made = line
        .call(None, "Target.createBrowserContext", json!({}))
        .await
        .unwrap();
    let context = made["browserContextId"].as_str().unwrap().to_owned();
    line.page("about:blank").await;
    let params = json!({ "url": "about:blank", "browserContextId": context });
    line.call(None, "Target.createTarget", params)
        .await
        .unwrap();
    let seen = line
        .call(None, "Target.getBrowserContexts", json!({}))
        .await
        .unwrap();
    assert_eq!(seen["browserContextIds"], json!([context]));
    assert_eq!(seen["defaultBrowserContextId"], jail.context());
    let own = json!({ "browserContextId": jail.context() });
    let refused = line.call(None, "Target.disposeBrowserContext", own).await;
    assert!(refused.is_err());
    assert!(jail.owns(&context));
    line.leave().await;
    assert!(!jail.owns(&context));
    let mut left = Vec::new();
    for _ in 0..100 {
        left = targets(&browser).await;
        if left
            .iter()
            .all(|target| target["browserContextId"] != *context)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of = |context: &str| {
        let mut of = left
            .iter()
            .filter(|target| target["browserContextId"] == *context);
        of.next().is_some()
    };
    assert!(!of(&context), "{left:?}");
    assert!(of(jail.context()), "{left:?}");
}

#[tokio::test]
async fn browser_close_is_answered_and_releases_the_session_and_no_browser() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    line.call(None, "Browser.close", json!({})).await.unwrap();
    assert_eq!(line.ended().await, Ended::Released);
    assert!(!targets(&browser).await.is_empty() || !browser.cdp().is_closed());
}

#[tokio::test]
async fn when_the_browser_is_killed_what_waits_is_answered_and_the_line_ends() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    let (_, session) = line.page("about:blank").await;
    let forever = json!({ "expression": "new Promise(() => {})", "awaitPromise": true });
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = line.send(Some(&session), "Runtime.evaluate", forever.clone());
        ids.push(id.await);
    }
    line.evaluate(&session, "1").await.unwrap();
    let killed = Instant::now();
    common::kill(browser.pid());
    for id in ids {
        let error = line.answer(id).await.unwrap_err();
        assert_eq!(error["message"], "Browser closed");
    }
    let ended = line.ended().await;
    let took = killed.elapsed();
    assert_eq!(ended, Ended::BrowserGone);
    assert_eq!(ended.close_code(), 1012);
    println!("from the kill to the end of the line: {took:?}");
    assert!(took < Duration::from_secs(5));
}

#[tokio::test]
async fn a_crashed_page_fails_its_commands_and_lives_again_once_it_is_navigated() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    let (_, session) = line.page("about:blank").await;
    let crash = line.call(Some(&session), "Page.crash", json!({})).await;
    assert_eq!(crash.unwrap_err()["message"], "Target crashed");
    let later = line.evaluate(&session, "1").await.unwrap_err();
    assert_eq!(later["message"], "Target crashed");
    let url = json!({ "url": "data:text/html,back" });
    line.call(Some(&session), "Page.navigate", url)
        .await
        .unwrap();
    assert_eq!(line.evaluate(&session, "1").await.unwrap(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_its_neighbour_is_not() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut slow = Line::with_room(&browser, &jail, 1);
    let mut quick = Line::new(&browser, &jail);
    let (target, _) = quick.page("about:blank").await;
    let session = slow.attach(&target).await;
    for _ in 0..4 {
        let large = json!({ "expression": "'x'.repeat(1 << 20)" });
        slow.send(Some(&session), "Runtime.evaluate", large).await;
    }
    let mine = quick.attach(&target).await;
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(quick.evaluate(&mine, "1").await.unwrap(), 1);
    }
    assert_eq!(slow.ended_unread().await, Ended::TooSlow);
    assert_eq!(quick.evaluate(&mine, "1").await.unwrap(), 1);
}

#[tokio::test]
async fn discovery_tells_each_of_its_sessions_what_it_asked_for() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    let sub = line
        .call(None, "Target.attachToBrowserTarget", json!({}))
        .await
        .unwrap();
    let sub = sub["sessionId"].as_str().unwrap().to_owned();
    let pages = json!({ "discover": true, "filter": [{ "type": "page" }] });
    line.call(Some(&sub), "Target.setDiscoverTargets", pages)
        .await
        .unwrap();
    let (target, _) = line.page("about:blank").await;
    let created = line
        .event(|message| message["method"] == "Target.targetCreated")
        .await;
    assert_eq!(created["sessionId"], sub);
    assert_eq!(created["params"]["targetInfo"]["targetId"], target);
    let close = json!({ "targetId": target });
    line.call(None, "Target.closeTarget", close).await.unwrap();
    let gone = line
        .event(|message| message["method"] == "Target.targetDestroyed")
        .await;
    assert_eq!(gone["params"]["targetId"], target);
    let others = line.said.iter().filter(|message| {
        let method = message["method"].as_str().unwrap_or_default();
        method.starts_with("Target.target") && message["sessionId"] != *sub
    });
    assert_eq!(others.count(), 0, "{:?}", line.said);
}

#[tokio::test]
async fn a_download_lands_in_the_sessions_folder_wherever_the_client_asked_for_it() {
    let place = Place::new();
    let browser = place.browser().await;
    let (pages, _served) = jailed::pages().await;
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    let jail = jailed::session(&browser, folder.path()).await;
    let mut line = Line::new(&browser, &jail);
    let asked = json!({
        "behavior": "allow", "downloadPath": "/etc", "eventsEnabled": true,
    });
    line.call(None, "Browser.setDownloadBehavior", asked)
        .await
        .unwrap();
    let (_, session) = line.page(&pages).await;
    let click = "document.querySelector('#file-link').click()";
    line.evaluate(&session, click).await.unwrap();
    let done = line
        .event(|message| message["params"]["state"] == "completed")
        .await;
    assert_eq!(done["method"], "Browser.downloadProgress");
    eventually("the file is there", || {
        let file = std::fs::read(folder.path().join("data.bin"));
        file.is_ok_and(|file| file == b"downloaded")
    })
    .await;
}

/// What serving a client costs, beside a call of our own: printed.
#[tokio::test]
async fn serving_a_client_adds_little_to_a_call() {
    let place = Place::new();
    let browser = place.browser().await;
    let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    let (_, session) = line.page("about:blank").await;
    let page = common::page(&browser, "about:blank").await;
    let params = json!({ "expression": "1", "returnByValue": true });
    let (mut served, mut called) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let since = Instant::now();
        let method = "Runtime.evaluate";
        line.call(Some(&session), method, params.clone())
            .await
            .unwrap();
        served.push(since.elapsed());
        let since = Instant::now();
        let call = browser.cdp().call(page.session(), method, params.clone());
        let _: Value = call.await.unwrap();
        called.push(since.elapsed());
    }
    served.sort_unstable();
    called.sort_unstable();
    let at = |times: &[Duration], percent: usize| times[times.len() * percent / 100];
    for percent in [50, 90, 99] {
        println!(
            "Runtime.evaluate p{percent}: served {:?}, Cdp::call {:?}",
            at(&served, percent),
            at(&called, percent)
        );
    }
    assert!(at(&served, 50) < at(&called, 50) + Duration::from_millis(10));
}

async fn auto_attach(line: &mut Line) -> Vec<Value> {
    let params = json!({ "autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true });
    line.call(None, "Target.setAutoAttach", params)
        .await
        .unwrap();
    let attached = line
        .said
        .extract_if(.., |said| said["method"] == "Target.attachedToTarget");
    attached.map(|mut said| said["params"].take()).collect()
}

async fn targets(browser: &understudy_browser::Browser) -> Vec<Value> {
    let all = json!({ "filter": [{}] });
    let mut all: Value = browser
        .cdp()
        .call("", "Target.getTargets", all)
        .await
        .unwrap();
    serde_json::from_value(all["targetInfos"].take()).unwrap()
}

#[tokio::test]
async fn a_popup_waits_at_the_door_until_its_client_lets_it_go() {
    let place = Place::new();
    let browser = place.browser().await;
    let (pages, _served) = jailed::pages().await;
    let door = jailed::door(&browser).await;
    let jail = jailed::session_with_door(&browser, &door, "/nowhere".as_ref()).await;
    let mut line = Line::new(&browser, &jail);
    auto_attach(&mut line).await;
    let (popup, opened) = open_popup(&mut line, &pages).await;
    let since = Instant::now();
    assert_eq!(opened["params"]["waitingForDebugger"], true, "{opened}");
    // Neither is answered before the page goes on.
    for method in ["Fetch.enable", "Runtime.runIfWaitingForDebugger"] {
        line.send(Some(&popup), method, json!({})).await;
    }
    let first = line
        .event(|message| message["method"] == "Fetch.requestPaused")
        .await;
    assert_eq!(first["params"]["request"]["url"], format!("{pages}/popup"));
    assert!(since.elapsed() < HOLD_LIMIT, "it went on by itself");
}

#[tokio::test]
async fn nobody_waits_at_the_door_for_a_client_that_hangs_or_left_or_is_of_another_session() {
    let place = Place::new();
    let browser = place.browser().await;
    let (pages, _served) = jailed::pages().await;
    let door = jailed::door(&browser).await;
    let jail = jailed::session_with_door(&browser, &door, "/nowhere".as_ref()).await;
    let mut hangs = Line::new(&browser, &jail);
    auto_attach(&mut hangs).await;

    let neighbour = jailed::session(&browser, "/nowhere".as_ref()).await;
    let mut neighbour = Line::new(&browser, &neighbour);
    let since = Instant::now();
    neighbour.page(&pages).await;
    let took = since.elapsed();
    println!("a neighbour's page: {took:?}");
    assert!(took < HOLD_LIMIT);

    let mut other = Line::new(&browser, &jail);
    let since = Instant::now();
    let made = other.call(None, "Target.createTarget", json!({ "url": pages }));
    let made = made.await.unwrap();
    let session = other.attach(made["targetId"].as_str().unwrap()).await;
    let went_on = async |line: &mut Line, session: &str| {
        while line.evaluate(session, "document.title").await != Ok("index".into()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    went_on(&mut other, &session).await;
    let took = since.elapsed();
    println!("a page that a client which hangs was to look at: {took:?}");
    assert!(took >= HOLD_LIMIT && took < 2 * HOLD_LIMIT);

    hangs.leave().await;
    let since = Instant::now();
    other.page(&pages).await;
    let took = since.elapsed();
    println!("once that client has left: {took:?}");
    assert!(took < HOLD_LIMIT);
}

#[tokio::test]
async fn a_root_attaches_to_the_kinds_that_chromiums_own_attaches_to() {
    let puppeteers = json!([{ "type": "page", "exclude": true }, {}]);
    for filter in [None, Some(puppeteers)] {
        let place = Place::new();
        let browser = place.browser().await;
        let (pages, _served) = jailed::pages().await;
        let jail = jailed::session(&browser, "/nowhere".as_ref()).await;
        let mut params =
            json!({ "autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true });
        if let Some(filter) = &filter {
            params["filter"] = filter.clone();
        }
        let method = "Target.setAutoAttach";
        let mut line = Line::new(&browser, &jail);
        line.call(None, method, params.clone()).await.unwrap();
        let mut root = browser.cdp().root().await.unwrap();
        let session = root.session().clone();
        let on = browser.cdp().call(&session, method, params.clone());
        let _: Value = on.await.unwrap();
        let (_, page) = line.page(&format!("{pages}/workers")).await;
        while line.evaluate(&page, "document.title").await != Ok("ready".into()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // It was asked for.
        line.said.retain(|said| said["params"]["sessionId"] != page);
        let mut chromiums = Vec::new();
        let quiet = Duration::from_millis(300);
        while let Ok(Some(heard)) = tokio::time::timeout(quiet, root.next()).await {
            if let Heard::Event(event) = heard
                && event.session == session
            {
                chromiums.push(serde_json::from_slice(&event.raw).unwrap());
            }
        }
        line.call(None, "Browser.getVersion", json!({}))
            .await
            .unwrap();
        let mut later = Line::new(&browser, &jail);
        later.call(None, method, params).await.unwrap();
        println!("{filter:?}: Chromium {:?}", kinds(&chromiums));
        println!(
            "  ours {:?}, later {:?}",
            kinds(&line.said),
            kinds(&later.said)
        );
        assert_eq!(kinds(&line.said), kinds(&chromiums));
        assert_eq!(kinds(&later.said), kinds(&chromiums));
    }
}

/// Of the targets that a root attached to by itself.
fn kinds(said: &[Value]) -> Vec<String> {
    let attached = said
        .iter()
        .filter(|said| said["method"] == "Target.attachedToTarget");
    let kinds = attached.map(|said| said["params"]["targetInfo"]["type"].to_string());
    let kinds: std::collections::BTreeSet<_> = kinds.collect();
    kinds.into_iter().collect()
}

/// What a door costs each new page: printed.
#[tokio::test]
async fn a_door_costs_a_new_page_little() {
    let place = Place::new();
    let (with, without) = (place.browser().await, place.browser().await);
    let _door = jailed::door(&with).await;
    let mut lines = Vec::new();
    for browser in [&with, &without] {
        let jail = jailed::session(browser, "/nowhere".as_ref()).await;
        lines.push((Line::new(browser, &jail), Vec::new()));
    }
    for _ in 0..20 {
        for (line, times) in &mut lines {
            let since = Instant::now();
            let (target, session) = line.page("about:blank").await;
            line.evaluate(&session, "1").await.unwrap();
            times.push(since.elapsed());
            let close = json!({ "targetId": target });
            line.call(None, "Target.closeTarget", close).await.unwrap();
        }
    }
    let mut medians = lines.into_iter().map(|(_, mut times)| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    let (with, without) = (medians.next().unwrap(), medians.next().unwrap());
    println!("a new page p50: with a door {with:?}, without {without:?}");
    assert!(with < without + HOLD_LIMIT / 4);
}

/// A page that opens a popup; the popup's session, and what was said of it.
async fn open_popup(line: &mut Line, pages: &str) -> (String, Value) {
    let made = line.call(None, "Target.createTarget", json!({ "url": pages }));
    let target = made.await.unwrap()["targetId"].clone();
    let is_of = |target: &Value, name: &'static str| {
        let target = target.clone();
        move |message: &Value| {
            message["method"] == "Target.attachedToTarget"
                && message["params"]["targetInfo"][name] == target
        }
    };
    let page = line.event(is_of(&target, "targetId")).await;
    let page = page["params"]["sessionId"].as_str().unwrap().to_owned();
    line.call(Some(&page), "Runtime.runIfWaitingForDebugger", json!({}))
        .await
        .unwrap();
    while line.evaluate(&page, "document.title").await != Ok("index".into()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Its answer waits for the popup.
    let open = json!({ "expression": "void window.open('/popup')" });
    line.send(Some(&page), "Runtime.evaluate", open).await;
    let opened = line.event(is_of(&target, "openerId")).await;
    let popup = opened["params"]["sessionId"].as_str().unwrap().to_owned();
    (popup, opened)
}
