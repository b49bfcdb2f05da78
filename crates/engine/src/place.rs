//! Where a model runs: devices that are there, and have room for it.

use trefoil_kernels::{Cards, Devices, Graphs, Kernels};

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::machine;
use crate::options::{Dtype, LoadOptions};

/// Bytes of a card that steps take for activations, and libraries for themselves.
const RESERVE: u64 = 512 << 20;

/// Devices that are there, with what they have to offer.
pub(crate) struct Place {
    pub(crate) devices: Devices,
    /// `cpu` or `cuda:N`, each.
    pub(crate) names: Vec<String>,
    /// Bytes that a model may take on each; none where the system doesn't say.
    pub(crate) memory: Option<u64>,
    /// Why it is not the device that was preferred.
    pub(crate) fallback: Option<String>,
}

impl Place {
    /// The devices that `options` ask for, if `fits` takes them; gives what `fits` says.
    ///
    /// # Errors
    /// Fails (`Device`) where a card was asked for by name and can't be used, and as `fits` does for the last device.
    pub(crate) fn find<T>(options: &LoadOptions, fits: impl Fn(&Self) -> Result<T>) -> Result<(Self, T)> {
        let on = |place: Self| fits(&place).map(|fit| (place, fit));
        match options.devices.as_slice() {
            // Workers are of the CPU's threads.
            [Device::Auto] if options.workers > 1 => on(Self::cpu(options.threads, options)?),
            [Device::Auto] => match Self::card(0).and_then(on) {
                Err(error) if matches!(error.kind(), ErrorKind::Device(_) | ErrorKind::OutOfMemory) => {
                    let cpu = Self::cpu(options.threads, options)?;
                    on(Self { fallback: Some(error.message().to_owned()), ..cpu })
                }
                found => found,
            },
            [device] => on(Self::named(*device, "options.device", options.threads, options)?),
            several => on(Self::several(several, options)?),
        }
    }

    /// Where the draft model runs whose own device is `device`: one of these, or another one.
    ///
    /// # Errors
    /// Fails (`Device`) for a card that can't be used.
    pub(crate) fn beside(&self, device: Option<Device>, options: &LoadOptions) -> Result<Self> {
        let rank = device.map_or(Some(0), |device| self.names.iter().position(|name| *name == device.name()));
        match (rank, device) {
            (None, Some(device)) => Self::named(device, "options.draft.device", options.threads, options),
            (rank, _) => {
                let rank = rank.unwrap_or_default();
                Ok(Self {
                    devices: (&self.devices.each()[rank]).into(),
                    names: vec![self.names[rank].clone()],
                    memory: self.memory,
                    fallback: None,
                })
            }
        }
    }

    /// What callers know it by.
    pub(crate) fn name(&self) -> String {
        self.names.join(", ")
    }

    /// What is known of each device's graphs, by its name.
    pub(crate) fn graphs(&self) -> impl Iterator<Item = (String, Graphs)> {
        self.names.iter().cloned().zip(self.devices.each().iter().map(Kernels::graphs))
    }

    /// Several devices that work together. The CPU's threads are divided, should it be there more than once.
    fn several(devices: &[Device], options: &LoadOptions) -> Result<Self> {
        let threads = (options.threads / devices.len()).max(1);
        let each = devices
            .iter()
            .enumerate()
            .map(|(at, device)| Self::named(*device, &format!("options.device[{at}]"), threads, options));
        let each = each.collect::<Result<Vec<_>>>()?;
        let kernels: Vec<Kernels> = each.iter().map(|place| place.devices.each()[0].clone()).collect();
        let names: Vec<String> = each.iter().flat_map(|place| place.names.clone()).collect();
        let joined = Devices::join(&kernels).map_err(|error| {
            Error::from(error).within(&format!("options.device is [{}]", names.join(", ")))
        })?;
        let memory = each.iter().filter_map(|place| place.memory).min();
        Ok(Self { devices: joined, names, memory, fallback: None })
    }

    /// A device that `option` names.
    fn named(device: Device, option: &str, threads: usize, options: &LoadOptions) -> Result<Self> {
        match device {
            Device::Cuda(ordinal) => {
                Self::card(ordinal).map_err(|error| error.within(&format!("{option} is '{}'", device.name())))
            }
            Device::Cpu | Device::Auto => Self::cpu(threads, options),
        }
    }

    fn cpu(threads: usize, options: &LoadOptions) -> Result<Self> {
        let kernels = cpu(threads, options.pin_threads, options.dtype)?;
        let (names, memory) = (vec![Device::Cpu.name()], machine::memory().map(|(total, _)| total));
        Ok(Self { devices: (&kernels).into(), names, memory, fallback: None })
    }

    pub(crate) fn card(ordinal: usize) -> Result<Self> {
        let kernels = Kernels::cuda(ordinal)?;
        let memory = kernels.memory()?.map(|(free, _)| (free as u64).saturating_sub(RESERVE));
        let names = vec![Device::Cuda(ordinal).name()];
        Ok(Self { devices: (&kernels).into(), names, memory, fallback: None })
    }
}

