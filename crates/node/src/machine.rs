//! What a machine has to run models on.

use napi_derive::napi;
use trefoil_engine::{Card, Machine};

use crate::events::NativeFailure;

/// The engine, the CPU and its memory.
#[napi(object)]
pub struct NativeMachine {
    pub version: String,
    pub instructions: String,
    pub threads: u32,
    pub memory: Option<f64>,
    pub available: Option<f64>,
}

/// A graphics card.
#[napi(object)]
pub struct NativeCard {
    pub name: String,
    pub capability: String,
    pub memory: f64,
}

/// What a card was found to be good for, or why it can't be used.
#[napi(object)]
pub struct NativeProbe {
    pub driver: Option<String>,
    pub cards: Vec<NativeCard>,
    pub available: Option<f64>,
    pub graph_failure: Option<String>,
    pub failure: Option<NativeFailure>,
}

/// Looks at the machine.
#[napi]
pub fn machine() -> NativeMachine {
    let machine = Machine::look();
    NativeMachine {
        version: machine.version.into(),
        instructions: machine.instructions.into(),
        threads: machine.threads as u32,
        memory: machine.memory.map(|(total, _)| total as f64),
        available: machine.memory.map(|(_, free)| free as f64),
    }
}

/// Tries a card out. A driver that is broken can end the process.
#[napi]
pub fn probe(ordinal: u32) -> NativeProbe {
    let version = |(major, minor): (usize, usize)| format!("{major}.{minor}");
    let (found, usable) = trefoil_engine::probe(ordinal as usize);
    let (usable, failure) = match usable {
        Ok(usable) => (Some(usable), None),
        Err(error) => (None, Some(error.into())),
    };
    let native = |card: Card| NativeCard {
        name: card.name,
        capability: version(card.capability),
        memory: card.memory as f64,
    };
    NativeProbe {
        driver: found.as_ref().map(|found| version(found.driver)),
        cards: found.map_or_else(Vec::new, |found| found.cards.into_iter().map(native).collect()),
        available: usable.as_ref().map(|usable| usable.memory as f64),
        graph_failure: usable.and_then(|usable| usable.graph_failure),
        failure,
    }
}
