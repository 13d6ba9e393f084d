//! The client side of the HTTP surface, as a user's own program would have it.
//!
//! Owns: requests with a token, an idempotency key and a limit of time, tried at one address. Never
//! retries: who calls decides that.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Talks to the nodes of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
    token: String,
}

/// What a call of a child came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// Answered.
    Answered(String),
    /// Refused for now, or nobody can say: ask again with the same key.
    Again(String),
    /// Refused for good.
    Refused(String),
}

impl Client {
    /// A client with a token.
    pub fn new(token: &str) -> Result<Client> {
        let inner = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(256)
            .connect_timeout(Duration::from_secs(1))
            .build()
            .context("no HTTP client")?;
        let token = token.to_owned();
        Ok(Client { inner, token })
    }

    /// Reads JSON.
    pub async fn get(&self, server: &str, path: &str) -> Result<Value> {
        let request = self.inner.get(format!("{server}{path}"));
        self.json(request)
            .await
            .with_context(|| format!("GET {server}{path}"))
    }

    /// Sends JSON, reads JSON.
    pub async fn post(&self, server: &str, path: &str, body: &Value) -> Result<Value> {
        let request = self.inner.post(format!("{server}{path}")).json(body);
        self.json(request)
            .await
            .with_context(|| format!("POST {server}{path}"))
    }

    /// Sends bytes, reads JSON.
    pub async fn put(&self, server: &str, path: &str, body: Vec<u8>) -> Result<Value> {
        let request = self.inner.put(format!("{server}{path}")).body(body);
        self.json(request)
            .await
            .with_context(|| format!("PUT {server}{path}"))
    }

    /// Takes something away, reads JSON.
    pub async fn delete(&self, server: &str, path: &str) -> Result<Value> {
        let request = self.inner.delete(format!("{server}{path}"));
        self.json(request)
            .await
            .with_context(|| format!("DELETE {server}{path}"))
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let request = request.bearer_auth(&self.token).timeout(REQUEST_LIMIT);
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// What has happened since the node started, as far as it keeps it: each event's kind and text.
    pub async fn events(&self, server: &str) -> Result<Vec<(String, String)>> {
        let request = self
            .inner
            .get(format!("{server}/v1/events?after=0&follow=false"));
        let request = request.bearer_auth(&self.token).timeout(REQUEST_LIMIT);
        let text = request.send().await?.error_for_status()?.text().await?;
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        let events = data.map(|line| {
            let event: Value = serde_json::from_str(line)?;
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            Ok((text("type"), text("text")))
        });
        events.collect()
    }

    /// Whether the node says that it is ready.
    pub async fn is_ready(&self, server: &str) -> bool {
        let request = self.inner.get(format!("{server}/readyz"));
        let sent = request.timeout(Duration::from_secs(1)).send().await;
        sent.is_ok_and(|response| response.status().is_success())
    }

    /// Whether the node answers at all.
    pub async fn is_up(&self, server: &str) -> bool {
        let request = self.inner.get(format!("{server}/healthz"));
        let sent = request.timeout(Duration::from_secs(1)).send().await;
        sent.is_ok_and(|response| response.status().is_success())
    }

    /// Calls a child.
    pub async fn call(
        &self,
        server: &str,
        child: &str,
        key: Option<&str>,
        body: &str,
        limit: Duration,
    ) -> Called {
        let millis = limit.as_millis();
        let url = format!("{server}/v1/children/{child}/call?timeout={millis}ms");
        let mut request = self.inner.post(url).body(body.to_owned());
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.called(request, limit).await
    }

    /// Calls an export of a sandbox with numbers.
    pub async fn sandbox(
        &self,
        server: &str,
        sandbox: &str,
        export: &str,
        key: Option<&str>,
        args: &Value,
        limit: Duration,
    ) -> Called {
        let millis = limit.as_millis();
        let url = format!("{server}/v1/sandboxes/{sandbox}/call/{export}?timeout={millis}ms");
        let mut request = self.inner.post(url).json(args);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.called(request, limit).await
    }

    async fn called(&self, request: reqwest::RequestBuilder, limit: Duration) -> Called {
        let request = request
            .bearer_auth(&self.token)
            .timeout(limit + Duration::from_millis(500));
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Called::Again(error.to_string()),
        };
        let status = response.status();
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return Called::Again(error.to_string()),
        };
        match status.as_u16() {
            200 => Called::Answered(text),
            404 | 409 | 413 | 400 | 401 | 403 => Called::Refused(format!("{status}: {text}")),
            _ => Called::Again(format!("{status}: {text}")),
        }
    }

    /// Calls an export of a guest with numbers; `path` ends before its query. What is refused is a
    /// problem, as JSON.
    pub async fn call_guest(
        &self,
        server: &str,
        path: &str,
        key: Option<&str>,
        args: &Value,
        limit: Duration,
    ) -> Called {
        let millis = limit.as_millis();
        let url = format!("{server}{path}?timeout={millis}ms");
        let mut request = self.inner.post(url).bearer_auth(&self.token).json(args);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let sent = request.timeout(limit + Duration::from_millis(1500)).send();
        let response = match sent.await {
            Ok(response) => response,
            Err(error) => return Called::Again(error.to_string()),
        };
        let status = response.status();
        match (status.as_u16(), response.text().await) {
            (_, Err(error)) => Called::Again(error.to_string()),
            (200, Ok(text)) => Called::Answered(text),
            // Full, away or late: these pass.
            (429 | 503 | 504, Ok(text)) => Called::Again(format!("{status}: {text}")),
            (_, Ok(text)) => Called::Refused(text),
        }
    }
}

/// Longest wait of one request that is no call.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
