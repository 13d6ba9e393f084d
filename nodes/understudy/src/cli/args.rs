//! What may be typed.
//!
//! Owns: nouns, verbs, their help and an example for each. Never carries one out.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use understudy_gateway::params;
use understudy_protocol::id::ChildId;

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
    /// What to send: at most 32 KiB; `-` reads it from standard input
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

fn child(text: &str) -> Result<ChildId, String> {
    ChildId::parse(text).map_err(|error| error.to_string())
}
