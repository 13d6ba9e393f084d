//! Routes that change the directory.
//!
//! Owns: what an operator may ask for, and how long an answer waits to see it done. Never repeats a
//! command that would count twice: each is either the same when repeated, or asked for once at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tracing::info;

use understudy_control::agents::AskError;
use understudy_control::handle::View;
use understudy_protocol::cluster::directory::{
    Command, Directory, LABEL_BYTES_MAX, LABELS_MAX, Needs, NodeEntry, ROOT, Run,
};
use understudy_protocol::cluster::placement::{Role, StoreView, ZONE_LABEL, choose_replicas};
use understudy_protocol::id::{ChildId, NodeId, StoreId, SupervisorId, UnitId};
use understudy_protocol::supervision::{Policy, RestartType, Strategy};
use understudy_protocol::wire::replica::Scope;

use super::{Gateway, Name, Params, gone, json, limited, name_of, with_status};
use crate::problem::{Kind, Problem, not_formed};
use crate::{api, params, show};

/// How long to wait until it is done and not only begun.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    wait: Option<String>,
}

impl Wait {
    fn span(&self) -> Result<Option<Duration>, Problem> {
        let wait = self.wait.as_deref();
        wait.map(|wait| limited(Some(wait), WAIT_MAX, WAIT_MAX))
            .transpose()
    }
}

/// What a removal answers.
#[derive(Serialize)]
pub(super) struct Removed {
    id: String,
    removed: bool,
}

pub(super) async fn init(
    State(gateway): State<Gateway>,
    body: Body,
) -> Result<Json<api::Cluster>, Problem> {
    let init = json(body, Some(api::Init::default())).await?;
    gateway.handle.form(init.single).await?;
    Ok(Json(show::cluster(&gateway.handle.view())))
}

