//! One browser's debugging pipe, shared by everybody who talks over it.
//!
//! Owns: the numbers of commands, who waits for which answer, and which session id belongs to whom.
//! Never decides what may be said (the filter does), and reads no more of a message than its id, its
//! method and its session.
//!
//! ```text
//!   Root (one client, or the recorder of one session)
//!     ├── call: one answer for its caller           ┐
//!     ├── pass: its answer comes among the events,  ├──> commands ──> pipe ──> Chromium
//!     │         in the order in which it was sent   ┘
//!     └── next <── events of its session, and of every session attached below it
//! ```
//!
//! A root is a session of the browser itself (`Target.attachToBrowserTarget`), so that what one of them
//! switches on (attaching by itself, discovery) is its own affair. Ending it ends all below it.
//!
//! **A page that crashed answers nothing, for ever** (measured: its commands hang). Its sessions are
//! marked when the browser tells of the crash: what waits fails then, and what comes later fails at
//! once, until the page is navigated. The same holds for all when the pipe ends.
//!
//! Protocol: <https://chromedevtools.github.io/devtools-protocol/>, "flat" sessions; messages on the pipe
//! end with a zero byte.

mod reader;
mod router;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use router::CRASHED;
use router::{Router, Waiter};

/// The pipe to one browser. Clones are the same pipe.
#[derive(Clone, Debug)]
pub struct Cdp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    router: Mutex<Router>,
    commands: mpsc::Sender<Vec<u8>>,
    closed: watch::Receiver<bool>,
}

/// What carries the bytes: to be kept as long as the pipe is used. Dropping it closes the pipe, by which
/// a browser ends itself.
#[derive(Debug)]
pub struct Carrier {
    _tasks: JoinSet<()>,
}

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdpError {
    /// The browser refused it; nothing of it was done, as far as the protocol says.
    #[error("{method}: {message} ({code})")]
    Refused {
        /// Which command.
        method: String,
        /// The protocol's number.
        code: i64,
        /// The browser's words.
        message: String,
    },
    /// The page crashed; whether the command was done, nobody can say.
    #[error("{0}: the page has crashed")]
    Crashed(String),
    /// The session ended, or never was: its page was closed.
    #[error("{0}: the session is over")]
    Detached(String),
    /// The browser is gone; whether the command was done, nobody can say.
    #[error("{0}: the browser is gone")]
    Gone(String),
    /// The answer is not what the protocol says.
    #[error("{method}: its answer is not what was expected: {why}")]
    Unexpected {
        /// Which command.
        method: String,
        /// What is wrong.
        why: String,
    },
}

/// One event, as the browser sent it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The session that it came on: the root's own, or one attached below it.
    pub session: Arc<str>,
    /// Its name, such as `Target.attachedToTarget`.
    pub method: Box<str>,
    /// The whole message, without the zero byte.
    pub raw: Bytes,
}

/// The answer to a command that was passed on.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What the sender named the command by.
    pub tag: u64,
    /// The session that it was sent on.
    pub session: Arc<str>,
    /// `result` if it was done, else the protocol's `error` object.
    pub outcome: Result<Box<RawValue>, Box<RawValue>>,
}

/// What a root hears, in the order in which the browser said it.
#[derive(Clone, Debug)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// An answer to what was passed on.
    Reply(Reply),
}

/// A session of the browser itself, with all that is attached below it. Dropping it detaches them.
#[derive(Debug)]
pub struct Root {
    cdp: Cdp,
    session: Arc<str>,
    heard: mpsc::Receiver<Heard>,
    waiting: Arc<Waiting>,
}

/// Bytes that a root has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Waiting(AtomicUsize);

impl Cdp {
    /// A browser at the other end of two pipes.
    pub fn over(reader: pipe::Receiver, writer: pipe::Sender) -> (Cdp, Carrier) {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let (closing, closed) = watch::channel(false);
        let cdp = Cdp {
            shared: Arc::new(Shared {
                router: Mutex::new(Router::default()),
                commands,
                closed,
            }),
        };
        let mut tasks = JoinSet::new();
        let heard = cdp.clone();
        tasks.spawn(async move {
            let end = reader::read(reader, |message| heard.router().hear(message)).await;
            if let Err(error) = end {
                tracing::warn!(%error, "the pipe to a browser broke");
            }
            heard.router().close();
            let _ = closing.send(true);
        });
        tasks.spawn(write(queue, writer));
        (cdp, Carrier { _tasks: tasks })
    }

