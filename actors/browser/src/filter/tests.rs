//! What the filter says of every kind of message, from values alone.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

struct World {
    jail: Jail,
    targets: HashMap<Box<str>, Target>,
    attached: HashMap<Box<str>, Attached>,
    windows: HashSet<i64>,
}

fn world() -> World {
    let jail = Jail::new("own-context".into(), PathBuf::from("/files"));
    let jail = jail.with_proxy("http://127.0.0.1:3128".into());
    jail.add("made-context");
    let target = |context: &str| Target {
        kind: "page".into(),
        context: context.into(),
        info: RawValue::from_string("{}".into()).unwrap(),
    };
    World {
        targets: [
            ("own-page".into(), target("own-context")),
            ("made-page".into(), target("made-context")),
            ("stale-page".into(), target("left-context")),
        ]
        .into(),
        attached: [(
            "own-session".into(),
            Attached {
                parent: "".into(),
                target: "own-page".into(),
                place: Place::Page,
            },
        )]
        .into(),
        windows: [7].into(),
        jail,
    }
}

/// What becomes of a command: its parameters if it passes, the emulation, or the error's number.
fn check(place: Place, method: &str, params: Value) -> Result<Value, i64> {
    let world = world();
    let own = Own {
        jail: &world.jail,
        targets: &world.targets,
        attached: &world.attached,
        windows: &world.windows,
    };
    let message = json!({ "id": 1, "method": method, "params": params }).to_string();
    let command = read(message.as_bytes()).unwrap();
    match judge(&command, place, &own) {
        Verdict::Pass { params: None, .. } => Ok(params),
        Verdict::Pass {
            params: Some(params),
            ..
        } => Ok(serde_json::from_str(params.get()).unwrap()),
        Verdict::Emulate(emulation) => Ok(format!("{emulation:?}").into()),
        Verdict::Refuse(refusal) => Err(refusal.code),
    }
}

#[test]
fn the_sessions_context_is_named_where_none_is() {
    for method in [
        "Target.createTarget",
        "Browser.grantPermissions",
        "Browser.resetPermissions",
        "Browser.setDownloadBehavior",
        "Storage.getCookies",
    ] {
        let named = check(Place::Root, method, json!({ "x": 1 })).unwrap();
        let expected = json!({ "x": 1, "browserContextId": "own-context" });
        assert_eq!(named, expected, "{method}");
        let made = json!({ "browserContextId": "made-context" });
        assert_eq!(check(Place::Root, method, made.clone()), Ok(made));
        let foreign = json!({ "browserContextId": "foreign" });
        assert_eq!(check(Place::Root, method, foreign), Err(-32000), "{method}");
    }
    let page = check(Place::Page, "Storage.getCookies", json!({}));
    assert_eq!(page, Ok(json!({})), "a page's session has its own context");
}

#[test]
fn targets_of_contexts_that_are_the_sessions_no_more_are_none() {
    let close = |id: &str| check(Place::Root, "Target.closeTarget", json!({ "targetId": id }));
    assert!(close("own-page").is_ok());
    assert!(close("made-page").is_ok());
    assert_eq!(close("stale-page"), Err(-32602));
    assert_eq!(close("unknown"), Err(-32602));
}

#[test]
fn contexts_go_with_their_client_and_through_the_sessions_proxy() {
    let asked = json!({
        "proxyServer": "http://evil:1", "proxyBypassList": "*", "disposeOnDetach": false,
    });
    let made = check(Place::Root, "Target.createBrowserContext", asked).unwrap();
    let expected = json!({
        "proxyServer": "http://127.0.0.1:3128",
        "proxyBypassList": "<-loopback>",
        "disposeOnDetach": true,
    });
    assert_eq!(made, expected);
}

#[test]
fn files_stay_in_the_sessions_folder() {
    let set = |files: Value| {
        let params = json!({ "files": files });
        let set = check(Place::Page, "DOM.setFileInputFiles", params)?;
        Ok::<_, i64>(set["files"].clone())
    };
    assert_eq!(set(json!(["a/b.txt"])), Ok(json!(["/files/a/b.txt"])));
    assert_eq!(set(json!(["/files/a"])), Ok(json!(["/files/a"])));
    assert_eq!(set(json!([])), Ok(json!([])));
    for outside in [
        "",
        ".",
        "..",
        "/",
        "/files",
        "/files/",
        "/files/../etc/passwd",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "/filesx/a",
        "a\0b",
    ] {
        assert_eq!(set(json!([outside])), Err(-32000), "{outside:?}");
    }
    assert_eq!(set(json!("a")), Err(-32602));
    let drop = |files: Value| {
        let params = json!({ "data": { "items": [], "files": files } });
        check(Place::Page, "Input.dispatchDragEvent", params).map(|_| ())
    };
    assert_eq!(drop(json!(["/files/a"])), Ok(()));
    assert_eq!(drop(json!(["/etc/passwd"])), Err(-32000));
    assert_eq!(drop(json!(null)), Ok(()));
    let folder = json!({ "behavior": "allow", "downloadPath": "/etc" });
    let folder = check(Place::Page, "Page.setDownloadBehavior", folder).unwrap();
    assert_eq!(folder["downloadPath"], "/files");
}

