//! One step on several workers: each scores a part of the draft's rows, and none waits for another before the end.
//!
//! A shard holds the ancestors of all its rows, so that a worker needs nothing of the others; ancestors that shards have
//! in common are computed by each, which costs less than to pass them around within a pass. Rows are exact whatever they
//! share a step with, so the scores are bit for bit those of one worker.
//!
//! A worker is the model again: on threads of its own, over the same weights and the same pages; or on a device of its
//! own, with its own weights and pages, and then what it alone has computed goes to the others when a path is committed.
//! A draft that can't be cut is scored by all devices, whole: that takes as long as on one, and leaves nothing to pass
//! on. Prompts, all of whose rows will be kept, are filled like that, and documents are encoded like that.
//!
//! # Source
//! Fu et al. 2024 (arXiv 2402.02057), section 3.4, "lookahead parallelism". There window and guesses are dealt out by
//! hand; here any forest is cut at its leaves, so that every decoding, and many branches at once, can be shared out.

use std::sync::Arc;

use crate::draft::{Draft, RowId, Token};
use crate::error::{Error, Result};
use crate::kv::{CrossKv, Kv, KvShape};
use crate::model::{CausalLm, Seq2SeqLm};
use crate::scores::Scores;
use crate::staged::Staged;

/// A model whose steps are shared out over workers.
pub struct Sharded {
    /// Each device's model on all its threads.
    whole: Vec<Arc<dyn CausalLm>>,
    workers: Vec<Arc<dyn CausalLm>>,
    /// Rows that a draft has to have for each worker that takes part.
    least: usize,
}

impl Sharded {
    /// Shares the drafts of `whole` out over `workers`, which are the same model on threads of their own. A draft that
    /// can't be cut, such as a prompt's chain, stays with `whole`, which may use all threads.
    pub fn new(whole: Arc<dyn CausalLm>, workers: Vec<Arc<dyn CausalLm>>) -> Self {
        Self { whole: vec![whole], workers, least: 1 }
    }

    /// Shares drafts out over devices: the same model on each, in the order of their ranks, at least one. The cache has
    /// to be one of all these devices.
    ///
    /// * `least`: rows, at least one, that a device scores in about the time of one: a draft is cut for as many devices
    ///   as it has so many rows for, since fewer rows would save nothing and what is kept has to be exchanged
    pub fn over(devices: Vec<Arc<dyn CausalLm>>, least: usize) -> Self {
        Self { whole: devices.clone(), workers: devices, least }
    }
}

impl CausalLm for Sharded {
    fn kv_shape(&self) -> KvShape {
        self.whole[0].kv_shape()
    }

    fn vocabulary(&self) -> usize {
        self.whole[0].vocabulary()
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        let fills = draft.rows().iter().all(|row| !row.scored);
        let most = (draft.len() / self.least).clamp(1, self.workers.len());
        let mut shards = if fills { Vec::new() } else { cut(draft, most) };
        let workers = if shards.len() > 1 {
            &self.workers
        } else {
            // The first scores, where there is something to score, and the others have nothing left to.
            shards.resize_with(self.whole.len(), || Shard::whole(draft));
            &self.whole
        };
        let pairs: Vec<_> = shards.iter().zip(workers).collect();
        let results = at_once(&pairs, |(shard, worker)| worker.forward(&shard.draft, kv))?;
        let mut scores = Scores::none(draft, self.vocabulary());
        let mut staged = Staged::default();
        for (shard, (theirs, rows)) in shards.iter().zip(results) {
            scores.join(&shard.rows, theirs);
            staged.join(&shard.rows, rows);
        }
        Ok((scores, staged))
    }
}

/// Encodes `source` on all devices that the model is on, in the order of their ranks: each has the whole document.
///
/// # Errors
/// As [`Seq2SeqLm::encode`].
pub fn encode<M: Seq2SeqLm>(devices: &[Arc<M>], source: &[Token]) -> Result<Arc<CrossKv>> {
    Ok(CrossKv::join(&at_once(devices, |model| model.encode(source))?).into())
}

/// Does `work` for all items at the same time, the first on this thread.
fn at_once<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    let Some((first, others)) = items.split_first() else { return Ok(Vec::new()) };
    std::thread::scope(|scope| {
        let running: Vec<_> = others.iter().map(|item| scope.spawn(|| work(item))).collect();
        let own = work(first);
        let ended = running.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::internal("a worker ended unexpectedly")))
        });
        std::iter::once(own).chain(ended).collect()
    })
}

