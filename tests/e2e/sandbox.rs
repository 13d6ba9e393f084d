//! WebAssembly guests between real nodes: modules, sandboxes that outlive their nodes, functions.
//!
//! Owns: the way of a user, through the command line and HTTP. What a guest may do and how its memory is
//! kept is tested beside the kinds; here it is that nothing of it is lost on the way.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use understudy_tests::cluster::{Cluster, Options, items};
use understudy_tests::http::Called;

use crate::exe;

/// A guest whose state lies where no host looks by itself: in globals that are not exported, and in
/// sixteen places of its memory.
const LEDGER: &str = r#"(module
  (memory 2)
  (global $state (mut i64) (i64.const 1442695040888963407))
  (global $count (mut i64) (i64.const 0))
  (func (export "enter") (param $with i64) (result i64 i64 i64)
    (local $at i32)
    (global.set $state (i64.add
      (i64.mul (global.get $state) (i64.const 6364136223846793005)) (local.get $with)))
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (local.set $at (i32.wrap_i64
      (i64.mul (i64.and (global.get $count) (i64.const 15)) (i64.const 8008))))
    (i64.store (local.get $at) (i64.xor (i64.load (local.get $at)) (global.get $state)))
    (global.get $state) (global.get $count) (i64.load (local.get $at)))
  (func $fail (export "fail") (global.set $count (i64.const -1)) (unreachable))
  (func (export "spin") (loop (br 0))))"#;

/// A guest that asks for the time.
const CURIOUS: &str = r#"(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "now") (result i32) (call $clock (i32.const 0) (i64.const 0) (i32.const 0))))"#;

/// What WASI preview 1 answers to who may not.
const EACCES: i32 = 2;

/// What the guest answers when nothing ever happens to it.
struct Undisturbed {
    state: i64,
    count: i64,
    places: [i64; 16],
}

impl Undisturbed {
    fn new() -> Undisturbed {
        Undisturbed {
            state: 1_442_695_040_888_963_407,
            count: 0,
            places: [0; 16],
        }
    }