/// The CPU's kernels. Whoever asks for bfloat16 has activations rounded too, as frameworks and cards do it.
pub(crate) fn cpu(threads: usize, pinned: bool, dtype: Dtype) -> Result<Kernels> {
    let made = if pinned { Kernels::cpu_pinned(threads) } else { Kernels::cpu(threads) };
    let kernels = made.map_err(|error| Error::internal("no kernels").because(&error))?;
    Ok(if dtype == Dtype::Bf16 { kernels.rounding() } else { kernels })
}

/// What a card that was tried out is good for.
#[derive(Clone, Debug, PartialEq)]
pub struct Usable {
    /// Bytes that a model may take.
    pub memory: u64,
    /// Why small steps start launch by launch there, where they do not start as one.
    pub graph_failure: Option<String>,
}

/// Tries a card out: gives the driver and its cards, where there are any, and what the card of this ordinal is good for, or
/// why it can't be used (`Device`).
///
/// A driver that is broken can end the process, so this runs in one that may end.
pub fn probe(ordinal: usize) -> (Option<Cards>, Result<Usable>) {
    let tried = || {
        let place = Place::card(ordinal)?;
        let kernels = &place.devices.each()[0];
        kernels.try_graphs()?;
        let graph_failure = kernels.graphs().failure().map(str::to_owned);
        Ok(Usable { memory: place.memory.unwrap_or_default(), graph_failure })
    };
    match Cards::find() {
        Ok(cards) => (Some(cards), tried()),
        Err(error) => (None, Err(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    fn options(fields: &[(&str, Raw)]) -> Result<LoadOptions> {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        LoadOptions::resolve("model", Raw::Map(fields))
    }

    #[test]
    fn workers_are_of_the_cpu() {
        let two =
            |device: &str| options(&[("workers", Raw::Number(2.0)), ("device", Raw::Text(device.into()))]);
        assert_eq!(two("cuda").unwrap_err().message(), "options.workers is 2 on a card; allowed: 1");
        let (place, ()) = Place::find(&two("auto").unwrap(), |_| Ok(())).unwrap();
        assert_eq!((place.name().as_str(), place.fallback), ("cpu", None));
    }

    #[test]
    fn the_device_of_a_model_is_where_it_fits() {
        let (place, pages) = Place::find(&options(&[]).unwrap(), |place| Ok(place.name().len())).unwrap();
        assert_eq!(pages, place.name().len());
        assert_eq!(place.fallback.is_none(), place.name() != "cpu");
        let full = |_: &Place| Err::<(), _>(Error::new(ErrorKind::OutOfMemory, "full"));
        let error = Place::find(&options(&[]).unwrap(), full).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    }

    #[test]
    fn a_draft_model_is_beside_the_model_or_where_it_was_named() {
        let mut options = options(&[("threads", Raw::Number(2.0))]).unwrap();
        options.devices = vec![Device::Cpu; 2];
        let (place, ()) = Place::find(&options, |_| Ok(())).unwrap();
        assert_eq!((place.name().as_str(), place.devices.each().len()), ("cpu, cpu", 2));
        assert!(place.devices.each().iter().all(|kernels| kernels.threads() == 1));
        for device in [None, Some(Device::Cpu)] {
            let little = place.beside(device, &options).unwrap();
            assert_eq!((little.name().as_str(), little.devices.each()[0].threads()), ("cpu", 1));
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        use trefoil_kernels::Lack;

        let find = |options: &LoadOptions| Place::find(options, |_| Ok(())).map(|_| ()).unwrap_err();
        let cuda = |name: &str| Raw::Text(name.into());
        let error = find(&options(&[("device", cuda("cuda:1"))]).unwrap());
        assert_eq!(error.kind(), ErrorKind::Device(Lack::Build));
        assert_eq!(error.message(), "options.device is 'cuda:1'; this build has no CUDA");
        let list = Raw::List(vec![cuda("cuda:2"), cuda("cuda:1")]);
        let error = find(&options(&[("device", list)]).unwrap());
        assert_eq!(error.message(), "options.device[0] is 'cuda:2'; this build has no CUDA");
        let (place, ()) = Place::find(&options(&[]).unwrap(), |_| Ok(())).unwrap();
        assert_eq!(place.fallback.as_deref(), Some("this build has no CUDA"));
        let error = place.beside(Some(Device::Cuda(1)), &options(&[]).unwrap()).map(|_| ()).unwrap_err();
        assert_eq!(error.message(), "options.draft.device is 'cuda:1'; this build has no CUDA");
        let (cards, available) = crate::probe(0);
        assert_eq!(
            (cards, available.map_err(|error| error.kind())),
            (None, Err(ErrorKind::Device(Lack::Build)))
        );
    }
}
