//! A real server of pages that say what their first script saw.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its own part

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub struct Site {
    address: SocketAddr,
    /// Method and path of each request.
    pub requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Site {
    pub async fn start() -> Site {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        let heard = requests.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let heard = heard.clone();
                connections.spawn(async move {
                    let serve = service_fn(|request| {
                        let answer = answer(&request, &heard);
                        async move {
                            if request.uri().path() == "/endless" {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        Site {
            address,
            requests,
            _tasks: tasks,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn count(&self, request: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|heard| *heard == request).count()
    }
}

fn answer(request: &Request<Incoming>, heard: &Mutex<Vec<String>>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    heard
        .lock()
        .unwrap()
        .push(format!("{} {path}", request.method()));
    let mut answer = Response::builder().header("content-type", "text/html");
    let cookies = request.headers().get("cookie");
    let is_known = cookies.is_some_and(|cookies| cookies.to_str().unwrap().contains("session="));
    if path == "/login" && !is_known {
        for cookie in [
            "session=1; Path=/",
            "kept=2; Path=/; Max-Age=3600; SameSite=Lax",
            "hidden=3; Path=/; HttpOnly; Max-Age=3600; SameSite=Strict; Priority=High",
            "__Host-part=4; Path=/; Secure; SameSite=None; Partitioned",
        ] {
            answer = answer.header("set-cookie", cookie);
        }
    }
    if path == "/cookie" {
        answer = answer.header("set-cookie", "fetched=1; Path=/; HttpOnly");
    }
    if path == "/moves" && is_known {
        answer = answer.status(302).header("location", "/elsewhere");
    }
    let page = if path == "/late" { LATE } else { PAGE };
    answer
        .body(Full::new(Bytes::from_static(page.as_bytes())))
        .unwrap()
}

/// Builds itself half a second after it has loaded.
const LATE: &str = r#"<!doctype html><title>a late page</title><body><script>
addEventListener('load', () => setTimeout(() => {
    document.body.innerHTML = '<input id=late><div style="height: 5000px">';
}, 500));
</script>"#;

const PAGE: &str = r#"<!doctype html><title>a page</title><script>
document.documentElement.dataset.saw = JSON.stringify({
    local: { ...localStorage }, session: { ...sessionStorage },
    cookie: document.cookie, state: history.state, world: Object.keys(window).filter((k) => /understudy/.test(k)),
});
</script><body style="height: 5000px">
<form method=post action=/posted><input id=text name=t><input id=secret type=password name=p>
<textarea id=area></textarea>
<select id=one><option>a<option>b</select>
<select id=many multiple><option>a<option>b<option>c</select>
<input type=checkbox id=check><input type=checkbox id=uncheck checked>
<input type=radio name=r id=radio1 checked><input type=radio name=r id=radio2>
<div id=rich contenteditable>rich</div><input id=same value=same><div><input name=deep></div></form>
<iframe srcdoc="<input>"></iframe>
<form><input name=id><input name=localName><input name=parentElement></form><img name=title><form name=querySelectorAll></form>
"#;
