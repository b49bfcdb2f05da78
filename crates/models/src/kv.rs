//! The cache: keys and values of every branch's committed tokens, in pages.
//!
//! A page holds [`PAGE`] positions of one branch, in every layer; a branch owns a list of pages and a length. A step
//! *stages* the keys and values of its draft beside the pages; [`Kv::commit`] then writes the rows of the kept path
//! behind the branch's prefix, and the next step's staging forgets the rest. Nothing is ever masked or moved twice.
//!
//! Pages are counted references: [`Kv::fork`] shares a branch's full pages, so that many prompts stand on one document.
//! A write to a shared page copies it first. All pages are allocated once, zeroed lazily by the operating system, so
//! that a step never allocates cache and the bytes are known before the model answers its first prompt. A contiguous
//! cache per branch was rejected: it would size ten thousand short branches for their longest possible text.
//!
//! `reserve` sets pages aside, so that a commit inside the reservation cannot run out.
//!
//! Devices that work together have pages each, all with the same numbers in them, and one page table: which branch has
//! which page is the same everywhere.

use std::sync::Arc;

use trefoil_kernels::{CacheType, Devices, Kernels, KvStore, PAGE, SharedKv, Sight};

use crate::draft::{BranchId, Draft, RowId};
use crate::error::{Error, Result};
use crate::staged::{Slot, Staged};

/// The sizes that a cache follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of one page over all layers, keys and values.
    pub fn page_bytes(&self, ty: CacheType) -> usize {
        self.layers * 2 * self.kv_heads * PAGE * self.head_dim * ty.bytes()
    }
}

/// Keys and values of one encoded document, projected once for every decoder layer, on each device that reads them.
#[derive(Clone)]
pub struct CrossKv {
    /// Each device's layers.
    devices: Vec<Vec<SharedKv>>,
}

impl CrossKv {
    /// A document on one device; one entry a decoder layer.
    pub fn new(layers: Vec<SharedKv>) -> Self {
        Self { devices: vec![layers] }
    }

    /// One document that devices have encoded each for itself, in the order of their ranks.
    pub fn join(devices: &[Arc<Self>]) -> Self {
        Self { devices: devices.iter().flat_map(|each| each.devices.iter().cloned()).collect() }
    }

    /// What decoder layer `layer` reads on the device of `kernels`.
    ///
    /// # Errors
    /// Fails where the document was not encoded for that device.
    pub fn layer(&self, kernels: &Kernels, layer: usize) -> Result<&SharedKv> {
        let found = self.devices.get(kernels.rank()).and_then(|layers| layers.get(layer));
        found.ok_or_else(|| Error::internal("a document of another model or device"))
    }

    /// Bytes that it keeps on each device, over all layers.
    pub fn bytes(&self) -> usize {
        self.devices.first().map_or(0, |layers| layers.iter().map(SharedKv::bytes).sum())
    }
}

struct Branch {
    pages: Vec<u32>,
    len: usize,
    reserved: usize,
    source: Option<Arc<CrossKv>>,
}

/// The cache of one model.
pub struct Kv {
    shape: KvShape,
    ty: CacheType,
    devices: Devices,
    /// Each device's layers.
    stores: Vec<Vec<KvStore>>,
    branches: Vec<Option<Branch>>,
    free: Vec<u32>,
    shares: Vec<u32>,
    promised: usize,
    staged: Staged,
}

impl Kv {
    /// Allocates `pages` pages of the given shape, whose numbers are kept as `ty`, on each of the devices.
    ///
    /// # Errors
    /// Fails where the tensors cannot be made.
    pub fn new(devices: impl Into<Devices>, shape: KvShape, ty: CacheType, pages: usize) -> Result<Self> {
        let devices = devices.into();
        let layer = |kernels| KvStore::new(kernels, pages, shape.kv_heads, shape.head_dim, ty);
        let layers = |kernels| (0..shape.layers).map(|_| layer(kernels)).collect();
        let stores = devices.each().iter().map(layers).collect::<trefoil_kernels::Result<_>>()?;
        Ok(Self {
            shape,
            ty,
            devices,
            stores,
            branches: Vec::new(),
            free: (0..pages as u32).rev().collect(),
            shares: vec![0; pages],
            promised: 0,
            staged: Staged::default(),
        })
    }

