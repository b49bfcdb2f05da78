//! Memory, counted before it is taken: what models need on their devices, and how much cache that leaves room for.

use trefoil_models::{CacheType, KvShape, ModelConfig};

use crate::decoding::SCORED_ROWS;
use crate::draft::DraftFiles;
use crate::error::{Error, ErrorKind, Result};
use crate::files::Files;
use crate::options::LoadOptions;
use crate::place::Place;

/// Full contexts that the cache has room for, where memory allows: generations beyond that wait their turn.
const CONTEXTS: usize = 4;

/// What a model takes on its device, in bytes.
#[derive(Clone, Copy)]
struct Need {
    weights: u64,
    /// Logits of a step.
    logits: u64,
    /// What an operation takes for itself.
    scratch: u64,
    /// A page of its cache.
    page: u64,
    /// As many positions of an encoded document, which is kept beside the pages.
    document: u64,
}

impl Need {
    fn new(config: &ModelConfig, shape: KvShape, weights: u64, ty: CacheType, place: &Place) -> Self {
        let encodes = matches!(config, ModelConfig::T5(_));
        Self {
            weights,
            logits: (SCORED_ROWS * config.vocabulary() * size_of::<f32>()) as u64,
            scratch: place.devices.each()[0].scratch() as u64,
            page: shape.page_bytes(ty) as u64,
            document: if encodes { shape.page_bytes(ty) as u64 } else { 0 },
        }
    }

    /// What both take on one device, which runs one operation at a time.
    fn and(self, other: Self) -> Self {
        Self {
            weights: self.weights.saturating_add(other.weights),
            logits: self.logits + other.logits,
            scratch: self.scratch.max(other.scratch),
            page: self.page + other.page,
            document: self.document + other.document,
        }
    }

    /// Pages, and bytes of encoded documents, that `limit` allows beside the weights, a step's logits and scratch: room for
    /// [`CONTEXTS`] full contexts, fewer where memory is short, and never less than one.
    fn within(self, limit: u64, context: usize) -> Result<(u64, u64)> {
        let Self { weights, logits, scratch, page, document } = self;
        // A branch of a document copies the document's last page before it writes there.
        let pages = context.div_ceil(trefoil_kernels::PAGE) as u64 + 1;
        let cache = pages.saturating_mul(page + document);
        let taken = weights.saturating_add(logits).saturating_add(scratch);
        let least = taken.saturating_add(cache);
        if least > limit {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "the model needs {least} bytes ({weights} of weights, {logits} of logits, {scratch} of scratch, {cache} \
                     of cache for {context} tokens); the limit is {limit}"
                ),
            ));
        }
        let affordable = limit - taken;
        let pages = (affordable / (page + document).max(1)).min(pages * CONTEXTS as u64);
        Ok((pages, affordable - pages * page))
    }
}

