//! Where a model runs: the choice, and what this machine has to choose from.

use trefoil_kernels::{Cards, Isa, Kernels};

use crate::error::{Error, ErrorKind, Result};
use crate::options::LoadOptions;
use crate::raw::{Raw, Reader};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// On the first card, where there is one that has room for the model; else on the CPU.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the card of this ordinal.
    Cuda(usize),
}

/// The ordinals that a card may have, at most.
const CARDS: usize = 64;

/// Bytes of a card that steps take for activations, and libraries for themselves.
const RESERVE: u64 = 512 << 20;

impl Device {
    pub(crate) fn resolve(reader: &mut Reader) -> Result<Self> {
        let ordinal = |text: &str| text.parse().ok().filter(|&ordinal| ordinal < CARDS);
        match reader.text("device")?.as_deref() {
            None | Some("auto") => Ok(Self::Auto),
            Some("cpu") => Ok(Self::Cpu),
            Some("cuda") => Ok(Self::Cuda(0)),
            Some(other) => other.strip_prefix("cuda:").and_then(ordinal).map(Self::Cuda).ok_or_else(|| {
                let allowed = "'auto', 'cpu', 'cuda' or 'cuda:N', N being a card's number";
                reader.refuse("device", &Raw::Text(other.into()), allowed)
            }),
        }
    }
}

/// A device that is there, with what it has to offer.
pub(crate) struct Place {
    pub(crate) kernels: Kernels,
    /// `cpu` or `cuda:N`.
    pub(crate) name: String,
    /// Bytes that a model may take there; none where the system doesn't say.
    pub(crate) memory: Option<u64>,
    /// Why it is not the device that was preferred.
    pub(crate) fallback: Option<String>,
}

impl Place {
    /// The device that `options` ask for, if `fits` takes it; gives what `fits` says.
    ///
    /// # Errors
    /// Fails (`Device`) where a card was asked for by name and can't be used, and as `fits` does for the last device.
    pub(crate) fn find<T>(options: &LoadOptions, fits: impl Fn(&Self) -> Result<T>) -> Result<(Self, T)> {
        let on = |place: Self| fits(&place).map(|fit| (place, fit));
        match options.device {
            Device::Cpu => on(Self::cpu(options)?),
            Device::Cuda(ordinal) => {
                let asked = |error: Error| error.within(&format!("options.device is 'cuda:{ordinal}'"));
                on(Self::card(ordinal).map_err(asked)?)
            }
            // Workers are of the CPU's threads.
            Device::Auto if options.workers > 1 => on(Self::cpu(options)?),
            Device::Auto => match Self::card(0).and_then(on) {
                Err(error) if matches!(error.kind(), ErrorKind::Device(_) | ErrorKind::OutOfMemory) => {
                    on(Self { fallback: Some(error.message().to_owned()), ..Self::cpu(options)? })
                }
                found => found,
            },
        }
    }

    fn cpu(options: &LoadOptions) -> Result<Self> {
        let kernels = cpu(options.threads, options.pin_threads)?;
        Ok(Self { kernels, name: "cpu".into(), memory: physical_memory(), fallback: None })
    }

    fn card(ordinal: usize) -> Result<Self> {
        let kernels = Kernels::cuda(ordinal)?;
        let memory = kernels.memory()?.map(|(free, _)| (free as u64).saturating_sub(RESERVE));
        Ok(Self { kernels, name: format!("cuda:{ordinal}"), memory, fallback: None })
    }
}

/// The CPU's kernels.
pub(crate) fn cpu(threads: usize, pinned: bool) -> Result<Kernels> {
    let made = if pinned { Kernels::cpu_pinned(threads) } else { Kernels::cpu(threads) };
    made.map_err(|error| Error::internal("no kernels").because(&error))
}

/// What this engine is and what its machine has, before anything is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The engine's version.
    pub version: &'static str,
    /// The instructions that kernels use.
    pub instructions: &'static str,
    /// Threads of a step, where a caller says nothing else.
    pub threads: usize,
    /// The machine's memory in bytes, and how much of it is free, where the system says.
    pub memory: Option<(u64, u64)>,
}

impl Machine {
    /// Looks.
    pub fn look() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            instructions: Isa::detect().name(),
            threads: threads(),
            memory: memory(),
        }
    }
}

/// Tries a card out: gives the driver and its cards, where there are any, and the bytes that a model may take on the
/// card of this ordinal, or why it can't be used (`Device`).
///
/// A driver that is broken can end the process, so this runs in one that may end.
pub fn probe(ordinal: usize) -> (Option<Cards>, Result<u64>) {
    match Cards::find() {
        Ok(cards) => (Some(cards), Place::card(ordinal).map(|place| place.memory.unwrap_or_default())),
        Err(error) => (None, Err(error.into())),
    }
}

/// Threads of a step: one a core.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn physical_memory() -> Option<u64> {
    memory().map(|(total, _)| total)
}

/// The machine's memory in bytes, and how much of it is free, where the system says.
fn memory() -> Option<(u64, u64)> {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    );
    Some((system.total_memory(), system.available_memory())).filter(|&(total, _)| total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(fields: &[(&str, Raw)]) -> Result<LoadOptions> {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        LoadOptions::resolve("model", Raw::Map(fields))
    }

    fn device(text: &str) -> Result<Device> {
        options(&[("device", Raw::Text(text.into()))]).map(|options| options.device)
    }

    #[test]
    fn devices_are_named_or_refused() {
        assert_eq!(options(&[]).unwrap().device, Device::Auto);
        for (text, expected) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:63", Device::Cuda(63)),
        ] {
            assert_eq!(device(text).unwrap(), expected);
        }
        for text in ["", "CPU", "cuda:", "cuda:64", "cuda:-1", "cuda:x", "cuda 1"] {
            let error = device(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.message().contains("allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'"), "{error}");
        }
    }

    #[test]
    fn workers_are_of_the_cpu() {
        let two =
            |device: &str| options(&[("workers", Raw::Number(2.0)), ("device", Raw::Text(device.into()))]);
        assert_eq!(two("cuda").unwrap_err().message(), "options.workers is 2 on a card; allowed: 1");
        let (place, ()) = Place::find(&two("auto").unwrap(), |_| Ok(())).unwrap();
        assert_eq!((place.name.as_str(), place.fallback), ("cpu", None));
    }

    #[test]
    fn the_device_of_a_model_is_where_it_fits() {
        let (place, pages) = Place::find(&options(&[]).unwrap(), |place| Ok(place.name.len())).unwrap();
        assert_eq!(pages, place.name.len());
        assert_eq!(place.fallback.is_none(), place.name != "cpu");
        let full = |_: &Place| Err::<(), _>(Error::new(ErrorKind::OutOfMemory, "full"));
        let error = Place::find(&options(&[]).unwrap(), full).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        use trefoil_kernels::Lack;

        let cuda = options(&[("device", Raw::Text("cuda:1".into()))]).unwrap();
        let error = Place::find(&cuda, |_| Ok(())).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device(Lack::Build));
        assert_eq!(error.message(), "options.device is 'cuda:1'; this build has no CUDA");
        let (place, ()) = Place::find(&options(&[]).unwrap(), |_| Ok(())).unwrap();
        assert_eq!(place.fallback.as_deref(), Some("this build has no CUDA"));
        let (cards, available) = probe(0);
        assert_eq!(
            (cards, available.map_err(|error| error.kind())),
            (None, Err(ErrorKind::Device(Lack::Build)))
        );
    }
}
