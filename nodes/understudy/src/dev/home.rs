//! The folder of `understudy dev`.
//!
//! Owns: what is in it (certificates, configurations, the token, logs) and that a folder nobody asked
//! for is gone afterwards. Never overwrites what another cluster left there.

use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::args::Dev;
use crate::cli::{Exit, Failure};
use crate::run;

/// The folder, and what is in it.
pub(super) struct Home {
    dir: PathBuf,
    is_thrown_away: bool,
    plan: Plan,
}

/// What is kept of a cluster for the next time.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    token: String,
    nodes: Vec<Node>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: String,
    /// Its gateway.
    pub(super) server: String,
    /// Where its peers reach it; its heart is on the next port.
    pub(super) address: SocketAddr,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
}

impl Home {
    /// The folder, new or as it was left.
    pub(super) fn make(wanted: &Dev) -> Result<Home, Failure> {
        let (dir, is_thrown_away) = match &wanted.dir {
            Some(dir) => (dir.clone(), false),
            None => (std::env::temp_dir().join(unused_name()?), true),
        };
        make_dir(&dir)?;
        let dir = fs::canonicalize(&dir).map_err(|error| at(&dir, &error))?;
        let mut home = Home {
            dir,
            is_thrown_away,
            plan: Plan {
                token: String::new(),
                nodes: Vec::new(),
            },
        };
        let left = home.dir.join(PLAN);
        home.plan = match fs::read_to_string(&left) {
            Ok(text) => home.left_plan(&text, wanted)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => home.new_plan(wanted)?,
            Err(error) => return Err(at(&left, &error)),
        };
        Ok(home)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn token(&self) -> &str {
        &self.plan.token
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.plan.nodes
    }

    fn left_plan(&self, text: &str, wanted: &Dev) -> Result<Plan, Failure> {
        let plan: Plan = serde_json::from_str(text).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("{}: {error}", self.dir.join(PLAN).display()),
            )
            .hint("name another folder, or remove this one")
        })?;
        if plan.nodes.len() != usize::from(wanted.nodes) {
            let count = plan.nodes.len();
            return Err(Failure::new(
                Exit::Usage,
                format!("{} holds a cluster of {count}", self.dir.display()),
            )
            .hint(format!("say --nodes {count}, or name another folder")));
        }
        Ok(plan)
    }

    fn new_plan(&self, wanted: &Dev) -> Result<Plan, Failure> {
        let token = format!("us_dev_{}", random_hex()?);
        let token_file = self.dir.join("token");
        write_private(&token_file, &token)?;
        let ca = self.dir.join("ca");
        run::ca_init(CLUSTER, &ca)?;
        let ports = Ports::find(usize::from(wanted.nodes), wanted.port)?;
        let mut nodes = Vec::new();
        for (nth, (transport, gateway)) in ports.addresses().enumerate() {
            let name = char::from(b'a' + nth as u8).to_string();
            let dir = self.dir.join(&name);
            make_dir(&dir)?;
            run::ca_issue(&ca, &name, &transport.to_string(), &dir.join("identity"))?;
            nodes.push(Node {
                server: format!("http://{gateway}"),
                address: transport,
                config: dir.join("node.toml"),
                log: dir.join("node.log"),
                name,
            });
        }
        for node in &nodes {
            let text = config_text(node, &nodes, &self.dir.join(&node.name), &token_file);
            write_private(&node.config, &text)?;
        }
        let plan = Plan { token, nodes };
        let text = serde_json::to_string_pretty(&plan).unwrap_or_default();
        write_private(&self.dir.join(PLAN), &text)?;
        Ok(plan)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.is_thrown_away {
            // What is left is in the folder for such things.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A node's configuration.
fn config_text(node: &Node, all: &[Node], dir: &Path, token_file: &Path) -> String {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let others = all.iter().filter(|other| other.name != node.name);
    let seeds: Vec<String> = others.map(|other| other.address.to_string()).collect();
    let address = node.address.to_string();
    let gateway = node.server.trim_start_matches("http://");
    toml::toml! {
        [node]
        name = (node.name.clone())
        data_dir = (text(&dir.join("data")))
        [transport]
        listen = (address.clone())
        advertise = address
        identity = (text(&dir.join("identity")))
        seeds = seeds
        [gateway]
        listen = gateway
        token_file = (text(token_file))
    }
    .to_string()
}

/// Ports that nobody listens on, held until all are found.
struct Ports(Vec<(UdpSocket, UdpSocket, TcpListener)>);

impl Ports {
    fn find(nodes: usize, first_gateway: Option<u16>) -> Result<Ports, Failure> {
        let mut ports = Ports(Vec::new());
        let usual = (0..nodes).map(|nth| GATEWAY_PORT + nth as u16);
        let usual: Vec<_> = usual.map_while(|port| tcp(port).ok()).collect();
        let mut usual = usual.into_iter();
        // All in a row, or none of them: half a row is harder to remember than none.
        let in_a_row = first_gateway.is_none() && usual.len() == nodes;
        for nth in 0..nodes {
            let gateway = match first_gateway {
                Some(first) => {
                    let port = first.checked_add(nth as u16).unwrap_or(0);
                    tcp(port).map_err(|error| {
                        Failure::new(Exit::Usage, format!("port {port} cannot be had: {error}"))
                            .hint("name another with --port")
                    })?
                }
                None if in_a_row => usual.next().ok_or_else(no_ports)?,
                None => tcp(0).map_err(|_| no_ports())?,
            };
            let (main, heart) = udp_pair().ok_or_else(no_ports)?;
            ports.0.push((main, heart, gateway));
        }
        Ok(ports)
    }

    fn addresses(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.0.iter().filter_map(|(main, _, gateway)| {
            Some((main.local_addr().ok()?, gateway.local_addr().ok()?))
        })
    }
}

fn tcp(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port))
}