/// Pages of cache for each model, as many for both, and bytes of encoded documents. The limit that a caller sets is for
/// the model's own device, and for the draft model where it is there too.
pub(crate) fn budget(
    options: &LoadOptions,
    (place, little): (&Place, &Place),
    files: &Files,
    draft: Option<&DraftFiles>,
    context: usize,
) -> Result<(usize, u64)> {
    let (config, ty) = (&files.config, options.cache_type);
    let limit = options.memory_limit.or(place.memory).unwrap_or(u64::MAX);
    let large = Need::new(config, config.kv_shape(), files.weights.total_bytes(), ty, place);
    let Some(draft) = draft else {
        let (pages, room) = large.within(limit, context)?;
        return Ok((pages as usize, room));
    };
    let small = Need::new(config, draft.kv_shape(config), draft.weight_bytes(), ty, little);
    if place.names.contains(&little.names[0]) {
        let (pages, room) = large.and(small).within(limit, context)?;
        return Ok((pages as usize, room));
    }
    let (pages, room) = large.within(limit, context)?;
    let apart = small.within(little.memory.unwrap_or(u64::MAX), context);
    let (most, _) =
        apart.map_err(|error| error.within(&format!("options.draft.device is '{}'", little.name())))?;
    Ok((pages.min(most) as usize, room))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use trefoil_kernels::Kernels;

    use super::*;
    use crate::options::{DraftSource, Dtype};
    use crate::raw::Raw;

    const CONTEXT: usize = 256;

    /// Pages and documents' bytes of a tiny model with itself for a draft model, on devices with so much memory.
    fn with_draft(names: [&str; 2], memory: [u64; 2]) -> Result<(usize, u64)> {
        let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/smollm2"));
        let options = LoadOptions::resolve("model", Raw::Absent)?;
        let files = Files::open(&source, Dtype::Auto)?;
        let draft = DraftFiles::open(&DraftSource::Model(source, None), &files)?;
        let kernels = Kernels::cpu(1)?;
        let place = |at: usize| Place {
            devices: (&kernels).into(),
            names: vec![names[at].into()],
            memory: Some(memory[at]),
            fallback: None,
        };
        budget(&options, (&place(0), &place(1)), &files, Some(&draft), CONTEXT)
    }

    #[test]
    fn scratch_is_counted_once_a_device() {
        let need = Need { weights: 1000, logits: 100, scratch: 70, page: 10, document: 0 };
        let both = need.and(Need { weights: 500, logits: 50, scratch: 60, page: 5, document: 0 });
        // Two pages for a page's context.
        let fits = |need: Need, limit| need.within(limit, trefoil_kernels::PAGE);
        assert_eq!(fits(need, 1190).unwrap(), (2, 0));
        assert_eq!(fits(both, 1000 + 500 + 150 + 70 + 30).unwrap(), (2, 0));
        let error = fits(both, 1749).unwrap_err();
        let said = "the model needs 1750 bytes (1500 of weights, 150 of logits, 70 of scratch, 30 of cache for 32 tokens); \
                    the limit is 1749";
        assert_eq!((error.kind(), error.message()), (ErrorKind::OutOfMemory, said));
    }

    #[test]
    fn two_models_on_one_device_need_twice_as_much() {
        let plenty = u64::MAX / 4;
        let (all, _) = with_draft(["cpu", "cpu"], [plenty; 2]).unwrap();
        assert_eq!(all, CONTEXTS * (CONTEXT / trefoil_kernels::PAGE + 1));
        let enough = |names, both: bool| {
            let fits = |memory: u64| with_draft(names, [memory, if both { memory } else { plenty }]).is_ok();
            // The least memory that is enough, to the byte.
            (0..40).rev().fold(0, |least, bit| if fits(least | 1 << bit) { least } else { least | 1 << bit })
                + 1
        };
        let [together, apart] = [["cpu", "cpu"], ["cuda:0", "cuda:1"]].map(|names| enough(names, true));
        assert_eq!(together, 2 * apart);
        assert_eq!(enough(["cpu", "cuda:0"], false), apart);
    }

    #[test]
    fn the_smaller_device_says_how_many_pages_there_are() {
        let plenty = u64::MAX / 4;
        let least = with_draft(["cuda:0", "cuda:1"], [plenty, 0]).unwrap_err();
        assert_eq!(least.kind(), ErrorKind::OutOfMemory);
        let said = "options.draft.device is 'cuda:1'; the model needs ";
        assert!(least.message().starts_with(said), "{least}");
        let needed: u64 = least.message()[said.len()..].split(' ').next().unwrap().parse().unwrap();
        let (few, _) = with_draft(["cuda:0", "cuda:1"], [plenty, needed]).unwrap();
        assert_eq!(few, CONTEXT / trefoil_kernels::PAGE + 1);
        let (room, _) = with_draft(["cuda:0", "cuda:1"], [needed, plenty]).unwrap();
        assert_eq!(room, few);
    }
}
