//! Where a model is asked to run.

use crate::error::Result;
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

/// The ordinals that a card may have, at most, and the cards that a model may run on.
const CARDS: usize = 64;

impl Device {
    /// The option `device` of a model: a name, or a list of cards.
    pub(crate) fn list(reader: &mut Reader) -> Result<Vec<Self>> {
        let found = reader.take("device");
        let device = match &found {
            Raw::Absent => Some(Self::Auto),
            Raw::Text(text) if text == "auto" => Some(Self::Auto),
            Raw::Text(text) => Self::parse(text),
            Raw::List(names) if (1..=CARDS).contains(&names.len()) => return Self::cards(reader, names),
            _ => None,
        };
        device.map(|device| vec![device]).ok_or_else(|| {
            let allowed = "'auto', 'cpu', 'cuda' or 'cuda:N', N being a card's number, or a list of cards";
            reader.refuse("device", &found, allowed)
        })
    }

    fn cards(reader: &Reader, names: &[Raw]) -> Result<Vec<Self>> {
        let mut cards = Vec::with_capacity(names.len());
        for (at, name) in names.iter().enumerate() {
            let card = match name {
                Raw::Text(text) => {
                    Self::parse(text).filter(|card| *card != Self::Cpu && !cards.contains(card))
                }
                _ => None,
            };
            let allowed = "'cuda:N', N being the number of a card that is not yet in the list";
            cards.push(card.ok_or_else(|| reader.refuse(&format!("device[{at}]"), name, allowed))?);
        }
        Ok(cards)
    }

    /// The option `device` of a draft model: a name, where it is given.
    pub(crate) fn named(reader: &mut Reader) -> Result<Option<Self>> {
        let Some(text) = reader.text("device")? else { return Ok(None) };
        Self::parse(&text).map(Some).ok_or_else(|| {
            let allowed = "'cpu', 'cuda' or 'cuda:N', N being a card's number";
            reader.refuse("device", &Raw::Text(text), allowed)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:")?.parse().ok();
                ordinal.filter(|&ordinal| ordinal < CARDS).map(Self::Cuda)
            }
        }
    }

    /// `auto`, `cpu` or `cuda:N`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Cpu => "cpu".into(),
            Self::Cuda(ordinal) => format!("cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::options::{DraftSource, LoadOptions};

    fn text(text: &str) -> Raw {
        Raw::Text(text.into())
    }

    fn map(fields: &[(&str, Raw)]) -> Raw {
        Raw::Map(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    fn options(name: &str, value: Raw) -> Result<LoadOptions> {
        LoadOptions::resolve("model", map(&[(name, value)]))
    }

    fn refused(name: &str, value: Raw, expected: &str) {
        let error = options(name, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.message().starts_with(expected), "{error}");
    }

    #[test]
    fn devices_are_named_or_refused() {
        let device = |value| options("device", value).unwrap().devices;
        assert_eq!(device(Raw::Absent), [Device::Auto]);
        for (name, expected) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:63", Device::Cuda(63)),
        ] {
            assert_eq!(device(text(name)), [expected]);
        }
        for name in ["", "CPU", "cuda:", "cuda:64", "cuda:-1", "cuda:x", "cuda 1"] {
            let expected =
                "allowed: 'auto', 'cpu', 'cuda' or 'cuda:N', N being a card's number, or a list of cards";
            refused("device", text(name), &format!("options.device is '{name}'; {expected}"));
        }
    }

    #[test]
    fn a_list_of_devices_has_each_card_once() {
        let list = |names: &[&str]| Raw::List(names.iter().map(|name| text(name)).collect());
        let devices = options("device", list(&["cuda:1", "cuda", "cuda:7"])).unwrap().devices;
        assert_eq!(devices, [1, 0, 7].map(Device::Cuda));
        for (names, wrong) in [
            (&["cuda:0", "cuda"][..], "device[1] is 'cuda'"),
            (&["cuda:1", "cuda:0", "cuda:1"], "device[2] is 'cuda:1'"),
            (&["cpu", "cuda:0"], "device[0] is 'cpu'"),
            (&["auto"], "device[0] is 'auto'"),
        ] {
            let allowed = "'cuda:N', N being the number of a card that is not yet in the list";
            refused("device", list(names), &format!("options.{wrong}; allowed: {allowed}"));
        }
        refused("device", list(&[]), "options.device is a list of 0; allowed: 'auto'");
        refused("device", Raw::List(vec![Raw::Number(1.0)]), "options.device[0] is 1; allowed: 'cuda:N'");
        refused("device", Raw::Number(0.0), "options.device is 0; allowed: 'auto'");
    }

    #[test]
    fn a_draft_model_of_its_own_may_have_a_device() {
        let draft = |fields: &[(&str, Raw)]| options("draft", map(fields));
        let source = |device| Some(DraftSource::Model("little".into(), device));
        let model = ("model", text("little"));
        assert_eq!(options("draft", text("little")).unwrap().draft, source(None));
        assert_eq!(draft(std::slice::from_ref(&model)).unwrap().draft, source(None));
        for (name, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:2", Device::Cuda(2))] {
            let found = draft(&[model.clone(), ("device", text(name))]).unwrap().draft;
            assert_eq!(found, source(Some(device)));
        }
        let allowed = "options.draft.device is 'auto'; allowed: 'cpu', 'cuda' or 'cuda:N'";
        refused("draft", map(&[model.clone(), ("device", text("auto"))]), allowed);
        let allowed = "options.draft is an object; allowed: a folder, a .gguf file, a hub id, { layers } or { model, device }";
        for fields in [
            vec![("layers", Raw::Number(1.0)), ("device", text("cpu"))],
            vec![("layers", Raw::Number(1.0)), model],
            vec![("device", text("cpu"))],
            vec![("model", text(""))],
        ] {
            refused("draft", map(&fields), allowed);
        }
    }
}
