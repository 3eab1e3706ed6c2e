//! The commands of a pipeline that are sent now, in one part for each node.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::{SplitPipeline, State, Target};
use crate::command::Effect;
use crate::redirect::Routing;
use crate::slot::{KeySet, Slot};

/// The commands of a slot that come before another one and are to be sent too, by the part that
/// they are in; `None` for what may still wait when that is sent.
type Before = BTreeMap<Option<usize>, Vec<(KeySet, Effect)>>;

/// The commands for one node, in their order.
#[derive(Clone)]
pub struct NodePart<N> {
    /// The node, as the sender names it.
    pub node: N,
    /// Each of the commands has to be preceded by an ASKING of its own.
    pub asking: bool,
    /// Whether these are all commands of the pipeline and as they were, so that it can be sent
    /// itself.
    pub is_whole: bool,
    units: Vec<usize>,
}

impl<N> NodePart<N> {
    /// Returns the numbers of the commands, for [`SplitPipeline::record`] and
    /// [`SplitPipeline::portions`].
    pub fn units(&self) -> &[usize] {
        &self.units
    }
}

impl<N: fmt::Debug> fmt::Debug for NodePart<N> {
    /// Only how many commands: their arguments may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePart")
            .field("node", &self.node)
            .field("asking", &self.asking)
            .field("units", &self.units)
            .finish_non_exhaustive()
    }
}

impl<'a, E> SplitPipeline<'a, E> {
    /// Takes what is to be sent now, in one part for each node that `node_of` names. Parts may be
    /// sent at once; commands of one key are in one part, in their order, as long as `node_of`
    /// names one node for a slot.
    ///
    /// What is asked of a node in answer to ASK is a part of its own, because ASKING holds for one
    /// command. Of one slot no command is in an earlier part than the command before it: parts that
    /// are submitted in their order keep that of each key.
    ///
    /// What would be sent to another node than an earlier command of its key, or beside one that
    /// was answered TRYAGAIN, is held back and waits as before, or it could run first.
    pub fn to_send<N: Eq>(&mut self, mut node_of: impl FnMut(Target<'_>) -> N) -> Vec<NodePart<N>> {
        let mut parts: Vec<NodePart<N>> = Vec::new();
        // Before the first redirect one slot has one node, and so one part.
        let redirected = self.units.iter().any(|unit| unit.redirect.is_some());
        let mut by_slot: HashMap<Slot, (usize, Before)> = HashMap::new();
        for unit in &mut self.units {
            if !matches!(unit.state, State::Waiting) {
                continue;
            }
            let node = node_of(unit.target());
            let of_slot = unit.slot.filter(|_| redirected);
            let mut of_slot = of_slot.map(|slot| by_slot.entry(slot).or_default());
            if let Some((_, before)) = &mut of_slot {
                let elsewhere = |at: &Option<usize>| at.is_none_or(|at| parts[at].node != node);
                let mut before_it = before.iter().filter(|(at, _)| elsewhere(at));
                if before_it.any(|(_, ones)| ones.iter().any(|one| unit.follows(one))) {
                    // What it was answered is old by the time that it is sent.
                    unit.redirect = None;
                    let held = before.entry(None).or_default();
                    held.push((unit.keys.clone(), unit.effect));
                    continue;
                }
            }
            let asking = matches!(unit.redirect, Some(Routing::Ask(_)));
            let least = of_slot.as_ref().map(|(least, _)| *least);
            let is_it = |part: &NodePart<N>| part.asking == asking && part.node == node;
            let found = parts.iter().rposition(is_it);
            let at = match found.filter(|at| Some(*at) >= least) {
                Some(at) => at,
                None => {
                    parts.push(NodePart {
                        node,
                        asking,
                        is_whole: false,
                        units: Vec::new(),
                    });
                    parts.len() - 1
                }
            };
            if let Some((least, before)) = of_slot {
                *least = at;
                let waits = matches!(unit.redirect, Some(Routing::TryAgain));
                let beside = before.entry((!waits).then_some(at)).or_default();
                beside.push((unit.keys.clone(), unit.effect));
            }
            parts[at].units.push(unit.number);
            unit.state = State::Sent;
            unit.ends_here = false;
        }
        if let [only] = &mut parts[..] {
            let all = only.units.len() == self.entries.len();
            only.is_whole = all && self.entries.iter().all(|entry| entry.divided.is_none());
        }
        parts
    }
}
