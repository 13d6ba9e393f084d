//! A cluster of real nodes on loopback, made with the same commands that a user types.
//!
//! Owns: its folder, certificates, configurations and processes, and faults. Restarts a node only when
//! told to, so that a test decides what is up. Ends every process it started, by id, when it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::http::Client;
use crate::relay::Relays;
use crate::{ports, process};

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes; each votes and works.
    pub nodes: usize,
    /// The lease preset, or none for the default of the configuration.
    pub preset: Option<&'static str>,
    /// Kinds of children that only tests have (`understudy node run --testing-kinds`).
    pub testing_kinds: bool,
    /// Lines that are added to every node's configuration.
    pub config: String,
    /// Put relays in front of the nodes, so that links can be cut: see [`Cluster::relays`].
    pub relays: bool,
    /// Where the folder of the cluster is made; the system's own place when none.
    pub base: Option<PathBuf>,
    /// A node whose data lies on a disk of so many MiB: see [`Cluster::disk`] and
    /// [`crate::disk::own_mounts`].
    pub small_disk: Option<(usize, u64)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 3,
            preset: None,
            testing_kinds: false,
            config: String::new(),
            relays: false,
            base: None,
            small_disk: None,
        }
    }
}

/// A running cluster.
pub struct Cluster {
    exe: PathBuf,
    dir: TempDir,
    mark: String,
    options: Options,
    nodes: Vec<Node>,
    token: String,
    client: Client,
    relays: Option<Relays>,
    disk: Option<SmallDisk>,
}

struct Node {
    name: String,
    udp: u16,
    http: u16,
    child: Option<std::process::Child>,
    starts: u32,
}

impl Cluster {
    /// Makes the certificates and configurations of a cluster; nothing runs yet.
    pub async fn prepare(exe: &Path, options: Options) -> Result<Cluster> {
        if !process::is_executable(exe) {
            bail!("{} is not there, or cannot be run", exe.display());
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix("understudy-");
        let dir = match &options.base {
            Some(base) => builder.tempdir_in(base),
            None => builder.tempdir(),
        };
        let dir = dir.context("no temporary folder")?;
        let token = format!("us_{}", process::new_mark()?);
        let mut cluster = Cluster {
            exe: exe.to_owned(),
            mark: process::new_mark()?,
            nodes: Vec::new(),
            client: Client::new(&token)?,
            token,
            dir,
            options,
            relays: None,
            disk: None,
        };
        for nth in 0..cluster.options.nodes {
            cluster.nodes.push(Node {
                name: name_of(nth),
                udp: ports::udp_pair()?,
                http: ports::tcp()?,
                child: None,
                starts: 0,
            });
        }
        if cluster.options.relays {
            let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.udp).collect();
            cluster.relays = Some(Relays::start(&ports).await?);
        }
        if let Some((nth, mebibytes)) = cluster.options.small_disk {
            cluster.disk = Some(SmallDisk::mount(&cluster.data_dir(nth), mebibytes)?);
        }
        std::fs::write(cluster.dir.path().join("token"), &cluster.token)?;
        let ca = cluster.dir.path().join("ca");
        cluster.run(&["ca", "init", "--cluster", "test", "--dir", text(&ca)?])?;
        for nth in 0..cluster.nodes.len() {
            cluster.issue(nth)?;
            cluster.configure(nth)?;
        }
        Ok(cluster)
    }

