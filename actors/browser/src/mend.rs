//! A page that crashed or hangs, closed and brought back alone.
//!
//! Owns: which pages of a session are being brought back, and how often each was. Never touches the others:
//! cookies and what origins stored are in the browser still, so only the page itself comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cdp::{Cdp, CdpError};
use crate::jail::Jail;
use crate::recorder::{PageHealth, Recorder};
use crate::restore;
use crate::state::{PageKey, PageState, SessionState};

/// See the module. Dropping it leaves pages that are being brought back as they are.
pub(crate) struct Mender {
    cdp: Cdp,
    jail: Arc<Jail>,
    /// How long a page may be silent.
    limit: Duration,
    /// Hears what became of a page, for people.
    told: Arc<dyn Fn(String) + Send + Sync>,
    tasks: JoinSet<Option<(PageKey, String)>>,
    times: BTreeMap<PageKey, u32>,
}

impl Mender {
    pub(crate) fn new(
        cdp: Cdp,
        jail: Arc<Jail>,
        limit: Duration,
        told: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Mender {
        Mender {
            cdp,
            jail,
            limit,
            told,
            tasks: JoinSet::new(),
            times: BTreeMap::new(),
        }
    }

    /// Whether a page is on its way back: what the recorder sees meanwhile is not the session's state.
    pub(crate) fn is_busy(&mut self, recorder: &mut Recorder) -> bool {
        while let Some(done) = self.tasks.try_join_next() {
            if let Ok(Some((page, target))) = done {
                recorder.is_now(page, target);
            }
        }
        !self.tasks.is_empty()
    }

    /// Begins to bring those pages back that need it, from what was handed out of them last.
    pub(crate) fn look(&mut self, recorder: &Recorder) {
        for ill in recorder.health(self.limit) {
            // It is a client's to answer.
            if !ill.is_crashed && self.jail.shows_dialog(&ill.target) {
                continue;
            }
            let times = self.times.entry(ill.page).or_default();
            *times += 1;
            let state = recorder.state().pages.get(&ill.page).cloned();
            let state = state.filter(|_| *times <= TIMES_MAX);
            let (cdp, jail, told) = (self.cdp.clone(), self.jail.clone(), self.told.clone());
            self.tasks.spawn(async move {
                let url = state
                    .as_ref()
                    .map_or("a page", |state| &state.url)
                    .to_owned();
                let why = match ill.is_crashed {
                    true => "its process crashed".to_owned(),
                    false => format!("it has not answered for {} s", ill.silent.as_secs()),
                };
                let page = ill.page;
                let (target, became) = mend(&cdp, &jail, ill, state).await;
                told(format!("{url}: {why}; {became}"));
                target.map(|target| (page, target))
            });
        }
    }
}

/// The page's new target, and what became of it.
async fn mend(
    cdp: &Cdp,
    jail: &Jail,
    ill: PageHealth,
    state: Option<PageState>,
) -> (Option<String>, String) {
    match timeout(CLOSE_LIMIT, close(cdp, &ill.target)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return (None, format!("it could not be closed: {error}")),
        Err(_) => return (None, "it could not be closed".to_owned()),
    }
    let Some(state) = state else {
        return (
            None,
            format!("it was closed, after {TIMES_MAX} times in which it came back"),
        );
    };
    let alone = SessionState {
        pages: BTreeMap::from([(ill.page, state)]),
        ..SessionState::default()
    };
    let Ok(restored) = timeout(RESTORE_LIMIT, restore::restore(cdp, jail, &alone)).await else {
        return (
            None,
            format!("it was closed, and was not back after {RESTORE_LIMIT:?}"),
        );
    };
    let Some(page) = restored.pages.into_iter().next() else {
        return (None, "it was closed".to_owned());
    };
    let missed: Vec<String> = page.missed.iter().map(ToString::to_string).collect();
    let became = match missed.is_empty() {
        true => "it was begun anew".to_owned(),
        false => format!(
            "it was begun anew, and not all is back: {}",
            missed.join(", ")
        ),
    };
    (page.target, became)
}

/// Until it is there no more.
async fn close(cdp: &Cdp, target: &str) -> Result<(), CdpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Targets {
        target_infos: Vec<Info>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Info {
        target_id: String,
    }
    let asked = Instant::now();
    let params = json!({ "targetId": target });
    // One that is gone already is as good: the list says so.
    let _ = cdp
        .call::<Value>("", "Target.closeTarget", params.clone())
        .await;
    let mut is_killed = false;
    loop {
        let there: Targets = cdp.call("", "Target.getTargets", json!({})).await?;
        if there
            .target_infos
            .iter()
            .all(|info| info.target_id != target)
        {
            return Ok(());
        }
        if !is_killed && asked.elapsed() > CLOSE_PATIENCE {
            is_killed = true;
            kill(cdp, target).await?;
            let _ = cdp
                .call::<Value>("", "Target.closeTarget", params.clone())
                .await;
        }
        sleep(CLOSE_AGAIN).await;
    }
}

/// Ends the process of a page that does not leave by itself.
async fn kill(cdp: &Cdp, target: &str) -> Result<(), CdpError> {
    let root = cdp.root().await?;
    let attach = json!({ "targetId": target, "flatten": true });
    let attached: Value = cdp
        .call(root.session(), "Target.attachToTarget", attach)
        .await?;
    let session = attached["sessionId"].as_str().unwrap_or_default();
    // It never answers: its page is gone by then.
    let crash = cdp.call::<Value>(session, "Page.crash", json!({}));
    let _ = timeout(CLOSE_PATIENCE, crash).await;
    Ok(())
}

/// How often a page is begun anew while its session runs: one that crashes each time is the page's fault.
const TIMES_MAX: u32 = 3;

/// How long a page may take to close by itself.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// How long closing it may take, its process's end included.
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// How long it may take to be back: the two limits of [`restore`] together, and a little.
const RESTORE_LIMIT: Duration = Duration::from_secs(21);

/// Between two looks whether it is closed.
const CLOSE_AGAIN: Duration = Duration::from_millis(50);