pub(super) async fn drain(
    gateway: State<Gateway>,
    Name(name): Name,
    Params(wait): Params<Wait>,
) -> Result<Response, Problem> {
    let wait = wait.span()?;
    let node = set_draining(&gateway, &name, true).await?;
    let owns = |directory: &Directory| {
        let owners = directory.units().values().filter_map(|unit| unit.owner);
        owners.filter(|owner| owner.node == node).count()
    };
    let view = match wait {
        None => gateway.handle.view(),
        Some(span) => {
            let empty = |view: &View| owns(&view.directory) == 0;
            let seen = gateway.handle.wait_for(span, empty).await;
            seen.ok_or_else(|| left_over(&gateway.handle.view(), node, span))?
        }
    };
    let done = owns(&view.directory) == 0;
    let shown = show::node(&view, node).ok_or_else(gone)?;
    let status = if done {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok(with_status(status, shown))
}

pub(super) async fn undrain(
    gateway: State<Gateway>,
    Name(name): Name,
) -> Result<Json<api::Node>, Problem> {
    let node = set_draining(&gateway, &name, false).await?;
    let shown = show::node(&gateway.handle.view(), node);
    shown.map(Json).ok_or_else(gone)
}

pub(super) async fn create(
    State(gateway): State<Gateway>,
    body: Body,
) -> Result<Response, Problem> {
    let new: api::NewUnit = json(body, None).await?;
    let (status, unit) = made(&gateway, &new).await?;
    Ok(with_status(status, unit))
}

/// Makes a dedicated unit; one that is there already and is as asked for is as good.
pub(super) async fn made(
    gateway: &Gateway,
    new: &api::NewUnit,
) -> Result<(StatusCode, api::Unit), Problem> {
    let view = gateway.formed()?;
    let (child, restart) = (dedicated(&new.child)?, restart(new)?);
    let needs = needs(&view, new)?;
    if let Some(unit) = view.directory.unit_of(&child) {
        let unit = existing(&view, unit, restart, &needs)?;
        return Ok((StatusCode::OK, unit));
    }
    if let Some(pin) = needs.pin {
        may_run(&view, pin)?;
    }
    let set = first_set(&view.directory, &child)?;
    let supervisor = supervisor(gateway).await?;
    let pin = needs.pin.filter(|node| *node != view.node);
    let command = Command::Create {
        child: child.clone(),
        supervisor,
        restart,
        needs,
        set,
    };
    let there = |directory: &Directory| directory.unit_of(&child).is_some();
    let agents = gateway.handle.agents();
    let asked = match pin {
        Some(node) => agents.spawn(node, command.clone(), AGENT_PATIENCE).await,
        None => Err(AskError::NoLink),
    };
    settle(gateway, asked, command, there).await?;
    // It is there; that it serves too is what one would look for next.
    let serves = |view: &View| {
        let unit = view.directory.unit_of(&child);
        let entry = unit.and_then(|unit| view.directory.unit(unit));
        entry.is_none_or(|entry| entry.owner.is_some_and(|owner| owner.serving))
    };
    let seen = gateway.handle.wait_for(SERVES_SOON, serves).await;
    let view = seen.unwrap_or_else(|| gateway.handle.view());
    let unit = view.directory.unit_of(&child);
    let shown = unit.and_then(|unit| show::unit(&view, unit));
    Ok((StatusCode::CREATED, shown.ok_or_else(gone)?))
}

pub(super) async fn remove(
    State(gateway): State<Gateway>,
    Name(name): Name,
) -> Result<Json<Removed>, Problem> {
    let view = gateway.formed()?;
    let unit = params::unit(&view, &name)?;
    removed(&gateway, &view, unit).await.map(Json)
}

/// Removes a dedicated unit, and with it all that its child has.
pub(super) async fn removed(
    gateway: &Gateway,
    view: &View,
    unit: UnitId,
) -> Result<Removed, Problem> {
    let entry = view.directory.unit(unit).ok_or_else(gone)?;
    if matches!(entry.scope, Scope::Slots { .. }) {
        return Err(Problem::new(
            Kind::Invalid,
            format!("{unit} is a shard: every slot has one"),
        )
        .hint("only a dedicated unit is removed: `understudy unit list --kind KIND`"));
    }
    let command = Command::Remove { unit };
    let is_gone = |directory: &Directory| directory.unit(unit).is_none();
    gateway.handle.propose(command, PATIENCE, is_gone).await?;
    Ok(Removed {
        id: unit.to_string(),
        removed: true,
    })
}

pub(super) async fn move_to(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(wait): Params<Wait>,
    body: Body,
) -> Result<Response, Problem> {
    let wait = wait.span()?;
    let wanted: api::MoveTo = json(body, None).await?;
    let view = gateway.formed()?;
    let unit = params::unit(&view, &name)?;
    let to = params::node(&view, &wanted.to)?;
    let entry = view.directory.unit(unit).ok_or_else(gone)?;
    let there = |directory: &Directory| {
        let owner = directory.unit(unit).and_then(|entry| entry.owner);
        owner.is_some_and(|owner| owner.node == to && owner.serving)
    };
    if !there(&view.directory) {
        may_move(&view, unit, to)?;
        let epoch = entry.epoch;
        let command = Command::Move { unit, epoch, to };
        let begun = |directory: &Directory| {
            directory
                .unit(unit)
                .is_none_or(|entry| entry.epoch != epoch || entry.move_to == Some(to))
        };
        gateway.handle.propose(command, PATIENCE, begun).await?;
    }
    let view = match wait {
        None => gateway.handle.view(),
        Some(span) => {
            let arrived = |view: &View| there(&view.directory);
            let seen = gateway.handle.wait_for(span, arrived).await;
            seen.ok_or_else(|| {
                Problem::new(
                    Kind::DeadlineExceeded,
                    format!(
                        "{unit} has not arrived on {} within {}",
                        name_of(&view, to),
                        params::span_text(span)
                    ),
                )
                .hint(format!("`understudy unit explain {unit}` says why"))
            })?
        }
    };
    let status = if there(&view.directory) {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let shown = show::unit(&view, unit).ok_or_else(gone)?;
    Ok(with_status(status, shown))
}

async fn set_draining(gateway: &Gateway, name: &str, draining: bool) -> Result<NodeId, Problem> {
    let view = gateway.formed()?;
    let node = params::node(&view, name)?;
    let is_so = |directory: &Directory| {
        let entry = directory.nodes().get(&node);
        entry.is_some_and(|entry| entry.draining == draining)
    };
    if !is_so(&view.directory) {
        let agents = gateway.handle.agents();
        let asked = agents.drain(node, draining, AGENT_PATIENCE).await;
        let command = Command::Drain { node, draining };
        settle(gateway, asked, command, is_so).await?;
    }
    Ok(node)
}

/// What a node agent was asked to have done, this node sees done; where it was not done, or nobody can
/// say, the directory is asked, which comes to the same.
async fn settle(
    gateway: &Gateway,
    asked: Result<(), AskError>,
    command: Command,
    done: impl Fn(&Directory) -> bool,
) -> Result<(), Problem> {
    let handle = &gateway.handle;
    match asked {
        Ok(()) => {
            let shows = |view: &View| done(&view.directory);
            if handle.wait_for(APPLIED_SOON, shows).await.is_some() {
                return Ok(());
            }
        }
        Err(AskError::NoLink) => {}
        Err(error) => info!(%error, "a node agent did not do it, and the directory is asked"),
    }
    if done(&handle.view().directory) {
        return Ok(());
    }
    handle.propose(command, PATIENCE, done).await?;
    Ok(())
}

fn left_over(view: &View, node: NodeId, span: Duration) -> Problem {
    let units = view.directory.units().iter();
    let owned = units.filter(|(_, unit)| unit.owner.is_some_and(|owner| owner.node == node));
    let left: Vec<UnitId> = owned.map(|(id, _)| *id).collect();
    let problem = Problem::new(
        Kind::DeadlineExceeded,
        format!(
            "{} still owns {} units after {}; it goes on draining",
            name_of(view, node),
            left.len(),
            params::span_text(span)
        ),
    );
    match left.first() {
        Some(first) => problem.hint(format!(
            "`understudy unit explain {first}` says why the first of them is still there"
        )),
        None => problem.hint("they left this moment"),
    }
}

fn dedicated(text: &str) -> Result<ChildId, Problem> {
    let child = params::child(text)?;
    if child.is_dedicated() {
        return Ok(child);
    }
    Err(Problem::new(
        Kind::Invalid,
        format!("{child} is a light child: it lies in a shard and needs no creation"),
    )
    .hint(format!(
        "just call it, or create `@{child}`, which has a unit of its own"
    )))
}

fn restart(new: &api::NewUnit) -> Result<RestartType, Problem> {
    let text = new.restart.as_deref().unwrap_or("permanent");
    show::restart_of(text).ok_or_else(|| {
        Problem::new(Kind::Invalid, "`restart` is no restart type")
            .hint("`permanent`, `transient` or `temporary`")
    })
}

fn needs(view: &View, new: &api::NewUnit) -> Result<Needs, Problem> {
    let fits = |text: &str| (1..=LABEL_BYTES_MAX).contains(&text.len());
    let all_fit = new
        .labels
        .iter()
        .all(|(key, value)| fits(key) && value.as_deref().is_none_or(fits));
    if new.labels.len() > LABELS_MAX || !all_fit {
        return Err(Problem::new(
            Kind::Invalid,
            format!("at most {LABELS_MAX} labels, with 1 to {LABEL_BYTES_MAX} bytes in each name and value"),
        )
        .hint("labels are what machines are told apart by, such as `zone`"));
    }
    Ok(Needs {
        labels: new.labels.clone(),
        pin: new
            .node
            .as_deref()
            .map(|name| params::node(view, name))
            .transpose()?,
        ..Needs::default()
    })
}

/// The answer for a child that was created before: the same again is done already.
fn existing(
    view: &View,
    unit: UnitId,
    restart: RestartType,
    needs: &Needs,
) -> Result<api::Unit, Problem> {
    let entry = view.directory.unit(unit).ok_or_else(gone)?;
    let supervised = show::supervised(&view.directory, unit, entry);
    let alike = supervised.is_some_and(|child| child.restart == restart) && entry.needs == *needs;
    if alike {
        return show::unit(view, unit).ok_or_else(gone);
    }
    Err(Problem::new(
        Kind::Conflict,
        format!("{unit} is this child's, with another restart type, other labels or another node"),
    )
    .hint(format!(
        "`understudy unit explain {unit}` shows it; remove it first to change it"
    )))
}

/// Where a new unit's records go at first; its owner improves on it.
fn first_set(directory: &Directory, child: &ChildId) -> Result<BTreeSet<StoreId>, Problem> {
    let nodes = directory.nodes().iter();
    let live = nodes.filter(|(_, node)| node.incarnation.is_some());
    let stores: Vec<StoreView> = live
        .map(|(id, node)| StoreView {
            store: node.store,
            node: *id,
            zone: node.labels.get(ZONE_LABEL).map(|zone| zone.as_str().into()),
            role: if node.works {
                Role::Worker
            } else {
                Role::Witness
            },
            fill_milli: 0,
            draining: node.draining,
            suspected: false,
        })
        .collect();
    // The directory numbers the unit when it is there; until then its slot tells it from others.
    let order = UnitId(child.slot().get().into());
    let set = choose_replicas(order, &[], &stores, directory.wanted_replicas());
    if set.len() < directory.min_copies() {
        return Err(Problem::new(
            Kind::Unavailable,
            format!(
                "{} nodes can keep its records, and every write must reach {}",
                set.len(),
                directory.min_copies()
            ),
        )
        .hint("`understudy node list` shows who is down or drains"));
    }
    Ok(set.into_iter().collect())
}

/// The supervisor of dedicated children: one under the root that restarts each alone. Asked for once
/// when there is none. Two gateways may do so at a time; then there is one that has no children.
async fn supervisor(gateway: &Gateway) -> Result<SupervisorId, Problem> {
    for _ in 0..SUPERVISE_TRIES {
        let found = |directory: &Directory| supervisor_in(directory).is_some();
        let view = gateway.handle.view();
        if let Some(supervisor) = supervisor_in(&view.directory) {
            return Ok(supervisor);
        }
        if !view.directory.is_formed() {
            return Err(not_formed());
        }
        let command = Command::Supervise {
            parent: ROOT,
            restart: RestartType::Permanent,
            policy: Policy::new(Strategy::OneForOne),
        };
        // Shorter than the time after which the handle would repeat it: it must not count twice.
        let asked = gateway.handle.propose(command, SUPERVISE_ONCE, found);
        if asked.await.is_err() {
            let late = gateway
                .handle
                .wait_for(SUPERVISE_LATE, |view| found(&view.directory));
            late.await;
        }
    }
    let view = gateway.handle.view();
    supervisor_in(&view.directory).ok_or_else(|| {
        Problem::new(
            Kind::DeadlineExceeded,
            "the directory did not take a supervisor for it; is a majority of voters up?",
        )
        .hint("`understudy node list` shows who is up")
    })
}

fn supervisor_in(directory: &Directory) -> Option<SupervisorId> {
    let mut all = directory.supervisors().iter();
    let found = all.find(|(_, entry)| {
        let alone = entry.supervisor.policy().strategy == Strategy::OneForOne;
        entry.parent == Some(ROOT) && alone && !entry.supervisor.is_down()
    });
    found.map(|(id, _)| *id)
}

/// Whether a node can run a new unit.
fn may_run(view: &View, node: NodeId) -> Result<(), Problem> {
    let entry = view.directory.nodes().get(&node).ok_or_else(gone)?;
    match cannot_run(&name_of(view, node), entry) {
        None => Ok(()),
        Some(why) => Err(Problem::new(Kind::Conflict, why)
            .hint("`understudy node list` shows who is up and takes units")),
    }
}

fn cannot_run(name: &str, node: &NodeEntry) -> Option<String> {
    if node.incarnation.is_none() {
        Some(format!("{name} is not up"))
    } else if !node.works {
        Some(format!("{name} is a witness, which runs no units"))
    } else if node.draining {
        Some(format!("{name} is draining"))
    } else {
        None
    }
}

/// What would be void, or undone by the next plan.
fn may_move(view: &View, unit: UnitId, to: NodeId) -> Result<(), Problem> {
    let no = |why: String| Err(Problem::new(Kind::Conflict, why));
    let (Some(entry), Some(node)) = (view.directory.unit(unit), view.directory.nodes().get(&to))
    else {
        return Err(gone());
    };
    let why = if let Some(why) = cannot_run(&name_of(view, to), node) {
        why
    } else if view.directory.is_quarantined(unit) {
        format!("{unit} is in quarantine")
    } else if entry.run != Run::Wanted {
        format!("{unit} does not run")
    } else if entry.owner.is_none() {
        format!("{unit} has no owner that could hand it over")
    } else {
        return Ok(());
    };
    no(why).map_err(|problem: Problem| {
        problem.hint(format!(
            "`understudy unit explain {unit}` says where it may go"
        ))
    })
}

/// How long the directory may take to change: an election, some round trips and a flush.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a node agent may take to have it done, a unit's takeover included; the directory, which
/// needs no agent, is asked then.
const AGENT_PATIENCE: Duration = Duration::from_secs(3);

/// How long this node may be behind the one that has seen it done.
const APPLIED_SOON: Duration = Duration::from_secs(1);

/// How long a new unit is waited for: a plan, a grant and an empty takeover.
const SERVES_SOON: Duration = Duration::from_secs(2);

/// How long an answer may wait until it is done: longer than the drain of a full node.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// A round trip to the leader and its majority, below the handle's own repetition.
const SUPERVISE_ONCE: Duration = Duration::from_millis(450);

/// How long a supervisor is waited for after it was asked for: an election.
const SUPERVISE_LATE: Duration = Duration::from_secs(3);

/// With the waits about as long as [`PATIENCE`].
const SUPERVISE_TRIES: usize = 3;