#[test]
fn a_page_is_sent_only_where_it_could_go_by_itself() {
    let go = |url: &str| {
        let page = check(Place::Page, "Page.navigate", json!({ "url": url })).is_ok();
        let root = check(Place::Root, "Target.createTarget", json!({ "url": url })).is_ok();
        assert_eq!(page, root, "{url:?}");
        page
    };
    for fine in [
        "http://a/",
        "HTTPS://a/",
        " https://a/ ",
        "ht\ntp://a/",
        "about:blank",
        "About:Blank#x",
        "about:blank?x",
        "about:srcdoc",
        "data:text/html,file:///x",
        "javascript:1",
        "",
        "blob:http://a/1",
        "blob:null/1",
    ] {
        assert!(go(fine), "{fine:?}");
    }
    for not in [
        "file:///x",
        "f\tile:///x",
        "\u{1f}file:///x",
        "chrome://x",
        "about:version",
        "about:",
        "about:blankx",
        "view-source:http://a/",
        "filesystem:http://a/",
        "blob:file:///x",
        "blob:",
        "//a/",
        "a",
        "/x",
        "é:x",
        "1http://a/",
        "http\u{a0}://a/",
        "ftp://a/",
        "ws://a/",
        "chrome-error://chromewebdata/",
        "isolated-app://x",
        "intent://x",
    ] {
        assert!(!go(not), "{not:?}");
    }
}

#[test]
fn windows_are_those_that_the_browser_named() {
    let bounds = |id: i64| {
        let params = json!({ "windowId": id });
        check(Place::Root, "Browser.getWindowBounds", params)
    };
    assert!(bounds(7).is_ok());
    assert_eq!(bounds(8), Err(-32000));
}

#[test]
fn what_is_unknown_passes_on_a_page_and_never_on_a_root() {
    assert!(check(Place::Page, "New.thing", json!({ "a": [1] })).is_ok());
    assert_eq!(check(Place::Root, "New.thing", json!({})), Err(-32601));
    for domain in ["Browser", "Target"] {
        for place in [Place::Root, Place::Page] {
            let method = format!("{domain}.newThing");
            assert_eq!(check(place, &method, json!({})), Err(-32000));
        }
    }
    // A number of the same name as an id.
    let ack = json!({ "sessionId": 1 });
    assert!(check(Place::Page, "Page.screencastFrameAck", ack).is_ok());
}

#[test]
fn a_target_filters_first_fitting_entry_decides() {
    let filter = |json: Value| serde_json::from_value::<TargetFilter>(json).unwrap();
    let puppeteer = filter(json!([{ "type": "page", "exclude": true }, {}]));
    assert!(!puppeteer.matches("page"));
    assert!(puppeteer.matches("tab") && puppeteer.matches("browser"));
    let default = TargetFilter::default();
    assert!(default.matches("page") && default.matches("iframe"));
    assert!(!default.matches("tab") && !default.matches("browser"));
    assert!(!filter(json!([])).matches("page"));
}

/// Whatever comes, it is read and judged without a panic, and what passes can be sent.
#[test]
fn mutated_messages_are_read_and_judged() {
    let world = world();
    let own = Own {
        jail: &world.jail,
        targets: &world.targets,
        attached: &world.attached,
        windows: &world.windows,
    };
    let seeds = [
        r#"{"id":1,"method":"Target.createTarget","params":{"url":"http://a/","browserContextId":"own-context"}}"#,
        r#"{"id":2,"method":"DOM.setFileInputFiles","params":{"files":["a","/files/b"]},"sessionId":"own-session"}"#,
        r#"{"id":3,"method":"Target.setAutoAttach","params":{"autoAttach":true,"flatten":true,"filter":[{"type":"page","exclude":true},{}]}}"#,
        r#"{"id":4,"method":"Input.dispatchDragEvent","params":{"data":{"files":["x"]},"x":-1.5e3}}"#,
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut passed = 0;
    for round in 0..100_000 {
        let mut message = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..next(4) {
            if message.is_empty() {
                break;
            }
            let at = next(message.len());
            match next(4) {
                0 => message[at] = next(256) as u8,
                1 => drop(message.remove(at)),
                2 => message.insert(at, br#"{}[]",:\0u1"#[next(11)]),
                _ => message.truncate(at.max(1)),
            }
        }
        let Ok(command) = read(&message) else {
            continue;
        };
        let place = if next(2) == 0 {
            Place::Root
        } else {
            Place::Page
        };
        if let Verdict::Pass { params, .. } = judge(&command, place, &own) {
            let params = params.as_deref().or(command.params);
            let params = params.map_or("{}", RawValue::get);
            assert!(!params.contains('\0'));
            passed += 1;
        }
    }
    assert!(passed > 1000, "{passed} of the mutated messages are fine");
}
