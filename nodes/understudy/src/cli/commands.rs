//! What each command does.
//!
//! Owns: one function a command. Never formats an answer: `print` does.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use reqwest::Method;

use understudy_gateway::{CALL_BODY_MAX, api, events, params};

use super::args::{Ca, Call, Child, Cli, Cluster, Command, Events, Function, Node, Store, Unit};
use super::client::{Ask, Client, Reply, segment};
use super::{Exit, Failure, Screen, print, sse};
use crate::run;

mod guests;
mod sessions;

/// Carries out a command: what it prints.
pub(super) async fn run(cli: &Cli, screen: &mut Screen<'_>) -> Result<Vec<u8>, Failure> {
    match &cli.command {
        Command::Ca(Ca::Init { cluster, dir }) => return text(run::ca_init(cluster, dir)?),
        Command::Ca(Ca::Issue {
            dir,
            name,
            address,
            out,
        }) => return text(run::ca_issue(dir, name, address, out)?),
        Command::Store(Store::Fsck { dir, .. }) => return text(run::store_fsck(dir)?),
        Command::Dev(_) | Command::Warden { .. } | Command::Node(Node::Run { .. }) => {
            let what = "this command stays until it is stopped, and is started elsewhere";
            return Err(Failure::new(Exit::Usage, what));
        }
        _ => {}
    }
    let asked = Asked {
        client: Client::new(&cli.global)?,
        json: cli.global.json,
        columns: screen.columns,
    };
    match &cli.command {
        Command::Cluster(Cluster::Show) => {
            asked.show(&Ask::get("/v1/cluster"), print::cluster).await
        }
        Command::Cluster(Cluster::Init { single }) => {
            let init = api::Init { single: *single };
            let ask = Ask::change(Method::POST, "/v1/cluster/init").json(&init);
            asked.show(&ask, print::cluster).await
        }
        Command::Node(Node::List) => {
            let columns = asked.columns;
            let shown = |list: &api::List<api::Node>| print::nodes(&list.items, columns);
            asked.show(&Ask::get("/v1/nodes"), shown).await
        }
        Command::Node(Node::Drain { name, wait, undo }) => {
            let method = if *undo { Method::DELETE } else { Method::POST };
            let path = format!("/v1/nodes/{}/drain{}", segment(name), query_wait(*wait));
            let ask = Ask::change(method, path).wait(*wait);
            asked.show(&ask, print::drained).await
        }
        Command::Unit(unit) => units(&asked, unit).await,
        Command::Module(module) => guests::module(&asked, module, screen).await,
        Command::Sandbox(sandbox) => guests::sandbox(&asked, sandbox, screen).await,
        Command::Function(Function::Call { name, call }) => {
            guests::function(&asked, name, call, screen).await
        }
        Command::Session(session) => sessions::session(&asked, session, screen).await,
        Command::Child(Child::List { kind, tenant }) => {
            let children = every(
                &asked,
                "/v1/children",
                &[("kind", kind), ("tenant", tenant)],
            )
            .await?;
            if asked.json {
                return Ok(line(serde_json::to_vec(&children).unwrap_or_default()));
            }
            Ok(print::children(&children, asked.columns).into_bytes())
        }
        Command::Tree { all } => {
            let columns = asked.columns;
            let shown = |root: &api::Supervisor| print::tree(root, *all, columns);
            asked.show(&Ask::get("/v1/tree"), shown).await
        }
        Command::Events(wanted) => follow(&asked, wanted, screen).await,
        Command::Call(wanted) => call(&asked, wanted, screen).await,
        _ => Ok(Vec::new()),
    }
}

struct Asked {
    client: Client,
    json: bool,
    columns: usize,
}

impl Asked {
    async fn show<T: serde::de::DeserializeOwned>(
        &self,
        ask: &Ask,
        print: impl Fn(&T) -> String,
    ) -> Result<Vec<u8>, Failure> {
        let (read, body) = self.client.read(ask).await?;
        if self.json {
            return Ok(line(body));
        }
        Ok(print(&read).into_bytes())
    }
}