    /// Opens an empty branch; `source` is the document that an encoder-decoder model's cross-attention reads.
    pub fn open(&mut self, source: Option<Arc<CrossKv>>) -> BranchId {
        self.insert(Branch { pages: Vec::new(), len: 0, reserved: 0, source })
    }

    /// Opens a branch that starts with everything that `from` has committed, sharing its pages.
    ///
    /// # Errors
    /// Fails for a branch that is not open.
    pub fn fork(&mut self, from: BranchId) -> Result<BranchId> {
        let origin = self.branch(from)?;
        let fork = Branch {
            pages: origin.pages.clone(),
            len: origin.len,
            reserved: 0,
            source: origin.source.clone(),
        };
        for &page in &fork.pages {
            self.shares[page as usize] += 1;
        }
        Ok(self.insert(fork))
    }

    /// Closes a branch and gives its pages back.
    pub fn close(&mut self, id: BranchId) {
        let Some(branch) = self.branches.get_mut(id.0 as usize).and_then(Option::take) else { return };
        self.promised -= branch.reserved;
        for page in branch.pages {
            self.release(page);
        }
    }

    /// Committed tokens of a branch.
    ///
    /// # Errors
    /// Fails for a branch that is not open.
    pub fn len(&self, id: BranchId) -> Result<usize> {
        Ok(self.branch(id)?.len)
    }

    /// Pages that are neither in use nor promised to a branch.
    pub fn available(&self) -> usize {
        self.free.len() - self.promised
    }

    /// The documents that open branches read, each once.
    pub fn sources(&self) -> Vec<&Arc<CrossKv>> {
        let mut sources: Vec<&Arc<CrossKv>> = Vec::new();
        for source in self.branches.iter().flatten().filter_map(|branch| branch.source.as_ref()) {
            if !sources.iter().any(|known| Arc::ptr_eq(known, source)) {
                sources.push(source);
            }
        }
        sources
    }

    /// The sizes that it was made for.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes of a page on each device, over all layers.
    pub fn page_bytes(&self) -> usize {
        self.shape.page_bytes(self.ty)
    }

    /// All pages.
    pub fn capacity(&self) -> usize {
        self.shares.len()
    }

    /// Promises a branch the pages that it needs to reach `positions`, and says whether there were enough.
    ///
    /// # Errors
    /// Fails for a branch that is not open.
    pub fn reserve(&mut self, id: BranchId, positions: usize) -> Result<bool> {
        let available = self.available();
        let shares = &self.shares;
        let branch = slot(&mut self.branches, id)?;
        // A last page that is shared and not full is copied by the first write.
        let copied = usize::from(
            branch.len % PAGE != 0 && branch.pages.last().is_some_and(|&p| shares[p as usize] > 1),
        );
        let wanted = (positions.div_ceil(PAGE) + copied).saturating_sub(branch.pages.len());
        let more = wanted.saturating_sub(branch.reserved);
        if more > available {
            return Ok(false);
        }
        branch.reserved += more;
        self.promised += more;
        Ok(true)
    }

    /// The document that a branch reads.
    ///
    /// # Errors
    /// Fails for a branch that is not open.
    pub fn source(&self, id: BranchId) -> Result<Option<&Arc<CrossKv>>> {
        Ok(self.branch(id)?.source.as_ref())
    }

    /// What each row of `draft` may see.
    ///
    /// # Errors
    /// Fails for a row of a branch that is not open.
    pub fn sight(&self, draft: &Draft) -> Result<Sight> {
        let mut sight = Sight::new();
        let mut seen: Vec<Option<usize>> = vec![None; self.branches.len()];
        let mut paths: Vec<u32> = Vec::new();
        let mut path = Vec::new();
        for (at, row) in draft.rows().iter().enumerate() {
            let branch = self.branch(row.branch)?;
            let known = &mut seen[row.branch.0 as usize];
            let index = *known.get_or_insert_with(|| sight.branch(&branch.pages, branch.len));
            draft.path(RowId(at as u32), &mut path);
            paths.clear();
            paths.extend(path.iter().map(|row| row.0));
            sight.row(index, &paths);
        }
        Ok(sight)
    }

    /// Keeps the keys and values of a step's rows until the next step; what the last one staged and nobody kept is
    /// forgotten.
    pub fn stage(&mut self, staged: Staged) {
        self.staged = staged;
    }

