//! What a template may use up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::python;

/// What a render may still make and read.
#[derive(Clone)]
pub(super) struct Budget(Arc<Left>);

struct Left {
    /// Bytes of all texts and lists together, kept or not.
    made: AtomicUsize,
    /// Bytes that operations look through.
    read: AtomicUsize,
}

/// What an item of a list counts for: the size of a value.
pub(super) const ITEM: usize = size_of::<Value>();
/// How deep lists and maps may nest. Whatever takes a value apart recurses as deep, down to freeing it.
const NESTING: usize = 64;

/// The error of what a template may not do.
pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn take(from: &AtomicUsize, bytes: usize, failure: &str) -> Result<(), Error> {
    let taken = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
    taken.map(|_| ()).map_err(|_| refused(failure))
}

impl Budget {
    pub(super) fn new(made: usize, read: usize) -> Self {
        Self(Arc::new(Left { made: AtomicUsize::new(made), read: AtomicUsize::new(read) }))
    }

    /// Takes `bytes` out, or fails where fewer are left. Called before they are allocated.
    pub(super) fn draw(&self, bytes: usize) -> Result<(), Error> {
        take(&self.0.made, bytes, "it makes too much text")
    }

    /// Takes out `bytes` that an operation is about to look through.
    pub(super) fn read(&self, bytes: usize) -> Result<(), Error> {
        take(&self.0.read, bytes, "it looks through too much text")
    }

    /// Takes out what an operation looks through that reads all of a text, or goes through a range to its end.
    pub(super) fn read_value(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.read(text.len()),
            None if value.kind() == ValueKind::Iterable => {
                self.read(value.len().unwrap_or(0).saturating_mul(ITEM))
            }
            None => Ok(()),
        }
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
        self.walk_from(value, 0, 1)
    }

    /// The same for what makes a list of it. A text becomes one of its characters.
    pub(super) fn walk_to_list(&self, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.read(text.len())?;
            self.draw(text.chars().count().saturating_mul(ITEM))?;
        }
        self.walk(value)
    }

    /// The same for what puts the items of a list in order, which looks at each about this often.
    pub(super) fn walk_to_sort(&self, value: &Value) -> Result<(), Error> {
        if value.as_str().is_some() {
            return self.walk_to_list(value);
        }
        let items = value.len().unwrap_or(0);
        // Without regard to case, both of the texts are copied to be compared.
        self.walk_from(value, 0, 2 * (1 + items.checked_ilog2().unwrap_or(0) as usize))
    }

    fn walk_from(&self, value: &Value, depth: usize, times: usize) -> Result<(), Error> {
        self.draw(ITEM)?;
        if let Some(text) = value.as_str() {
            return self.read(text.len().saturating_mul(times));
        }
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
            self.walk_from(&item, depth + 1, times)?;
        }
        Ok(())
    }

    /// The items of a list, one by one.
    pub(super) fn items(&self, list: &Value) -> Result<Vec<Value>, Error> {
        self.read_value(list)?;
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
            python::write(&mut text, value).map_err(|_| refused("it makes too much text"))?;
        }
        Ok(text.text)
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
