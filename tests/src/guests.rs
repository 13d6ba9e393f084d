//! Callers of durable sandboxes, and what an undisturbed guest would have answered.
//!
//! Owns: a guest whose every answer depends on all its calls before (a hidden global and its memory),
//! callers that use it while nodes die, and the judgement: the acknowledged calls, given once more and
//! in the same order to a fresh guest that nobody disturbs, get the same answers and leave the same
//! memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::http::{Called, Client};

/// A guest of two pages. `step` folds its argument into a hidden global, writes that to a place in
/// memory which depends on it, and answers how many steps there were and what it has become; `digest`
/// folds the whole memory.
const GUEST: &str = r#"
(module
  (memory 2)
  (global $steps (mut i64) (i64.const 0))
  (global $state (mut i64) (i64.const 42))
  (func (export "step") (param $by i64) (result i64 i64)
    (global.set $steps (i64.add (global.get $steps) (i64.const 1)))
    (global.set $state
      (i64.add
        (i64.mul (i64.xor (global.get $state) (local.get $by)) (i64.const 6364136223846793005))
        (i64.const 1442695040888963407)))
    (i64.store
      (i32.and (i32.wrap_i64 (i64.shr_u (global.get $state) (i64.const 40))) (i32.const 0x1fff8))
      (global.get $state))
    (global.get $steps)
    (global.get $state))
  (func (export "digest") (result i64)
    (local $at i32) (local $sum i64)
    (local.set $sum (i64.const -3750763034362895579))
    (loop $next
      (local.set $sum
        (i64.mul (i64.xor (local.get $sum) (i64.load (local.get $at))) (i64.const 1099511628211)))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 131072))))
    (local.get $sum)))
"#;

/// Callers at work: one a sandbox, so that the order of its calls is known.
pub struct Users {
    client: Client,
    servers: Vec<String>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: JoinSet<Used>,
}

/// What one sandbox's caller was told.
struct Used {
    sandbox: String,
    /// Argument and answer of each call, in their order.
    told: Vec<(i64, Value)>,
    retries: u64,
    slowest: Duration,
    wrong: Option<String>,
}

/// How the guests came out.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Sandboxes.
    pub sandboxes: usize,
    /// Calls acknowledged.
    pub acknowledged: u64,
    /// Tries that had to be repeated.
    pub retries: u64,
    /// The longest that any call took.
    pub slowest: Duration,
    /// What is wrong, in words; empty when all is well.
    pub wrong: Vec<String>,
}

impl Users {
    /// Pushes the guest, creates so many sandboxes of it and begins to use them.
    pub async fn start(
        client: Client,
        servers: Vec<String>,
        sandboxes: usize,
        pause: Duration,
    ) -> Result<Users> {
        let server = servers.first().context("there is a server")?.clone();
        let wasm = wat::parse_str(GUEST)?;
        client.put(&server, "/v1/modules/chain/1.0.0", wasm).await?;
        let (stop, answered) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let mut tasks = JoinSet::new();
        for nth in 0..sandboxes {
            let sandbox = format!("chain-{nth}");
            create(&client, &server, &sandbox).await?;
            let user = User {
                client: client.clone(),
                servers: servers.clone(),
                sandbox,
                pause,
                stop: stop.clone(),
                answered: answered.clone(),
            };
            tasks.spawn(user.run(nth));
        }
        Ok(Users {
            client,
            servers,
            stop,
            answered,
            tasks,
        })
    }

    /// Calls acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Lets every caller finish its call, and compares each guest with an undisturbed one.
    pub async fn finish(mut self) -> Result<Verdict> {
        self.stop.store(true, Ordering::Relaxed);
        let mut verdict = Verdict::default();
        while let Some(used) = self.tasks.join_next().await {
            let used = used.context("a caller of a sandbox has panicked")?;
            verdict.sandboxes += 1;
            verdict.acknowledged += used.told.len() as u64;
            verdict.retries += used.retries;
            verdict.slowest = verdict.slowest.max(used.slowest);
            if let Some(wrong) = &used.wrong {
                verdict.wrong.push(format!("{}: {wrong}", used.sandbox));
            } else if let Err(wrong) = self.compare(&used).await {
                verdict.wrong.push(format!("{}: {wrong:#}", used.sandbox));
            }
        }
        Ok(verdict)
    }

