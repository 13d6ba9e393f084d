//! What people write for a span, a node or a unit, read once.
//!
//! Owns: the spellings. Never guesses: a text that could mean two things is refused.

use std::time::Duration;

use understudy_control::handle::View;
use understudy_protocol::id::{ChildId, NodeId, UnitId};

use crate::problem::{Kind, Problem};

/// Reads a span: a whole number and `ms`, `s` or `m`.
pub fn span(text: &str) -> Result<Duration, Problem> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse::<u64>().ok();
    let millis = number.and_then(|number| match &text[digits.len()..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        _ => None,
    });
    millis.map(Duration::from_millis).ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            format!("`{}` is no span of time", shown(text)),
        )
        .hint("write a whole number and its unit: `250ms`, `5s`, `2m`")
    })
}

/// Writes a span so that [`span`] reads it.
pub fn span_text(span: Duration) -> String {
    let millis = span.as_millis();
    if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{millis}ms")
    }
}

/// Finds a node by its name or its id.
pub fn node(view: &View, text: &str) -> Result<NodeId, Problem> {
    let nodes = view.directory.nodes();
    let mut named = nodes.iter().filter(|(_, node)| node.name == text);
    match (named.next(), named.next()) {
        (Some((id, _)), None) => return Ok(*id),
        (Some((one, _)), Some((other, _))) => {
            return Err(Problem::new(
                Kind::Conflict,
                format!("`{text}` is the name of more than one node"),
            )
            .hint(format!("write its id: `{one}` or `{other}`")));
        }
        _ => {}
    }
    let id = text
        .strip_prefix("node-")
        .or_else(|| (text.len() == 16).then_some(text))
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .map(NodeId)
        .filter(|id| nodes.contains_key(id));
    id.ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            format!("there is no node `{}`", shown(text)),
        )
        .hint("`understudy node list` lists them")
    })
}

/// Finds a unit by its id, or by a child that it owns.
pub fn unit(view: &View, text: &str) -> Result<UnitId, Problem> {
    let found = if text.contains('/') {
        view.directory.unit_of(&child(text)?)
    } else {
        let hex = text.strip_prefix("unit-").unwrap_or(text);
        let id = u64::from_str_radix(hex, 16).ok().map(UnitId);
        id.filter(|id| view.directory.unit(*id).is_some())
    };
    found.ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            format!("there is no unit `{}`", shown(text)),
        )
        .hint("`understudy unit list` lists them; a child is written `tenant/kind/key`")
    })
}

/// Reads a child's id.
pub fn child(text: &str) -> Result<ChildId, Problem> {
    ChildId::parse(text).map_err(|error| {
        Problem::new(
            Kind::Invalid,
            format!("`{}` is no child: {error}", shown(text)),
        )
        .hint("write `tenant/kind/key`, or `@tenant/kind/key` for a dedicated one")
    })
}

/// The id of a light child, out of names that come one by one: none of them may reach into the next.
pub fn light(tenant: &str, kind: &str, key: &str) -> Result<ChildId, Problem> {
    let child = child(&format!("{tenant}/{kind}/{key}"))?;
    let parts = (child.tenant(), child.kind(), child.key());
    if parts == (tenant, kind, key) && !child.is_dedicated() {
        return Ok(child);
    }
    Err(Problem::new(
        Kind::Invalid,
        format!("`{}` is no name of a tenant", shown(tenant)),
    )
    .hint("a tenant's name has no `/` and begins with no `@`, as in `default`"))
}

/// Whose a module or a sandbox is, unless somebody says.
pub const TENANT: &str = "default";

/// What an answer repeats of a request: enough to see the mistake.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// A little more than any name that is right.
const SHOWN_MAX: usize = 200;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_unit() {
        for (text, millis) in [
            ("250ms", Some(250)),
            ("5s", Some(5_000)),
            ("2m", Some(120_000)),
            ("0s", Some(0)),
            ("5", None),
            ("s", None),
            ("", None),
            ("-5s", None),
            ("1.5s", None),
            ("5 s", None),
            ("5h", None),
            ("18446744073709551615m", None),
            ("5é", None),
        ] {
            let read = span(text).ok();
            assert_eq!(read, millis.map(Duration::from_millis), "{text:?}");
            if let Some(read) = read {
                assert_eq!(span(&span_text(read)).unwrap(), read);
            }
        }
    }

    #[test]
    fn a_tenant_cannot_name_another_kind() {
        assert!(light("acme", "sandbox", "a/b").is_ok());
        for (tenant, key) in [
            ("acme/counter", "a"),
            ("@acme", "a"),
            ("", "a"),
            ("acme", ""),
        ] {
            let refused = light(tenant, "sandbox", key).unwrap_err();
            assert_eq!(refused.kind, Kind::Invalid, "{tenant:?} {key:?}");
        }
    }

    #[test]
    fn an_answer_repeats_only_so_much_of_a_request() {
        let problem = span(&"x".repeat(10_000)).unwrap_err();
        assert!(problem.detail.len() < 300, "{}", problem.detail);
    }
}
