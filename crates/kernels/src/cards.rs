//! The graphics cards of this machine, before any of them is used.

use crate::error::{Error, ErrorKind, Lack, Result};

/// The oldest compute capability that kernels are compiled for.
const OLDEST: (usize, usize) = (8, 0);

/// The major version of CUDA that this is built with (`scripts/cuda-toolkit.mjs`); a driver runs that of its own time and
/// all earlier ones.
const BUILT: usize = 13;

/// The driver, and the cards that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cards {
    /// The newest CUDA that the driver runs: major and minor.
    pub driver: (usize, usize),
    /// Cards by ordinal.
    pub cards: Vec<Card>,
}

/// A graphics card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What its maker calls it.
    pub name: String,
    /// Its compute capability: major and minor.
    pub capability: (usize, usize),
    /// Its memory in bytes.
    pub memory: u64,
    /// Bytes a second between the two, at most.
    pub bandwidth: u64,
}

impl Cards {
    /// Asks the driver; no card is touched.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) where this build has no CUDA or the driver does not answer.
    pub fn find() -> Result<Self> {
        #[cfg(feature = "cuda")]
        return cuda::find();
        #[cfg(not(feature = "cuda"))]
        Err(without_cuda())
    }

    /// Whether the card of this ordinal can be expected to work.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) where there is none, or it or the driver is too old.
    pub fn check(&self, ordinal: usize) -> Result<()> {
        let (major, minor) = self.driver;
        if major < BUILT {
            let message = format!("the NVIDIA driver runs CUDA {major}.{minor} at most; {BUILT}.0 is needed");
            return Err(Error::device(Lack::NewerDriver, message));
        }
        let Some(card) = self.cards.get(ordinal) else {
            let message = format!("there is no card {ordinal}; this machine has {}", self.cards.len());
            return Err(Error::device(Lack::Card, message));
        };
        if card.capability < OLDEST {
            let ((major, minor), (least, _)) = (card.capability, OLDEST);
            let message =
                format!("{} has compute capability {major}.{minor}; {least}.0 is needed", card.name);
            return Err(Error::device(Lack::NewerCard, message));
        }
        Ok(())
    }

    /// Whether these cards can work together: rows are the same bits on cards of the same compute capability only.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a card that is named twice, and [`ErrorKind::Device`] for different capabilities.
    pub fn alike(&self, ordinals: &[usize]) -> Result<()> {
        let known = |ordinal: usize| self.cards.get(ordinal).map(|card| (ordinal, card));
        let mut before: Vec<(usize, &Card)> = Vec::new();
        for (ordinal, card) in ordinals.iter().filter_map(|&ordinal| known(ordinal)) {
            if before.iter().any(|&(other, _)| other == ordinal) {
                return Err(Error::new(ErrorKind::Unsupported, format!("card {ordinal} is named twice")));
            }
            if let Some((other, first)) = before.first()
                && first.capability != card.capability
            {
                let ((a, b), (c, d)) = (first.capability, card.capability);
                let message = format!(
                    "card {other}, {}, has compute capability {a}.{b} and card {ordinal}, {}, has {c}.{d}; cards that \
                     work together need the same",
                    first.name, card.name
                );
                return Err(Error::device(Lack::Alike, message));
            }
            before.push((ordinal, card));
        }
        Ok(())
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn without_cuda() -> Error {
    Error::device(Lack::Build, "this build has no CUDA")
}

#[cfg(feature = "cuda")]
pub(crate) use cuda::unusable;

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUresult, cuDriverGetVersion};
    use candle_core::cuda_backend::cudarc::driver::{DriverError, result};

    use super::{Card, Cards};
    use crate::error::{Error, Lack, Result};

    pub(super) fn find() -> Result<Cards> {
        let silent = |cause| unusable("the NVIDIA driver does not answer", cause);
        let mut version = 0;
        // SAFETY: the pointer is good for one number, and the call needs nothing before it.
        unsafe { cuDriverGetVersion(&raw mut version) }.result().map_err(silent)?;
        let version = version.max(0) as usize;
        let driver = (version / 1000, version % 1000 / 10);
        let count = match result::init().and_then(|()| result::device::get_count()) {
            // The driver is there, and nothing that it drives.
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            found => found.map_err(silent)?,
        };
        let cards = (0..count).map(card).collect::<std::result::Result<_, _>>().map_err(silent)?;
        Ok(Cards { driver, cards })
    }

    fn card(ordinal: i32) -> std::result::Result<Card, DriverError> {
        use CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH as BITS,
            CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE as KILOHERTZ,
        };
        let device = result::device::get(ordinal)?;
        // SAFETY: the driver has given the device.
        let number = |which| unsafe { result::device::get_attribute(device, which) };
        let capability = (number(MAJOR)?.max(0) as usize, number(MINOR)?.max(0) as usize);
        // SAFETY: as above.
        let memory = unsafe { result::device::total_mem(device) }? as u64;
        // Memory gives its bits twice a beat.
        let bandwidth = 2000 * number(KILOHERTZ)?.max(0) as u64 * (number(BITS)?.max(0) as u64 / 8);
        Ok(Card { name: result::device::get_name(device)?, capability, memory, bandwidth })
    }

    /// The error for a driver or card that fails before anything runs on it.
    pub(crate) fn unusable(what: &str, cause: DriverError) -> Error {
        let lack = match cause.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Lack::Memory,
            CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => Lack::Card,
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Lack::NewerCard,
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Lack::NewerDriver,
            _ => Lack::Driver,
        };
        Error::device(lack, format!("{what}: {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cards(driver: (usize, usize), capability: (usize, usize)) -> Cards {
        Cards {
            driver,
            cards: vec![Card { name: "Abacus".into(), capability, memory: 1 << 34, bandwidth: 1 << 40 }],
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let lack = |cards: Cards, ordinal| cards.check(ordinal).unwrap_err().kind();
        assert!(cards((BUILT, 0), OLDEST).check(0).is_ok());
        assert!(cards((99, 0), (9, 0)).check(0).is_ok());
        assert_eq!(lack(cards((99, 0), OLDEST), 1), ErrorKind::Device(Lack::Card));
        assert_eq!(lack(cards((99, 0), (7, 5)), 0), ErrorKind::Device(Lack::NewerCard));
        assert_eq!(lack(cards((BUILT - 1, 9), OLDEST), 0), ErrorKind::Device(Lack::NewerDriver));
    }

    #[test]
    fn cards_that_work_together_are_alike_and_each_is_there_once() {
        let card = |capability| cards((BUILT, 0), capability).cards.remove(0);
        let cards = Cards { driver: (BUILT, 0), cards: [(8, 0), (9, 0), (9, 0), (8, 0)].map(card).to_vec() };
        for alike in [&[1, 2][..], &[3, 0], &[2], &[]] {
            assert!(cards.alike(alike).is_ok(), "{alike:?}");
        }
        let error = cards.alike(&[1, 2, 3]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device(Lack::Alike));
        let said = "card 1, Abacus, has compute capability 9.0 and card 3, Abacus, has 8.0";
        assert!(error.to_string().starts_with(said), "{error}");
        assert_eq!(cards.alike(&[2, 1, 2]).unwrap_err().to_string(), "card 2 is named twice");
    }
}
