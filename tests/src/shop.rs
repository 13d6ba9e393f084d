//! A small shop, as the outside world of a browser session.
//!
//! Owns: its pages and a count of what was asked of it. Keeps nothing of its visitors: a log-in is a
//! cookie, the basket is in the browser's own storage, and a half-filled form is nowhere but in the page.
//! So whatever a restored session still has, the session kept. Beside it, a visitor: what one does in the
//! shop, and what one sees there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cdp::CdpClient;

/// A running shop; it closes when it is dropped.
#[derive(Debug)]
pub struct Shop {
    address: SocketAddr,
    counts: Arc<Counts>,
    _serving: JoinSet<()>,
}

/// What was asked of it.
#[derive(Debug, Default)]
struct Counts {
    pages: AtomicU64,
    orders: AtomicU64,
}

impl Shop {
    /// Opens on a free port of the loopback.
    pub async fn open() -> Result<Shop> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let router = Router::new()
            .route("/", get(front))
            .route("/login", post(login))
            .route("/checkout", get(checkout))
            .route("/order", post(order))
            .with_state(counts.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the shop has closed: {error}");
            }
        });
        Ok(Shop {
            address,
            counts,
            _serving: serving,
        })
    }

    /// Where it is, as a configuration allows it by name.
    pub fn host(&self) -> String {
        format!("shop.localhost:{}", self.address.port())
    }

    /// The address of one of its pages.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    /// Pages that were asked for.
    pub fn pages(&self) -> u64 {
        self.counts.pages.load(Ordering::Relaxed)
    }

    /// Orders that were placed: a restored page places none.
    pub fn orders(&self) -> u64 {
        self.counts.orders.load(Ordering::Relaxed)
    }
}

/// Who is logged in, by the cookie alone.
fn visitor(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut cookies = cookies.split("; ");
    let name = cookies.find_map(|cookie| cookie.strip_prefix("shop_visitor="))?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| name.to_owned())
}

async fn front(State(counts): State<Arc<Counts>>, headers: HeaderMap) -> Html<String> {
    counts.pages.fetch_add(1, Ordering::Relaxed);
    let greeting = match visitor(&headers) {
        Some(name) => format!("<p id=greeting>Good evening, {name}.</p>"),
        None => "<form method=post action=/login><input name=visitor value=Viola>\
                 <button id=login>Log in</button></form>"
            .to_owned(),
    };
    let body = format!(
        "{greeting}<ul id=wares></ul><p>In the basket: <b id=count>0</b> \
         <a href=/checkout>Check out</a></p>"
    );
    Html(page("Props and costumes", &body))
}

async fn login(body: String) -> impl IntoResponse {
    let name = body.strip_prefix("visitor=").unwrap_or_default();
    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(32)
        .collect();
    // Gone from the page's scripts: only the browser itself has it.
    let cookie = format!("shop_visitor={name}; Path=/; HttpOnly; SameSite=Lax");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/"))
}

async fn checkout(State(counts): State<Arc<Counts>>, headers: HeaderMap) -> Html<String> {
    counts.pages.fetch_add(1, Ordering::Relaxed);
    let name = visitor(&headers).unwrap_or_else(|| "stranger".to_owned());
    let lines: String = (1..=40)
        .map(|nth| format!("<p class=term>{nth}. The company may change the programme.</p>"))
        .collect();
    let body = format!(
        "<p id=greeting>Check out, {name}. In the basket: <b id=count>0</b></p>\
         {lines}\
         <form method=post action=/order id=order>\
         <label>Street <input id=street name=street></label>\
         <label>Message <textarea id=message name=message></textarea></label>\
         <label>Delivery <select id=delivery name=delivery><option value=post>Post</option>\
         <option value=door>Stage door</option></select></label>\
         <label><input type=checkbox id=gift name=gift> A gift</label>\
         <button>Order</button></form>{lines}"
    );
    Html(page("Check out", &body))
}

async fn order(State(counts): State<Arc<Counts>>) -> Html<String> {
    counts.orders.fetch_add(1, Ordering::Relaxed);
    Html(page("Thank you", "<p>Your order is on its way.</p>"))
}

