//! `[gateway]`: where a node answers HTTP, and whom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::read::{self, Section};

/// Where a node answers HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// `listen`: a loopback address, because the token travels in the clear; by default
    /// `127.0.0.1:8080`. Port 0 takes any.
    pub listen: SocketAddr,
    /// `token_file`: the file of the token that every request needs; `<data_dir>/token` by default.
    pub token_file: PathBuf,
}

pub(crate) fn read(mut section: Section<'_>, data_dir: Option<&Path>) -> Option<GatewayConfig> {
    let listen = section.get_or("listen", LISTEN, |entry| listen(entry.text()?));
    let token_file = section.get("token_file", read::path);
    let gateway = (|| {
        Some(GatewayConfig {
            listen: listen?,
            token_file: token_file.or_else(|| data_dir.map(default_token_file))?,
        })
    })();
    section.finish(gateway)
}

pub(crate) fn default_token_file(data_dir: &Path) -> PathBuf {
    data_dir.join("token")
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("{text:?} should be an address and a port, as in \"127.0.0.1:8080\"")
    })?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(format!(
            "{address} is no loopback address: the token would travel in the clear; put a proxy \
             that speaks TLS in front"
        )),
    }
}

impl GatewayConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        keys.insert("listen".into(), self.listen.to_string().into());
        let token_file = self.token_file.display().to_string();
        keys.insert("token_file".into(), token_file.into());
        keys
    }
}

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8_080);
