//! What guests do wrong, for people to see.
//!
//! Owns: the events `guest_denied` and `guest_trapped`, and how many of them there may be: a guest that
//! fails in a loop must not push everything else out of the node's memory. Never changes what a guest is
//! or answers.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use understudy_control::handle::Handle;
use understudy_protocol::id::ChildId;
use understudy_protocol::supervision::RestartType;
use understudy_protocol::time::Time;
use understudy_sandbox::policy::DenialSink;
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError, clock,
};

/// The code of a call whose guest's program failed.
pub(super) const TRAPPED: &str = "guest_trapped";

const DENIED: &str = "guest_denied";

/// Tells the node of its guests. A clone tells the same node.
#[derive(Clone)]
pub(crate) struct Teller {
    handle: Arc<OnceLock<Handle>>,
    told: Arc<Mutex<Told>>,
}

/// How much was told of late.
#[derive(Default)]
struct Told {
    since: Time,
    count: u32,
    untold: u64,
}

impl Teller {
    pub(crate) fn new(handle: Arc<OnceLock<Handle>>) -> Teller {
        let told = Arc::default();
        Teller { handle, told }
    }

    /// Whom a guest's policy tells of what it denied.
    pub(super) fn denials(&self) -> DenialSink {
        let teller = self.clone();
        Arc::new(move |denial| {
            let child = format!("{}/sandbox/{}", denial.tenant, denial.sandbox);
            // A function is called as its module, and is nobody's child.
            let child = ChildId::parse(&child).ok();
            let child = child.filter(|child| !child.key().contains('@'));
            teller.tell(DENIED, child.as_ref(), denial.to_string());
        })
    }

    pub(super) fn trapped(&self, child: Option<&ChildId>, text: String) {
        self.tell(TRAPPED, child, text);
    }

    pub(crate) fn tell(&self, kind: &'static str, child: Option<&ChildId>, mut text: String) {
        let Some(handle) = self.handle.get() else {
            return;
        };
        match self.may_tell(clock::now()) {
            None => return,
            Some(0) => {}
            Some(untold) => text.push_str(&format!(" ({untold} more were not told)")),
        }
        let view = handle.view();
        let unit = child.and_then(|child| view.directory.unit_of(child));
        let unit = unit.and_then(|id| Some((id, view.directory.unit(id)?.epoch)));
        handle.tell(kind, Some(view.node), unit, text);
    }

    /// Whether one more may be told now; and then, how many were not.
    fn may_tell(&self, now: Time) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(told.since) >= WINDOW {
            told.since = now;
            told.count = 0;
        }
        if told.count >= WINDOW_MAX {
            told.untold += 1;
            return None;
        }
        told.count += 1;
        Some(std::mem::take(&mut told.untold))
    }
}

/// A kind whose children's traps are told.
pub(super) struct Watched<K> {
    kind: K,
    teller: Teller,
}

/// One of its children.
pub(super) struct WatchedChild<C> {
    child: C,
    id: ChildId,
    teller: Teller,
}

impl<K> Watched<K> {
    pub(super) fn new(kind: K, teller: Teller) -> Watched<K> {
        Watched { kind, teller }
    }
}

impl<K: Kind> Kind for Watched<K> {
    type Child = WatchedChild<K::Child>;

    async fn start(
        &self,
        context: Context,
        checkpoint: Checkpoint,
    ) -> Result<WatchedChild<K::Child>, StartError> {
        let (id, teller) = (context.child().clone(), self.teller.clone());
        let child = self.kind.start(context, checkpoint).await?;
        Ok(WatchedChild { child, id, teller })
    }

    fn needs_own_unit(&self) -> bool {
        self.kind.needs_own_unit()
    }

    fn restart(&self) -> RestartType {
        self.kind.restart()
    }
}

impl<C: Child> Child for WatchedChild<C> {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let handled = self.child.handle(request).await?;
        if let Some(why) = trap(&handled.answer) {
            let text = format!("{}: {why}", self.id);
            self.teller.trapped(Some(&self.id), text);
        }
        Ok(handled)
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        self.child.snapshot().await
    }

    async fn stop(&mut self) {
        self.child.stop().await;
    }
}

/// What an answer says of a trap, if it was one.
fn trap(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        error: Refused,
    }
    #[derive(Deserialize)]
    struct Refused {
        code: String,
        detail: String,
    }
    // Nearly every answer ends here: a refusal is all that begins so.
    if !answer.starts_with(REFUSAL) {
        return None;
    }
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let head: Head = serde_json::from_slice(line).ok()?;
    (head.error.code == TRAPPED).then_some(head.error.detail)
}

/// The first bytes of an answer that has an error and no log.
const REFUSAL: &[u8] = b"{\"error\":";

/// So long, and so many: a person reads no faster, and the node remembers a thousand events.
const WINDOW: Duration = Duration::from_secs(1);
const WINDOW_MAX: u32 = 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trap_is_seen_in_an_answer_and_nothing_else_is() {
        let refused = |code: &str| {
            let error = json!({ "code": code, "detail": "why", "backtrace": ["f"] });
            format!("{}\n", json!({ "ok": false, "error": error })).into_bytes()
        };
        assert_eq!(trap(&refused("guest_trapped")).as_deref(), Some("why"));
        assert_eq!(trap(&refused("guest_failed")), None);
        for answer in [
            &b"{\"ok\":true}\n"[..],
            b"",
            b"\n",
            b"{\"error\":",
            b"{\"error\":7}\n",
        ] {
            assert_eq!(trap(answer), None);
        }
    }

    #[test]
    fn a_flood_is_counted_and_not_told() {
        let teller = Teller::new(Arc::default());
        let at = |millis| Time::from_millis(millis);
        for _ in 0..WINDOW_MAX {
            assert_eq!(teller.may_tell(at(5_000)), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(teller.may_tell(at(5_999)), None);
        }
        assert_eq!(teller.may_tell(at(6_000)), Some(7));
        assert_eq!(teller.may_tell(at(6_001)), Some(0));
    }
}