    /// Sends a command of our own and waits for its answer. `session` is empty for the browser itself.
    ///
    /// It waits as long as the page takes: a page that loops for ever answers nothing. Whoever asks a
    /// page sets a limit.
    ///
    /// # Errors
    /// See [`CdpError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        session: &str,
        method: &str,
        params: impl Serialize,
    ) -> Result<T, CdpError> {
        let unexpected = |why: String| CdpError::Unexpected {
            method: method.to_owned(),
            why,
        };
        let params = serde_json::value::to_raw_value(&params)
            .map_err(|error| unexpected(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let id = self
            .router()
            .expect(session, method, Waiter::Caller(answer))?;
        let forget = Forget { cdp: self, id };
        self.send(message(id, session, method, Some(&params)), method)
            .await?;
        let result = answered
            .await
            .map_err(|_| CdpError::Gone(method.to_owned()))??;
        drop(forget);
        serde_json::from_str(result.get()).map_err(|error| unexpected(error.to_string()))
    }

    /// Sends a command of our own to the browser itself, whose answer is of no interest: from a `Drop`,
    /// which cannot wait. It is lost when the browser is too far behind to read.
    pub fn post(&self, method: &str, params: &impl Serialize) {
        let Ok(params) = serde_json::value::to_raw_value(params) else {
            return;
        };
        if let Ok(id) = self.router().expect("", method, Waiter::Nobody) {
            let _ = self
                .shared
                .commands
                .try_send(message(id, "", method, Some(&params)));
        }
    }

    /// A root of its own for whoever asks.
    ///
    /// # Errors
    /// See [`CdpError`]; nothing is attached then.
    pub async fn root(&self) -> Result<Root, CdpError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Attached {
            session_id: String,
        }
        let attached: Attached = self
            .call("", "Target.attachToBrowserTarget", serde_json::json!({}))
            .await?;
        let session: Arc<str> = attached.session_id.into();
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let waiting = Arc::<Waiting>::default();
        self.router()
            .add_root(session.clone(), sender, waiting.clone());
        Ok(Root {
            cdp: self.clone(),
            session,
            heard,
            waiting,
        })
    }

    /// Whether the browser is gone.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits until the browser is gone.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that whoever would say it is gone: closed as well.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        // A panic while it was held can have lost one message at worst.
        let router = self.shared.router.lock();
        router.unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, message: Vec<u8>, method: &str) -> Result<(), CdpError> {
        let sent = self.shared.commands.send(message).await;
        sent.map_err(|_| CdpError::Gone(method.to_owned()))
    }
}

impl Root {
    /// The pipe that it is on.
    pub fn cdp(&self) -> &Cdp {
        &self.cdp
    }

    /// Its own session id: the browser as this root sees it.
    pub fn session(&self) -> &Arc<str> {
        &self.session
    }

    /// What comes next; `None` once the browser is gone, or when more than [`HEARD_BYTES_MAX`] bytes, or
    /// more than [`HEARD_MAX`] messages, waited to be taken: what was dropped then cannot be made up for.
    pub async fn next(&mut self) -> Option<Heard> {
        let heard = self.heard.recv().await?;
        self.waiting.take(&heard);
        Some(heard)
    }

    /// Passes a command on whose answer comes among what is heard, under `tag`.
    ///
    /// # Errors
    /// Nothing was sent, and no answer comes: the session is not of this root, or it is over.
    pub async fn pass(
        &self,
        tag: u64,
        session: &str,
        method: &str,
        params: Option<&RawValue>,
    ) -> Result<(), CdpError> {
        let waiter = Waiter::Root {
            root: self.session.clone(),
            tag,
        };
        let id = self.cdp.router().expect(session, method, waiter)?;
        self.cdp
            .send(message(id, session, method, params), method)
            .await
    }

    /// Whether this session is the root's own or attached below it.
    pub fn has(&self, session: &str) -> bool {
        self.cdp.router().root_of(session).as_deref() == Some(&*self.session)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.cdp.router().remove_root(&self.session);
        let params = serde_json::json!({ "sessionId": &*self.session });
        self.cdp.post("Target.detachFromTarget", &params);
    }
}

impl Waiting {
    pub(crate) fn add(&self, heard: &Heard) -> bool {
        let size = size(heard);
        self.0.fetch_add(size, Ordering::Relaxed) + size <= HEARD_BYTES_MAX
    }

    fn take(&self, heard: &Heard) {
        self.0.fetch_sub(size(heard), Ordering::Relaxed);
    }
}

fn size(heard: &Heard) -> usize {
    const FIXED: usize = 128;
    FIXED
        + match heard {
            Heard::Event(event) => event.raw.len(),
            Heard::Reply(Reply {
                outcome: Ok(body) | Err(body),
                ..
            }) => body.get().len(),
        }
}

/// A caller that gave up is waited for no more.
struct Forget<'a> {
    cdp: &'a Cdp,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.cdp.router().forget(self.id);
    }
}

/// A command as it goes over the pipe, its zero byte included.
fn message(id: u64, session: &str, method: &str, params: Option<&RawValue>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Command<'a> {
        id: u64,
        method: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "str::is_empty")]
        session_id: &'a str,
    }
    let command = Command {
        id,
        method,
        params,
        session_id: session,
    };
    // Nothing in it can fail to be written.
    let mut message = serde_json::to_vec(&command).unwrap_or_default();
    message.push(0);
    message
}

async fn write(mut queue: mpsc::Receiver<Vec<u8>>, mut pipe: pipe::Sender) {
    while let Some(command) = queue.recv().await {
        let written: io::Result<()> = pipe.write_all(&command).await;
        if written.is_err() {
            // The reader sees the end, and says so to all.
            return;
        }
    }
}

/// Commands that wait for the pipe. Whoever sends one more waits: a browser that is too slow to read is
/// not helped by a longer queue.
const COMMANDS_MAX: usize = 64;

/// Bytes that a root may leave untaken: one large answer (a screenshot of a long page has some MiB) and
/// a flood of small events. A client that does not read for longer is cut off.
pub const HEARD_BYTES_MAX: usize = 64 << 20;

/// The same, counted: small events cost more to hold than they have bytes.
pub const HEARD_MAX: usize = 64 << 10;