    /// Prepares a cluster, starts its nodes, forms it, and waits until it is whole.
    pub async fn start(exe: &Path, options: Options) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(exe, options).await?;
        for nth in 0..cluster.nodes.len() {
            cluster.spawn(nth)?;
        }
        cluster.form().await?;
        cluster.wait_whole(START_LIMIT).await?;
        Ok(cluster)
    }

    /// Forms the cluster: what `understudy cluster init` does.
    pub async fn form(&mut self) -> Result<()> {
        let server = self.url(0);
        let began = Instant::now();
        for nth in 0..self.nodes.len() {
            while !self.client.is_up(&self.url(nth)).await {
                // One that has ended, say over its configuration, never will.
                if !self.runs(nth) || began.elapsed() > START_LIMIT {
                    bail!(
                        "node {} does not answer; its log: {}",
                        self.name(nth),
                        self.log(nth)
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        let single = self.nodes.len() == 1;
        loop {
            let body = json!({ "single": single });
            match self.client.post(&server, "/v1/cluster/init", &body).await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > START_LIMIT => {
                    return Err(error.context(format!("not formed; the log: {}", self.log(0))));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.exe)
            .args(args)
            .output()
            .with_context(|| format!("{} {args:?}", self.exe.display()))?;
        if !output.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn issue(&self, nth: usize) -> Result<()> {
        let ca = self.dir.path().join("ca");
        let out = self.identity(nth);
        let address = format!("127.0.0.1:{}", self.nodes[nth].udp);
        let name = self.name(nth);
        self.run(&[
            "ca",
            "issue",
            "--dir",
            text(&ca)?,
            "--name",
            name,
            "--address",
            &address,
            "--out",
            text(&out)?,
        ])
    }

    fn configure(&self, nth: usize) -> Result<()> {
        let node = &self.nodes[nth];
        let advertised = |nth: usize| {
            let relays = self.relays.as_ref();
            relays.map_or(self.nodes[nth].udp, |relays| relays.advertised()[nth])
        };
        let others = (0..self.nodes.len()).filter(|other| *other != nth);
        let seeds: Vec<String> = others
            .map(|other| format!("\"127.0.0.1:{}\"", advertised(other)))
            .collect();
        let mut config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{data}\"\n\n\
             [transport]\nlisten = \"127.0.0.1:{udp}\"\nadvertise = \"127.0.0.1:{shown}\"\n\
             seeds = [{seeds}]\nidentity = \"{identity}\"\n\n\
             [gateway]\nlisten = \"127.0.0.1:{http}\"\ntoken_file = \"{token}\"\n\n",
            name = node.name,
            data = text(&self.data_dir(nth))?,
            udp = node.udp,
            shown = advertised(nth),
            seeds = seeds.join(", "),
            identity = text(&self.identity(nth))?,
            http = node.http,
            token = text(&self.dir.path().join("token"))?,
        );
        if let Some(preset) = self.options.preset {
            config.push_str(&format!("[lease]\npreset = \"{preset}\"\n\n"));
        }
        config.push_str(&self.options.config);
        std::fs::write(self.config_file(nth), config)?;
        Ok(())
    }

    /// Starts a node's process.
    pub fn spawn(&mut self, nth: usize) -> Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file(nth))?;
        let mut command = Command::new(&self.exe);
        command
            .args(["node", "run", "--config"])
            .arg(self.config_file(nth));
        if self.options.testing_kinds {
            command.arg("--testing-kinds");
        }
        let child = command
            .env(process::MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the node could not be started")?;
        let node = &mut self.nodes[nth];
        node.child = Some(child);
        node.starts += 1;
        Ok(())
    }

    /// The process id of a node, while this harness believes it to run.
    pub fn pid(&self, nth: usize) -> Option<u32> {
        self.nodes[nth].child.as_ref().map(std::process::Child::id)
    }

    /// SIGKILL, and waits for the end. The warden lives on for as long as it needs.
    pub fn kill(&mut self, nth: usize) -> Result<Instant> {
        let Some(mut child) = self.nodes[nth].child.take() else {
            bail!("node {} does not run", self.name(nth));
        };
        process::signal(child.id(), Signal::KILL)?;
        let at = Instant::now();
        child.wait()?;
        Ok(at)
    }

    /// SIGKILL of the node and its warden at once: a machine that is lost.
    pub fn lose(&mut self, nth: usize) -> Result<Instant> {
        let Some(pid) = self.pid(nth) else {
            bail!("node {} does not run", self.name(nth));
        };
        // Stopped first, the warden cannot speak between the two kills.
        let wardens = self.children_of(pid);
        for warden in &wardens {
            process::signal(*warden, Signal::STOP)?;
        }
        let at = self.kill(nth)?;
        for warden in wardens {
            process::signal(warden, Signal::KILL)?;
        }
        Ok(at)
    }

    fn children_of(&self, pid: u32) -> Vec<u32> {
        let parent = |of: u32| {
            let text = std::fs::read_to_string(format!("/proc/{of}/stat")).ok()?;
            let (_, after) = text.rsplit_once(')')?;
            after.split_whitespace().nth(1)?.parse::<u32>().ok()
        };
        let marked = process::marked(&self.mark).into_iter();
        marked
            .map(|(id, _)| id)
            .filter(|id| parent(*id) == Some(pid))
            .collect()
    }

    /// SIGSTOP.
    pub fn pause(&self, nth: usize) -> Result<Instant> {
        process::signal(self.pid(nth).context("it does not run")?, Signal::STOP)?;
        Ok(Instant::now())
    }

    /// SIGCONT.
    pub fn resume(&self, nth: usize) -> Result<()> {
        process::signal(self.pid(nth).context("it does not run")?, Signal::CONT)
    }

    /// SIGTERM, and waits for the end; its exit status.
    pub async fn terminate(&mut self, nth: usize, limit: Duration) -> Result<Option<i32>> {
        self.ask_to_end(nth)?;
        self.wait_end(nth, limit).await
    }

    /// SIGTERM, and goes on.
    pub fn ask_to_end(&self, nth: usize) -> Result<()> {
        process::signal(self.pid(nth).context("it does not run")?, Signal::TERM)
    }

    /// Waits until a node's process has ended by itself; its exit code, none after a signal.
    pub async fn wait_end(&mut self, nth: usize, limit: Duration) -> Result<Option<i32>> {
        let began = Instant::now();
        loop {
            let Some(child) = &mut self.nodes[nth].child else {
                bail!("node {} does not run", name_of(nth));
            };
            if let Some(status) = child.try_wait()? {
                self.nodes[nth].child = None;
                return Ok(status.code());
            }
            if began.elapsed() > limit {
                bail!("node {} still runs after {limit:?}", name_of(nth));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the node's process runs; one that has ended by itself is forgotten.
    pub fn runs(&mut self, nth: usize) -> bool {
        let node = &mut self.nodes[nth];
        let ended = node
            .child
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            node.child = None;
        }
        !ended
    }

    /// Starts again whatever has ended, as a service manager would.
    pub fn respawn_ended(&mut self) -> Result<Vec<usize>> {
        let mut started = Vec::new();
        for nth in 0..self.nodes.len() {
            if !self.runs(nth) {
                self.spawn(nth)?;
                started.push(nth);
            }
        }
        Ok(started)
    }

    /// Waits until every node is live in the directory with the incarnation it runs, every unit is
    /// served, and every replica set is complete. Nodes that end meanwhile are started again.
    pub async fn wait_whole(&mut self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        let mut why = String::from("nothing was seen yet");
        while began.elapsed() < limit {
            self.respawn_ended()?;
            match self.is_whole().await {
                Ok(None) => return Ok(()),
                Ok(Some(lacking)) => why = lacking,
                Err(error) => why = format!("{error:#}"),
            }
            tokio::time::sleep(POLL).await;
        }
        let logs: Vec<String> = (0..self.nodes.len()).map(|nth| self.log(nth)).collect();
        bail!("not whole after {limit:?}: {why}\n{}", logs.join("\n"))
    }

    async fn is_whole(&self) -> Result<Option<String>> {
        let wanted = self.nodes.len().min(REPLICAS);
        let mut incarnations = BTreeSet::new();
        for nth in 0..self.nodes.len() {
            let cluster = self.client.get(&self.url(nth), "/v1/cluster").await?;
            if cluster["formed"] != json!(true) || cluster["leader"].is_null() {
                return Ok(Some(format!("node {}: {cluster}", self.name(nth))));
            }
            incarnations.insert(cluster["incarnation"].to_string());
        }
        let server = self.url(0);
        let nodes = self.client.get(&server, "/v1/nodes").await?;
        let live: BTreeSet<String> = items(&nodes)
            .filter(|node| node["live"] == json!(true))
            .map(|node| node["incarnation"].to_string())
            .collect();
        if live != incarnations {
            return Ok(Some(format!(
                "live are {live:?}, running are {incarnations:?}"
            )));
        }
        let units = self.client.get(&server, "/v1/units").await?;
        let mut count = 0;
        for unit in items(&units) {
            count += 1;
            let quarantined = unit["quarantined"] == json!(true);
            let replicas = unit["replicas"].as_array().map_or(0, Vec::len);
            if !quarantined && (unit["serving"] != json!(true) || replicas < wanted) {
                return Ok(Some(format!("{unit}")));
            }
        }
        Ok((count == 0).then(|| "no units".to_owned()))
    }

    /// The nodes' ids, as the cluster writes them.
    pub async fn node_ids(&self, server: &str) -> Result<Vec<String>> {
        let nodes = self.client.get(server, "/v1/nodes").await?;
        let ids = items(&nodes).filter_map(|node| node["id"].as_str().map(str::to_owned));
        Ok(ids.collect())
    }

    /// Units by the node that owns them.
    pub async fn owners(&self, server: &str) -> Result<BTreeMap<String, Vec<Value>>> {
        let units = self.client.get(server, "/v1/units").await?;
        let mut owners: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for unit in items(&units) {
            if let Some(owner) = unit["owner"].as_str() {
                owners
                    .entry(owner.to_owned())
                    .or_default()
                    .push(unit.clone());
            }
        }
        Ok(owners)
    }

    /// The node that owns the most units.
    pub async fn owner_of_most(&self) -> Result<usize> {
        let owners = self.owners(&self.any_url()?).await?;
        let most = owners.iter().max_by_key(|(_, units)| units.len());
        let name = most.map(|(name, _)| name).context("nobody owns anything")?;
        self.node_named(name)
    }

    /// The leader of the directory.
    pub async fn leader(&self) -> Result<usize> {
        let cluster = self.client.get(&self.any_url()?, "/v1/cluster").await?;
        let name = cluster["leader"].as_str().context("nobody leads")?;
        self.node_named(name)
    }

    /// The counters among the first `count` that this node owns now.
    pub async fn counters_of(&self, nth: usize, count: usize) -> Result<Vec<usize>> {
        let owners = self.owners(&self.any_url()?).await?;
        let ranges: Vec<(u64, u64)> = owners
            .get(self.name(nth))
            .into_iter()
            .flatten()
            .filter_map(|unit| {
                let slots = &unit["slots"];
                Some((slots["start"].as_u64()?, slots["end"].as_u64()?))
            })
            .collect();
        let owned = |of: &usize| {
            let child = understudy_protocol::id::ChildId::parse(&crate::callers::counter(*of));
            let slot = child.map(|child| u64::from(child.slot().get()));
            slot.is_ok_and(|slot| {
                ranges
                    .iter()
                    .any(|(start, end)| *start <= slot && slot < *end)
            })
        };
        Ok((0..count).filter(owned).collect())
    }

    /// Sees to it that the node owns at least so many units: units go where they fit, and a small load
    /// fits anywhere, so it may own none. Returns when it serves them.
    pub async fn give(&self, nth: usize, count: usize) -> Result<()> {
        let server = self.any_url()?;
        let owners = self.owners(&server).await?;
        let has = owners.get(self.name(nth)).map_or(0, Vec::len);
        let others = owners.iter().filter(|(name, _)| *name != self.name(nth));
        let units = others.flat_map(|(_, units)| units);
        for unit in units.take(count.saturating_sub(has)) {
            let id = unit["id"].as_str().context("a unit without an id")?;
            self.send(id, nth).await?;
        }
        Ok(())
    }

    /// Moves a unit to a node. Returns when it serves it.
    pub async fn send(&self, unit: &str, nth: usize) -> Result<()> {
        let server = self.any_url()?;
        let to = json!({ "to": self.name(nth) });
        let path = format!("/v1/units/{unit}/move?wait=2s");
        let began = Instant::now();
        // A node that has just come is doubted until voters have seen it for a moment, and a unit that
        // was sent there may stop on its way.
        while let Err(error) = self.client.post(&server, &path, &to).await {
            if began.elapsed() > START_LIMIT {
                let path = format!("/v1/units/{unit}/explain");
                let explained = self.client.get(&server, &path).await?;
                bail!("{error:#}: {}", explained["sentences"]);
            }
        }
        Ok(())
    }

    fn node_named(&self, name: &str) -> Result<usize> {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.with_context(|| format!("no node is called {name}"))
    }

    /// The name of a node.
    pub fn name(&self, nth: usize) -> &str {
        &self.nodes[nth].name
    }

    /// How often a node's process was started.
    pub fn starts(&self, nth: usize) -> u32 {
        self.nodes[nth].starts
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// The address of a node's HTTP surface.
    pub fn url(&self, nth: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[nth].http)
    }

    /// Every address.
    pub fn urls(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|nth| self.url(nth)).collect()
    }

    /// The address of a node that runs, as far as this harness knows.
    pub fn any_url(&self) -> Result<String> {
        let up = (0..self.nodes.len()).find(|nth| self.nodes[*nth].child.is_some());
        up.map(|nth| self.url(nth)).context("no node runs")
    }

    /// The UDP port that a node listens on; its heart listens on the next.
    pub fn udp(&self, nth: usize) -> u16 {
        self.nodes[nth].udp
    }

    /// The relays in front of the nodes.
    pub fn relays(&self) -> Result<&Relays> {
        self.relays
            .as_ref()
            .context("the cluster was started without relays")
    }

    /// The small disk that a node's data lies on.
    pub fn disk(&self) -> Result<&SmallDisk> {
        let disk = self.disk.as_ref();
        disk.context("the cluster was started without a small disk")
    }

    /// A client with the cluster's token.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The program.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, nth: usize) -> PathBuf {
        self.dir.path().join(name_of(nth)).join("data")
    }

    /// Where a node keeps its certificate and key.
    pub fn identity(&self, nth: usize) -> PathBuf {
        self.dir.path().join(name_of(nth)).join("identity")
    }

    /// A node's configuration.
    pub fn config_file(&self, nth: usize) -> PathBuf {
        self.dir.path().join(format!("{}.toml", name_of(nth)))
    }

    fn log_file(&self, nth: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", name_of(nth)))
    }

    /// All that a node has logged.
    pub fn whole_log(&self, nth: usize) -> String {
        std::fs::read_to_string(self.log_file(nth)).unwrap_or_default()
    }

    /// The last lines of a node's log.
    pub fn log(&self, nth: usize) -> String {
        let text = self.whole_log(nth);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        format!("--- {}\n{}", name_of(nth), lines[from..].join("\n"))
    }

    /// Processes of this run that are alive: nodes, wardens and helpers.
    pub fn alive(&self) -> Vec<(u32, String)> {
        process::marked(&self.mark)
    }

    /// Ends every node with SIGTERM all at once and says what is left after `limit`. A second one says
    /// that there is nowhere to move units to.
    pub async fn shut_down(&mut self, limit: Duration) -> Result<Vec<(u32, String)>> {
        let began = Instant::now();
        let mut told = 0;
        while began.elapsed() < limit {
            if told < 2 && began.elapsed() >= TOLD_APART * told {
                told += 1;
                for pid in (0..self.nodes.len()).filter_map(|nth| self.pid(nth)) {
                    process::signal(pid, Signal::CONT)?;
                    process::signal(pid, Signal::TERM)?;
                }
            }
            let running = (0..self.nodes.len()).filter(|nth| self.runs(*nth)).count();
            if running == 0 && self.alive().is_empty() {
                return Ok(Vec::new());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(self.alive())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = process::signal(child.id(), Signal::KILL);
                let _ = child.wait();
            }
        }
        let began = Instant::now();
        while began.elapsed() < DROP_LIMIT && !self.alive().is_empty() {
            // A destructor cannot await; the end that is waited for is of other processes.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(POLL);
        }
        for (pid, _) in self.alive() {
            let _ = process::signal(pid, Signal::KILL);
        }
        self.disk = None;
        if std::thread::panicking() || std::env::var_os("UNDERSTUDY_KEEP").is_some() {
            let kept = self.dir.path().to_owned();
            self.dir.disable_cleanup(true);
            eprintln!("the cluster's folder is kept: {}", kept.display());
        }
    }
}

/// The items of a list that the API gives.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn name_of(nth: usize) -> String {
    char::from(b'a' + (nth % 26) as u8).to_string()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// How long a cluster may take to be whole at first, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often something is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Between the two signals to a cluster that is to stop: two at once would be one.
const TOLD_APART: Duration = Duration::from_millis(250);

/// How long wardens get to clean up behind nodes that were killed.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// Replicas of a set by default (R4).
const REPLICAS: usize = 3;

/// Lines of a log that a failure shows.
const LOG_LINES: usize = 60;