async fn units(asked: &Asked, unit: &Unit) -> Result<Vec<u8>, Failure> {
    match unit {
        Unit::List { kind, tenant, node } => {
            let filters = [("kind", kind), ("tenant", tenant), ("node", node)];
            let items = every_unit(asked, &filters).await?;
            if asked.json {
                let list = api::List { items, next: None };
                return Ok(line(serde_json::to_vec(&list).unwrap_or_default()));
            }
            Ok(print::units(&items, asked.columns).into_bytes())
        }
        Unit::Explain { unit } => {
            let path = format!("/v1/units/{}/explain", segment(unit));
            asked.show(&Ask::get(path), print::explained).await
        }
        Unit::Create {
            child,
            restart,
            label,
            node,
        } => {
            let new = api::NewUnit {
                child: child.to_string(),
                restart: Some(restart.clone()),
                labels: labels(label),
                node: node.clone(),
            };
            let ask = Ask::change(Method::POST, "/v1/units").json(&new);
            asked.show(&ask, print::unit).await
        }
        Unit::Move { unit, to, wait } => {
            let path = format!("/v1/units/{}/move{}", segment(unit), query_wait(*wait));
            let ask = Ask::change(Method::POST, path)
                .json(&api::MoveTo { to: to.clone() })
                .wait(*wait);
            asked.show(&ask, print::unit).await
        }
        Unit::Remove { unit } => {
            let ask = Ask::change(Method::DELETE, format!("/v1/units/{}", segment(unit)));
            let done = |_: &serde_json::Value| format!("{unit} is gone for good\n");
            asked.show(&ask, done).await
        }
    }
}

fn query(filters: &[(&str, &Option<String>)]) -> Vec<String> {
    let given = filters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_deref()?))));
    given.collect()
}

/// All pages as one.
async fn every<T: serde::de::DeserializeOwned>(
    asked: &Asked,
    path: &str,
    filters: &[(&str, &Option<String>)],
) -> Result<api::Listing<T>, Failure> {
    let filters = query(filters);
    let mut all = api::Listing {
        items: Vec::new(),
        next: None,
        silent: Vec::new(),
    };
    loop {
        let mut query = filters.clone();
        query.extend(
            all.next
                .iter()
                .map(|after| format!("after={}", segment(after))),
        );
        let ask = Ask::get(format!("{path}?{}", query.join("&"))).wait(Some(LISTING));
        let (page, _) = asked.client.read::<api::Listing<T>>(&ask).await?;
        // A page may be empty and not the last: what is on it was not asked for.
        let goes_on = page.next.is_some() && page.next != all.next;
        all.items.extend(page.items);
        all.silent.extend(page.silent);
        all.next = page.next;
        if !goes_on {
            all.silent.sort();
            all.silent.dedup();
            return Ok(all);
        }
    }
}

async fn every_unit(
    asked: &Asked,
    filters: &[(&str, &Option<String>)],
) -> Result<Vec<api::Unit>, Failure> {
    let filters = query(filters);
    let mut items: Vec<api::Unit> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut query = filters.clone();
        query.extend(after.iter().map(|after| format!("after={after}")));
        let ask = Ask::get(format!("/v1/units?{}", query.join("&")));
        let (page, _) = asked.client.read::<api::List<api::Unit>>(&ask).await?;
        let grew = !page.items.is_empty();
        items.extend(page.items);
        after = page.next;
        if after.is_none() || !grew {
            return Ok(items);
        }
    }
}

async fn call(asked: &Asked, wanted: &Call, screen: &Screen<'_>) -> Result<Vec<u8>, Failure> {
    let body = match &*wanted.body {
        "-" => from_stdin(CALL_BODY_MAX, "a call is one message between nodes")?,
        text => text.as_bytes().to_vec(),
    };
    let key = match &wanted.key {
        Some(key) => key.clone(),
        // So that asking a second server is the same call.
        None => random_key()?,
    };
    let child = &wanted.child;
    let path = format!(
        "/v1/children/{}{}/{}/{}/call?timeout={}",
        if child.is_dedicated() { "@" } else { "" },
        segment(child.tenant()),
        segment(child.kind()),
        segment(child.key()),
        params::span_text(wanted.timeout)
    );
    let ask = Ask {
        body: Some((body.into(), false)),
        headers: vec![("idempotency-key", key)],
        patience: wanted.timeout,
        repeatable: true,
        ..Ask::change(Method::POST, path)
    };
    let reply = asked.client.ask(&ask).await?;
    if asked.json {
        let answer = serde_json::json!({
            "body": String::from_utf8_lossy(&reply.body),
            "reflects": header(&reply, "understudy-reflects").and_then(|seq| seq.parse::<u64>().ok()),
            "node": header(&reply, "understudy-node"),
            "durable": header(&reply, "understudy-durable").as_deref() == Some("true"),
        });
        return Ok(line(answer.to_string().into_bytes()));
    }
    let mut out = reply.body;
    if screen.is_terminal && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    Ok(out)
}

/// A header's text, if it was sent.
fn header(reply: &Reply, name: &str) -> Option<String> {
    let value = reply.headers.get(name)?;
    value.to_str().ok().map(str::to_owned)
}

