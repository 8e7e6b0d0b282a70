//! What is remembered of the incumbent.

use crate::topology::Answer;

/// So many replids of the incumbent are remembered.
const MAX_REPLIDS: usize = 16;

/// What is remembered of the backend that was served last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its place in the pool.
    pub place: usize,
    /// Its process.
    pub run_id: String,
    /// Every replid that it showed while it was served, the latest last: a replid changes without
    /// a failover when the first replica attaches.
    pub replids: Vec<String>,
    /// The replid2s that it showed: the masters from which it descends.
    pub ancestors: Vec<String>,
    /// The Sentinels' config-epoch at that time, if they were heard.
    pub epoch: Option<u64>,
    /// Masters that were seen beside it and not served, by place and replid: when it stutters, they
    /// are no more its heirs than before.
    pub strays: Vec<(usize, String)>,
}

impl Memory {
    pub(super) fn remember(&mut self, answer: &Answer) {
        let keep = |list: &mut Vec<String>, id: &String| {
            if list.last() != Some(id) {
                list.retain(|known| known != id);
                list.push(id.clone());
                let surplus = list.len().saturating_sub(MAX_REPLIDS);
                list.drain(..surplus);
            }
        };
        keep(&mut self.replids, &answer.replid);
        if let Some(id) = &answer.replid2 {
            keep(&mut self.ancestors, id);
        }
    }

    pub(super) fn remember_stray(&mut self, place: usize, replid: &str) {
        if !self.strays.iter().any(|(at, id)| *at == place && id == replid) {
            self.strays.push((place, replid.to_owned()));
            let surplus = self.strays.len().saturating_sub(MAX_REPLIDS);
            self.strays.drain(..surplus);
        }
    }

    /// Whether the answer shows a replid of the incumbent, or that it goes on from one.
    pub(super) fn knows(&self, answer: &Answer) -> bool {
        self.replids.contains(&answer.replid)
            || answer.replid2.as_ref().is_some_and(|id| self.replids.contains(id))
    }
}
