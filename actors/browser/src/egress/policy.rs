//! Who may be reached, and at which address.
//!
//! Owns: the node's rules, the ports of its own proxies, and the way from a name to addresses. Never
//! looks a name up twice for one connection, and never gives out an address that it has not judged: a
//! name that answers otherwise the next time (DNS rebinding) gains nothing.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, RwLock};

use tokio::sync::Semaphore;
use url::Host;

use understudy_protocol::workload::egress::{
    Allow, EgressRefused, EgressRules, LOCALHOST, canonical, is_localhost,
};

/// What the pages of one node may reach; its sessions share it.
pub struct EgressPolicy {
    known: RwLock<Known>,
    resolver: Box<dyn Resolver>,
}

#[derive(Default)]
struct Known {
    rules: Arc<EgressRules>,
    proxies: BTreeSet<SocketAddr>,
}

/// The addresses of a name, some time later.
pub type Resolved<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Looks names up.
pub trait Resolver: Send + Sync {
    /// Every address of `host`, which is a name in lower case; in the order to try them.
    fn resolve<'a>(&'a self, host: &'a str) -> Resolved<'a>;
}

/// Why nothing was connected.
#[derive(Debug)]
pub(super) enum Unreached {
    Denied(EgressRefused),
    Unresolved(io::Error),
}

impl EgressPolicy {
    /// What is public, and what `allow` names. Names are looked up as the system does it.
    pub fn new(allow: Vec<Allow>) -> EgressPolicy {
        EgressPolicy::with_resolver(allow, Box::new(SystemResolver::default()))
    }

    /// The same, with names looked up by `resolver`.
    pub fn with_resolver(allow: Vec<Allow>, resolver: Box<dyn Resolver>) -> EgressPolicy {
        let rules = EgressRules {
            allow,
            cluster: BTreeSet::new(),
        };
        let known = Known {
            rules: Arc::new(rules),
            proxies: BTreeSet::new(),
        };
        EgressPolicy {
            known: RwLock::new(known),
            resolver,
        }
    }

    /// Says where the cluster listens: this node's own addresses and its peers', in place of those
    /// said before. Nothing that is configured opens them.
    pub fn set_cluster(&self, cluster: BTreeSet<SocketAddr>) {
        self.change(|known| Arc::make_mut(&mut known.rules).cluster = cluster);
    }

    pub(super) fn add_proxy(&self, proxy: SocketAddr) {
        self.change(|known| {
            known.proxies.insert(proxy);
        });
    }

    pub(super) fn remove_proxy(&self, proxy: SocketAddr) {
        self.change(|known| {
            known.proxies.remove(&proxy);
        });
    }

    /// Where `host` may be reached: the addresses among its own that are not refused, or why all are.
    pub(super) async fn addresses(
        &self,
        host: &Host,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Unreached> {
        let name = name_of(host);
        let found = match host {
            Host::Ipv4(ip) => vec![IpAddr::V4(*ip)],
            Host::Ipv6(ip) => vec![IpAddr::V6(*ip)],
            Host::Domain(domain) if is_localhost(domain) => LOCALHOST.to_vec(),
            Host::Domain(domain) => {
                let found = self.resolver.resolve(domain).await;
                found.map_err(Unreached::Unresolved)?
            }
        };
        let mut granted = Vec::new();
        let mut refused = None;
        for ip in found {
            let address = SocketAddr::new(ip, port);
            match self.judge(&name, address) {
                Ok(()) => granted.push(address),
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        match (granted.is_empty(), refused) {
            (false, _) => Ok(granted),
            (true, Some(why)) => Err(Unreached::Denied(why)),
            (true, None) => Err(Unreached::Unresolved(io::Error::other("it has no address"))),
        }
    }

    fn judge(&self, name: &str, address: SocketAddr) -> Result<(), EgressRefused> {
        let ip = canonical(address.ip());
        let (rules, is_proxy) = {
            let known = self.known.read().expect("nothing panics while it is held");
            let reached = SocketAddr::new(ip, address.port());
            (known.rules.clone(), known.proxies.contains(&reached))
        };
        if is_proxy {
            return Err(EgressRefused::Cluster(address));
        }
        rules.judge(name, address)?;
        if is_this_machine(address) {
            // As a machine of the cluster, of which no port is known.
            let mut rules = (*rules).clone();
            rules.cluster.insert(SocketAddr::new(ip, 0));
            rules.judge(name, address)?;
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.write().expect("nothing panics while it is held");
        change(&mut known);
    }
}

/// What people call the host: a name without the dot that may end it, or an address.
pub(super) fn name_of(host: &Host) -> String {
    match host {
        Host::Domain(domain) => domain.strip_suffix('.').unwrap_or(domain).to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => canonical(IpAddr::V6(*ip)).to_string(),
    }
}

/// Whether a connection to `address` would not leave this machine: then the kernel gives it the same
/// address at this end. No packet is sent for that.
fn is_this_machine(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let own = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    own.is_ok_and(|own| canonical(own.ip()) == canonical(address.ip()))
}

/// Looks names up as every program of this machine does.
#[derive(Debug)]
pub struct SystemResolver {
    asking: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> SystemResolver {
        SystemResolver {
            asking: Arc::new(Semaphore::new(NAMES_AT_ONCE)),
        }
    }
}

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolved<'a> {
        Box::pin(async move {
            let turn = self.asking.clone().acquire_owned().await;
            let host = host.to_owned();
            // The system's own call blocks a thread, and cannot be taken back: the turn is its.
            let look_up = move || {
                let _turn = turn;
                (host.as_str(), 0)
                    .to_socket_addrs()
                    .map(|found| found.map(|address| address.ip()).collect())
            };
            let found = tokio::task::spawn_blocking(look_up).await;
            found.unwrap_or_else(|ended| Err(io::Error::other(ended)))
        })
    }
}

/// Names that are looked up at once. Each takes a thread, of which the runtime has 512 for everything,
/// and one whose servers are silent takes it for half a minute.
const NAMES_AT_ONCE: usize = 64;