async fn follow(
    asked: &Asked,
    wanted: &Events,
    screen: &mut Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    let mut after = wanted.after.clone();
    if after.is_none() && !wanted.follow {
        after = Some("0".to_owned());
    }
    // The newest time shown: another server counts its events otherwise.
    let mut newest = String::new();
    let mut at = 0;
    let mut lost: u32 = 0;
    loop {
        let mut path = format!("/v1/events?follow={}", wanted.follow);
        if let Some(after) = &after {
            path.push_str(&format!("&after={}", segment(after)));
        }
        let ask = Ask::get(path);
        let stream = match asked.client.open(at, &ask).await {
            Ok((server, response)) => {
                at = server;
                lost = 0;
                response
            }
            // Only what was once there is waited for.
            Err(failure) if newest.is_empty() || lost >= RECONNECTS_MAX => return Err(failure),
            Err(_) => {
                lost += 1;
                tokio::time::sleep(RECONNECT).await;
                continue;
            }
        };
        let (last, ended) = read_stream(asked, stream, &mut newest, screen).await?;
        after = last.or(after);
        if ended && !wanted.follow {
            return Ok(Vec::new());
        }
        if newest.is_empty() {
            // Nothing was shown yet, and still the connection stood.
            newest.push('0');
        }
        at += 1;
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Shows a stream until it ends: the last id, and whether it ended as it should.
async fn read_stream(
    asked: &Asked,
    mut stream: reqwest::Response,
    newest: &mut String,
    screen: &mut Screen<'_>,
) -> Result<(Option<String>, bool), Failure> {
    let mut sent = sse::Events::default();
    let mut last = None;
    loop {
        let chunk = match stream.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok((last, true)),
            Err(_) => return Ok((last, false)),
        };
        sent.push(&chunk).map_err(|sse::TooLong| {
            Failure::new(Exit::Failed, "the server sends what is no event")
        })?;
        while let Some(sent) = sent.next() {
            let text = match &*sent.event {
                events::MISSED => missed(&sent.data, asked.json),
                _ => {
                    let Ok(event) = serde_json::from_str::<api::Event>(&sent.data) else {
                        continue;
                    };
                    if event.time < *newest {
                        continue;
                    }
                    newest.clone_from(&event.time);
                    if asked.json {
                        format!("{}\n", sent.data)
                    } else {
                        print::event(&event, asked.columns)
                    }
                }
            };
            last = sent.id.or(last);
            let shown = screen.live.write_all(text.as_bytes());
            if shown.and_then(|()| screen.live.flush()).is_err() {
                // Whoever read has gone away.
                return Err(Failure::new(Exit::Failed, "nobody reads the events"));
            }
        }
    }
}

fn missed(data: &str, json: bool) -> String {
    if json {
        return format!("{data}\n");
    }
    let read = serde_json::from_str::<BTreeMap<String, u64>>(data).unwrap_or_default();
    let count = read.get("missed").copied().unwrap_or(0);
    format!("… {count} events are not kept any more\n")
}

fn labels(given: &[String]) -> BTreeMap<String, Option<String>> {
    let pairs = given.iter().map(|label| match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (label.clone(), None),
    });
    pairs.collect()
}

fn from_stdin(bytes_max: usize, why: &str) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let limit = bytes_max as u64 + 1;
    let read = std::io::stdin().lock().take(limit).read_to_end(&mut body);
    read.map_err(|error| Failure::new(Exit::Failed, format!("standard input: {error}")))?;
    if body.len() > bytes_max {
        return Err(Failure::new(
            Exit::Usage,
            format!("standard input has more than {bytes_max} bytes"),
        )
        .hint(why));
    }
    Ok(body)
}

fn random_key() -> Result<String, Failure> {
    let number = getrandom::u64().and_then(|high| Ok((high, getrandom::u64()?)));
    let (high, low) = number
        .map_err(|error| Failure::new(Exit::Failed, format!("no random numbers: {error}")))?;
    Ok(format!("{high:016x}{low:016x}"))
}

fn query_wait(wait: Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| {
        format!("?wait={}", params::span_text(wait))
    })
}

fn text(text: String) -> Result<Vec<u8>, Failure> {
    Ok(text.into_bytes())
}

fn line(mut body: Vec<u8>) -> Vec<u8> {
    if !body.ends_with(b"\n") {
        body.push(b'\n');
    }
    body
}

/// Before a lost server is asked again: a failover takes about as long.
const RECONNECT: Duration = Duration::from_millis(500);

/// A minute: a machine that restarts is back by then.
const RECONNECTS_MAX: u32 = 120;

/// How much longer a list may take than other questions: each node, and each module, is asked.
const LISTING: Duration = Duration::from_secs(20);
