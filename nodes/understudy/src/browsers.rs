//! What browser sessions need of a node: Chromium by way of the warden, a way out, and clients.
//!
//! Owns: which program and which user, the folder of profiles, and the streams of clients that connected
//! elsewhere. Never speaks to a browser: the kind does.
//!
//! ```text
//!   kind `session` ── Browsers ── helpers of the warden ── Chromium (its folder goes with it)
//!        │  └─ Egress: asks this node's lease before each write (rule E3)
//!        └─ serve <── tunnels <── the gateway that a client connected to
//! ```

pub(crate) mod helper;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use understudy_browser::egress::EgressPolicy;
use understudy_browser::host::{self, Sharing};
use understudy_browser::process::{BrowserSetup, HEADLESS_SHELL};
use understudy_browser::session::{self, Given, Sessions, Told};
use understudy_browser::tunnel::{self, End, Frame, Hello};
use understudy_config::{BrowserConfig, Isolation};
use understudy_control::handle::{Handle, View};
use understudy_protocol::id::{ChildId, NodeId};
use understudy_supervision::clock;
use understudy_supervision::driver::Kinds;
use understudy_transport::net::{RequestRefused, Tunnel};
use understudy_warden::WardenClient;

use crate::guests::Teller;
use helper::{Expected, FromWarden};

/// The browsers of a node.
pub(crate) struct Browsers {
    sessions: Sessions,
    policy: Arc<EgressPolicy>,
    handle: Arc<OnceLock<Handle>>,
    program: PathBuf,
    profiles: PathBuf,
}

/// A client that came over from a gateway.
struct Incoming {
    from: NodeId,
    header: Bytes,
    tunnel: Tunnel,
}

/// Why sessions cannot run on a node.
#[derive(Debug, thiserror::Error)]
pub enum BrowsersError {
    /// The folder of profiles is of no use.
    #[error("the folder of browsers' profiles, {}, is of no use: {error}", folder.display())]
    Profiles {
        /// Which.
        folder: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// There is no such user.
    #[error(
        "there is no user `{0}` for browsers to run as\n  name one of /etc/passwd, or `UID:GID`, with \
         `[browser] user`; the node is root, and Chromium's sandbox refuses root"
    )]
    NoUser(String),
    /// The names of users cannot be read.
    #[error("/etc/passwd cannot be read: {0}")]
    Users(io::Error),
}

impl Browsers {
    /// Nothing runs yet.
    ///
    /// # Errors
    /// See [`BrowsersError`].
    pub(crate) fn start(
        config: &BrowserConfig,
        node: NodeId,
        warden: WardenClient,
        expected: Expected,
    ) -> Result<Browsers, BrowsersError> {
        let user = match rustix::process::geteuid().is_root() {
            true => Some(user(config.user.as_deref())?),
            false => None,
        };
        let profiles = std::env::temp_dir().join(format!("understudy-browsers-{node}"));
        prepare(&profiles).map_err(|error| BrowsersError::Profiles {
            folder: profiles.clone(),
            error,
        })?;
        let setup = BrowserSetup {
            binary: config.binary.clone(),
            profiles: profiles.clone(),
            user,
            sandbox: config.sandbox,
        };
        let sharing = match config.isolation {
            Isolation::Context => Sharing::Tenant,
            Isolation::Process => Sharing::Nobody,
        };
        let handle = Arc::<OnceLock<Handle>>::default();
        let teller = Teller::new(handle.clone());
        let policy = Arc::new(EgressPolicy::new(config.egress_allow.clone()));
        let launcher = Arc::new(FromWarden::new(warden, expected));
        let given = Given {
            browsers: host::Browsers::new(setup, sharing, launcher),
            sessions: usize::try_from(config.sessions).unwrap_or(usize::MAX),
            policy: policy.clone(),
            permit: {
                let handle = handle.clone();
                Arc::new(move |child| {
                    let handle = handle.get();
                    handle.is_some_and(|handle| may_act(handle, child))
                })
            },
            told: {
                let teller = teller.clone();
                Arc::new(move |child, told| {
                    let (kind, text) = match told {
                        Told::Denied(text) => ("session_denied", text),
                        Told::Restored(text) => ("session_restored", text),
                        Told::PageLost(text) => ("page_lost", text),
                    };
                    teller.tell(kind, Some(child), text);
                })
            },
        };
        Ok(Browsers {
            sessions: Sessions::new(given),
            policy,
            handle,
            program: config
                .binary
                .clone()
                .unwrap_or_else(|| HEADLESS_SHELL.into()),
            profiles,
        })
    }

