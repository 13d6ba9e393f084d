//! Configuration: TOML and `UNDERSTUDY_SECTION__KEY` variables become types whose invariants hold.
//!
//! Owns: one file for each section (`[node]`, `[transport]`, `[lease]`, …), its defaults with their
//! reasons, and the example topologies. A wrong value is refused with the name of its key, here and
//! once, so that nothing further in checks it again. All that is wrong is said at once.
//!
//! Never does: acting on a setting, reading a setting after the start, or handing the whole
//! configuration around. Each part of a node receives its own section, because a part that can see
//! every setting soon depends on all of them.
//!
//! A value's way: a file's (or a variable's, which goes before it) text → `read` with its
//! place → its section's checks → a type. In a variable a list is written `a,b` and a table
//! `name=value,name=value`.

mod browser;
mod checkpoint;
mod error;
mod gateway;
mod lease;
mod log;
mod node;
mod read;
mod sandbox;
mod store;
mod transport;
mod units;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use browser::{BrowserConfig, Isolation, SESSIONS_MAX};
pub use checkpoint::{CheckpointConfig, REPLICAS_MAX};
pub use error::{ConfigError, ConfigErrors, Place};
pub use gateway::GatewayConfig;
pub use lease::{LeaseConfig, TTL_MAX, TTL_MIN};
pub use log::{LogConfig, LogFormat, LogLevel};
pub use node::{NAME_BYTES_MAX, NodeConfig, Roles};
pub use sandbox::{
    CALL_LIMIT_MAX, FUNCTION_INSTANCES_MAX, GUESTS_MAX, MEMORY_MAX, MEMORY_MIN, MODULE_CACHE_MIN,
    SLICE, SandboxConfig,
};
pub use store::{OnDamage, StoreConfig};
pub use transport::{HostPort, SEEDS_MAX, TransportConfig};

use read::Sources;

/// What one node is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[transport]`
    pub transport: TransportConfig,
    /// `[lease]`; counts when the cluster is formed.
    pub lease: LeaseConfig,
    /// `[checkpoint]`; counts when the cluster is formed.
    pub checkpoint: CheckpointConfig,
    /// `[gateway]`
    pub gateway: GatewayConfig,
    /// `[browser]`
    pub browser: BrowserConfig,
    /// `[sandbox]`
    pub sandbox: SandboxConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[log]`
    pub log: LogConfig,
}

impl Config {
    /// Reads the file at `path` and then `env`, pairs of a variable's name and its value, of which
    /// those named `UNDERSTUDY_SECTION__KEY` go before the file. Fails with everything that is wrong.
    pub fn load(
        path: &Path,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        let text = match fs::metadata(path).map(|file| file.len()) {
            Ok(bytes) if bytes > FILE_BYTES_MAX => Err(std::io::Error::other("it is too large")),
            _ => fs::read_to_string(path),
        };
        match text {
            Ok(text) => Config::parse(path, &text, env),
            Err(error) => Err(ConfigErrors(vec![ConfigError {
                place: Place::File(path.to_owned()),
                key: String::new(),
                what: format!("cannot be read: {error}"),
            }])),
        }
    }

    /// [`Config::load`] of a file whose text is known already.
    pub fn parse(
        path: &Path,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        let mut sources = Sources::read(path, text, env);
        let node = node::read(sources.section("node"));
        let data_dir = node.as_ref().map(|node| node.data_dir.as_path());
        let transport = transport::read(sources.section("transport"), data_dir);
        let lease = lease::read(sources.section("lease"));
        let checkpoint = checkpoint::read(sources.section("checkpoint"));
        let gateway = gateway::read(sources.section("gateway"), data_dir);
        let browser = browser::read(sources.section("browser"));
        let sandbox = sandbox::read(sources.section("sandbox"));
        let store = store::read(sources.section("store"));
        let log = log::read(sources.section("log"));
        sources.finish()?;
        // Each part is there when no error is.
        let config = (|| {
            Some(Config {
                node: node?,
                transport: transport?,
                lease: lease?,
                checkpoint: checkpoint?,
                gateway: gateway?,
                browser: browser?,
                sandbox: sandbox?,
                store: store?,
                log: log?,
            })
        })();
        Ok(config.expect("a section that cannot be read says why"))
    }

    /// The configuration of a node on somebody's own machine, as `understudy dev` starts it: every
    /// other setting at its default. `data_dir` is absolute, and `listen` has a port below 65,535.
    pub fn development(
        name: &str,
        data_dir: PathBuf,
        listen: SocketAddr,
        gateway: SocketAddr,
        seeds: Vec<HostPort>,
    ) -> Config {
        Config {
            transport: TransportConfig {
                listen,
                advertise: HostPort::from(listen),
                seeds,
                identity: transport::default_identity(&data_dir),
            },
            gateway: GatewayConfig {
                listen: gateway,
                token_file: gateway::default_token_file(&data_dir),
            },
            node: NodeConfig {
                name: name.to_owned(),
                data_dir,
                labels: Default::default(),
                roles: Roles::default(),
            },
            lease: LeaseConfig::default(),
            checkpoint: CheckpointConfig::default(),
            browser: BrowserConfig::default(),
            sandbox: SandboxConfig::default(),
            store: StoreConfig::default(),
            log: LogConfig::default(),
        }
    }

    /// The file that [`Config::load`] reads this from, with nothing left to a default.
    pub fn to_toml(&self) -> String {
        let sections = [
            ("node", self.node.write()),
            ("transport", self.transport.write()),
            ("lease", self.lease.write()),
            ("checkpoint", self.checkpoint.write()),
            ("gateway", self.gateway.write()),
            ("browser", self.browser.write()),
            ("sandbox", self.sandbox.write()),
            ("store", self.store.write()),
            ("log", self.log.write()),
        ];
        let sections = sections.map(|(name, keys)| (name.to_owned(), keys.into()));
        toml::Table::from_iter(sections).to_string()
    }
}

/// A configuration is written by hand: a larger file is another file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
