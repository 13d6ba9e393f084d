//! One page that is being brought back, over a root of its own.
//!
//! Owns: what is answered on the page's behalf meanwhile (requests with blank documents, dialogs with
//! "no"), and how far its document is. Dropping it leaves the page as it is, and answers nothing more.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cdp::{Cdp, CdpError, Event, Heard, Root};
use crate::shape::{Attachment, World, params};
use crate::state::{BLANK, Storage};

/// See the module.
pub(super) struct Tab {
    cdp: Cdp,
    root: Root,
    session: Arc<str>,
    target: String,
    document: Document,
}

/// The document that is there now.
#[derive(Default)]
struct Document {
    loader: String,
    is_interactive: bool,
    is_loaded: bool,
    is_unreachable: bool,
}

/// How much of a page could be filled in.
#[derive(Deserialize)]
pub(super) struct Filled {
    /// Where it has gone; nothing was filled in there.
    pub(super) moved: Option<String>,
    /// Fields that are not there.
    pub(super) missing: u64,
    /// Whether it is scrolled to where it was.
    pub(super) is_scrolled: bool,
}

impl Tab {
    /// A new page, which shows nothing.
    pub(super) async fn create(cdp: &Cdp, context: &str) -> Result<String, CdpError> {
        let page = json!({ "url": BLANK, "browserContextId": context });
        let created: Created = cdp.call("", "Target.createTarget", page).await?;
        Ok(created.target_id)
    }

    /// Takes hold of a page. What it asks for is answered with blank documents from now on.
    pub(super) async fn open(cdp: &Cdp, target: String) -> Result<Tab, CdpError> {
        let root = cdp.root().await?;
        let attach = json!({ "targetId": target, "flatten": true });
        let attached: Attachment = cdp
            .call(root.session(), "Target.attachToTarget", attach)
            .await?;
        let mut tab = Tab {
            cdp: cdp.clone(),
            root,
            session: attached.session_id.into(),
            target,
            document: Document::default(),
        };
        let all = json!({ "patterns": [{ "urlPattern": "*" }] });
        tab.pass("Fetch.enable", all).await?;
        tab.pass("Inspector.enable", json!({})).await?;
        tab.pass("Page.enable", json!({})).await?;
        // Answered by the page's process, which loses what it has not done when the page goes elsewhere.
        let enabled = json!({ "enabled": true });
        tab.call::<Value>("Page.setLifecycleEventsEnabled", enabled)
            .await?;
        Ok(tab)
    }

    /// Goes to an address; it is there when the document has loaded.
    pub(super) async fn navigate(&mut self, url: &str) -> Result<(), CdpError> {
        let navigated: Navigated = self.call("Page.navigate", json!({ "url": url })).await?;
        match (navigated.loader_id, navigated.error_text) {
            (_, Some(why)) => Err(unexpected("Page.navigate", why)),
            (Some(loader), None) => {
                self.until(|document| document.loader == loader && document.is_loaded)
                    .await
            }
            // Another place in the same document.
            (None, None) => Ok(()),
        }
    }

    /// One more entry of the same address, which navigating to it would not make.
    pub(super) async fn repeat(&mut self) -> Result<(), CdpError> {
        let expression = "history.pushState(null, '')";
        self.evaluate::<Value>(expression.to_owned(), None).await?;
        Ok(())
    }

    /// Drops all entries of the history but the current one.
    pub(super) async fn forget_history(&mut self) -> Result<(), CdpError> {
        self.pass("Page.resetNavigationHistory", json!({})).await
    }

    /// Goes back to an entry of the history.
    pub(super) async fn go_to(&mut self, at: usize) -> Result<(), CdpError> {
        let history: History = self.call("Page.getNavigationHistory", json!({})).await?;
        let Some(entry) = history.entries.get(at) else {
            return Err(unexpected("Page.getNavigationHistory", "too short".into()));
        };
        let to = json!({ "entryId": entry.id });
        self.call::<Value>("Page.navigateToHistoryEntry", to)
            .await?;
        // Another document, one that was kept, or another place in the same one: only the history says.
        loop {
            let history: History = self.call("Page.getNavigationHistory", json!({})).await?;
            if history.current_index == at {
                return Ok(());
            }
            self.pause(HISTORY_PAUSE).await?;
        }
    }

    /// Leaves in the current document's origin what was stored there, and in its entry of the history the
    /// state. Gives back how many items were refused.
    pub(super) async fn store(
        &mut self,
        session: Option<&Storage>,
        local: Option<&Storage>,
        state: Option<&str>,
    ) -> Result<u64, CdpError> {
        if session.is_none() && local.is_none() && state.is_none() {
            return Ok(0);
        }
        let what = Stores {
            session: session.map(|storage| Vec::from_iter(&storage.items)),
            local: local.map(|storage| Vec::from_iter(&storage.items)),
            state,
        };
        let script = script(include_str!("../scripts/store.js"), &what)?;
        self.evaluate(script, None).await
    }

    /// Loads what is at the address really, and waits until it can be filled in.
    pub(super) async fn reload(&mut self) -> Result<(), CdpError> {
        self.call::<Value>("Fetch.disable", json!({})).await?;
        let blank = std::mem::take(&mut self.document);
        self.call::<Value>("Page.reload", json!({})).await?;
        self.until(|document| document.is_interactive && document.loader != blank.loader)
            .await
    }

    /// Fills it in as far as it can be.
    pub(super) async fn fill(&mut self, how: &Value) -> Result<Filled, CdpError> {
        let world = json!({ "frameId": self.target, "worldName": "understudy restore" });
        let world: World = self.call("Page.createIsolatedWorld", world).await?;
        let script = script(include_str!("../scripts/fill.js"), how)?;
        self.evaluate(script, Some(world.execution_context_id))
            .await
    }