    async fn compare(&self, used: &Used) -> Result<()> {
        ensure!(!used.told.is_empty(), "nothing was answered");
        let twin = format!("{}-undisturbed", used.sandbox);
        let server = self.servers.first().context("there is a server")?;
        create(&self.client, server, &twin).await?;
        for (nth, (by, told)) in used.told.iter().enumerate() {
            let answer = self.ask(&twin, "step", &json!([by])).await?;
            ensure!(
                answer == *told,
                "call {nth} was answered {told}, an undisturbed guest answers {answer}"
            );
        }
        let (is, should) = (
            self.ask(&used.sandbox, "digest", &json!([])).await?,
            self.ask(&twin, "digest", &json!([])).await?,
        );
        ensure!(
            is == should,
            "its memory is {is}, an undisturbed one's {should}"
        );
        Ok(())
    }

    /// Asks once, without a key: nothing is disturbed any more, and a call that has to be repeated is
    /// no call of an undisturbed guest.
    async fn ask(&self, sandbox: &str, export: &str, args: &Value) -> Result<Value> {
        let server = self.servers.first().context("there is a server")?;
        let called = self
            .client
            .sandbox(server, sandbox, export, None, args, ASK_LIMIT);
        match called.await {
            Called::Answered(text) => Ok(serde_json::from_str(&text)?),
            Called::Refused(why) | Called::Again(why) => bail!("{export} was not answered: {why}"),
        }
    }
}

async fn create(client: &Client, server: &str, name: &str) -> Result<()> {
    let new = json!({ "name": name, "module": "chain@1.0.0" });
    client.post(server, "/v1/sandboxes", &new).await.map(drop)
}

/// One caller.
struct User {
    client: Client,
    servers: Vec<String>,
    sandbox: String,
    pause: Duration,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl User {
    async fn run(self, nth: usize) -> Used {
        let mut used = Used {
            sandbox: self.sandbox.clone(),
            told: Vec::new(),
            retries: 0,
            slowest: Duration::ZERO,
            wrong: None,
        };
        let mut server = nth;
        while !self.stop.load(Ordering::Relaxed) && used.wrong.is_none() {
            let by = (nth * 1_000_000 + used.told.len()) as i64;
            let key = format!("{}-{by}", self.sandbox);
            let began = Instant::now();
            loop {
                let at = &self.servers[server % self.servers.len()];
                let args = json!([by]);
                let called =
                    self.client
                        .sandbox(at, &self.sandbox, "step", Some(&key), &args, TRY_LIMIT);
                match called.await {
                    Called::Answered(text) => {
                        match serde_json::from_str(&text) {
                            Ok(answer) => used.told.push((by, answer)),
                            Err(_) => used.wrong = Some(format!("it answered {text:?}")),
                        }
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Called::Refused(why) => {
                        used.wrong = Some(format!("step {by} was refused: {why}"));
                        break;
                    }
                    Called::Again(why) if began.elapsed() > GIVE_UP => {
                        used.wrong = Some(format!("step {by} was never answered: {why}"));
                        break;
                    }
                    Called::Again(_) => {
                        used.retries += 1;
                        server += 1;
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
            }
            used.slowest = used.slowest.max(began.elapsed());
            tokio::time::sleep(self.pause).await;
        }
        used
    }
}

/// How long one try waits for its answer.
const TRY_LIMIT: Duration = Duration::from_secs(2);

/// Between two tries of one call.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// After this long a call counts as lost: no fault here takes a tenth of it.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long a call may take when nothing is broken any more.
const ASK_LIMIT: Duration = Duration::from_secs(10);
