//! Browsers as helpers of the warden: they die with the node, and their folders go with them.
//!
//! Owns: who waits for the warden's word about a helper. Never starts a process itself.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tracing::warn;

use understudy_browser::process::{LaunchSpec, Launched, Launcher, Launching};
use understudy_protocol::cluster::lease::warden::HelperId;
use understudy_warden::{HelperSpec, WardenClient, WardenEvent};

/// What is expected of the warden. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    starts: Arc<Mutex<Starts>>,
}

type Starts = HashMap<HelperId, oneshot::Sender<Result<u32, String>>>;

/// Starts browsers through a node's warden.
pub(super) struct FromWarden {
    warden: WardenClient,
    expected: Expected,
}

/// A helper that was asked for. Dropping it kills it, whether it runs by then or not.
struct Helper {
    warden: WardenClient,
    expected: Expected,
    id: HelperId,
    pid: u32,
}

impl Expected {
    /// The warden has said something.
    pub(crate) fn hear(&self, event: &WardenEvent) {
        let (id, said) = match event {
            WardenEvent::HelperStarted { id, pid } => (id, Ok(*pid)),
            WardenEvent::HelperRefused { id, why } => (id, Err(why.clone())),
            // Its pipe has ended, which says the same sooner.
            WardenEvent::HelperEnded { .. }
            | WardenEvent::NotUnderstood { .. }
            | WardenEvent::Gone => return,
        };
        if let Some(waits) = self.starts().remove(id) {
            // One that gave up has had it killed.
            let _ = waits.send(said);
        }
    }

    fn starts(&self) -> MutexGuard<'_, Starts> {
        // Whoever panicked had inserted or removed one entry, or not.
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromWarden {
    pub(super) fn new(warden: WardenClient, expected: Expected) -> FromWarden {
        FromWarden { warden, expected }
    }

    fn ask(
        &self,
        spec: LaunchSpec,
    ) -> io::Result<(Helper, oneshot::Receiver<Result<u32, String>>)> {
        let mut helper = HelperSpec::new(spec.program);
        helper.args = spec.args;
        helper.env = spec.env;
        helper.dir = spec.dir.clone();
        helper.user = spec.user;
        helper.fds = spec.pipe.into();
        helper.scratch = Some(spec.dir);
        let (said, hears) = oneshot::channel();
        // Held, so that the warden's word finds somebody who waits for it.
        let mut starts = self.expected.starts();
        let id = self.warden.spawn_helper(helper).map_err(io::Error::other)?;
        starts.insert(id, said);
        drop(starts);
        let helper = Helper {
            warden: self.warden.clone(),
            expected: self.expected.clone(),
            id,
            pid: 0,
        };
        Ok((helper, hears))
    }
}

impl Launcher for FromWarden {
    fn launch(&self, spec: LaunchSpec) -> Launching<'_> {
        Box::pin(async move {
            let (mut helper, said) = self.ask(spec)?;
            match said.await {
                Ok(Ok(pid)) => {
                    helper.pid = pid;
                    Ok(Box::new(helper) as Box<dyn Launched>)
                }
                Ok(Err(why)) => Err(io::Error::other(why)),
                Err(_) => Err(io::Error::other("the warden is gone")),
            }
        })
    }
}

impl Launched for Helper {
    fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.expected.starts().remove(&self.id);
        if let Err(error) = self.warden.kill_helper(self.id) {
            warn!(%error, pid = self.pid, "a browser was not killed; it ends with its pipe");
        }
    }
}
