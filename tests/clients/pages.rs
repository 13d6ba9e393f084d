//! The pages that the scripts of clients visit.

#![allow(unreachable_pub)] // a test has it as a module of its own

use std::io;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, SET_COOKIE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::task::JoinSet;

/// Serves them on a free port of the loopback until the set is dropped; their address, without a slash at
/// the end.
///
/// # Errors
/// There is no free port.
pub async fn open() -> io::Result<(String, JoinSet<()>)> {
    let page = |body: &'static str| {
        let html = [(CONTENT_TYPE, "text/html")];
        get(move || async move { (html, body).into_response() })
    };
    let set_cookie = || async { ([(SET_COOKIE, "visited=yes; Max-Age=3600")], "visited") };
    let pages = Router::new()
        .route("/", page(INDEX))
        .route("/popup", page("<title>popup</title><p id=p>popup"))
        .route(
            "/frame",
            page("<title>frame</title><iframe src=/popup></iframe>"),
        )
        .route("/api", get(|| async { "from the server" }))
        .route("/cookie", get(set_cookie))
        .route("/file", get(download));
    let pages = pages.route("/workers", page(WORKERS)).route(
        "/worker.js",
        get(|| async { ([(CONTENT_TYPE, "text/javascript")], "") }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let mut served = JoinSet::new();
    served.spawn(async move {
        if let Err(error) = axum::serve(listener, pages).await {
            eprintln!("the pages are gone: {error}");
        }
    });
    Ok((address, served))
}

async fn download() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "application/octet-stream"),
        (
            axum::http::header::CONTENT_DISPOSITION,
            "attachment; filename=data.bin",
        ),
    ];
    (headers, "downloaded")
}

const INDEX: &str = "<!doctype html><title>index</title><h1>index</h1>
<button id=count onclick='this.textContent = Number(this.textContent) + 1'>0</button>
<a id=popup href=/popup target=_blank>popup</a>
<input id=text><input id=file type=file>
<a id=file-link href=/file>file</a>
<div style='height: 3000px'></div>";

/// A page with workers of every kind; its title is `ready` once they run.
const WORKERS: &str = "<script>
new Worker('/worker.js');
new SharedWorker('/worker.js');
navigator.serviceWorker.register('/worker.js')
    .then(() => navigator.serviceWorker.ready)
    .then(() => document.title = 'ready');
</script>";
