//! What may be typed.
//!
//! Owns: nouns, verbs, their help and an example for each. Never carries one out.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use understudy_gateway::params;
use understudy_protocol::id::ChildId;
use understudy_sandbox::module::ModuleId;
use understudy_sandbox::sandbox::Durability;

/// Keeps an understudy ready for every piece of live state in a cluster.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "understudy",
    version,
    arg_required_else_help = true,
    propagate_version = false,
    after_help = "Examples:
  understudy dev --nodes 3                     a cluster on this machine, to try things
  understudy call t1/counter/a 'add 1'         call a child, wherever it is
  understudy tree                              what runs where

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not reachable,
4 refused, 5 timed out."
)]
#[allow(missing_docs)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Whom to ask, and in what form to answer.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// A node's gateway; several are tried in turn
    #[arg(
        long,
        global = true,
        env = "UNDERSTUDY_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8080"
    )]
    pub server: Vec<String>,
    /// The token that the gateway asks for
    #[arg(
        long,
        global = true,
        env = "UNDERSTUDY_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// A file that holds the token
    #[arg(
        long,
        global = true,
        env = "UNDERSTUDY_TOKEN_FILE",
        value_name = "FILE",
        conflicts_with = "token"
    )]
    pub token_file: Option<PathBuf>,
    /// Answer in JSON, as the API does
    #[arg(long, global = true)]
    pub json: bool,
}

/// A noun, or one of the short forms.
#[derive(Clone, Debug, Subcommand)]
#[allow(missing_docs)] // each variant is its noun
pub enum Command {
    /// Nodes on this machine, to try things
    Dev(Dev),
    /// Call a child, wherever it is
    Call(Call),
    /// What runs where, under which supervisor
    #[command(after_help = "Examples:
  understudy tree
  understudy tree --all         each shard on a line of its own")]
    Tree {
        /// Show each shard on a line of its own
        #[arg(long)]
        all: bool,
    },
    /// What happened, and what happens
    Events(Events),
    /// Form the cluster, once, and show it
    #[command(subcommand)]
    Cluster(Cluster),
    /// Run, list and drain nodes
    #[command(subcommand)]
    Node(Node),
    /// Where a unit is, and why
    #[command(subcommand)]
    Unit(Unit),
    /// What is supervised, and has records
    #[command(subcommand)]
    Child(Child),
    /// WebAssembly modules, by name and version
    #[command(subcommand)]
    Module(Module),
    /// Guests that keep their state
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// Guests that keep nothing
    #[command(subcommand)]
    Function(Function),
    /// Browsers that keep their pages
    #[command(subcommand)]
    Session(Session),
    /// The cluster's own certificates
    #[command(subcommand)]
    Ca(Ca),
    /// A node's files, while it is stopped
    #[command(subcommand)]
    Store(Store),
    /// The process beside a node; nodes start it themselves
    #[command(
        hide = true,
        after_help = "Example:
  understudy warden --fd 3"
    )]
    Warden {
        /// The inherited socket
        #[arg(long)]
        fd: i32,
    },
}

/// `understudy dev`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  understudy dev                         one node
  understudy dev --nodes 3               a cluster of three processes; Ctrl-C ends them all
  understudy dev --nodes 3 --dir /tmp/d  keep what they stored, and go on with it next time
  understudy dev --nodes 3 --json        one line with servers, token and process ids")]