    fn enter(&mut self, with: i64) -> Value {
        let state = self.state.wrapping_mul(6_364_136_223_846_793_005);
        self.state = state.wrapping_add(with);
        self.count += 1;
        let place = &mut self.places[(self.count & 15) as usize];
        *place ^= self.state;
        json!([self.state, self.count, *place])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_on_after_each_kill_as_if_there_had_been_none() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    push(&cluster, 0, LEDGER, "ledger@1.0.0")?;
    let made = done(
        &cluster,
        1,
        &["sandbox", "create", "s", "--module", "ledger"],
    )?;
    assert!(made.contains("runs ledger@1.0.0 on"), "{made}");

    let mut undisturbed = Undisturbed::new();
    let mut slowest = Duration::ZERO;
    for round in 0..KILLS {
        for nth in 0..CALLS {
            let number = i64::from(round * CALLS + nth);
            if nth == CALLS / 2 {
                let owner = owner(&cluster).await?;
                cluster.kill(owner)?;
            }
            let (answer, took) = entered(&mut cluster, number).await?;
            assert_eq!(answer, undisturbed.enter(number), "call {number}");
            slowest = slowest.max(took);
        }
        for nth in 0..cluster.size() {
            if !cluster.runs(nth) {
                cluster.spawn(nth)?;
            }
        }
        cluster.wait_whole(WHOLE).await?;
    }
    // What was acknowledged is not done again, wherever its key comes from next.
    let last = i64::from(KILLS * CALLS - 1);
    let (again, _) = entered(&mut cluster, last).await?;
    assert_eq!(again[1], json!(last + 1));
    println!(
        "{KILLS} kills, {} calls, the slowest took {slowest:?}",
        last + 1
    );
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name_and_the_node_goes_on() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    push(&cluster, 0, LEDGER, "ledger@1.0.0")?;
    // The same again, at another node; and other bytes under the same version.
    push(&cluster, 1, LEDGER, "ledger@1.0.0")?;
    let other = LEDGER.replace("(memory 2)", "(memory 3)");
    let refused = push(&cluster, 2, &other, "ledger@1.0.0").unwrap_err();
    assert!(
        refused.to_string().contains("sealed with other bytes"),
        "{refused}"
    );
    for (create, says) in [
        ("none@1.0.0", "there is no module none@1.0.0"),
        ("none", "has no module `none`"),
    ] {
        let output = cli(&cluster, 0, &["sandbox", "create", "t", "--module", create])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(says), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
    done(
        &cluster,
        0,
        &["sandbox", "create", "s", "--module", "ledger@1.0.0"],
    )?;
    let before = done(&cluster, 0, &["sandbox", "call", "s", "enter", "7"])?;
    for (path, args, kind) in [
        ("/v1/sandboxes/s/call/nowhere", json!([]), "not_found"),
        ("/v1/sandboxes/s/call/enter", json!([]), "invalid"),
        ("/v1/sandboxes/s/call/fail", json!([]), "guest_trapped"),
        ("/v1/sandboxes/none/call/enter", json!([1]), "not_found"),
        ("/v1/functions/ledger/call/fail", json!([]), "guest_trapped"),
        ("/v1/functions/none/call/enter", json!([1]), "not_found"),
    ] {
        for url in cluster.urls() {
            let problem = refusal(&cluster, &url, path, &args).await?;
            assert_eq!(problem["type"], json!(kind), "{problem}");
            assert!(problem["hint"].is_string(), "{problem}");
            if kind == "guest_trapped" {
                assert_eq!(problem["function"], json!("fail"), "{problem}");
            }
        }
    }
    // An endless loop ends, and says so.
    let output = cli(
        &cluster,
        0,
        &["sandbox", "call", "s", "spin", "--timeout", "20s"],
    )?;
    assert_eq!(output.status.code(), Some(5), "{output:?}");

    let mut undisturbed = Undisturbed::new();
    let text = |answer: Value| {
        let numbers = answer.as_array().cloned().unwrap_or_default();
        let texts: Vec<String> = numbers.iter().map(Value::to_string).collect();
        format!("{}\n", texts.join(" "))
    };
    assert_eq!(before, text(undisturbed.enter(7)));
    let after = done(&cluster, 2, &["sandbox", "call", "s", "enter", "8"])?;
    assert_eq!(after, text(undisturbed.enter(8)));

    // A function begins anew with each call, at whichever node.
    for url in cluster.urls() {
        let path = "/v1/functions/ledger@1.0.0/call/enter";
        let client = cluster.client();
        let called = client
            .call_guest(&url, path, None, &json!([7]), LIMIT)
            .await;
        let Called::Answered(answer) = called else {
            bail!("{called:?}\n{}", cluster.log(0));
        };
        let answer: Value = serde_json::from_str(&answer)?;
        assert_eq!(answer, Undisturbed::new().enter(7));
    }
    let printed = done(&cluster, 1, &["function", "call", "ledger", "enter", "7"])?;
    assert_eq!(printed, text(Undisturbed::new().enter(7)));

    // A guest that reaches for what it may not is told so, and goes on.
    push(&cluster, 0, CURIOUS, "curious@1.0.0")?;
    for name in ["denied", "granted"] {
        let policy = cluster.dir().join("policy.json");
        let clock = json!({ "clock": if name == "granted" { "virtual" } else { "denied" } });
        std::fs::write(&policy, clock.to_string())?;
        let policy = policy.to_str().context("the folder is not UTF-8")?;
        let create = [
            "sandbox", "create", name, "--module", "curious", "--policy", policy,
        ];
        done(&cluster, 0, &create)?;
        let asked = done(&cluster, 0, &["sandbox", "call", name, "now", "--json"])?;
        let asked: Value = serde_json::from_str(&asked)?;
        let (errno, denied) = if name == "granted" {
            (0, 0)
        } else {
            (EACCES, 1)
        };
        assert_eq!(
            (&asked["results"], &asked["denied"]),
            (&json!([errno]), &json!(denied))
        );
    }

    // Traps and denials are seen by people, where the guest ran.
    let mut told = Vec::new();
    for url in cluster.urls() {
        let events = cluster.client().events(&url).await?;
        told.extend(events);
    }
    for (kind, whose) in [
        ("guest_trapped", "default/sandbox/s:"),
        ("guest_trapped", "default/ledger@1.0.0:"),
        ("guest_denied", "default/denied: clock_time_get"),
    ] {
        let seen = told
            .iter()
            .any(|(of, text)| of == kind && text.starts_with(whose));
        assert!(seen, "no {kind} of {whose}: {told:?}");
    }
    let granted = told
        .iter()
        .any(|(_, text)| text.contains("default/granted"));
    assert!(!granted, "{told:?}");
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_and_sandboxes_are_listed_wherever_they_are() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let third = cluster.size() - 1;
    cluster.give(third, 10).await?;
    let mut wanted = Vec::new();
    for nth in 0..6 {
        let id = format!("ledger@1.{nth}.0");
        push(&cluster, nth % 3, LEDGER, &id)?;
        let name = format!("s{nth}");
        done(
            &cluster,
            nth % 3,
            &["sandbox", "create", &name, "--module", &id],
        )?;
        wanted.push((id, name));
    }
    let client = cluster.client();
    for url in cluster.urls() {
        let modules = client.get(&url, "/v1/modules?tenant=default").await?;
        let sandboxes = client.get(&url, "/v1/sandboxes").await?;
        let ids = |list: &Value| -> Vec<String> {
            items(list)
                .map(|item| item["id"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let (ids, names): (Vec<_>, Vec<_>) = (ids(&modules), ids(&sandboxes));
        let expected: (Vec<_>, Vec<_>) = wanted.iter().cloned().unzip();
        assert_eq!((ids, names), expected, "{modules} {sandboxes}");
        assert!(
            items(&modules).all(|module| module["state"] == json!("sealed")),
            "{modules}"
        );
    }
    let printed = done(&cluster, 1, &["module", "list"])?;
    assert_eq!(printed.lines().count(), 1 + wanted.len(), "{printed}");
    // What is refused is on no list, and the versions of one come newest first.
    let broken = cluster.dir().join("broken.wasm");
    std::fs::write(&broken, b"\0asm\x01\0\0\0 and no module")?;
    let broken = broken.to_str().context("the folder is not UTF-8")?;
    let refused = cli(&cluster, 2, &["module", "push", broken, "ledger@1.9.0"])?;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let versions = |printed: String| -> Vec<String> {
        let rows = printed.lines().skip(1);
        rows.filter_map(|row| Some(row.split_whitespace().next()?.to_owned()))
            .collect()
    };
    let mut newest: Vec<String> = wanted.iter().map(|(id, _)| id.clone()).collect();
    newest.reverse();
    let listed = done(&cluster, 2, &["module", "list", "ledger"])?;
    assert_eq!(versions(listed), newest);
    let all = done(&cluster, 0, &["module", "list", "ledger", "--all"])?;
    assert!(all.contains("ledger@1.9.0"), "{all}");
    let none = cli(&cluster, 1, &["module", "list", "nothing"])?;
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(said.contains("has no module `nothing`"), "{said}");
    let printed = done(&cluster, 1, &["module", "inspect", "ledger@1.3.0"])?;
    assert!(
        printed.contains("enter(i64) -> (i64, i64, i64)"),
        "{printed}"
    );
    let none = client
        .get(&cluster.url(0), "/v1/sandboxes?tenant=nobody")
        .await?;
    assert_eq!(items(&none).count(), 0);
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_many_parts_is_whole_wherever_it_runs() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let mut wasm = wat::parse_str(LEDGER)?;
    // A section that means nothing, of bytes that do not repeat.
    let mut filling = vec![0; 3_500_000];
    getrandom::fill(&mut filling).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut length = filling.len() + 2;
    wasm.push(0);
    while length >= 0x80 {
        wasm.push(length as u8 | 0x80);
        length >>= 7;
    }
    wasm.push(length as u8);
    wasm.extend([1, b'x']);
    wasm.extend(filling);
    let file = cluster.dir().join("large.wasm");
    std::fs::write(&file, &wasm)?;
    let file = file.to_str().context("the folder is not UTF-8")?;
    let began = Instant::now();
    let pushed = done(&cluster, 0, &["module", "push", file, "ledger@2.0.0"])?;
    assert!(
        pushed.contains(&format!("{} bytes", wasm.len())),
        "{pushed}"
    );
    println!("{} bytes were pushed in {:?}", wasm.len(), began.elapsed());
    done(
        &cluster,
        0,
        &["sandbox", "create", "s", "--module", "ledger"],
    )?;
    let mut undisturbed = Undisturbed::new();
    let (answer, _) = entered(&mut cluster, 1).await?;
    assert_eq!(answer, undisturbed.enter(1));
    let owner = owner(&cluster).await?;
    cluster.kill(owner)?;
    let (answer, took) = entered(&mut cluster, 2).await?;
    assert_eq!(answer, undisturbed.enter(2));
    println!("another node answered after {took:?}, its module fetched");
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_sandbox_loses_its_interval_to_a_kill_and_nothing_to_an_end_in_good_order()
-> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    push(&cluster, 0, LEDGER, "ledger@1.0.0")?;
    let create = ["sandbox", "create", "s", "--module", "ledger"];
    let durability = format!("interval={}ms", INTERVAL.as_millis());
    done(
        &cluster,
        0,
        &[&create[..], &["--durability", &durability]].concat(),
    )?;
    let said = done(
        &cluster,
        1,
        &["sandbox", "call", "s", "enter", "0", "--json"],
    )?;
    let said: Value = serde_json::from_str(&said)?;
    assert_eq!(said["durable"], json!(false), "{said}");

    // It is killed again and again while it is called. What it then goes on from is what it was after
    // one of its calls, none of which was answered longer ago than its interval.
    let mut kept = vec![(0_i64, Instant::now())];
    let mut next = 1;
    for round in 0..KILLS {
        let began = Instant::now();
        while began.elapsed() < 3 * INTERVAL {
            let (answer, _) = entered(&mut cluster, next).await?;
            kept.push((next, Instant::now()));
            assert_eq!(answer, after(&kept), "round {round}");
            next += 1;
            tokio::time::sleep(PACE).await;
        }
        let owner = owner(&cluster).await?;
        let killed = cluster.kill(owner)?;
        let (answer, _) = entered(&mut cluster, next).await?;
        let calls = kept.len();
        let count = answer[1].as_u64().context("no count")? as usize;
        assert!((1..=calls + 1).contains(&count), "{answer} after {calls}");
        let lost = kept.split_off(count - 1);
        kept.push((next, Instant::now()));
        assert_eq!(answer, after(&kept), "round {round}: not what it was once");
        let ages = lost.iter().map(|(_, answered)| killed - *answered);
        let oldest = ages.max().unwrap_or_default();
        println!(
            "round {round}: {} of {calls} calls are lost, the first answered {oldest:?} before the kill",
            lost.len()
        );
        assert!(oldest <= INTERVAL + RECORDED, "{oldest:?}");
        next += 1;
        cluster.spawn(owner)?;
        cluster.wait_whole(WHOLE).await?;
    }

    // No interval ends in this test, so nothing is there but what is kept on the way out.
    done(
        &cluster,
        0,
        &[
            "sandbox",
            "create",
            "t",
            "--module",
            "ledger",
            "--durability",
            "interval=60m",
        ],
    )?;
    let mut undisturbed = Undisturbed::new();
    let mut number = 0_i64;
    for drains in [true, false] {
        for _ in 0..CALLS {
            let (answer, _) = entered_of(&mut cluster, "t", number).await?;
            assert_eq!(answer, undisturbed.enter(number));
            number += 1;
        }
        let owner = owner_of(&cluster, "t").await?;
        let name = cluster.name(owner).to_owned();
        let other = (owner + 1) % cluster.size();
        if drains {
            done(&cluster, other, &["node", "drain", &name, "--wait", "60s"])?;
        } else {
            cluster.terminate(owner, WHOLE).await?;
        }
        let (answer, _) = entered_of(&mut cluster, "t", number).await?;
        assert_eq!(answer, undisturbed.enter(number), "drains: {drains}");
        number += 1;
        assert_ne!(owner_of(&cluster, "t").await?, owner);
        if drains {
            done(&cluster, other, &["node", "drain", &name, "--undo"])?;
        }
    }
    end(&mut cluster).await
}

/// What the last of these calls answers when there were no others.
fn after(calls: &[(i64, Instant)]) -> Value {
    let mut undisturbed = Undisturbed::new();
    let answers = calls.iter().map(|(number, _)| undisturbed.enter(*number));
    answers.last().unwrap_or_default()
}

/// One call of the sandbox `s`.
async fn entered(cluster: &mut Cluster, number: i64) -> Result<(Value, Duration)> {
    entered_of(cluster, "s", number).await
}

/// One call under its own key, asked of one node after the other until it is answered.
async fn entered_of(cluster: &mut Cluster, name: &str, number: i64) -> Result<(Value, Duration)> {
    let (client, began) = (cluster.client().clone(), Instant::now());
    let key = format!("enter-{number}");
    let mut why = String::new();
    while began.elapsed() < ANSWERED {
        let all = 0..cluster.size();
        let up: Vec<usize> = all.filter(|nth| cluster.runs(*nth)).collect();
        for nth in up {
            let path = format!("/v1/sandboxes/{name}/call/enter");
            let args = json!([number]);
            let called = client
                .call_guest(&cluster.url(nth), &path, Some(&key), &args, LIMIT)
                .await;
            match called {
                Called::Answered(answer) => {
                    return Ok((serde_json::from_str(&answer)?, began.elapsed()));
                }
                Called::Again(said) => why = said,
                Called::Refused(said) => bail!("call {number}: {said}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let logs: Vec<String> = (0..cluster.size()).map(|nth| cluster.log(nth)).collect();
    bail!("call {number} was not answered: {why}\n{}", logs.join("\n"))
}

async fn refusal(cluster: &Cluster, url: &str, path: &str, args: &Value) -> Result<Value> {
    let client = cluster.client();
    let began = Instant::now();
    loop {
        match client.call_guest(url, path, None, args, LIMIT).await {
            Called::Refused(problem) => return Ok(serde_json::from_str(&problem)?),
            Called::Again(_) if began.elapsed() < ANSWERED => {}
            called => bail!("{path}: {called:?}"),
        }
    }
}

async fn owner(cluster: &Cluster) -> Result<usize> {
    owner_of(cluster, "s").await
}

async fn owner_of(cluster: &Cluster, name: &str) -> Result<usize> {
    let path = format!("/v1/sandboxes/{name}");
    let sandbox = cluster.client().get(&cluster.any_url()?, &path).await?;
    let named = |nth: &usize| sandbox["node"] == json!(cluster.name(*nth));
    (0..cluster.size())
        .find(named)
        .context("nobody owns the sandbox")
}

/// Has the command line push a module that is written as text.
fn push(cluster: &Cluster, nth: usize, text: &str, id: &str) -> Result<String> {
    let file = cluster.dir().join("module.wasm");
    std::fs::write(&file, wat::parse_str(text)?)?;
    let file = file.to_str().context("the folder is not UTF-8")?;
    done(cluster, nth, &["module", "push", file, id])
}

/// A command that is carried out.
fn done(cluster: &Cluster, nth: usize, args: &[&str]) -> Result<String> {
    let output = cli(cluster, nth, args)?;
    if !output.status.success() {
        bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn cli(cluster: &Cluster, nth: usize, args: &[&str]) -> Result<Output> {
    let output = Command::new(cluster.exe())
        .args(["--server", &cluster.url(nth), "--token", cluster.token()])
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}

async fn end(cluster: &mut Cluster) -> Result<()> {
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    assert!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

/// What the sandbox that may lose some may lose.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two calls of it: a child remembers so many keys, for minutes.
const PACE: Duration = Duration::from_millis(60);

/// How long a record may take to be everywhere, on a busy machine.
const RECORDED: Duration = Duration::from_secs(1);

/// How often the owner is killed, and the calls around each time.
const KILLS: i32 = 3;
const CALLS: i32 = 20;

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(3);

/// How long a call may take in all: a failover of the guest and of its module, on a busy machine.
const ANSWERED: Duration = Duration::from_secs(60);

/// How long a cluster may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);
