//! What steps cost on this machine: timed when a model loads for the first time, corrected by every step of `auto`, and kept in a
//! file for the next time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use trefoil_decode::Costs;
use trefoil_kernels::Devices;
use trefoil_models::{CausalLm, Kv, Token};

use crate::draft::DraftModel;
use crate::error::Result;
use crate::lm::Lm;
use crate::options::LoadOptions;

/// Models that the file remembers, at most.
const REMEMBERED: usize = 64;

/// Tokens of the text that an encoder-decoder model is timed on.
const SOURCE: [Token; 16] = [0; 16];

/// Held while a file is read and written anew: models that are disposed together lose nothing of each other's.
static WRITES: Mutex<()> = Mutex::new(());

/// Points of a cost curve: rows and seconds.
type Points = Vec<(usize, f64)>;

/// The costs of a model's steps and of its draft model's.
pub(crate) struct StepCosts {
    /// What sessions go by, and correct.
    pub(crate) model: Arc<Mutex<Costs>>,
    pub(crate) little: Option<Arc<Costs>>,
    /// The model's when it was loaded.
    found: Costs,
    /// The file, and the key there.
    place: Option<(PathBuf, String)>,
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
        let place = options.cost_cache.clone().map(|file| (file, key(options, devices)));
        let known = place.as_ref().and_then(|(file, key)| read(file).remove(key)).unwrap_or_default();
        let known: Option<Vec<Costs>> = known.into_iter().map(Costs::new).collect();
        let new = |model: Costs, little: Option<Costs>| Self {
            model: Arc::new(Mutex::new(model.clone())),
            little: little.map(Arc::new),
            found: model,
            place,
        };
        match (known.as_deref(), draft) {
            (Some([model]), None) => return Ok(new(model.clone(), None)),
            (Some([model, little]), Some(_)) => return Ok(new(model.clone(), Some(little.clone()))),
            _ => {}
        }
        let source = lm.encode(&SOURCE)?;
        let model = Costs::measure(decoder, kv, source.as_ref())?;
        let little = draft.map(|draft| draft.measure(&SOURCE, source.as_ref())).transpose()?;
        let little = little.map(|costs| costs.unwrap_or_else(Costs::linear));
        let found = new(model.unwrap_or_else(Costs::linear), little);
        found.write();
        Ok(found)
    }

    /// Keeps in the file what steps have corrected.
    pub(crate) fn keep(&self) {
        if self.now().points() != self.found.points() {
            self.write();
        }
    }

    fn now(&self) -> Costs {
        // Whoever panicked left costs that are at worst a step behind.
        self.model.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self) {
        let Some((file, key)) = &self.place else { return };
        let _alone = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = read(file);
        let model = self.now();
        let points =
            std::iter::once(&model).chain(self.little.as_deref()).map(|costs| costs.points().to_vec());
        known.remove(key);
        while known.len() >= REMEMBERED {
            known.pop_first();
        }
        known.insert(key.clone(), points.collect());
        write(file, &known);
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

fn read(file: &Path) -> BTreeMap<String, Vec<Points>> {
    std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Writes the file whole or not at all.
fn write(file: &Path, known: &BTreeMap<String, Vec<Points>>) {
    let Ok(text) = serde_json::to_vec(known) else { return };
    let Some(folder) = file.parent() else { return };
    let part: PathBuf = folder.join(format!("costs.{}.part", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&part, text));
    if written.and_then(|()| std::fs::rename(&part, file)).is_err() {
        // It only saves time, and the next load tries again.
        let _ = std::fs::remove_file(&part);
    }
}
