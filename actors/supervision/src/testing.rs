//! What the author of a kind tests it with, and kinds that misbehave on request.
//!
//! Owns: the check that a child comes back as it was, and five kinds for testing what stands around a
//! child. They are in no list of kinds unless [`register`] put them there; the end-to-end tests do.
//!
//! | kind | request | what happens |
//! |---|---|---|
//! | `testing-poison` | `die` | its whole process dies of SIGKILL |
//! | `testing-slow` | `sleep MS` | it answers after so many milliseconds |
//! | | `hang` | it never answers |
//! | `testing-faulty` | `panic` | its code panics |
//! | | `fail` | it returns an error |
//! | | `end` | it ends by itself, as if its work were done, after the answer |
//! | | `break` | it ends by itself, abnormally, after the answer |
//! | `testing-large` | `set KIB SEED` | its state is so much [`noise`] from now on, by an effect as long |
//! | | `zeros KIB` | it is so many zeros, likewise |
//! | | `patch AT KIB SEED` | so much noise stands in its state from the KiB `AT` on |
//! | | `read AT KIB` | it answers this part of its state, in hexadecimal digits |
//! | | `answer KIB SEED` | it answers so much noise in hexadecimal digits, and takes a step |
//! | `testing-loose` | `add N` | it counts, answers the sum loosely, and has itself prodded |
//! | | `hold N` | likewise, but it has itself not prodded |
//! | | `get` | it answers the sum |
//!
//! Each answers `alive` to everything else. The first three have no state; so that the directory's
//! strikes and restarts are all that is left of them.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::id::{ChildId, IncarnationId};
use understudy_protocol::supervision::Exit;
use understudy_protocol::wire::envelope::CallKey;

use crate::child::{
    Checkpoint, Child, ChildError, Context, Ender, Handled, Kind, Prodder, Request, StartError,
};
use crate::kinds::Kinds;

/// These kinds, the three that misbehave, the large one and the loose one.
#[must_use]
pub fn register(kinds: Kinds) -> Kinds {
    kinds
        .with("testing-poison", Misbehaving)
        .with("testing-slow", Misbehaving)
        .with("testing-faulty", Misbehaving)
        .with("testing-large", Large)
        .with("testing-loose", Loose)
}

/// So many KiB that no two seeds have in common: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub fn noise(kib: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut noise = Vec::with_capacity(kib * 1024);
    while noise.len() < kib * 1024 {
        noise.extend_from_slice(&next());
    }
    noise
}

/// Runs the requests on a new child and, after each of them, starts another one from what is recorded:
/// once from all the steps, and once from the last snapshot alone. Every one of them must have the same
/// snapshot. Returns the answers.
///
/// # Errors
/// The sentence that says where the kind breaks its promise.
pub async fn comes_back<K: Kind>(kind: &K, requests: &[&[u8]]) -> Result<Vec<Bytes>, String> {
    let mut child = begin(kind, Checkpoint::default()).await?;
    let mut steps = Vec::new();
    let mut answers = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let at = format!("after request {number} ({})", request.escape_ascii());
        let failed = |error: ChildError| format!("{at}: {error}");
        let handled = child
            .handle(asking(number, request))
            .await
            .map_err(failed)?;
        steps.extend(handled.effect);
        answers.push(handled.answer);
        let state = child.snapshot().await.map_err(failed)?;
        let from_steps = Checkpoint::new(None, steps.clone());
        let from_state = Checkpoint::new(Some(state.clone()), Vec::new());
        for (from, checkpoint) in [("its steps", from_steps), ("its snapshot", from_state)] {
            let mut again = begin(kind, checkpoint).await?;
            let then = again.snapshot().await.map_err(failed)?;
            if then != state {
                return Err(format!(
                    "{at}, a child started from {from} is another: {then:?} instead of {state:?}"
                ));
            }
        }
    }
    Ok(answers)
}

async fn begin<K: Kind>(kind: &K, checkpoint: Checkpoint) -> Result<K::Child, String> {
    let child = ChildId::parse("@testing/testing/child").map_err(|error| error.to_string())?;
    let context = Context::new(child, |_, _| {});
    let started = kind.start(context, checkpoint).await;
    started.map_err(|error| error.to_string())
}

fn asking(number: usize, body: &[u8]) -> Request {
    let key = CallKey::Internal {
        gateway: IncarnationId(1),
        number: number as u64,
    };
    Request::new(key, Bytes::copy_from_slice(body))
}

struct Misbehaving;

struct OnRequest {
    kind: String,
    ender: Ender,
}

impl Kind for Misbehaving {
    type Child = OnRequest;

    async fn start(&self, context: Context, _: Checkpoint) -> Result<OnRequest, StartError> {
        Ok(OnRequest {
            kind: context.child().kind().to_owned(),
            ender: context.ender(),
        })
    }
}