    /// The committed keys and values of `layer` on the device of `kernels`.
    ///
    /// # Errors
    /// Fails where the cache has none there.
    pub fn store(&self, kernels: &Kernels, layer: usize) -> Result<&KvStore> {
        let found = self.stores.get(kernels.rank()).and_then(|layers| layers.get(layer));
        found.ok_or_else(|| Error::internal("a model over another cache's layers or devices"))
    }

    /// Appends staged rows, in order, to a branch.
    ///
    /// # Errors
    /// Fails where the rows are not staged, or (`ErrorKind::Memory`) where no page is left.
    pub fn commit(&mut self, id: BranchId, path: &[RowId]) -> Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        let mut slots = Vec::with_capacity(path.len());
        for ahead in 0..path.len() {
            slots.push(self.place(id, ahead)?);
        }
        self.devices.write(&self.stores, &self.staged.find(path, &slots, self.stores.len())?)?;
        slot(&mut self.branches, id)?.len += path.len();
        Ok(())
    }

    /// Drops everything behind the first `len` committed tokens.
    ///
    /// # Errors
    /// Fails where the branch is shorter than `len`.
    pub fn truncate(&mut self, id: BranchId, len: usize) -> Result<()> {
        let branch = slot(&mut self.branches, id)?;
        if len > branch.len {
            return Err(Error::internal(format!("truncate to {len} of a branch of {} tokens", branch.len)));
        }
        branch.len = len;
        let dropped = branch.pages.split_off(len.div_ceil(PAGE));
        for page in dropped {
            self.release(page);
        }
        Ok(())
    }

    /// The page and offset of the position `ahead` of the branch's end, made writable.
    fn place(&mut self, id: BranchId, ahead: usize) -> Result<Slot> {
        let branch = self.branch(id)?;
        let position = branch.len + ahead;
        let index = position / PAGE;
        let page = match branch.pages.get(index) {
            Some(&page) if self.shares[page as usize] == 1 => page,
            Some(&shared) => {
                let own = self.take(id)?;
                for (kernels, layers) in self.devices.each().iter().zip(&self.stores) {
                    kernels.copy_page(layers, shared, own)?;
                }
                slot(&mut self.branches, id)?.pages[index] = own;
                self.release(shared);
                own
            }
            None => {
                let page = self.take(id)?;
                slot(&mut self.branches, id)?.pages.push(page);
                page
            }
        };
        Ok((page, (position % PAGE) as u32))
    }

    /// Takes a free page: one that the branch was promised, else one that nobody was.
    fn take(&mut self, id: BranchId) -> Result<u32> {
        let available = self.available();
        let capacity = self.shares.len();
        let branch = slot(&mut self.branches, id)?;
        if branch.reserved > 0 {
            branch.reserved -= 1;
            self.promised -= 1;
        } else if available == 0 {
            return Err(Error::memory(format!("all {capacity} pages of the cache are in use or promised")));
        }
        let page = self.free.pop().ok_or_else(|| Error::internal("a promised page is missing"))?;
        self.shares[page as usize] = 1;
        Ok(page)
    }

    fn release(&mut self, page: u32) {
        let shares = &mut self.shares[page as usize];
        *shares -= 1;
        if *shares == 0 {
            self.free.push(page);
        }
    }

    fn branch(&self, id: BranchId) -> Result<&Branch> {
        let branch = self.branches.get(id.0 as usize).and_then(Option::as_ref);
        branch.ok_or_else(|| Error::internal(format!("branch {} is not open", id.0)))
    }

    fn insert(&mut self, branch: Branch) -> BranchId {
        let vacant = self.branches.iter().position(Option::is_none);
        let index = vacant.unwrap_or(self.branches.len());
        if vacant.is_none() {
            self.branches.push(None);
        }
        self.branches[index] = Some(branch);
        BranchId(index as u32)
    }
}

impl Drop for Kv {
    fn drop(&mut self) {
        // Writes that wait on a card would keep the pages. Where it fails the pages go with the card.
        for kernels in self.devices.each() {
            let _ = kernels.settle();
        }
    }
}

fn slot(branches: &mut [Option<Branch>], id: BranchId) -> Result<&mut Branch> {
    let branch = branches.get_mut(id.0 as usize).and_then(Option::as_mut);
    branch.ok_or_else(|| Error::internal(format!("branch {} is not open", id.0)))
}
