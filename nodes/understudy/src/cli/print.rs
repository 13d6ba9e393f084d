//! The API's answers as text.
//!
//! Owns: tables, the tree and the sentences. Never asks anything.

use understudy_gateway::api;

use super::table::{Table, cut};

/// `cluster show`.
pub fn cluster(cluster: &api::Cluster) -> String {
    let names = |replicas: &[api::Replica]| {
        let names: Vec<&str> = replicas
            .iter()
            .map(|replica| or_dash(&replica.node))
            .collect();
        names.join(", ")
    };
    if !cluster.formed {
        let peers: Vec<&str> = cluster.peers.iter().map(|peer| &*peer.name).collect();
        let mut text = format!(
            "The cluster is not formed. {} is connected to {}.\n",
            cluster.node,
            or_nobody(&peers.join(", "))
        );
        if !cluster.missing_seeds.is_empty() {
            let seeds = cluster.missing_seeds.join(", ");
            text.push_str(&format!("It cannot reach {seeds}.\n"));
        }
        text.push_str("With all nodes up, once: understudy cluster init\n");
        return text;
    }
    let mut table = Table::bare();
    table.row(["leader", or_dash(&cluster.leader)]);
    table.row([
        "nodes".to_owned(),
        format!("{} of {} live", cluster.nodes_live, cluster.nodes),
    ]);
    table.row([
        "units".to_owned(),
        format!("{} of {} serving", cluster.units_serving, cluster.units),
    ]);
    table.row([
        "copies".to_owned(),
        format!(
            "{} of each record, {} before it is acknowledged",
            cluster.replicas, cluster.min_copies
        ),
    ]);
    table.row([
        "voters".to_owned(),
        format!(
            "{}{}",
            names(&cluster.voters),
            if cluster.voters_changing {
                " (changing)"
            } else {
                ""
            }
        ),
    ]);
    table.row(["lease", &*cluster.ttl]);
    table.row([
        "applied".to_owned(),
        format!(
            "entry {} of term {}, at {}",
            cluster.applied.index, cluster.applied.term, cluster.node
        ),
    ]);
    let mut text = table.fit(usize::MAX);
    if !cluster.missing_seeds.is_empty() {
        let seeds = cluster.missing_seeds.join(", ");
        text.push_str(&format!("{} cannot reach {seeds}\n", cluster.node));
    }
    text
}

/// `node list`.
pub fn nodes(nodes: &[api::Node], columns: usize) -> String {
    let mut table = Table::under(&["NAME", "STATE", "UNITS", "ROLE", "ADDRESS", "ID"]);
    for node in nodes {
        let mut state = node.state.clone();
        if node.draining {
            state.push_str(", draining");
        }
        let units = if node.units == node.units_serving {
            node.units.to_string()
        } else {
            format!("{} ({} serving)", node.units, node.units_serving)
        };
        let roles = [
            (node.leader, "leader"),
            (node.voter, "voter"),
            (!node.works, "witness"),
        ];
        let roles: Vec<&str> = roles
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, role)| *role)
            .collect();
        let roles = roles.join(", ");
        table.row([
            node.name.clone(),
            state,
            units,
            roles,
            node.address.clone(),
            node.id.clone(),
        ]);
    }
    table.fit(columns)
}

/// `child list`.
pub fn children(children: &api::Listing<api::ListedChild>, columns: usize) -> String {
    let mut text = if children.items.is_empty() {
        "No such child has records. One is made by its first call: understudy call --help\n".into()
    } else {
        let mut table = Table::under(&["CHILD", "NODE", "RECORD"]);
        for child in &children.items {
            let record = child.record.to_string();
            table.row([child.id.clone(), child.node.clone(), record]);
        }
        table.fit(columns)
    };
    text.push_str(&silent(&children.silent));
    text
}

/// `module push`.
pub fn pushed(module: &api::Module) -> String {
    format!(
        "{} is there: {} bytes, SHA-256 {}\n",
        module.id,
        module.bytes.unwrap_or_default(),
        or_dash(&module.sha256)
    )
}

/// `module list`.
pub fn modules(modules: &api::Listing<api::Module>, columns: usize) -> String {
    let mut text = if modules.items.is_empty() {
        "No module. Bring one: understudy module push FILE NAME@VERSION\n".into()
    } else {
        let mut table = Table::under(&["MODULE", "TENANT", "STATE", "BYTES", "NODE", "SHA-256"]);
        for module in &modules.items {
            let bytes = module
                .bytes
                .map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
            table.row([
                module.id.clone(),
                module.tenant.clone(),
                module.state.clone(),
                bytes,
                or_dash(&module.node).to_owned(),
                or_dash(&module.sha256).to_owned(),
            ]);
        }
        table.fit(columns)
    };
    text.push_str(&silent(&modules.silent));
    text
}

