//! A client of a browser session, over its WebSocket: what a user's own program would be.
//!
//! Owns: one connection, its commands and how it ended. Never reconnects: who uses it decides that.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A connection to a session.
pub struct CdpClient {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_id: u64,
    events: Vec<Value>,
}

/// How a connection was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The WebSocket's code; none when it broke.
    pub code: Option<u16>,
    /// What was said.
    pub reason: String,
}

impl CdpClient {
    /// Connects to the address that a session has.
    pub async fn connect(address: &str, token: &str) -> Result<CdpClient> {
        let mut request = address.into_client_request()?;
        let bearer = format!("Bearer {token}").parse()?;
        request.headers_mut().insert("authorization", bearer);
        let connecting = tokio_tungstenite::connect_async(request);
        let connected = timeout(CONNECT_LIMIT, connecting).await;
        match connected.with_context(|| format!("{address}: no answer"))? {
            Ok((socket, _)) => Ok(CdpClient {
                socket,
                last_id: 0,
                events: Vec::new(),
            }),
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                bail!(
                    "{address}: {}: {}",
                    response.status(),
                    String::from_utf8_lossy(body)
                )
            }
            Err(error) => Err(error).with_context(|| address.to_owned()),
        }
    }

    /// Sends a command and waits for its answer.
    pub async fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: Value,
    ) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let text = command.to_string();
        self.socket
            .send(Message::text(text))
            .await
            .with_context(|| method.to_owned())?;
        let answered = timeout(CALL_LIMIT, self.answer(id)).await;
        let answer = answered.with_context(|| format!("{method}: no answer"))??;
        match answer.get("error") {
            Some(error) => bail!("{method}: {error}"),
            None => Ok(answer["result"].clone()),
        }
    }

    async fn answer(&mut self, id: u64) -> Result<Value> {
        while let Some(message) = self.socket.next().await {
            match message? {
                Message::Text(text) => {
                    let said: Value = serde_json::from_str(&text)?;
                    if said["id"] == json!(id) {
                        return Ok(said);
                    }
                    if said.get("method").is_some() {
                        self.events.push(said);
                    }
                }
                Message::Close(frame) => bail!("closed: {frame:?}"),
                _ => {}
            }
        }
        bail!("the connection ended")
    }

    /// Waits until the other side closes.
    pub async fn closed(&mut self, limit: Duration) -> Result<Closed> {
        let wait = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => {
                        let code = frame.as_ref().map(|frame| frame.code.into());
                        let reason = frame.map(|frame| frame.reason.to_string());
                        return Closed {
                            code,
                            reason: reason.unwrap_or_default(),
                        };
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        return Closed {
                            code: None,
                            reason: error.to_string(),
                        };
                    }
                    None => {
                        return Closed {
                            code: None,
                            reason: String::new(),
                        };
                    }
                }
            }
        };
        timeout(limit, wait)
            .await
            .context("the connection is still open")
    }

    /// Pages of the session: target ids, with their addresses.
    pub async fn pages(&mut self) -> Result<Vec<(String, String)>> {
        let targets = self.call(None, "Target.getTargets", json!({})).await?;
        let targets = targets["targetInfos"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let pages = targets
            .iter()
            .filter(|target| target["type"] == json!("page"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(pages
            .map(|page| (text(&page["targetId"]), text(&page["url"])))
            .collect())
    }

    /// Attaches to a page; the session id for its commands.
    pub async fn attach(&mut self, target: &str) -> Result<String> {
        let attach = json!({ "targetId": target, "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", attach).await?;
        let session = attached["sessionId"].as_str().context("no session id")?;
        Ok(session.to_owned())
    }

    /// Opens an address in a page and waits until it has loaded.
    pub async fn goto(&mut self, page: &str, url: &str) -> Result<()> {
        let went = self
            .call(Some(page), "Page.navigate", json!({ "url": url }))
            .await?;
        ensure!(went.get("errorText").is_none(), "{url}: {went}");
        self.settled(page, url).await
    }

    /// Waits until a page at this address has loaded.
    pub async fn settled(&mut self, page: &str, url: &str) -> Result<()> {
        let ready = "document.readyState + ' ' + location.href";
        for _ in 0..SETTLE_TRIES {
            let now = self.evaluate(page, ready).await.unwrap_or_default();
            if now == json!(format!("complete {url}")) {
                return Ok(());
            }
            tokio::time::sleep(SETTLE).await;
        }
        bail!("{url} has not loaded")
    }

    /// What an expression comes to in a page.
    pub async fn evaluate(&mut self, page: &str, expression: &str) -> Result<Value> {
        let ask = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let said = self.call(Some(page), "Runtime.evaluate", ask).await?;
        ensure!(
            said.get("exceptionDetails").is_none(),
            "{expression}: {said}"
        );
        Ok(said["result"]["value"].clone())
    }

    /// A picture of a page, as PNG.
    pub async fn screenshot(&mut self, page: &str) -> Result<Vec<u8>> {
        let shot = self
            .call(Some(page), "Page.captureScreenshot", json!({}))
            .await?;
        let data = shot["data"].as_str().context("no picture")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
    }
}

/// How long a connection may take: a session that comes back first.
const CONNECT_LIMIT: Duration = Duration::from_secs(40);

/// How long an answer may take.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// How often it is looked whether a page has loaded, and how long between.
const SETTLE_TRIES: u32 = 400;
const SETTLE: Duration = Duration::from_millis(50);