    /// These kinds, and the one of sessions.
    pub(crate) fn register(&self, kinds: Kinds) -> Kinds {
        kinds.with(session::KIND, self.sessions.clone())
    }

    /// Whether there is a browser here: what the node is labelled with.
    pub(crate) fn label(&self) -> Option<(String, String)> {
        if !self.program.is_file() {
            info!(
                program = %self.program.display(),
                "there is no browser here, so that no sessions run here; `apt-get install \
                 chromium-headless-shell` brings one"
            );
            return None;
        }
        Some((
            understudy_gateway::BROWSER_LABEL.to_owned(),
            "chromium".to_owned(),
        ))
    }

    /// The node, once it runs, and where its cluster listens, which pages never reach.
    pub(crate) fn know(&self, handle: Handle, own: &[SocketAddr]) {
        let cluster: BTreeSet<SocketAddr> = own.iter().copied().collect();
        self.policy.set_cluster(cluster);
        // Nobody else sets it.
        let _ = self.handle.set(handle);
    }

    /// Serves the clients that come over from other gateways, and from this node's own, for as long as it
    /// is polled; keeps what pages may not reach up to date with the peers.
    pub(crate) fn serve(
        &self,
        handle: Handle,
        own: Vec<SocketAddr>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (sessions, policy) = (self.sessions.clone(), self.policy.clone());
        let (came, mut incoming) = mpsc::channel(INCOMING_MAX);
        handle.take_tunnels(Arc::new(move |from, header, tunnel| {
            let incoming = Incoming {
                from,
                header,
                tunnel,
            };
            came.try_send(incoming).map_err(|_| RequestRefused::Full)
        }));
        async move {
            let mut serving = JoinSet::new();
            let mut peers = tokio::time::interval(PEERS_AGAIN);
            loop {
                tokio::select! {
                    came = incoming.recv() => match came {
                        Some(came) => {
                            serving.spawn(client(sessions.clone(), came));
                        }
                        None => return,
                    },
                    Some(_) = serving.join_next() => {}
                    _ = peers.tick() => policy.set_cluster(addresses(&handle.view(), &own)),
                }
            }
        }
    }
}

impl Drop for Browsers {
    fn drop(&mut self) {
        // Not empty while a browser still ends: its warden removes what is in it, and the next start the rest.
        let _ = std::fs::remove_dir(&self.profiles);
    }
}

/// Whether what runs for this child may reach the outside world now (rule E3): the node's lease is valid,
/// and the child's unit is this start's.
fn may_act(handle: &Handle, child: &ChildId) -> bool {
    let view = handle.view();
    let directory = &view.directory;
    let unit = directory
        .unit_of(child)
        .and_then(|unit| directory.unit(unit));
    let owner = unit.and_then(|unit| unit.owner);
    handle.lease_until() > clock::now()
        && owner.is_some_and(|owner| owner.incarnation == view.incarnation)
}

/// Where this cluster listens.
fn addresses(view: &View, own: &[SocketAddr]) -> BTreeSet<SocketAddr> {
    let mut all: BTreeSet<SocketAddr> = own.iter().copied().collect();
    for peer in &view.peers {
        // A name would be looked up here, for a list that is only a second wall: peers are in private
        // networks, which are closed anyway.
        let Ok(address) = peer.address.parse::<SocketAddr>() else {
            continue;
        };
        let heart = SocketAddr::new(address.ip(), address.port().saturating_add(1));
        all.extend([address, heart]);
    }
    all
}

