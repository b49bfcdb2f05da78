//! Filling a cache from text that is known already: a chain of rows a text, and no scores.
//!
//! Sessions fill the large model's cache with it and draft models their own. Some hundred rows at a time: enough for a
//! forward pass to be worth its weights, few enough for a cancel to be heard in between.

use trefoil_models::{BranchId, CausalLm, Draft, Kv, RowId, Token};

use crate::error::Result;

/// Rows of one pass, at most.
const ROWS: usize = 256;

/// Hangs `tokens` into the draft as a chain of its own, and gives its rows from the root down.
pub(crate) fn chain(draft: &mut Draft, branch: BranchId, tokens: &[Token]) -> Vec<RowId> {
    let mut path: Vec<RowId> = Vec::with_capacity(tokens.len());
    for &token in tokens {
        path.push(match path.last() {
            None => draft.root(branch, token),
            Some(&above) => draft.child(above, token),
        });
    }
    path
}

/// Caches what comes next of `texts`, in one forward pass: for each the branch and all tokens it is to hold. Gives the
/// places of the texts that moved on: none where every token is cached already, and no pass was made.
///
/// # Errors
/// Fails where the model or the cache does.
pub fn fill(
    model: &dyn CausalLm,
    kv: &mut Kv,
    draft: &mut Draft,
    texts: &[(BranchId, &[Token])],
) -> Result<Vec<usize>> {
    draft.clear();
    let mut filled = Vec::new();
    for (place, &(branch, tokens)) in texts.iter().enumerate() {
        let missing = tokens.get(kv.len(branch)?..).unwrap_or_default();
        let room = ROWS - draft.len();
        let path = chain(draft, branch, &missing[..missing.len().min(room)]);
        if !path.is_empty() {
            filled.push((place, path));
        }
    }
    if filled.is_empty() {
        return Ok(Vec::new());
    }
    model.score(draft, kv)?;
    for (place, path) in &filled {
        kv.commit(texts[*place].0, path)?;
    }
    Ok(filled.into_iter().map(|(place, _)| place).collect())
}
