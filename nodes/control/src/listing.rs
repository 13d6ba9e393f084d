//! Which children there are: every node says which have records in the units that it owns.
//!
//! Owns: the question, a node's answer, and how the answers of all become one page. Keeps no list of
//! its own, so there is none that could be wrong: what is listed is what the owners would start.

use serde::{Deserialize, Serialize};

use understudy_protocol::cluster::agent::Agent;
use understudy_protocol::cluster::replication::Phase;
use understudy_protocol::id::{ChildId, NodeId, Seq};

/// Which children to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildrenOf {
    /// Those of this tenant alone.
    pub tenant: Option<String>,
    /// Those of this kind alone.
    pub kind: Option<String>,
    /// Those whose id comes after this one.
    pub after: Option<String>,
    /// So many at most; [`LISTED_MAX`] if it is more.
    pub limit: usize,
}

/// A child that has records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub child: ChildId,
    /// Its last record.
    pub seq: Seq,
    /// Who owns it.
    pub node: NodeId,
}

/// A page of children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// In the order of their ids.
    pub items: Vec<Listed>,
    /// There are more after these.
    pub more: bool,
    /// Nodes that are live and did not answer in time: their children are not here.
    pub silent: Vec<NodeId>,
}

/// What one node says: ids and last records.
type Said = Vec<(String, u64)>;

impl ChildrenOf {
    fn limit(&self) -> usize {
        self.limit.clamp(1, LISTED_MAX)
    }

    fn holds(&self, child: &ChildId) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.tenant, child.tenant()) && is(&self.kind, child.kind())
    }

    /// What this node has, in order; one more than the limit when there are more.
    pub(crate) fn here(&self, agent: &Agent) -> Vec<(ChildId, Seq)> {
        let after = self.after.as_deref().and_then(|id| ChildId::parse(id).ok());
        let owners = agent.owners().values();
        let serving = owners.filter(|owner| matches!(owner.phase(), Phase::Serving | Phase::Quiet));
        let mut found: Vec<(ChildId, Seq)> = serving
            .flat_map(|owner| {
                let children = owner.children(after.as_ref());
                let wanted = children.filter(|(child, _)| self.holds(child));
                wanted.take(self.limit() + 1)
            })
            .map(|(child, seq)| (child.clone(), seq))
            .collect();
        found.sort();
        found.truncate(self.limit() + 1);
        found
    }
}

/// The body of an answer.
pub(crate) fn encode(found: Vec<(ChildId, Seq)>) -> Vec<u8> {
    let said: Said = found
        .into_iter()
        .map(|(child, seq)| (child.to_string(), seq.0))
        .collect();
    // Plain texts and numbers into memory.
    postcard::to_stdvec(&said).unwrap_or_default()
}

/// Reads an answer; nothing that a peer says is taken on trust.
pub(crate) fn decode(body: &[u8]) -> Option<Vec<(ChildId, Seq)>> {
    let said: Said = postcard::from_bytes(body).ok()?;
    let read = |(id, seq): (String, u64)| Some((ChildId::parse(&id).ok()?, Seq(seq)));
    (said.len() <= LISTED_MAX + 1)
        .then(|| said.into_iter().map(read).collect())
        .flatten()
}

impl Children {
    /// The page that several nodes' answers make. A child that two claim is on the move: its later
    /// record counts.
    pub(crate) fn page(
        of: &ChildrenOf,
        said: Vec<(NodeId, Vec<(ChildId, Seq)>)>,
        silent: Vec<NodeId>,
    ) -> Children {
        let mut items: Vec<Listed> = said
            .into_iter()
            .flat_map(|(node, found)| {
                let listed = move |(child, seq)| Listed { child, seq, node };
                found.into_iter().map(listed)
            })
            .collect();
        items.sort_by(|a, b| (&a.child, b.seq).cmp(&(&b.child, a.seq)));
        items.dedup_by(|later, kept| later.child == kept.child);
        let more = items.len() > of.limit();
        items.truncate(of.limit());
        Children {
            items,
            more,
            silent,
        }
    }
}

/// Children on one page: some tens of kilobytes.
pub const LISTED_MAX: usize = 1_000;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found(ids: &[(&str, u64)]) -> Vec<(ChildId, Seq)> {
        let read = |(id, seq): &(&str, u64)| (ChildId::parse(id).unwrap(), Seq(*seq));
        ids.iter().map(read).collect()
    }

    #[test]
    fn a_page_is_in_order_and_says_whether_there_are_more() {
        let of = ChildrenOf {
            limit: 2,
            ..ChildrenOf::default()
        };
        let (a, b) = (NodeId(1), NodeId(2));
        let said = vec![
            (a, found(&[("t/k/b", 3), ("t/k/d", 1)])),
            (b, found(&[("t/k/a", 1), ("t/k/b", 4)])),
        ];
        let page = Children::page(&of, said, vec![NodeId(3)]);
        let shown: Vec<_> = page
            .items
            .iter()
            .map(|listed| (listed.child.to_string(), listed.seq.0, listed.node))
            .collect();
        assert_eq!(shown, [("t/k/a".into(), 1, b), ("t/k/b".into(), 4, b)]);
        assert!(page.more);
        assert_eq!(page.silent, [NodeId(3)]);
    }

    #[test]
    fn an_answer_reads_back_and_what_is_none_is_refused() {
        let all = found(&[("t/k/a", 1), ("@t/k/b", 2)]);
        assert_eq!(decode(&encode(all.clone())), Some(all));
        assert_eq!(decode(b"\xff\xff\xff\xff\xff"), None);
        let no_id = postcard::to_stdvec(&vec![("no id".to_owned(), 1_u64)]).unwrap();
        assert_eq!(decode(&no_id), None);
    }
}
