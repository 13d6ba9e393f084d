//! Sessions.
//!
//! Owns: where a picture goes. Never formats an answer: `print` does.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;

use understudy_gateway::api;

use super::{Asked, every, labels, line, print};
use crate::cli::args::Session;
use crate::cli::client::{Ask, segment};
use crate::cli::{Exit, Failure, Screen};

pub(super) async fn session(
    asked: &Asked,
    session: &Session,
    screen: &Screen<'_>,
) -> Result<Vec<u8>, Failure> {
    match session {
        Session::Open {
            url,
            id,
            label,
            node,
            tenant,
        } => {
            let new = api::NewSession {
                id: id.clone(),
                url: url.clone(),
                labels: labels(label),
                node: node.clone(),
            };
            let path = format!("/v1/sessions?tenant={}", segment(tenant));
            let ask = Ask::change(Method::POST, path)
                .json(&new)
                .wait(Some(BROWSER));
            asked.show(&ask, print::session).await
        }
        Session::List { tenant } => {
            let sessions = every(asked, "/v1/sessions", &[("tenant", tenant)]).await?;
            if asked.json {
                return Ok(line(serde_json::to_vec(&sessions).unwrap_or_default()));
            }
            Ok(print::sessions(&sessions, asked.columns).into_bytes())
        }
        Session::Show { id, tenant } => {
            let ask = Ask::get(path(id, "", tenant)).wait(Some(BROWSER));
            asked.show(&ask, print::session).await
        }
        Session::Screenshot {
            id,
            output,
            page,
            full,
            tenant,
        } => {
            if output.is_none() && screen.is_terminal {
                let what = "a picture would fill the terminal: name a file with `-o shop.png`";
                return Err(Failure::new(Exit::Usage, what));
            }
            let query = format!("&page={page}&full={full}");
            let path = path(id, "/screenshot", tenant) + &query;
            let reply = asked
                .client
                .ask(&Ask::get(path).wait(Some(BROWSER)))
                .await?;
            match output {
                Some(file) => kept(file, &reply.body, asked.json),
                None => Ok(reply.body),
            }
        }
        Session::Release { id, tenant } => {
            let ask = Ask::change(Method::DELETE, path(id, "", tenant));
            let done = |_: &serde_json::Value| format!("{id} is gone for good\n");
            asked.show(&ask, done).await
        }
    }
}

fn path(id: &str, what: &str, tenant: &str) -> String {
    format!(
        "/v1/sessions/{}{what}?tenant={}",
        segment(id),
        segment(tenant)
    )
}

fn kept(file: &Path, picture: &[u8], json: bool) -> Result<Vec<u8>, Failure> {
    std::fs::write(file, picture).map_err(|error| {
        let what = format!(
            "the picture cannot be written to {}: {error}",
            file.display()
        );
        Failure::new(Exit::Failed, what)
    })?;
    let (file, bytes) = (file.display().to_string(), picture.len());
    Ok(if json {
        line(
            serde_json::json!({ "file": file, "bytes": bytes })
                .to_string()
                .into_bytes(),
        )
    } else {
        format!("{file}: {bytes} bytes\n").into_bytes()
    })
}

/// How much longer than usual a server may take: a browser is started, and its pages come back.
const BROWSER: Duration = Duration::from_secs(30);
