//! What a template may use up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Bytes that a render may still make, in all texts and lists together, kept or not.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// What an item of a list counts for: the size of a value.
const ITEM: usize = size_of::<Value>();
/// How deep lists and maps may nest. Whatever takes a value apart recurses as deep, down to freeing it.
const NESTING: usize = 64;

/// The error of what a template may not do.
pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes `bytes` out, or fails where fewer are left. Called before they are allocated.
    pub(super) fn draw(&self, bytes: usize) -> Result<(), Error> {
        let drawn = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        drawn.map(|_| ()).map_err(|_| refused("it makes too much text"))
    }

    /// Takes out what a result takes. A list that is yet to be computed is computed, or a template could pile up
    /// computations without end.
    pub(super) fn draw_value(&self, value: Value) -> Result<Value, Error> {
        if value.kind() == ValueKind::Iterable {
            return self.items(&value).map(Value::from);
        }
        let bytes = value.as_str().map_or_else(|| value.len().unwrap_or(0).saturating_mul(ITEM), str::len);
        self.draw(bytes)?;
        Ok(value)
    }

    /// Walks through all that `value` holds, so that what comes next can: fails where lists and maps nest too deep, hold
    /// themselves, or hold one another so often that no end is in sight.
    pub(super) fn walk(&self, value: &Value) -> Result<(), Error> {
        self.walk_from(value, 0)
    }

    fn walk_from(&self, value: &Value, depth: usize) -> Result<(), Error> {
        self.draw(ITEM)?;
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(());
        }
        if depth == NESTING {
            let what = format!("its lists nest too deep; allowed are {NESTING} levels");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        for item in value.try_iter()? {
            let item = if kind == ValueKind::Map { value.get_item(&item)? } else { item };
            self.walk_from(&item, depth + 1)?;
        }
        Ok(())
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
            self.walk(value)?;
            write(&mut text, value).map_err(|_| refused("it makes too much text"))?;
        }
        Ok(text.text)
    }
}

/// Writes a value as Python's `str` does, where it differs from ours.
fn write(out: &mut dyn fmt::Write, value: &Value) -> fmt::Result {
    if value.is_none() {
        out.write_str("None")
    } else if value.kind() == ValueKind::Bool {
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
