//! Sessions of a real browser, lines that speak to them, and pages for them to visit.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its own part

#[path = "../../../../tests/clients/pages.rs"]
mod the_pages;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use understudy_browser::{Browser, Door, Ended, Jail, serve};

/// A session: a context of its own, and a folder.
pub async fn session(browser: &Browser, downloads: &Path) -> Arc<Jail> {
    let made: Value = browser
        .cdp()
        .call("", "Target.createBrowserContext", json!({}))
        .await
        .unwrap();
    let context = made["browserContextId"].as_str().unwrap().to_owned();
    Arc::new(Jail::new(context, downloads.to_owned()))
}

/// As [`session`], with a door at which new pages wait for its clients.
pub async fn session_with_door(browser: &Browser, door: &Arc<Door>, downloads: &Path) -> Arc<Jail> {
    let jail = session(browser, downloads).await;
    let jail = Arc::into_inner(jail).unwrap();
    Arc::new(jail.with_door(door.clone()))
}

pub async fn door(browser: &Browser) -> Arc<Door> {
    Arc::new(Door::open(browser.cdp()).await.unwrap())
}

/// A client without a WebSocket.
pub struct Line {
    to: mpsc::Sender<Bytes>,
    heard: mpsc::Receiver<Bytes>,
    last_id: i64,
    /// Everything that came and was no answer to [`Line::call`].
    pub said: Vec<Value>,
    /// All that it was ever told, but for errors.
    pub told: String,
    served: JoinSet<Ended>,
}

impl Line {
    pub fn new(browser: &Browser, jail: &Arc<Jail>) -> Line {
        Line::with_room(browser, jail, 64)
    }

    pub fn with_room(browser: &Browser, jail: &Arc<Jail>, room: usize) -> Line {
        let (cdp, jail) = (browser.cdp().clone(), jail.clone());
        let (to, from) = mpsc::channel(64);
        let (say, heard) = mpsc::channel(room);
        let mut served = JoinSet::new();
        served.spawn(async move { serve(&cdp, &jail, from, say).await });
        Line {
            to,
            heard,
            last_id: 0,
            said: Vec::new(),
            told: String::new(),
            served,
        }
    }

    /// Its result, or the protocol's error.
    pub async fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: Value,
    ) -> Result<Value, Value> {
        let id = self.send(session, method, params).await;
        self.answer(id).await
    }

    pub async fn send(&mut self, session: Option<&str>, method: &str, params: Value) -> i64 {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        self.send_raw(command.to_string()).await;
        self.last_id
    }

    pub async fn send_raw(&self, message: impl Into<Bytes>) {
        // It fails once the line has ended; whoever waits for an answer then sees that.
        let _ = self.to.send(message.into()).await;
    }

    pub async fn answer(&mut self, id: i64) -> Result<Value, Value> {
        let mut message = self.event(|message| message["id"] == id).await;
        if message["error"].is_object() {
            return Err(message["error"].take());
        }
        Ok(message["result"].take())
    }

    pub async fn next(&mut self) -> Option<Value> {
        let heard = timeout(LIMIT, self.heard.recv()).await;
        let heard: Value =
            serde_json::from_slice(&heard.expect("nothing was said in time")?).unwrap();
        if heard["error"].is_null() {
            // An error repeats what it refuses.
            self.told += &heard.to_string();
        }
        Some(heard)
    }

    /// Waits for an event.
    pub async fn event(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.said.iter().position(&fits) {
            return self.said.remove(at);
        }
        loop {
            let message = self.next().await.expect("the line ended");
            if fits(&message) {
                return message;
            }
            self.said.push(message);
        }
    }

    /// A page and the session on it.
    pub async fn page(&mut self, url: &str) -> (String, String) {
        let params = json!({ "url": url });
        let made = self
            .call(None, "Target.createTarget", params)
            .await
            .unwrap();
        let target = made["targetId"].as_str().unwrap().to_owned();
        let session = self.attach(&target).await;
        let there = "document.readyState === 'complete' && location.href";
        for _ in 0..500 {
            // A navigation on its way takes the script's world along.
            let at = self.evaluate(&session, there).await.unwrap_or_default();
            if at.as_str().is_some_and(|at| at.starts_with(url)) {
                return (target, session);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{url} does not load");
    }

    pub async fn attach(&mut self, target: &str) -> String {
        let params = json!({ "targetId": target, "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", params).await;
        attached.unwrap()["sessionId"].as_str().unwrap().to_owned()
    }

    pub async fn evaluate(&mut self, session: &str, expression: &str) -> Result<Value, Value> {
        let params = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
        });
        let mut result = self.call(Some(session), "Runtime.evaluate", params).await?;
        if result["exceptionDetails"].is_object() {
            return Err(result["exceptionDetails"].take());
        }
        Ok(result["result"]["value"].take())
    }

    /// The client goes; how its line ended.
    pub async fn leave(self) -> Ended {
        let Line { to, mut served, .. } = self;
        drop(to);
        let ended = timeout(LIMIT, served.join_next()).await;
        ended.expect("it does not end").unwrap().unwrap()
    }

    /// Waits until the other side ends the line, taking what comes.
    pub async fn ended(mut self) -> Ended {
        while self.next().await.is_some() {}
        let ended = timeout(LIMIT, self.served.join_next()).await;
        ended.unwrap().unwrap().unwrap()
    }

    /// Waits until the other side ends the line, taking nothing.
    pub async fn ended_unread(mut self) -> Ended {
        let ended = timeout(3 * LIMIT, self.served.join_next()).await;
        ended.unwrap().unwrap().unwrap()
    }
}

/// The pages that the clients' scripts visit; their address, without a slash at the end.
pub async fn pages() -> (String, JoinSet<()>) {
    the_pages::open().await.unwrap()
}

const LIMIT: Duration = Duration::from_secs(15);
