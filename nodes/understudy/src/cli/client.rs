//! The HTTP client of the command line.
//!
//! Owns: which server is asked, how long, and whether another may be asked after it. Never asks a
//! second one when the first may have done it, unless asking twice is the same as asking once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

use understudy_gateway::problem::{self, ProblemBody};

use super::args::Global;
use super::{Exit, Failure};

/// Servers to ask, and what to show them.
pub struct Client {
    http: reqwest::Client,
    servers: Vec<String>,
    token: Option<String>,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Ask {
    /// GET, POST, PUT or DELETE.
    pub method: Method,
    /// From `/v1` on, with its query.
    pub path: String,
    /// The body, and whether it is JSON.
    pub body: Option<(Bytes, bool)>,
    /// Counts the bytes of the body that are on their way, of one that is long.
    pub sent: Option<Arc<AtomicU64>>,
    /// Headers beside the usual ones.
    pub headers: Vec<(&'static str, String)>,
    /// How long the server takes at most.
    pub patience: Duration,
    /// Asking twice is the same as asking once.
    pub repeatable: bool,
}

impl Ask {
    /// Asks for what is at `path`.
    pub fn get(path: impl Into<String>) -> Ask {
        Ask {
            method: Method::GET,
            path: path.into(),
            body: None,
            sent: None,
            headers: Vec::new(),
            patience: PATIENCE,
            repeatable: true,
        }
    }

    /// Asks to change something.
    pub fn change(method: Method, path: impl Into<String>) -> Ask {
        Ask {
            method,
            repeatable: false,
            patience: CHANGE_PATIENCE,
            ..Ask::get(path)
        }
    }

    /// With a JSON body.
    #[must_use]
    pub fn json(self, body: &impl serde::Serialize) -> Ask {
        Ask {
            body: Some((serde_json::to_vec(body).unwrap_or_default().into(), true)),
            ..self
        }
    }

    /// With as much more time.
    #[must_use]
    pub fn wait(self, wait: Option<Duration>) -> Ask {
        Ask {
            patience: self.patience + wait.unwrap_or_default(),
            ..self
        }
    }
}

/// An answer that is no error.
pub struct Reply {
    /// Its headers.
    pub headers: reqwest::header::HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Client {
    /// A client of the servers that the command line names.
    pub fn new(global: &Global) -> Result<Client, Failure> {
        let servers: Result<Vec<String>, Failure> =
            global.server.iter().map(|server| url_of(server)).collect();
        let token = match (&global.token, &global.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file).map_err(|error| {
                    Failure::new(Exit::Usage, format!("{}: {error}", file.display()))
                        .hint("name a file that holds the token and nothing else")
                })?;
                Some(read.trim().to_owned())
            }
            (None, None) => None,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_PATIENCE)
            .no_proxy()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("no HTTP client: {error}")))?;
        Ok(Client {
            http,
            servers: servers?,
            token,
        })
    }

    /// Asks each server in turn, until one answers.
    pub async fn ask(&self, ask: &Ask) -> Result<Reply, Failure> {
        let mut first = None;
        for server in &self.servers {
            let failure = match self.ask_one(server, ask).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            if !failure.may_ask_another(ask) {
                return Err(failure.said);
            }
            first.get_or_insert(failure.said);
        }
        Err(first.unwrap_or_else(|| Failure::new(Exit::Usage, "no server is named")))
    }

    /// Asks, and reads the answer as JSON.
    pub async fn read<T: DeserializeOwned>(&self, ask: &Ask) -> Result<(T, Vec<u8>), Failure> {
        let reply = self.ask(ask).await?;
        let read = serde_json::from_slice(&reply.body).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the server answers what this version does not know: {error}"),
            )
            .hint("compare `understudy --version` with the node's")
        })?;
        Ok((read, reply.body))
    }

    /// Opens a stream at one server after the other, beginning with the `nth`.
    pub async fn open(&self, nth: usize, ask: &Ask) -> Result<(usize, reqwest::Response), Failure> {
        let mut first = None;
        for at in 0..self.servers.len() {
            let at = (nth + at) % self.servers.len();
            let server = &self.servers[at];
            let sent = tokio::time::timeout(ask.patience, self.request(server, ask).send());
            let failure = match sent.await {
                Ok(Ok(response)) if response.status().is_success() => return Ok((at, response)),
                Ok(Ok(response)) => {
                    let status = response.status();
                    let body = response.bytes().await.unwrap_or_default();
                    refused(server, status, &body)
                }
                Ok(Err(error)) => not_sent(server, &error),
                Err(_) => late(server, ask.patience),
            };
            if !failure.may_ask_another(ask) {
                return Err(failure.said);
            }
            first.get_or_insert(failure.said);
        }
        Err(first.unwrap_or_else(|| Failure::new(Exit::Usage, "no server is named")))
    }

    async fn ask_one(&self, server: &str, ask: &Ask) -> Result<Reply, NoReply> {
        let request = self.request(server, ask);
        let asked = async {
            let response = request
                .send()
                .await
                .map_err(|error| not_sent(server, &error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response
                .bytes()
                .await
                .map_err(|error| not_sent(server, &error))?;
            if status.is_success() {
                Ok(Reply {
                    headers,
                    body: body.to_vec(),
                })
            } else {
                Err(refused(server, status, &body))
            }
        };
        let patience = ask.patience + GRACE;
        tokio::time::timeout(patience, asked)
            .await
            .unwrap_or_else(|_| Err(late(server, patience)))
    }

    fn request(&self, server: &str, ask: &Ask) -> reqwest::RequestBuilder {
        let url = format!("{server}{}", ask.path);
        let mut request = self.http.request(ask.method.clone(), url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        match &ask.body {
            Some((body, _)) if ask.sent.is_some() => request
                .header("content-length", body.len())
                .body(metered(body.clone(), ask.sent.clone().unwrap_or_default())),
            Some((body, true)) => request
                .header("content-type", "application/json")
                .body(body.clone()),
            Some((body, false)) => request.body(body.clone()),
            None => request,
        }
    }
}

/// A body that counts how much of it was taken: by this connection, so from nothing again.
fn metered(body: Bytes, sent: Arc<AtomicU64>) -> reqwest::Body {
    sent.store(0, Ordering::Relaxed);
    let chunks = futures_util::stream::unfold(body, move |mut rest| {
        let sent = sent.clone();
        async move {
            let chunk = rest.split_to(rest.len().min(CHUNK));
            if chunk.is_empty() {
                return None;
            }
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Some((Ok::<_, std::io::Error>(chunk), rest))
        }
    });
    reqwest::Body::wrap_stream(chunks)
}

/// Why one server gave no reply.
struct NoReply {
    said: Failure,
    /// It has certainly not been done.
    undone: bool,
    /// Another server may know better.
    elsewhere: bool,
}

impl NoReply {
    fn may_ask_another(&self, ask: &Ask) -> bool {
        self.undone || (self.elsewhere && ask.repeatable)
    }
}

fn not_sent(server: &str, error: &reqwest::Error) -> NoReply {
    let undone = error.is_connect() || error.is_builder();
    let cause = root_cause(error);
    let said = if undone {
        Failure::new(Exit::Unreachable, format!("no connection to {server}: {cause}")).hint(
            "is a node running there? `understudy dev` starts one; --server or UNDERSTUDY_SERVER names another",
        )
    } else {
        Failure::new(
            Exit::Unreachable,
            format!("the connection to {server} ended before the answer: {cause}"),
        )
        .hint("it may have been done: look before you repeat it")
    };
    NoReply {
        said,
        undone,
        elsewhere: true,
    }
}

fn late(server: &str, patience: Duration) -> NoReply {
    let said = Failure::new(
        Exit::TimedOut,
        format!("no answer from {server} within {patience:?}"),
    )
    .hint("it may have been done: look before you repeat it");
    NoReply {
        said,
        undone: false,
        elsewhere: true,
    }
}

fn refused(server: &str, status: StatusCode, body: &[u8]) -> NoReply {
    let said = match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => {
            let hint = if problem.kind == "unauthenticated" {
                Some("name the token: --token, --token-file, UNDERSTUDY_TOKEN or UNDERSTUDY_TOKEN_FILE".to_owned())
            } else {
                problem.hint.clone()
            };
            Failure {
                exit: exit_of(&problem.kind),
                what: said(&problem),
                hint,
            }
        }
        Err(_) => Failure::new(
            Exit::Failed,
            format!("{server} answers {status}, and not in the words of an Understudy gateway"),
        )
        .hint(format!(
            "an error of a gateway is {}; is this the right port?",
            problem::MEDIA_TYPE
        )),
    };
    NoReply {
        said,
        undone: false,
        elsewhere: status == StatusCode::SERVICE_UNAVAILABLE
            || status == StatusCode::TOO_MANY_REQUESTS,
    }
}

/// What happened, and where in a guest's program, if it says so.
fn said(problem: &ProblemBody) -> String {
    let mut said = problem.detail.clone();
    let frames = problem
        .more
        .get("backtrace")
        .and_then(|frames| frames.as_array());
    for frame in frames
        .into_iter()
        .flatten()
        .filter_map(|frame| frame.as_str())
    {
        said.push_str(&format!("\n    in {frame}"));
    }
    let log = problem.more.get("log").and_then(|log| log.as_str());
    for line in log.unwrap_or_default().lines() {
        said.push_str(&format!("\n    it wrote: {line}"));
    }
    said
}

/// How a command ends that a server answered with this `type`.
pub fn exit_of(kind: &str) -> Exit {
    match kind {
        "unauthenticated" | "forbidden" | "quota_exceeded" | "overloaded" => Exit::Refused,
        "invalid" | "method_not_allowed" => Exit::Usage,
        "deadline_exceeded" => Exit::TimedOut,
        _ => Exit::Failed,
    }
}

/// Writes a name between two slashes of a path.
pub fn segment(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~@".contains(&byte) {
            text.push(char::from(byte));
        } else if byte == b'.' && name.bytes().any(|byte| byte != b'.') {
            // Alone it would mean a folder.
            text.push('.');
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn url_of(server: &str) -> Result<String, Failure> {
    let server = server.trim();
    let url = match server.split_once("://") {
        None => format!("http://{}", server.trim_end_matches('/')),
        Some(("http", host)) => format!("http://{}", host.trim_end_matches('/')),
        Some((scheme, _)) => {
            return Err(Failure::new(
                Exit::Usage,
                format!("`{scheme}` is not spoken here: gateways are asked over http on loopback"),
            )
            .hint("write `--server http://127.0.0.1:8080`"));
        }
    };
    match reqwest::Url::parse(&url) {
        Ok(parsed) if parsed.has_host() => Ok(url),
        _ => Err(
            Failure::new(Exit::Usage, format!("`{server}` is no address of a server"))
                .hint("write `--server http://127.0.0.1:8080`"),
        ),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// How much of a long body is handed over at a time: what a person sees move.
const CHUNK: usize = 64 * 1024;

/// A question about what is there: a node answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// A change waits for the directory, which waits for an election at worst.
const CHANGE_PATIENCE: Duration = Duration::from_secs(25);

/// Longer than the server's own patience, so that it is the server who says that it was too long.
const GRACE: Duration = Duration::from_secs(2);

/// A machine on the same network answers within milliseconds, or is gone.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use understudy_gateway::problem::Kind;

    #[test]
    fn each_type_of_problem_has_its_exit_code() {
        for kind in Kind::ALL {
            let expected = match kind {
                Kind::Unauthenticated | Kind::Overloaded | Kind::QuotaExceeded => Exit::Refused,
                Kind::Invalid | Kind::MethodNotAllowed => Exit::Usage,
                Kind::DeadlineExceeded => Exit::TimedOut,
                Kind::NotFound
                | Kind::Conflict
                | Kind::TooLarge
                | Kind::Unavailable
                | Kind::GuestTrapped
                | Kind::GuestDenied
                | Kind::GuestFailed
                | Kind::StateNotCheckpointable => Exit::Failed,
            };
            assert_eq!(exit_of(kind.words().0), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_name_stays_one_segment_of_a_path() {
        for (name, expected) in [
            ("@t1/counter/a", "@t1%2Fcounter%2Fa"),
            ("unit-1f", "unit-1f"),
            ("a.b", "a.b"),
            ("..", "%2E%2E"),
            ("a b?c#d%", "a%20b%3Fc%23d%25"),
            ("ü", "%C3%BC"),
        ] {
            assert_eq!(segment(name), expected);
        }
    }

    #[test]
    fn a_server_is_written_with_or_without_its_scheme() {
        for (text, expected) in [
            ("127.0.0.1:8080", Some("http://127.0.0.1:8080")),
            (" http://[::1]:8080/ ", Some("http://[::1]:8080")),
            ("https://x", None),
            ("", None),
            ("http://", None),
            ("a b", None),
        ] {
            assert_eq!(url_of(text).ok().as_deref(), expected, "{text:?}");
        }
    }
}