/// A part of a draft, closed under ancestors.
struct Shard {
    draft: Draft,
    /// The whole draft's row for each row of this one, ascending.
    rows: Vec<RowId>,
}

/// Cuts a draft into at most `most` shards, of which the largest is as small as leaves in draft order allow; into one
/// where that would not be clearly less than the draft.
fn cut(draft: &Draft, most: usize) -> Vec<Shard> {
    let leaves = leaves(draft);
    let (mut least, mut enough) = (1, draft.len());
    while least < enough {
        let rows = least.midpoint(enough);
        match pack(draft, &leaves, rows).filter(|shards| shards.len() <= most) {
            Some(_) => enough = rows,
            None => least = rows + 1,
        }
    }
    if 4 * least > 3 * draft.len() {
        least = draft.len();
    }
    let groups = pack(draft, &leaves, least).unwrap_or_default();
    let mut scored = vec![false; draft.len()];
    groups.into_iter().map(|rows| Shard::new(draft, rows, &mut scored)).collect()
}

/// The rows that no other hangs under.
fn leaves(draft: &Draft) -> Vec<RowId> {
    let mut inner = vec![false; draft.len()];
    for parent in draft.rows().iter().filter_map(|row| row.parent) {
        inner[parent.index()] = true;
    }
    (0..draft.len()).filter(|&row| !inner[row]).map(|row| RowId(row as u32)).collect()
}

/// Packs leaves, in order and with their ancestors, into groups of at most `most` rows; none where a path is longer.
fn pack(draft: &Draft, leaves: &[RowId], most: usize) -> Option<Vec<Vec<RowId>>> {
    let mut groups: Vec<Vec<RowId>> = Vec::new();
    // The group, counted from 1, that has each row; of several the last.
    let mut home = vec![0; draft.len()];
    for &leaf in leaves {
        let missing = |home: &[usize], group: usize| {
            let mut next = Some(leaf);
            std::iter::from_fn(move || {
                let row = next.filter(|row| home[row.index()] != group)?;
                next = draft.row(row).parent;
                Some(row)
            })
            .collect::<Vec<_>>()
        };
        let mut path = missing(&home, groups.len());
        if groups.last().is_none_or(|group| group.len() + path.len() > most) {
            groups.push(Vec::new());
            path = missing(&home, groups.len());
        }
        if path.len() > most {
            return None;
        }
        let group = groups.len();
        for row in &path {
            home[row.index()] = group;
        }
        groups.last_mut()?.append(&mut path);
    }
    Some(groups)
}

impl Shard {
    /// All rows, without scores.
    fn whole(draft: &Draft) -> Self {
        let rows = (0..draft.len() as u32).map(RowId).collect();
        Self::new(draft, rows, &mut vec![true; draft.len()])
    }

