//! A real Chromium over its pipe: it starts, answers, crashes and ends as it should.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use understudy_browser::cdp::{CdpError, Heard};
use understudy_browser::process::Direct;
use understudy_browser::{Browser, BrowserError};

use common::{Place, eventually};

#[tokio::test]
async fn a_browser_starts_answers_and_leaves_neither_process_nor_profile() {
    let place = Place::new();
    let browser = place.browser().await;
    assert!(browser.about().product.contains("Chrome/"));
    let pid = browser.pid();
    assert_eq!(place.profiles(), 1);
    let helpers = common::processes_of(&place);
    assert!(helpers.contains(&pid), "{helpers:?} has no {pid}");
    drop(browser);
    assert_eq!(place.profiles(), 0);
    eventually("its helpers end with it", || {
        common::processes_of(&place).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_missing_program_is_an_error_that_says_what_to_install() {
    let place = Place::new();
    let mut setup = place.setup();
    setup.binary = Some(PathBuf::from("/nowhere/chromium"));
    let error = Browser::start(&Direct, &setup).await.unwrap_err();
    assert!(matches!(error, BrowserError::NoBinary(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("apt-get install chromium-headless-shell")
    );
    assert_eq!(place.profiles(), 0);
}

#[tokio::test]
async fn a_program_that_is_no_browser_is_not_waited_for_longer_than_it_lives() {
    let place = Place::new();
    let mut setup = place.setup();
    setup.binary = Some(PathBuf::from("/bin/true"));
    let error = Browser::start(&Direct, &setup).await.unwrap_err();
    assert!(matches!(error, BrowserError::NotReady { .. }), "{error}");
    assert_eq!(place.profiles(), 0);
}

#[tokio::test]
async fn a_browser_that_is_too_old_is_refused_by_its_version() {
    let place = Place::new();
    let mut setup = place.setup();
    // It answers the two questions that every browser is asked first, once it has heard something.
    let old = "#!/bin/sh\n/usr/bin/head -c 1 <&3 >/dev/null\n\
        printf '{\"id\":1,\"result\":{\"product\":\"HeadlessChrome/90.0.1.2\",\"protocolVersion\":\"1.3\",\
        \"revision\":\"\",\"userAgent\":\"\",\"jsVersion\":\"9\"}}\\0' >&4\n/bin/sleep 1\n\
        printf '{\"id\":2,\"result\":{}}\\0' >&4\nexec /bin/sleep 20\n";
    let program = place.program("old-browser", old);
    setup.binary = Some(program);
    let error = Browser::start(&Direct, &setup).await.unwrap_err();
    assert!(matches!(error, BrowserError::Version { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("HeadlessChrome/90.0.1.2"), "{said}");
    assert!(
        said.contains("apt-get install chromium-headless-shell"),
        "{said}"
    );
    assert_eq!(place.profiles(), 0);
}

#[tokio::test]
async fn when_the_process_is_killed_every_waiting_and_later_command_fails_at_once() {
    let place = Place::new();
    let browser = place.browser().await;
    let page = common::page(&browser, "about:blank").await;
    let cdp = browser.cdp().clone();
    let forever = cdp.call::<Value>(
        page.session(),
        "Runtime.evaluate",
        json!({ "expression": "new Promise(() => {})", "awaitPromise": true }),
    );
    let kill = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        common::kill(browser.pid());
    };
    let (hung, ()) = tokio::join!(forever, kill);
    assert!(matches!(hung, Err(CdpError::Gone(_))), "{hung:?}");
    cdp.closed().await;
    let later = cdp.call::<Value>("", "Browser.getVersion", json!({})).await;
    assert!(matches!(later, Err(CdpError::Gone(_))), "{later:?}");
}

#[tokio::test]
async fn when_a_page_crashes_its_commands_fail_and_its_neighbours_go_on() {
    let place = Place::new();
    let browser = place.browser().await;
    let cdp = browser.cdp();
    let page = common::page(&browser, "about:blank").await;
    let neighbour = common::page(&browser, "about:blank").await;
    let evaluate = |session: &str| {
        let session = session.to_owned();
        async move {
            let params = json!({ "expression": "6 * 7" });
            cdp.call::<Value>(&session, "Runtime.evaluate", params)
                .await
        }
    };
    assert!(evaluate(page.session()).await.is_ok());
    let crash = cdp.call::<Value>(page.session(), "Page.crash", json!({}));
    let crashed = tokio::time::timeout(Duration::from_secs(5), crash).await;
    assert!(
        matches!(crashed, Ok(Err(CdpError::Crashed(_)))),
        "{crashed:?}"
    );
    let later = evaluate(page.session()).await;
    assert!(matches!(later, Err(CdpError::Crashed(_))), "{later:?}");
    assert_eq!(
        evaluate(neighbour.session()).await.unwrap()["result"]["value"],
        42
    );
    let again = json!({ "url": "data:text/html,<title>back</title>" });
    let revived: Value = cdp
        .call(page.session(), "Page.navigate", again)
        .await
        .unwrap();
    assert!(revived.get("errorText").is_none(), "{revived}");
    assert_eq!(
        evaluate(page.session()).await.unwrap()["result"]["value"],
        42
    );
}

#[tokio::test]
async fn answers_and_events_of_a_root_come_in_the_order_in_which_the_browser_said_them() {
    let place = Place::new();
    let browser = place.browser().await;
    let mut root = browser.cdp().root().await.unwrap();
    let attach = json!({ "autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true });
    let attach = serde_json::value::to_raw_value(&attach).unwrap();
    let session = root.session().clone();
    root.pass(1, &session, "Target.setAutoAttach", Some(&attach))
        .await
        .unwrap();
    let create = serde_json::value::to_raw_value(&json!({ "url": "about:blank" })).unwrap();
    root.pass(2, &session, "Target.createTarget", Some(&create))
        .await
        .unwrap();
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "reply 2") {
        let heard = tokio::time::timeout(Duration::from_secs(10), root.next()).await;
        match heard.unwrap().unwrap() {
            Heard::Event(event) => said.push(event.method.to_string()),
            Heard::Reply(reply) => said.push(format!("reply {}", reply.tag)),
        }
    }
    let place_of = |what: &str| said.iter().position(|said| said == what);
    let attached = place_of("Target.attachedToTarget").unwrap();
    assert!(place_of("reply 1").unwrap() < attached, "{said:?}");
    assert!(attached < place_of("reply 2").unwrap(), "{said:?}");
}

#[tokio::test]
async fn a_root_that_is_dropped_takes_its_sessions_along_and_no_other_roots() {
    let place = Place::new();
    let browser = place.browser().await;
    let kept = common::page(&browser, "about:blank").await;
    let dropped = common::page(&browser, "about:blank").await;
    let session = dropped.session().to_owned();
    drop(dropped);
    let over = browser
        .cdp()
        .call::<Value>(&session, "Page.enable", json!({}))
        .await;
    assert!(matches!(over, Err(CdpError::Detached(_))), "{over:?}");
    let lives = browser
        .cdp()
        .call::<Value>(kept.session(), "Page.enable", json!({}))
        .await;
    assert!(lives.is_ok(), "{lives:?}");
}

#[tokio::test]
async fn a_root_cannot_speak_on_a_session_of_another() {
    let place = Place::new();
    let browser = place.browser().await;
    let theirs = common::page(&browser, "about:blank").await;
    let root = browser.cdp().root().await.unwrap();
    let refused = root.pass(1, theirs.session(), "Page.enable", None).await;
    assert!(matches!(refused, Err(CdpError::Detached(_))), "{refused:?}");
}