/// `module inspect`.
pub fn module(module: &api::Module) -> String {
    let mut table = Table::bare();
    table.row(["module", &*module.id]);
    table.row(["tenant", &*module.tenant]);
    table.row(["state", &*module.state]);
    table.row(["sha-256", or_dash(&module.sha256)]);
    let bytes = match (module.received, module.bytes) {
        (Some(received), Some(bytes)) if received < bytes => format!("{received} of {bytes}"),
        (_, bytes) => bytes.unwrap_or_default().to_string(),
    };
    table.row(["bytes", &*bytes]);
    let Some(about) = &module.about else {
        return table.fit(usize::MAX);
    };
    let memories = about.memories.iter().map(|memory| match memory.max {
        Some(max) => format!("{} to {max} pages of 64 KiB", memory.min),
        None => format!("{} pages of 64 KiB and more", memory.min),
    });
    let memories: Vec<String> = memories.collect();
    if !memories.is_empty() {
        table.row(["memory", &*memories.join(", ")]);
    }
    let globals = format!(
        "{}, {} of them mutable",
        about.globals, about.mutable_globals
    );
    table.row(["globals", &*globals]);
    for producer in &about.producers {
        let made = format!("{} {}", producer.name, producer.version);
        table.row([&*producer.field, made.trim()]);
    }
    let mut text = table.fit(usize::MAX);
    for (head, items) in [("imports", &about.imports), ("exports", &about.exports)] {
        if items.is_empty() {
            continue;
        }
        text.push_str(&format!("{head}\n"));
        for item in items {
            let from = item
                .module
                .as_ref()
                .map_or_else(String::new, |of| format!("{of}."));
            let of_type = match item.type_text.as_str() {
                function if function.starts_with('(') => function.to_owned(),
                other => format!(": {other}"),
            };
            text.push_str(&format!(
                "  {}{}{}\n",
                clean(&from),
                clean(&item.name),
                clean(&of_type)
            ));
        }
    }
    let more = (about.exports_total as usize).saturating_sub(about.exports.len());
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

/// `sandbox create`.
pub fn sandbox(sandbox: &api::Sandbox) -> String {
    format!(
        "{} runs {} on {}\n",
        clean(&sandbox.id),
        clean(&sandbox.about.module),
        clean(&sandbox.node)
    )
}

/// `sandbox list`.
pub fn sandboxes(sandboxes: &api::Listing<api::ListedSandbox>, columns: usize) -> String {
    let mut text = if sandboxes.items.is_empty() {
        "No sandbox. Make one: understudy sandbox create NAME --module NAME@VERSION\n".into()
    } else {
        let mut table = Table::under(&["SANDBOX", "TENANT", "NODE", "RECORD"]);
        for sandbox in &sandboxes.items {
            let record = sandbox.record.to_string();
            table.row([
                sandbox.id.clone(),
                sandbox.tenant.clone(),
                sandbox.node.clone(),
                record,
            ]);
        }
        table.fit(columns)
    };
    text.push_str(&silent(&sandboxes.silent));
    text
}

/// One session: `session open`, `session show`.
pub fn session(session: &api::Session) -> String {
    let mut text = format!(
        "{} runs on {} ({}, {})\n",
        clean(&session.id),
        clean(&session.node),
        clean(&session.about.browser),
        match session.about.clients {
            0 => "no client is connected".to_owned(),
            1 => "1 client is connected".to_owned(),
            clients => format!("{clients} clients are connected"),
        }
    );
    for (at, page) in session.about.pages.iter().enumerate() {
        let title = match page.title.is_empty() {
            true => String::new(),
            false => format!("  {}", clean(&page.title)),
        };
        text.push_str(&format!("  page {at}: {}{title}\n", clean(&page.url)));
    }
    text.push_str(&format!(
        "Connect to: {}\n  with the header `Authorization: Bearer TOKEN`, or `&token=TOKEN` behind it\n",
        clean(&session.cdp)
    ));
    text
}

/// `session list`.
pub fn sessions(sessions: &api::Listing<api::ListedSession>, columns: usize) -> String {
    if sessions.items.is_empty() {
        return "No session. Open one: understudy session open https://example.net --id NAME\n"
            .into();
    }
    let mut table = Table::under(&["SESSION", "TENANT", "NODE", "EPOCH", "STATE"]);
    for session in &sessions.items {
        table.row([
            session.id.clone(),
            session.tenant.clone(),
            session.node.clone().unwrap_or_else(|| "-".to_owned()),
            session.epoch.to_string(),
            if session.serving {
                "serving"
            } else {
                "starting"
            }
            .to_owned(),
        ]);
    }
    table.fit(columns)
}

/// The numbers that an export gave: a line, so that a shell reads them; an empty one when there are none.
pub fn results(results: &[serde_json::Value]) -> String {
    let texts = results.iter().map(|result| match result {
        serde_json::Value::String(word) => word.clone(),
        number => number.to_string(),
    });
    let texts: Vec<String> = texts.collect();
    match texts.is_empty() {
        true => String::new(),
        false => format!("{}\n", texts.join(" ")),
    }
}

/// What a guest wrote, for standard error.
pub fn guest_log(log: &str) -> String {
    let lines = log
        .lines()
        .map(|line| format!("it wrote: {}\n", clean(line)));
    lines.collect()
}

/// How far a push is, on a line that the next one takes the place of.
pub fn progress(sent: u64, bytes: u64) -> String {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let percent = sent.min(bytes) * 100 / bytes.max(1);
    format!(
        "\r{percent:>3} %  {:.1} of {:.1} MiB",
        mebibytes(sent),
        mebibytes(bytes)
    )
}

/// Takes a line of progress away.
pub const NO_PROGRESS: &str = "\r\x1b[K";

fn silent(nodes: &[String]) -> String {
    match nodes.is_empty() {
        true => String::new(),
        false => format!(
            "{} did not answer: what it owns is not listed\n",
            nodes.join(", ")
        ),
    }
}

/// `unit list`.
pub fn units(units: &[api::Unit], columns: usize) -> String {
    if units.is_empty() {
        return "No such unit. Without filters: understudy unit list\n".to_owned();
    }
    let mut table = Table::under(&["UNIT", "SCOPE", "STATE", "OWNER", "EPOCH", "COPIES", "ON"]);
    for unit in units {
        table.row([
            unit.id.clone(),
            unit.scope.clone(),
            state(unit),
            or_dash(&unit.owner).to_owned(),
            unit.epoch.to_string(),
            copies(unit),
            on(unit),
        ]);
    }
    table.fit(columns)
}

/// One unit after a change.
pub fn unit(unit: &api::Unit) -> String {
    format!(
        "{} ({}) is {}{}\n",
        unit.id,
        unit.scope,
        state(unit),
        unit.owner
            .as_ref()
            .map_or_else(String::new, |owner| format!(" on {owner}"))
    )
}

/// One node after a change.
pub fn drained(node: &api::Node) -> String {
    match (node.draining, node.units) {
        (true, 0) => format!("{} owns nothing and takes nothing: stop it\n", node.name),
        (true, units) => format!("{} drains; it still owns {units} units\n", node.name),
        (false, _) => format!("{} takes units again\n", node.name),
    }
}

/// `unit explain`: a sentence a line, none cut.
pub fn explained(explained: &api::Explained) -> String {
    let mut text = String::new();
    let verdicts = explained.nodes.len();
    let (general, nodes) = explained
        .sentences
        .split_at(explained.sentences.len().saturating_sub(verdicts));
    for sentence in general {
        text.push_str(&clean(sentence));
        text.push('\n');
    }
    for (sentence, verdict) in nodes.iter().zip(&explained.nodes) {
        let mark = if verdict.chosen { "*" } else { "-" };
        text.push_str(&format!("  {mark} {}\n", clean(sentence)));
    }
    text
}

/// `tree`: a line a unit or supervisor; shards that do the same are one line unless `all`.
pub fn tree(root: &api::Supervisor, all: bool, columns: usize) -> String {
    let mut table = Table::bare();
    table.row(supervisor_row(String::new(), root));
    branch(&mut table, root, "", all);
    table.fit(columns)
}

/// One event, a line.
pub fn event(event: &api::Event, columns: usize) -> String {
    let time = event.time.get(11..23).unwrap_or(&event.time);
    let unit = match (&event.unit, event.epoch) {
        (Some(unit), Some(epoch)) => format!(" {unit} e{epoch}"),
        (Some(unit), None) => format!(" {unit}"),
        _ => String::new(),
    };
    let node = event
        .node
        .as_ref()
        .map_or_else(String::new, |node| format!(" {node}"));
    let line = format!("{time}{node}{unit} {}: {}", event.kind, event.text);
    format!("{}\n", cut(&clean(&line), columns))
}

fn branch(table: &mut Table, supervisor: &api::Supervisor, before: &str, all: bool) {
    let groups = grouped(&supervisor.children, all);
    for (nth, group) in groups.iter().enumerate() {
        let is_last = nth + 1 == groups.len() && supervisor.more == 0;
        let (joint, below) = if is_last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let joint = format!("{before}{joint}");
        match group {
            Group::Supervisor(of) => {
                table.row(supervisor_row(joint, of));
                branch(table, of, &format!("{before}{below}"), all);
            }
            Group::Units(units) => table.row(match units.as_slice() {
                [one] => unit_row(joint, one),
                many => shards_row(joint, many),
            }),
        }
    }
    if supervisor.more > 0 {
        table.row([format!("{before}└─ and {} more", supervisor.more)]);
    }
}

/// What is on one line.
enum Group<'a> {
    Supervisor(&'a api::Supervisor),
    /// Shards that do the same in the same place, or one unit.
    Units(Vec<&'a api::Unit>),
}

/// Children as they are shown, in the order in which the first of each group starts.
fn grouped(children: &[api::Child], all: bool) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for child in children {
        let unit = match child {
            api::Child::Supervisor(of) => {
                groups.push(Group::Supervisor(of));
                continue;
            }
            api::Child::Unit(unit) => unit,
        };
        let like = |group: &&mut Group<'_>| match group {
            Group::Units(units) => units.first().is_some_and(|first| alike(first, unit)),
            Group::Supervisor(_) => false,
        };
        match groups.iter_mut().filter(|_| !all).find(like) {
            Some(Group::Units(units)) => units.push(unit),
            _ => groups.push(Group::Units(vec![unit])),
        }
    }
    groups
}