/// A page; its script shows the basket that this browser has.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1>{body}<script>{SCRIPT}</script></html>"
    )
}

/// Logs in, fills the basket and half of the form, and scrolls.
pub async fn go_shopping(client: &mut CdpClient, shop: &Shop) -> Result<()> {
    let (target, _) = client
        .pages()
        .await?
        .into_iter()
        .next()
        .context("no page")?;
    let page = client.attach(&target).await?;
    client.goto(&page, &shop.url("/")).await?;
    client
        .evaluate(&page, "document.getElementById('login').click()")
        .await?;
    client.settled(&page, &shop.url("/")).await?;
    wait_for(client, &page, "!!document.getElementById('greeting')").await?;
    let take = "document.querySelectorAll('#wares button').forEach(button => button.click())";
    client.evaluate(&page, take).await?;
    client.goto(&page, &shop.url("/checkout")).await?;
    let fill = "const set = (id, value) => { const field = document.getElementById(id); \
        if (field.type === 'checkbox') field.checked = value; else field.value = value; \
        field.dispatchEvent(new Event('input', {bubbles: true})); \
        field.dispatchEvent(new Event('change', {bubbles: true})); }; \
        set('street', '1 Illyria Road'); set('message', 'Leave it\\nwith the fool.'); \
        set('delivery', 'door'); set('gift', true); scrollTo(0, 1600)";
    client.evaluate(&page, fill).await?;
    Ok(())
}

async fn wait_for(client: &mut CdpClient, page: &str, is_so: &str) -> Result<()> {
    for _ in 0..200 {
        if client
            .evaluate(page, is_so)
            .await
            .is_ok_and(|said| said == json!(true))
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("never: {is_so}")
}

/// What a visitor would see of it.
pub async fn look(client: &mut CdpClient) -> Result<Value> {
    let (target, url) = client
        .pages()
        .await?
        .into_iter()
        .next()
        .context("no page")?;
    let page = client.attach(&target).await?;
    let see = "JSON.stringify({greeting: document.getElementById('greeting').textContent, \
        street: document.getElementById('street').value, message: document.getElementById('message').value, \
        delivery: document.getElementById('delivery').value, gift: document.getElementById('gift').checked, \
        scroll: Math.round(scrollY), last: sessionStorage.getItem('last'), \
        cookies: document.cookie})";
    let seen = client.evaluate(&page, see).await?;
    let mut seen: Value = serde_json::from_str(seen.as_str().unwrap_or_default())?;
    seen["url"] = url.into();
    Ok(seen)
}

/// What it must see, wherever and whenever it looks.
pub fn expected(shop: &Shop) -> Value {
    json!({
        "url": shop.url("/checkout"),
        "greeting": "Check out, Viola. In the basket: 3",
        "street": "1 Illyria Road",
        "message": "Leave it\nwith the fool.",
        "delivery": "door",
        "gift": true,
        "scroll": 1600,
        "last": "Wooden sword",
        // The log-in is out of the page's reach.
        "cookies": "",
    })
}

const STYLE: &str = "body{font:17px/1.5 Georgia,serif;margin:2em auto;max-width:40em;color:#2b2118;\
    background:#fbf6ee}h1{color:#8a1c1c}b{color:#8a1c1c}label{display:block;margin:.6em 0}\
    button{font:inherit;padding:.2em .8em}\
    #greeting{position:sticky;top:0;margin:0;padding:.5em;background:#f0e2c8}";

const SCRIPT: &str = "
const wares = ['Skull of Yorick', 'Paper crown', 'Wooden sword'];
const basket = () => JSON.parse(localStorage.getItem('basket') || '[]');
const show = () => { document.getElementById('count').textContent = basket().length; };
const list = document.getElementById('wares');
if (list) for (const ware of wares) {
  const item = document.createElement('li'), button = document.createElement('button');
  button.textContent = 'Take'; button.dataset.ware = ware;
  button.onclick = () => {
    localStorage.setItem('basket', JSON.stringify([...basket(), ware]));
    sessionStorage.setItem('last', ware);
    show();
  };
  item.append(ware + ' ', button); list.append(item);
}
show();
";