#[allow(missing_docs)]
pub struct Dev {
    /// How many nodes: one, or three to outlive the loss of one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9), value_name = "N")]
    pub nodes: u8,
    /// Where they keep what they store; a folder that is thrown away unless given
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The first gateway's port; the others take the next ones
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

/// `understudy call`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  understudy call t1/counter/a 'add 1'
  understudy call t1/counter/a get --json
  understudy call t1/counter/a 'add 1' --key 7f3a    done once, however often it is sent
  echo add 1 | understudy call t1/counter/a -")]
#[allow(missing_docs)]
pub struct Call {
    /// The child: tenant/kind/key, or @tenant/kind/key for a dedicated one
    #[arg(value_parser = child)]
    pub child: ChildId,
    /// What to send: at most 1 MiB; `-` reads it from standard input
    #[arg(default_value = "")]
    pub body: String,
    /// What makes a repetition the same call; drawn at random unless given
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// How long to wait for the answer
    #[arg(long, default_value = "5s", value_parser = span, value_name = "SPAN")]
    pub timeout: Duration,
}

/// `understudy events`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  understudy events                     what the node remembers
  understudy events --follow            what happens from now on
  understudy events --follow --after 0  both
  understudy events --follow --json     one object a line")]
#[allow(missing_docs)]
pub struct Events {
    /// Go on, and show what happens
    #[arg(long, short)]
    pub follow: bool,
    /// Begin after the event with this id
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
}

/// `understudy cluster`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy cluster init
  understudy cluster show")]
#[allow(missing_docs)]
pub enum Cluster {
    /// Form the cluster of a node and its seeds: once, for nodes never do so by themselves
    #[command(after_help = "Examples:
  understudy cluster init               with all nodes up, at any one of them
  understudy cluster init --single      a cluster of one node, which outlives nothing")]
    Init {
        /// Of this node alone
        #[arg(long)]
        single: bool,
    },
    /// Who leads, who votes, how much serves
    #[command(after_help = "Example:
  understudy cluster show")]
    Show,
}

/// `understudy node`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy node list
  understudy node run --config a.toml
  understudy node drain a --wait 30s")]
#[allow(missing_docs)]
pub enum Node {
    /// Run a node until it is stopped
    #[command(after_help = "Example:
  understudy node run --config /etc/understudy/a.toml")]
    Run {
        /// Its configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Kinds that only tests want, some of which kill their node
        #[arg(long, hide = true)]
        testing_kinds: bool,
    },
    /// Every node, whether it is up, and how much it runs
    #[command(after_help = "Example:
  understudy node list")]
    List,
    /// Have a node's units go elsewhere, so that it can be stopped
    #[command(after_help = "Examples:
  understudy node drain a --wait 30s    until it owns nothing
  understudy node drain a --undo        let it take units again")]
    Drain {
        /// Its name or id
        name: String,
        /// Wait until it owns nothing
        #[arg(long, value_parser = span, value_name = "SPAN")]
        wait: Option<Duration>,
        /// Take it back
        #[arg(long, conflicts_with = "wait")]
        undo: bool,
    },
}

/// `understudy unit`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy unit list --node a
  understudy unit explain @t1/counter/a")]
#[allow(missing_docs)]
pub enum Unit {
    /// Every unit: shards and dedicated children
    #[command(after_help = "Examples:
  understudy unit list
  understudy unit list --kind counter --node a")]
    List {
        /// Only dedicated children of this kind
        #[arg(long)]
        kind: Option<String>,
        /// Only dedicated children of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Only those that this node owns
        #[arg(long)]
        node: Option<String>,
    },
    /// Why a unit is where it is, and not elsewhere
    #[command(after_help = "Examples:
  understudy unit explain unit-3
  understudy unit explain t1/counter/a  the shard that the child lies in")]
    Explain {
        /// Its id, or a child that it owns
        unit: String,
    },
    /// Make a child that has a unit of its own
    #[command(after_help = "Examples:
  understudy unit create @t1/counter/a
  understudy unit create @t1/counter/a --restart transient --label zone=z1 --label gpu
  understudy unit create @t1/counter/a --node b")]
    Create {
        /// The child, with its leading @
        #[arg(value_parser = child)]
        child: ChildId,
        /// When it is restarted
        #[arg(long, default_value = "permanent", value_parser = ["permanent", "transient", "temporary"])]
        restart: String,
        /// A label that its node must have: `zone=z1`, or `gpu` for any value
        #[arg(long, value_name = "KEY[=VALUE]")]
        label: Vec<String>,
        /// The only node that it may run on: it waits for that node when it is down
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Have a unit go to another node
    #[command(after_help = "Example:
  understudy unit move @t1/counter/a b --wait 10s")]
    Move {
        /// Its id, or a child that it owns
        unit: String,
        /// Where to
        to: String,
        /// Wait until it serves there
        #[arg(long, value_parser = span, value_name = "SPAN")]
        wait: Option<Duration>,
    },
    /// End a dedicated child for good
    #[command(after_help = "Example:
  understudy unit remove @t1/counter/a")]
    Remove {
        /// Its id, or the child
        unit: String,
    },
}

/// `understudy child`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Example:
  understudy child list --kind counter")]
#[allow(missing_docs)]
pub enum Child {
    /// Every child that has records, and where it is
    #[command(after_help = "Examples:
  understudy child list
  understudy child list --tenant t1 --kind counter --json")]
    List {
        /// Only those of this kind
        #[arg(long)]
        kind: Option<String>,
        /// Only those of this tenant
        #[arg(long)]
        tenant: Option<String>,
    },
}

/// `understudy module`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy module push hash.wasm hash@1.2.0
  understudy module inspect hash@1.2.0")]
#[allow(missing_docs)]
pub enum Module {
    /// Bring a module into the cluster; a version never changes
    #[command(after_help = "Examples:
  understudy module push hash.wasm hash@1.2.0
  understudy module push hash.wasm hash@1.2.0 --tenant acme --json")]
    Push {
        /// The .wasm file: at most 32 MiB
        file: PathBuf,
        /// What it is to be called
        #[arg(value_name = "NAME@VERSION", value_parser = module)]
        id: ModuleId,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
    /// Every module, or the versions of one, with its hash and where it is
    #[command(after_help = "Examples:
  understudy module list
  understudy module list hash
  understudy module list --tenant acme --json")]
    List {
        /// The versions of this one, newest first; every module without it
        #[arg(value_parser = module_name)]
        name: Option<String>,
        /// Only those of this tenant; versions are those of `default` unless it says otherwise
        #[arg(long, value_parser = tenant)]
        tenant: Option<String>,
        /// Also what was never whole: pushes that broke off or were refused
        #[arg(long)]
        all: bool,
    },
    /// What a module imports, exports and needs
    #[command(after_help = "Example:
  understudy module inspect hash@1.2.0")]
    Inspect {
        /// Which
        #[arg(value_name = "NAME@VERSION", value_parser = module)]
        id: ModuleId,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
}

/// `understudy sandbox`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy sandbox create ledger --module ledger@1.0.0
  understudy sandbox call ledger add 5")]
#[allow(missing_docs)]
pub enum Sandbox {
    /// Make a guest whose memory outlives its node
    #[command(after_help = "Examples:
  understudy sandbox create ledger --module ledger@1.0.0
  understudy sandbox create ledger --module ledger --policy policy.json
  understudy sandbox create ledger --module ledger --durability interval=500ms

A policy is JSON; it grants nothing that it does not name:
  {\"args\":[\"serve\"], \"env\":{\"LANG\":\"C\"}, \"clock\":\"virtual\",
   \"random\":{\"seeded\":7}, \"output\":\"captured\"}")]
    Create {
        /// What it is to be called
        #[arg(value_parser = sandbox)]
        name: String,
        /// What it runs; a bare name is its highest version
        #[arg(long, value_name = "NAME[@VERSION]", value_parser = module_or_name)]
        module: String,
        /// A file that says what it may reach: nothing unless given; `-` reads it from standard input
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// When what a call changed is recorded: `every-call`, before its answer; or `interval`, so
        /// much later at most, a second unless said
        #[arg(long, default_value = "every-call", value_name = "every-call|interval[=SPAN]", value_parser = durability)]
        durability: Durability,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
    /// Call an export
    #[command(after_help = "Examples:
  understudy sandbox call ledger add 5
  understudy sandbox call ledger add 5 --key 7f3a       done once, however often it is sent
  understudy sandbox call ledger shift -5 0.25
  echo hello | understudy sandbox call ledger greet -   bytes, through the guest's memory")]
    Call {
        /// Which sandbox
        #[arg(value_parser = sandbox)]
        name: String,
        #[command(flatten)]
        call: GuestCall,
        /// What makes a repetition the same call; drawn at random unless given
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Every sandbox, and where it is
    #[command(after_help = "Examples:
  understudy sandbox list
  understudy sandbox list --tenant acme --json")]
    List {
        /// Only those of this tenant
        #[arg(long, value_parser = tenant)]
        tenant: Option<String>,
    },
}

/// `understudy function`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Example:
  understudy function call hash@1.2.0 fnv 42")]
#[allow(missing_docs)]
pub enum Function {
    /// Call an export of a module that nobody keeps anything of
    #[command(after_help = "Examples:
  understudy function call hash fnv 42                 its highest version
  understudy function call hash@1.2.0 fnv 42
  cat page.html | understudy function call hash sum -  bytes, through the guest's memory")]
    Call {
        /// The module; a bare name is its highest version
        #[arg(value_name = "NAME[@VERSION]", value_parser = module_or_name)]
        name: String,
        #[command(flatten)]
        call: GuestCall,
    },
}

/// `understudy session`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy session open https://example.net --id shop
  understudy session screenshot shop -o shop.png")]
#[allow(missing_docs)]
pub enum Session {
    /// Open a browser session that outlives its browser and its node
    #[command(after_help = "Examples:
  understudy session open                              prints where clients connect to
  understudy session open https://example.net --id shop
  understudy session open --label zone=z1

Playwright connects with `chromium.connectOverCDP(ADDRESS)`, Puppeteer with
`puppeteer.connect({browserWSEndpoint: ADDRESS})`. The address stays the same
when the session's node dies.")]
    Open {
        /// What its first page opens
        url: Option<String>,
        /// What it is to be called; drawn at random unless given
        #[arg(long, value_name = "NAME")]
        id: Option<String>,
        /// A label that its node must have: `zone=z1`, or `gpu` for any value
        #[arg(long, value_name = "KEY[=VALUE]")]
        label: Vec<String>,
        /// The only node that it may run on: it waits for that node when it is down
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
    /// Every session, and where it is
    #[command(after_help = "Examples:
  understudy session list
  understudy session list --tenant acme --json")]
    List {
        /// Only those of this tenant
        #[arg(long, value_parser = tenant)]
        tenant: Option<String>,
    },
    /// One session, with its pages and where clients connect to
    #[command(after_help = "Example:
  understudy session show shop")]
    Show {
        /// Which session
        id: String,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
    /// A picture of a page, as PNG
    #[command(after_help = "Examples:
  understudy session screenshot shop -o shop.png
  understudy session screenshot shop --page 1 --full -o page.png")]
    Screenshot {
        /// Which session
        id: String,
        /// Where to; standard output unless given
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Which page, the oldest first
        #[arg(long, default_value_t = 0)]
        page: usize,
        /// All of the page, and not only what is scrolled to
        #[arg(long)]
        full: bool,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
    /// End a session for good, with all that it keeps
    #[command(after_help = "Example:
  understudy session release shop")]
    Release {
        /// Which session
        id: String,
        /// Whose it is
        #[arg(long, default_value = params::TENANT, value_parser = tenant)]
        tenant: String,
    },
}

/// A call of a guest's export.
#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct GuestCall {
    /// Which export
    pub export: String,
    /// Numbers, one a parameter; or `-`, and standard input is sent as bytes, at most 1 MiB less 4 KiB
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub args: Vec<String>,
    /// How long to wait for the answer
    #[arg(long, default_value = "5s", value_parser = span, value_name = "SPAN")]
    pub timeout: Duration,
    /// Whose it is
    #[arg(long, default_value = params::TENANT, value_parser = tenant)]
    pub tenant: String,
}

/// `understudy ca`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  understudy ca init --cluster prod --dir ca
  understudy ca issue --dir ca --name a --address a.example.net:7600 --out a")]
#[allow(missing_docs)]
pub enum Ca {
    /// Make a cluster's certificate authority
    #[command(after_help = "Example:
  understudy ca init --cluster prod --dir ca")]
    Init {
        /// The cluster's name, which every certificate bears
        #[arg(long)]
        cluster: String,
        /// Where to keep its key: not on a node
        #[arg(long)]
        dir: PathBuf,
    },
    /// Make a node's certificate and its id
    #[command(after_help = "Example:
  understudy ca issue --dir ca --name a --address a.example.net:7600 --out a")]
    Issue {
        /// Where `ca init` put the authority
        #[arg(long)]
        dir: PathBuf,
        /// What people call the node
        #[arg(long)]
        name: String,
        /// Where its peers reach it
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
        /// Where to put its certificate and key
        #[arg(long)]
        out: PathBuf,
    },
}

/// `understudy store`.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Example:
  understudy store fsck /var/lib/understudy")]
#[allow(missing_docs)]
pub enum Store {
    /// Look for damage in a stopped node's files, changing nothing
    #[command(after_help = "Example:
  understudy store fsck /var/lib/understudy")]
    Fsck {
        /// The node's data folder
        dir: PathBuf,
        /// Only whether its databases open; a node asks this of a child process at its start
        #[arg(long, hide = true)]
        probe: bool,
    },
}

fn span(text: &str) -> Result<Duration, String> {
    params::span(text).map_err(|problem| problem.hint.unwrap_or(problem.detail))
}

fn module(text: &str) -> Result<ModuleId, String> {
    text.parse::<ModuleId>().map_err(|error| error.to_string())
}

fn module_name(text: &str) -> Result<String, String> {
    match text.split_once('@') {
        Some((name, _)) => Err(format!("a name has no version: `{name}`")),
        None => module_or_name(text),
    }
}

fn module_or_name(text: &str) -> Result<String, String> {
    // Any version will do to see whether the name is one.
    let read = match text.contains('@') {
        true => text.parse::<ModuleId>(),
        false => ModuleId::new(text, "0.0.0"),
    };
    read.map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn tenant(text: &str) -> Result<String, String> {
    let read = params::light(text, "sandbox", "a");
    read.map(|_| text.to_owned())
        .map_err(|problem| problem.hint.unwrap_or(problem.detail))
}

fn sandbox(text: &str) -> Result<String, String> {
    let read = params::light(params::TENANT, "sandbox", text);
    read.map(|_| text.to_owned())
        .map_err(|problem| problem.detail)
}

fn durability(text: &str) -> Result<Durability, String> {
    let wrong = || "write `every-call`, `interval` or `interval=500ms`".to_owned();
    let spelled = match text {
        "every-call" => return Ok(Durability::EveryCall),
        "interval" => INTERVAL,
        text => text.strip_prefix("interval=").ok_or_else(wrong)?,
    };
    let millis = u32::try_from(span(spelled)?.as_millis()).ok();
    let millis = millis.filter(|millis| *millis > 0);
    millis.map(Durability::Interval).ok_or_else(wrong)
}

/// What a call may lose with its node, unless somebody says.
const INTERVAL: &str = "1s";

fn child(text: &str) -> Result<ChildId, String> {
    ChildId::parse(text).map_err(|error| error.to_string())
}