fn udp_pair() -> Option<(UdpSocket, UdpSocket)> {
    (0..PORT_TRIES).find_map(|_| {
        let main = UdpSocket::bind(("127.0.0.1", 0)).ok()?;
        let next = main.local_addr().ok()?.port().checked_add(1)?;
        Some((main, UdpSocket::bind(("127.0.0.1", next)).ok()?))
    })
}

fn no_ports() -> Failure {
    Failure::new(Exit::Failed, "no ports are free on 127.0.0.1")
}

/// The last lines of a file.
pub(super) fn tail_of(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| at(dir, &error))
}

fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let mut file = fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600);
    file.open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| at(path, &error))
}

fn unused_name() -> Result<String, Failure> {
    Ok(format!("understudy-dev-{}", random_hex()?))
}

fn random_hex() -> Result<String, Failure> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Failed, format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
        .hint("name a folder that can be written with --dir")
}

/// What is kept of a cluster for the next time.
const PLAN: &str = "dev.json";

/// The name that the certificates bear.
const CLUSTER: &str = "dev";

/// The first gateway's, where it can be had: the command line asks it unless told otherwise.
const GATEWAY_PORT: u16 = 8080;

/// A port whose neighbour is taken is passed over so often.
const PORT_TRIES: usize = 64;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str, port: u16) -> Node {
        Node {
            name: name.to_owned(),
            server: format!("http://127.0.0.1:{}", port + 1_000),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            config: PathBuf::from("node.toml"),
            log: PathBuf::from("node.log"),
        }
    }

    #[test]
    fn a_configuration_names_the_other_nodes_and_survives_odd_folders() {
        let all = [node("a", 7600), node("b", 7602)];
        let odd = Path::new("/tmp/it's \"odd\"");
        let text = config_text(&all[0], &all, odd, &odd.join("token"));
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["node"]["name"].as_str(), Some("a"));
        assert_eq!(
            read["node"]["data_dir"].as_str(),
            Some("/tmp/it's \"odd\"/data")
        );
        assert_eq!(read["transport"]["listen"].as_str(), Some("127.0.0.1:7600"));
        let seeds = read["transport"]["seeds"].as_array().unwrap();
        assert_eq!(seeds.len(), 1);
        assert_eq!(seeds[0].as_str(), Some("127.0.0.1:7602"));
        assert_eq!(read["gateway"]["listen"].as_str(), Some("127.0.0.1:8600"));
    }

    #[test]
    fn no_two_nodes_get_the_same_port() {
        let ports = Ports::find(9, None).unwrap();
        let mut taken: Vec<u16> = Vec::new();
        for (main, gateway) in ports.addresses() {
            taken.extend([main.port(), main.port() + 1]);
            assert!(gateway.ip().is_loopback());
        }
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 18);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = tcp(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = Ports::find(1, Some(port)).err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.what.contains(&port.to_string()), "{failure:?}");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail_of(&path, 2), "");
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(tail_of(&path, 2), "2\n3");
        assert_eq!(tail_of(&path, 9), "1\n2\n3");
    }
}
