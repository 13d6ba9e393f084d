//! A session behind a WebSocket, with the address that clients ask first.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its own part

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_browser::filter::MESSAGE_BYTES_MAX;
use understudy_browser::{Cdp, Ended, Jail, serve};

/// Serves one session. Dropping it ends its server.
pub struct Bridge {
    pub http: String,
    pub ws: String,
    /// How its lines ended.
    pub ended: Arc<Mutex<Vec<Ended>>>,
    _served: JoinSet<()>,
}

#[derive(Clone)]
struct Session {
    cdp: Cdp,
    jail: Arc<Jail>,
    ws: String,
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Bridge {
    pub async fn new(cdp: &Cdp, jail: &Arc<Jail>) -> Bridge {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let session = Session {
            cdp: cdp.clone(),
            jail: jail.clone(),
            ws: format!("ws://{address}/devtools/browser/session"),
            ended: Arc::default(),
        };
        let router = Router::new()
            .route("/json/version", get(version))
            .route("/json/version/", get(version))
            .route("/devtools/browser/session", get(upgrade))
            .with_state(session.clone());
        let mut served = JoinSet::new();
        served.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Bridge {
            http: format!("http://{address}"),
            ws: session.ws,
            ended: session.ended,
            _served: served,
        }
    }
}

async fn version(State(session): State<Session>) -> Json<Value> {
    Json(json!({
        "Browser": "Chrome",
        "Protocol-Version": "1.3",
        "webSocketDebuggerUrl": session.ws,
    }))
}

async fn upgrade(State(session): State<Session>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(|socket| bridge(socket, session))
}

async fn bridge(socket: WebSocket, session: Session) {
    let (mut sink, mut stream) = socket.split();
    let (to, from) = mpsc::channel(64);
    let (say, mut heard) = mpsc::channel::<Bytes>(64);
    let read = async move {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            if to.send(Bytes::from(text)).await.is_err() {
                return;
            }
        }
    };
    let writer = &mut sink;
    let write = async move {
        while let Some(message) = heard.recv().await {
            let text = message.try_into().unwrap();
            if writer.send(Message::Text(text)).await.is_err() {
                return;
            }
        }
    };
    let serve = serve(&session.cdp, &session.jail, from, say);
    let ended = {
        // What was said last is still written once the line has ended.
        let both = async { tokio::join!(serve, write).0 };
        tokio::pin!(read, both);
        tokio::select! {
            ended = &mut both => ended,
            () = &mut read => both.await,
        }
    };
    session.ended.lock().unwrap().push(ended);
    let close = CloseFrame {
        code: ended.close_code(),
        reason: ended.reason().into(),
    };
    let _ = sink.send(Message::Close(Some(close))).await;
}