    /// Whether the document and all that it names has loaded.
    pub(super) fn is_loaded(&self) -> bool {
        self.document.is_loaded
    }

    /// Whether it is the browser's own page that says that there is none.
    pub(super) fn is_unreachable(&self) -> bool {
        self.document.is_unreachable
    }

    pub(super) async fn pause(&mut self, pause: Duration) -> Result<(), CdpError> {
        let paused = tokio::time::timeout(pause, self.until(|_| false)).await;
        paused.unwrap_or(Ok(()))
    }

    pub(super) async fn close(mut self) {
        // One that does not close ends with its context.
        let _ = self.call::<Value>("Page.close", json!({})).await;
    }

    async fn evaluate<T: DeserializeOwned>(
        &mut self,
        expression: String,
        world: Option<i64>,
    ) -> Result<T, CdpError> {
        let mut params = json!({ "expression": expression, "returnByValue": true });
        if let Some(world) = world {
            params["contextId"] = world.into();
        }
        let evaluated: Evaluated = self.call("Runtime.evaluate", params).await?;
        let value = match evaluated.exception_details {
            None => evaluated.result.value,
            Some(thrown) => return Err(unexpected("Runtime.evaluate", thrown.to_string())),
        };
        serde_json::from_value(value)
            .map_err(|error| unexpected("Runtime.evaluate", error.to_string()))
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: Value,
    ) -> Result<T, CdpError> {
        let (cdp, session) = (self.cdp.clone(), self.session.clone());
        let mut answer = pin!(cdp.call(&session, method, params));
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                heard = self.root.next() => self.heard(heard, method).await?,
            }
        }
    }

    async fn until(&mut self, is_so: impl Fn(&Document) -> bool) -> Result<(), CdpError> {
        while !is_so(&self.document) {
            let heard = self.root.next().await;
            self.heard(heard, "Page.navigate").await?;
        }
        Ok(())
    }

    async fn heard(&mut self, heard: Option<Heard>, method: &str) -> Result<(), CdpError> {
        match heard {
            Some(Heard::Event(event)) => self.event(event).await,
            Some(Heard::Reply(_)) => Ok(()),
            None => Err(CdpError::Gone(method.to_owned())),
        }
    }

    async fn event(&mut self, event: Event) -> Result<(), CdpError> {
        match &*event.method {
            "Page.frameNavigated" => {
                if let Some(FrameNavigated { frame }) = params(&event)
                    && frame.parent_id.is_none()
                {
                    self.document = Document {
                        loader: frame.loader_id,
                        is_unreachable: frame.unreachable_url.is_some(),
                        ..Document::default()
                    };
                }
            }
            "Page.lifecycleEvent" => {
                if let Some(Lifecycle { loader_id, name }) = params(&event)
                    && loader_id == self.document.loader
                {
                    self.document.is_interactive |= name == "DOMContentLoaded" || name == "load";
                    self.document.is_loaded |= name == "load";
                }
            }
            "Fetch.requestPaused" => {
                if let Some(Paused { request_id }) = params(&event) {
                    self.answer(&request_id).await?;
                }
            }
            "Page.javascriptDialogOpening" => {
                self.pass("Page.handleJavaScriptDialog", json!({ "accept": false }))
                    .await?;
            }
            "Target.detachedFromTarget" => {
                return Err(CdpError::Detached("Page.navigate".to_owned()));
            }
            "Inspector.targetCrashed" => {
                return Err(CdpError::Crashed("Page.navigate".to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn answer(&mut self, request: &str) -> Result<(), CdpError> {
        let blank = json!({
            "requestId": request,
            "responseCode": 200,
            "responseHeaders": [{ "name": "content-type", "value": "text/html" }],
            "body": BASE64_STANDARD.encode("<!doctype html>"),
        });
        self.pass("Fetch.fulfillRequest", blank).await
    }

    /// Sends what no answer is awaited to.
    async fn pass(&mut self, method: &str, params: Value) -> Result<(), CdpError> {
        let params = serde_json::value::to_raw_value(&params);
        let params = params.map_err(|error| unexpected(method, error.to_string()))?;
        self.root
            .pass(0, &self.session, method, Some(&params))
            .await
    }
}

/// A function of JavaScript, called.
fn script(function: &str, argument: &impl Serialize) -> Result<String, CdpError> {
    let argument = serde_json::to_string(argument);
    let argument = argument.map_err(|error| unexpected("Runtime.evaluate", error.to_string()))?;
    // JSON is JavaScript, but for a property `__proto__`: what has names of a page's choice is a list.
    Ok(format!("({function})({argument})"))
}

fn unexpected(method: &str, why: String) -> CdpError {
    CdpError::Unexpected {
        method: method.to_owned(),
        why,
    }
}

/// What `store.js` takes.
#[derive(Serialize)]
struct Stores<'a> {
    session: Option<Vec<(&'a String, &'a String)>>,
    local: Option<Vec<(&'a String, &'a String)>>,
    state: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    target_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Navigated {
    loader_id: Option<String>,
    error_text: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    current_index: usize,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Evaluated {
    result: Remote,
    exception_details: Option<Value>,
}

#[derive(Deserialize)]
struct Remote {
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
struct FrameNavigated {
    frame: Frame,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame {
    parent_id: Option<String>,
    loader_id: String,
    unreachable_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    loader_id: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Paused {
    request_id: String,
}

/// Between two looks at whether the browser has gone to an entry of the history.
const HISTORY_PAUSE: Duration = Duration::from_millis(5);
