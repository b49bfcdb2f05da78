//! What steps cost on this machine: timed when a model loads, and kept in a file after a few times.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trefoil_decode::Costs;
use trefoil_kernels::Devices;
use trefoil_models::{CausalLm, Kv, Token};

use crate::draft::DraftModel;
use crate::error::Result;
use crate::lm::Lm;
use crate::options::LoadOptions;

/// Models that the file remembers, at most.
const REMEMBERED: usize = 64;

/// Loads that time a model: where a program begins the machine is often busy, and that must not be remembered for good.
const LOADS: usize = 3;

/// Tokens of the text that an encoder-decoder model is timed on.
const SOURCE: [Token; 16] = [0; 16];

/// Points of a cost curve: rows and seconds.
type Points = Vec<(usize, f64)>;

/// What the file remembers of a model.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Known {
    /// Loads that have timed it.
    loads: usize,
    /// The least that these found of the model, and of its draft model if it has one.
    curves: Vec<Points>,
}

/// The costs of a model's steps and of its draft model's.
#[derive(Clone)]
pub(crate) struct StepCosts {
    pub(crate) model: Costs,
    pub(crate) little: Option<Arc<Costs>>,
}

impl StepCosts {
    /// Looks the costs up in the file of `options`, or times them and writes them there.
    ///
    /// * `decoder`: the part of `lm` that writes, on the workers that it will have.
    ///
    /// # Errors
    /// Fails where a model does. A file that can't be read or written is no failure: it only saves time.
    pub(crate) fn find(
        options: &LoadOptions,
        devices: &Devices,
        (lm, decoder): (&Lm, &dyn CausalLm),
        kv: &mut Kv,
        draft: Option<&DraftModel>,
    ) -> Result<Self> {
        let file = options.cost_cache.as_deref();
        let key = key(options, devices);
        let mut all = file.map(read).unwrap_or_default();
        let Known { mut loads, curves } = all.remove(&key).unwrap_or_default();
        let known: Option<Vec<Costs>> = curves.into_iter().map(Costs::new).collect();
        let known = known.filter(|known| known.len() == 1 + usize::from(draft.is_some()));
        if loads >= LOADS
            && let Some(known) = known
        {
            return Ok(Self::from(known));
        }
        let source = lm.encode(&SOURCE)?;
        let mut found = vec![Costs::measure(decoder, kv, source.as_ref())?];
        if let Some(draft) = draft {
            found.push(draft.measure(&SOURCE, source.as_ref())?);
        }
        let mut found: Vec<Costs> =
            found.into_iter().map(|costs| costs.unwrap_or_else(Costs::linear)).collect();
        if let Some(known) = known {
            found = found.into_iter().zip(&known).map(|(found, known)| found.least(known)).collect();
        } else {
            loads = 0;
        }
        if let Some(file) = file {
            while all.len() >= REMEMBERED {
                all.pop_first();
            }
            let curves = found.iter().map(|costs| costs.points().to_vec()).collect();
            all.insert(key, Known { loads: loads + 1, curves });
            write(file, &all);
        }
        Ok(Self::from(found))
    }
}

impl From<Vec<Costs>> for StepCosts {
    fn from(costs: Vec<Costs>) -> Self {
        let mut costs = costs.into_iter();
        Self { model: costs.next().unwrap_or_else(Costs::linear), little: costs.next().map(Arc::new) }
    }
}

/// What a cost depends on, in words.
fn key(options: &LoadOptions, devices: &Devices) -> String {
    let host = sysinfo::System::host_name().unwrap_or_default();
    let source = options.source.canonicalize().unwrap_or_else(|_| options.source.clone());
    let changed = source.metadata().and_then(|data| data.modified()).ok();
    let changed = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let seconds = changed.map_or(0, |time| time.as_secs());
    let (version, devices) = (env!("CARGO_PKG_VERSION"), devices.each());
    let LoadOptions { dtype, draft, workers, .. } = options;
    format!("{version} {host} {devices:?} {workers} {dtype:?} {draft:?} {} {seconds}", source.display())
}

fn read(file: &Path) -> BTreeMap<String, Known> {
    std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Writes the file whole or not at all.
fn write(file: &Path, known: &BTreeMap<String, Known>) {
    let Ok(text) = serde_json::to_vec(known) else { return };
    let Some(folder) = file.parent() else { return };
    let part: PathBuf = folder.join(format!("costs.{}.part", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&part, text));
    if written.and_then(|()| std::fs::rename(&part, file)).is_err() {
        // It only saves time, and the next load tries again.
        let _ = std::fs::remove_file(&part);
    }
}