/// One client, from the first frame to the last.
async fn client(sessions: Sessions, incoming: Incoming) {
    let Incoming {
        from,
        header,
        tunnel,
    } = incoming;
    let (reader, mut writer) = tokio::io::split(tunnel);
    let refuse = |reason: String| End { code: 1011, reason };
    let hello = Hello::decode(&header);
    let named = hello.and_then(|hello| {
        let child = ChildId::parse(&hello.session).ok()?;
        Some((child, hello.ticket))
    });
    let Some((child, ticket)) = named else {
        let end = refuse("the stream names no session".to_owned());
        let _ = tunnel::write(&mut writer, &Frame::End(end)).await;
        return;
    };
    let (to_session, from_client) = mpsc::channel(MESSAGES_MAX);
    let (to_client, from_session) = mpsc::channel(MESSAGES_MAX);
    let client = match sessions.admit(&child, &ticket) {
        Ok(client) => client,
        Err(why) => {
            let end = refuse(why.to_string());
            let _ = tunnel::write(&mut writer, &Frame::End(end)).await;
            return;
        }
    };
    debug!(%child, %from, "a client is served");
    let greeting = Frame::Text(Bytes::new());
    if tunnel::write(&mut writer, &greeting).await.is_err() {
        return;
    }
    let (ended, end) = tokio::sync::oneshot::channel();
    let served = async {
        let end = client.serve(from_client, to_client).await;
        // Whoever carries is gone: nobody hears it.
        let _ = ended.send(end);
    };
    let carried = tunnel::carry(reader, writer, to_session, from_session, async {
        end.await.unwrap_or(End {
            code: 1011,
            reason: "its session ended".to_owned(),
        })
    });
    let ((), carried) = tokio::join!(served, carried);
    if let Err(error) = carried {
        debug!(%child, %error, "a client's stream broke");
    }
}

/// A folder that only this user may change and others may pass, with nothing in it.
fn prepare(folder: &Path) -> io::Result<()> {
    let made = std::fs::DirBuilder::new()
        .mode(PASSED_BY_ALL)
        .create(folder);
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a start whose warden was killed too. A link, or somebody else's, is refused.
            let found = std::fs::symlink_metadata(folder)?;
            let is_own = found.uid() == rustix::process::geteuid().as_raw();
            if !found.is_dir() || !is_own || found.mode() & 0o022 != 0 {
                return Err(io::Error::other(
                    "somebody else could have made it; remove it",
                ));
            }
            for left in std::fs::read_dir(folder)? {
                let left = left?.path();
                if let Err(error) = std::fs::remove_dir_all(&left) {
                    warn!(folder = %left.display(), %error, "an old profile stays");
                }
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The user and the group of this name, or of the first of [`USERS`] that there is.
fn user(name: Option<&str>) -> Result<(u32, u32), BrowsersError> {
    let numbers = |text: &str| {
        let (user, group) = text.split_once(':')?;
        Some((user.parse().ok()?, group.parse().ok()?))
    };
    if let Some(numbers) = name.and_then(numbers) {
        return Ok(numbers);
    }
    let known = std::fs::read_to_string("/etc/passwd").map_err(BrowsersError::Users)?;
    let find = |name: &str| {
        known.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let user = fields.nth(1)?.parse().ok()?;
            let group = fields.next()?.parse().ok()?;
            found.then_some((user, group))
        })
    };
    match name {
        Some(name) => find(name).ok_or_else(|| BrowsersError::NoUser(name.to_owned())),
        None => USERS
            .iter()
            .find_map(|name| find(name))
            .ok_or_else(|| BrowsersError::NoUser(USERS.join("` or `"))),
    }
}

/// Who browsers run as where the node is root, in this order.
const USERS: [&str; 2] = ["understudy", "nobody"];

/// The profiles in it are for the browsers' user alone.
const PASSED_BY_ALL: u32 = 0o711;

/// Messages of one client on their way: the browser's own queue is behind it.
const MESSAGES_MAX: usize = 64;

/// Clients that were taken and not looked at yet: each is within a millisecond.
const INCOMING_MAX: usize = 64;

/// Between two looks at where peers listen.
const PEERS_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        assert_eq!(user(Some("0:0")).unwrap(), (0, 0));
        assert_eq!(user(Some("root")).unwrap(), (0, 0));
        let error = user(Some("nobody-at-all")).unwrap_err();
        assert!(error.to_string().contains("[browser] user"), "{error}");
        assert!(user(None).is_ok());
    }

    #[test]
    fn a_folder_that_somebody_else_could_change_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("profiles");
        prepare(&folder).unwrap();
        std::fs::create_dir_all(folder.join("left/over")).unwrap();
        prepare(&folder).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(prepare(&link).is_err());
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&folder, open).unwrap();
        assert!(prepare(&folder).is_err());
    }
}