    /// The shard of these rows. It asks for the scores that the draft asks for and that no earlier shard has `scored`.
    fn new(draft: &Draft, mut rows: Vec<RowId>, scored: &mut [bool]) -> Self {
        rows.sort_unstable();
        let mut part = Draft::new();
        for &row in &rows {
            let entry = draft.row(row);
            // Ancestors are in the shard and come before their children.
            let parent = entry.parent.and_then(|parent| rows.binary_search(&parent).ok());
            let here = match parent {
                Some(parent) => part.child(RowId(parent as u32), entry.token),
                None => part.root(entry.branch, entry.token),
            };
            if entry.scored && !std::mem::replace(&mut scored[row.index()], true) {
                part.score(here);
                entry.asked.iter().for_each(|&token| part.ask(here, token));
                entry.drawn.iter().for_each(|&draw| part.draw(here, draw));
                if entry.ranked {
                    part.rank(here);
                }
            }
        }
        part.repeat_as(draft);
        Self { draft: part, rows }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use trefoil_kernels::{CacheType, Devices, Kernels};

    use super::*;
    use crate::draft::{BranchId, Draw, Row};

    /// A comb of `columns` × `levels`, as a lookahead window is, with `guesses` chains under the root.
    fn lookahead(columns: usize, levels: usize, guesses: usize) -> Draft {
        let mut draft = Draft::new();
        let root = draft.root(BranchId::default(), 0);
        let mut level = vec![root];
        for _ in 1..columns {
            level.push(draft.child(level[level.len() - 1], 1));
        }
        for _ in 1..levels {
            level = level.iter().map(|&above| draft.child(above, 2)).collect();
        }
        for guess in 0..guesses {
            (0..levels).fold(root, |row, _| draft.child(row, 3 + guess as u32));
        }
        (0..draft.len() as u32).filter(|row| row % 3 != 1).for_each(|row| draft.score(RowId(row)));
        draft
    }

    /// A model that notes how many rows it was given.
    #[derive(Default)]
    struct Noting(Mutex<Vec<usize>>);

    impl CausalLm for Noting {
        fn kv_shape(&self) -> KvShape {
            KvShape { layers: 0, kv_heads: 1, head_dim: 1 }
        }

        fn vocabulary(&self) -> usize {
            1
        }

        fn forward(&self, draft: &Draft, _: &Kv) -> Result<(Scores, Staged)> {
            self.0.lock().unwrap().push(draft.len());
            Ok((Scores::none(draft, 1), Staged::default()))
        }
    }

    #[test]
    fn drafts_are_cut_and_prompts_are_filled_by_all() {
        let devices = [(); 2].map(|()| Arc::new(Noting::default()));
        let model = Sharded::over(devices.iter().map(|device| Arc::clone(device) as _).collect(), 10);
        let kernels = [(); 2].map(|()| Kernels::cpu(1).unwrap());
        let kv = Kv::new(Devices::join(&kernels).unwrap(), model.kv_shape(), CacheType::F32, 1).unwrap();
        let seen = |draft: &Draft| {
            model.forward(draft, &kv).unwrap();
            devices.each_ref().map(|device| device.0.lock().unwrap().pop().unwrap())
        };
        let mut draft = Draft::new();
        for branch in [BranchId::default(); 2] {
            let root = draft.root(branch, 0);
            (0..9).fold(root, |above, token| draft.child(above, token));
        }
        assert_eq!(seen(&draft), [20; 2]);
        draft.score(RowId(19));
        assert_eq!(seen(&draft), [10; 2]);
        let mut few = Draft::new();
        (0..19).for_each(|token| {
            let root = few.root(BranchId::default(), token);
            few.score(root);
        });
        assert_eq!(seen(&few), [19; 2]);
    }

    #[test]
    fn shards_hold_every_row_with_its_ancestors_and_score_it_once() {
        for (columns, levels, guesses) in [(1, 1, 0), (5, 1, 0), (1, 1, 7), (5, 3, 5), (15, 4, 15)] {
            let mut draft = lookahead(columns, levels, guesses);
            draft.repeat(BranchId::default(), [3, 5]);
            for row in (0..draft.len() as u32).map(RowId).filter(|row| row.0 % 2 == 0) {
                draft.ask(row, row.0);
                draft.draw(row, Draw { temperature: 0.5, penalty: row.0 as f32 });
                draft.rank(row);
            }
            for most in 1..6 {
                let shards = cut(&draft, most);
                assert!(!shards.is_empty() && shards.len() <= most);
                let mut scored = vec![0; draft.len()];
                let mut held = vec![false; draft.len()];
                for shard in &shards {
                    assert!(shard.rows.is_sorted());
                    assert_eq!(shard.draft.repeated(BranchId::default()), [3, 5]);
                    for (at, &row) in shard.rows.iter().enumerate() {
                        let (here, whole) = (shard.draft.row(RowId(at as u32)), draft.row(row));
                        assert_eq!((here.token, here.depth), (whole.token, whole.depth));
                        assert_eq!(here.parent.map(|parent| shard.rows[parent.index()]), whole.parent);
                        if here.scored {
                            let wants = |row: &Row| (row.asked, row.drawn, row.ranked);
                            assert_eq!(wants(here), wants(whole));
                        }
                        held[row.index()] = true;
                        scored[row.index()] += usize::from(here.scored);
                    }
                }
                assert!(held.iter().all(|&held| held));
                let wanted: Vec<_> = draft.rows().iter().map(|row| usize::from(row.scored)).collect();
                assert_eq!(scored, wanted);
            }
        }
    }

    #[test]
    fn shards_are_of_about_one_size() {
        let draft = lookahead(15, 4, 15);
        for (most, bound) in [(2, 70), (3, 55), (4, 47)] {
            let sizes: Vec<_> = cut(&draft, most).iter().map(|shard| shard.rows.len()).collect();
            assert_eq!(sizes.len(), most);
            assert!(sizes.iter().all(|&size| size <= bound), "{sizes:?} of {} rows", draft.len());
        }
    }

    #[test]
    fn what_is_mostly_a_chain_stays_whole() {
        let mut draft = lookahead(9, 1, 0);
        assert_eq!(cut(&draft, 4).len(), 1);
        let above = RowId(6);
        draft.child(above, 5);
        assert_eq!(cut(&draft, 4).len(), 1);
    }
}