fn alike(a: &api::Unit, b: &api::Unit) -> bool {
    let of = |unit: &api::Unit| (unit.slots.is_some(), unit.strikes, copies(unit));
    a.slots.is_some() && of(a) == of(b) && state(a) == state(b) && a.owner == b.owner
}

fn shards_row(before: String, shards: &[&api::Unit]) -> [String; 5] {
    let slots: Vec<api::Slots> = shards.iter().filter_map(|unit| unit.slots).collect();
    let in_a_row = slots.windows(2).all(|two| two[0].end == two[1].start);
    let which = match (slots.first(), slots.last()) {
        (Some(first), Some(last)) if in_a_row => {
            format!(
                "slots {}..{} ({} shards)",
                first.start,
                last.end,
                slots.len()
            )
        }
        _ => format!("{} shards", slots.len()),
    };
    let [_, doing, owner, _, copies] = unit_row(String::new(), shards[0]);
    [
        format!("{before}{which}"),
        doing,
        owner,
        String::new(),
        copies,
    ]
}

fn unit_row(before: String, unit: &api::Unit) -> [String; 5] {
    let mut doing = state(unit);
    if unit.strikes > 0 && !unit.quarantined {
        doing.push_str(&format!(", {} strikes", unit.strikes));
    }
    [
        format!("{before}{}", unit.scope),
        doing,
        or_dash(&unit.owner).to_owned(),
        unit.id.clone(),
        copies(unit),
    ]
}

