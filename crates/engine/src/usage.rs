//! What an engine keeps in memory beside its weights.

use crate::library::Body;
use crate::loaded::Loaded;

/// Memory in use at one moment, between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Documents in memory, those that nobody claims any more included.
    pub documents: usize,
    /// Bytes of cross-attention's keys and values: every copy that a document or a text being written has.
    pub cross_bytes: usize,
    /// Pages of the cache that hold tokens or are promised to a text.
    pub pages: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
}

impl Usage {
    pub(crate) fn of(loaded: &Loaded) -> Self {
        let Loaded { kv, library, .. } = loaded;
        let mut sources = kv.sources();
        for body in library.bodies() {
            if let Body::Encoded(source) = body
                && !sources.iter().any(|known| std::sync::Arc::ptr_eq(known, source))
            {
                sources.push(source);
            }
        }
        Self {
            documents: library.bodies().count(),
            cross_bytes: sources.iter().map(|source| source.bytes()).sum(),
            pages: kv.capacity() - kv.available(),
            page_bytes: kv.page_bytes(),
        }
    }
}
