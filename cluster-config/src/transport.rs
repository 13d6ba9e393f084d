//! `[transport]`: where a node listens, how its peers reach it, and whom it asks first.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use understudy_protocol::cluster::directory::ADDRESS_BYTES_MAX;

use crate::read::{self, Section};

/// Where a node listens and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// `listen`: the main port (UDP); the heart listens on the next one. By default `0.0.0.0:7600`:
    /// certificates of both sides guard it.
    pub listen: SocketAddr,
    /// `advertise`: how peers reach the node; by default `listen`, which must name one address then.
    pub advertise: HostPort,
    /// `seeds`: who is asked first, at most [`SEEDS_MAX`]; a node may name itself.
    pub seeds: Vec<HostPort>,
    /// `identity`: the directory of the node's certificate and key; `<data_dir>/identity` by default.
    pub identity: PathBuf,
}

/// A host and a port that leaves room for the heart's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// A DNS name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The main port, from 1 to 65,534.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The heart's port: the next one.
    pub fn heart_port(&self) -> u16 {
        self.port.saturating_add(1)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> HostPort {
        HostPort {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

pub(crate) fn read(mut section: Section<'_>, data_dir: Option<&Path>) -> Option<TransportConfig> {
    let listen_at = section.place("listen");
    let has_advertise = section.has("advertise");
    let listen = section.get_or("listen", LISTEN, |entry| listen(entry.text()?));
    let advertise = section.get("advertise", |entry| advertise(entry.text()?));
    let seeds = section.get_or("seeds", Vec::new(), |entry| seeds(&entry.list()?));
    let identity = section.get("identity", read::path);
    if listen.is_some_and(|listen| listen.ip().is_unspecified()) && !has_advertise {
        let what = "is needed where `listen` names no one address: peers must know which to dial";
        section.fail(listen_at, "advertise", what.to_owned());
    }
    let transport = (|| {
        let listen = listen?;
        Some(TransportConfig {
            listen,
            advertise: advertise.unwrap_or_else(|| HostPort::from(listen)),
            seeds: seeds?,
            identity: identity.or_else(|| data_dir.map(default_identity))?,
        })
    })();
    section.finish(transport)
}

pub(crate) fn default_identity(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("{text:?} should be an address and a port, as in \"0.0.0.0:7600\""))?;
    leaves_room(address.port())?;
    Ok(address)
}

fn leaves_room(port: u16) -> Result<u16, String> {
    match port {
        0 => Err("the port cannot be 0: peers must know it, and the heart takes the next".into()),
        u16::MAX => Err("port 65535 leaves no room: the heart listens on the next one".into()),
        port => Ok(port),
    }
}

fn host_port(text: &str) -> Result<HostPort, String> {
    let wrong = || format!("{text:?} should be a host and a port, as in \"a.example.net:7600\"");
    if text.len() > ADDRESS_BYTES_MAX {
        return Err(format!("an address has at most {ADDRESS_BYTES_MAX} bytes"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = leaves_room(port.parse().map_err(|_| wrong())?)?;
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_host = match bare {
        Some(address) => address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        None => {
            let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "-.".contains(sign);
            !host.is_empty() && host.chars().all(is_plain)
        }
    };
    let host = bare.unwrap_or(host).to_owned();
    is_host.then_some(HostPort { host, port }).ok_or_else(wrong)
}

fn advertise(text: &str) -> Result<HostPort, String> {
    let at = host_port(text)?;
    let address: Option<IpAddr> = at.host.parse().ok();
    match address.is_some_and(|address| address.is_unspecified()) {
        true => Err(format!("nobody can dial {text}")),
        false => Ok(at),
    }
}

fn seeds(texts: &[String]) -> Result<Vec<HostPort>, String> {
    if texts.len() > SEEDS_MAX {
        return Err(format!("{SEEDS_MAX} seeds are enough to find a cluster"));
    }
    texts.iter().map(|text| host_port(text)).collect()
}

impl TransportConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let seeds: Vec<String> = self.seeds.iter().map(HostPort::to_string).collect();
        let mut keys = toml::Table::new();
        keys.insert("listen".into(), self.listen.to_string().into());
        keys.insert("advertise".into(), self.advertise.to_string().into());
        keys.insert("seeds".into(), seeds.into());
        let identity = self.identity.display().to_string();
        keys.insert("identity".into(), identity.into());
        keys
    }
}

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 7_600);

/// Seeds that a node asks: each is dialled again and again until one answers, and one is enough.
pub const SEEDS_MAX: usize = 64;