fn supervisor_row(before: String, of: &api::Supervisor) -> [String; 5] {
    let mut doing = String::new();
    if of.down {
        doing = "down".to_owned();
    } else if of.restarts > 0 && of.restarts_max < u16::MAX {
        doing = format!(
            "{} of {} restarts in {}",
            of.restarts, of.restarts_max, of.window
        );
    }
    [
        format!("{before}{} {}", of.id, of.strategy),
        doing,
        String::new(),
        String::new(),
        String::new(),
    ]
}

fn state(unit: &api::Unit) -> String {
    match &unit.move_to {
        Some(to) => format!("{} to {to}", unit.state),
        None => unit.state.clone(),
    }
}

fn copies(unit: &api::Unit) -> String {
    format!("{}/{} live", unit.replicas_live, unit.replicas.len())
}

fn on(unit: &api::Unit) -> String {
    let names: Vec<&str> = unit
        .replicas
        .iter()
        .map(|replica| or_dash(&replica.node))
        .collect();
    names.join(",")
}

fn or_dash(node: &Option<String>) -> &str {
    node.as_deref().unwrap_or("-")
}

fn or_nobody(names: &str) -> &str {
    if names.is_empty() { "nobody" } else { names }
}

/// What comes from elsewhere must not move the cursor.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
