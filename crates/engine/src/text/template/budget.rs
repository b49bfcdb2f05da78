//! What a template may use up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::{Error, ErrorKind, Value};

/// Bytes that a render may still make, in all texts and lists together, kept or not.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// What an item of a list counts for.
const ITEM: usize = 8;

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes `bytes` out, or fails where fewer are left. Called before they are allocated.
    pub(super) fn draw(&self, bytes: usize) -> Result<(), Error> {
        let drawn = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        drawn.map(|_| ()).map_err(|_| Error::new(ErrorKind::OutOfFuel, "it makes too much text"))
    }

    /// Takes out what `value` takes.
    pub(super) fn draw_value(&self, value: Value) -> Result<Value, Error> {
        let bytes = value.as_str().map_or_else(|| value.len().unwrap_or(0).saturating_mul(ITEM), str::len);
        self.draw(bytes)?;
        Ok(value)
    }

    /// The items of a list, one by one.
    pub(super) fn items(&self, list: &Value) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        for item in list.try_iter()? {
            self.draw(ITEM)?;
            items.push(item);
        }
        Ok(items)
    }

    /// Values one after the other as Python's `str` writes them.
    pub(super) fn text(&self, values: &[&Value]) -> Result<String, Error> {
        let mut text = Bounded { text: String::new(), budget: self };
        for value in values {
            write(&mut text, value)
                .map_err(|_| Error::new(ErrorKind::OutOfFuel, "it makes too much text"))?;
        }
        Ok(text.text)
    }
}

/// Writes a value as Python's `str` does, where it differs from ours.
fn write(out: &mut dyn fmt::Write, value: &Value) -> fmt::Result {
    if value.is_none() {
        out.write_str("None")
    } else if value.kind() == minijinja::value::ValueKind::Bool {
        out.write_str(if value.is_true() { "True" } else { "False" })
    } else {
        write!(out, "{value}")
    }
}

/// A text that grows by what the budget allows. A list that holds itself a million times stops here.
struct Bounded<'a> {
    text: String,
    budget: &'a Budget,
}

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.budget.draw(part.len()).map_err(|_| fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}