impl Child for OnRequest {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let text = String::from_utf8_lossy(&request.body);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match (self.kind.as_str(), word) {
            ("testing-poison", "die") => die(),
            ("testing-slow", "sleep") => {
                let millis = rest.parse().unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            ("testing-slow", "hang") => pending().await,
            ("testing-faulty", "panic") => panic!("it was asked to"),
            ("testing-faulty", "fail") => {
                return Err(ChildError::Broken("it was asked to".into()));
            }
            ("testing-faulty", "end") => self.ender.end(Exit::Normal, "its work is done"),
            ("testing-faulty", "break") => self.ender.end(Exit::Abnormal, "its process is gone"),
            _ => {}
        }
        Ok(Handled::read("alive"))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(Bytes::new())
    }
}

/// These bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

/// Its children's states are as long as they are told.
struct Large;

#[derive(Default)]
struct Bulk(Vec<u8>);

impl Kind for Large {
    type Child = Bulk;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Bulk, StartError> {
        let mut bulk = Bulk(checkpoint.base.unwrap_or_default().into());
        for step in checkpoint.steps {
            bulk.apply(&step).ok_or_else(|| {
                StartError::BadCheckpoint("a step says no place that there is".into())
            })?;
        }
        Ok(bulk)
    }
}

impl Bulk {
    /// A step is its place, eight bytes, and what stands there from now on; at the last place of all
    /// it is the whole state.
    fn apply(&mut self, step: &[u8]) -> Option<()> {
        let (at, bytes) = step.split_first_chunk()?;
        match usize::try_from(u64::from_be_bytes(*at)).ok()? {
            WHOLE => self.0 = bytes.to_vec(),
            at => {
                let end = at.checked_add(bytes.len())?;
                self.0.get_mut(at..end)?.copy_from_slice(bytes);
            }
        }
        Some(())
    }

    fn step(&mut self, at: usize, bytes: &[u8], answer: Vec<u8>) -> Option<Handled> {
        let step = [&(at as u64).to_be_bytes()[..], bytes].concat();
        self.apply(&step)?;
        Some(Handled::step(answer, step))
    }

    fn carry_out(&mut self, words: &[&str]) -> Option<Handled> {
        let kib = |word: &str| word.parse::<u16>().ok().map(usize::from);
        match *words {
            ["set", size, seed] => {
                let bytes = noise(kib(size)?, seed.parse().ok()?);
                self.step(WHOLE, &bytes, b"set".to_vec())
            }
            ["zeros", size] => {
                let bytes = vec![0; size.parse::<u32>().ok()? as usize * 1024];
                self.step(WHOLE, &bytes, b"set".to_vec())
            }
            ["patch", at, size, seed] => {
                let bytes = noise(kib(size)?, seed.parse().ok()?);
                self.step(kib(at)? * 1024, &bytes, b"patched".to_vec())
            }
            ["read", at, size] => {
                let at = kib(at)? * 1024;
                let part = self.0.get(at..at + kib(size)? * 1024)?;
                Some(Handled::read(hex(part)))
            }
            ["answer", size, seed] => {
                let answer = hex(&noise(kib(size)?, seed.parse().ok()?));
                self.step(0, &[], answer.into())
            }
            _ => Some(Handled::read("alive")),
        }
    }
}

impl Child for Bulk {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let text = String::from_utf8_lossy(&request.body);
        let words: Vec<&str> = text.split(' ').collect();
        let handled = self.carry_out(&words);
        Ok(handled.unwrap_or_else(|| Handled::read("not understood")))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.0.clone().into())
    }
}

/// Its children answer before their steps are recorded.
struct Loose;

struct Sum {
    sum: i64,
    is_held: bool,
    prodder: Prodder,
}

impl Kind for Loose {
    type Child = Sum;

    async fn start(&self, context: Context, checkpoint: Checkpoint) -> Result<Sum, StartError> {
        let last = checkpoint.steps.into_iter().next_back().or(checkpoint.base);
        let sum = match last {
            Some(last) => std::str::from_utf8(&last)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| StartError::BadCheckpoint("it is no number".into()))?,
            None => 0,
        };
        Ok(Sum {
            sum,
            is_held: false,
            prodder: context.prodder(),
        })
    }
}

impl Child for Sum {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        if request.is_prod() {
            let holds = std::mem::take(&mut self.is_held);
            return Ok(match holds {
                true => Handled::step("", self.sum.to_string()),
                false => Handled::read(""),
            });
        }
        let text = String::from_utf8_lossy(&request.body);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, "0"));
        if word == "get" {
            return Ok(Handled::read(self.sum.to_string()));
        }
        self.sum += rest.parse::<i64>().unwrap_or(0);
        self.is_held = true;
        if word == "add" {
            self.prodder.prod();
        }
        Ok(Handled::loose(self.sum.to_string()))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.sum.to_string().into())
    }
}

/// The place of a step that is the whole state.
const WHOLE: usize = usize::MAX;

/// Nothing of the process runs after it: no destructor, no last word.
fn die() {
    let me = rustix::process::getpid();
    // It cannot fail on oneself; were it to, the process would at least abort.
    let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    std::process::abort();
}
