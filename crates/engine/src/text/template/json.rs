//! The `tojson` filter.

use std::io::{self, Write};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;

use super::budget::{Budget, refused};

/// JSON as Python's `json.dumps` writes it: with a space behind commas and colons unless told otherwise, and nothing
/// escaped for HTML.
pub(super) fn json(budget: &Budget, value: &Value, options: &Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    // What is not ASCII is written as it is, as transformers has it.
    let _: Option<bool> = options.get("ensure_ascii")?;
    budget.walk(value)?;
    let value = if sorted.unwrap_or(false) { &sort(budget, value)? } else { value };
    let (comma, colon) = match separators.as_deref() {
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        Some(other) => {
            let len = other.len();
            return Err(refused(format!("tojson's separators are {len} texts; allowed are two")));
        }
    };
    let format = Format { comma, colon, indent, level: 0, filled: false };
    let mut out = Json { bytes: Vec::new(), budget };
    let mut writer = serde_json::Serializer::with_formatter(&mut out, format);
    value.serialize(&mut writer).map_err(|cause| {
        Error::new(ErrorKind::InvalidOperation, "JSON cannot be written").with_source(cause)
    })?;
    String::from_utf8(out.bytes).map(Value::from).map_err(|_| refused("JSON is not UTF-8"))
}

/// The value with the keys of all its maps in order. It has been walked through: it ends.
fn sort(budget: &Budget, value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map => {
            budget.walk_to_sort(value)?;
            let mut keys = budget.items(value)?;
            keys.sort();
            let pairs = keys.into_iter().map(|key| Ok((key.clone(), sort(budget, &value.get_item(&key)?)?)));
            pairs.collect::<Result<Vec<_>, Error>>().map(|pairs| pairs.into_iter().collect())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = budget.items(value)?;
            let items = items.iter().map(|item| sort(budget, item));
            items.collect::<Result<Vec<_>, Error>>().map(Value::from)
        }
        _ => Ok(value.clone()),
    }
}

struct Json<'a> {
    bytes: Vec<u8>,
    budget: &'a Budget,
}

impl Write for Json<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.budget.draw(part.len()).map_err(io::Error::other)?;
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Format<'a> {
    comma: &'a str,
    colon: &'a str,
    /// Spaces of a level. Without it all is on one line.
    indent: Option<usize>,
    level: usize,
    /// Whether the list or map that ends has had an item: an empty one takes one line.
    filled: bool,
}

impl Format<'_> {
    fn begin<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.comma.as_bytes())?;
        }
        self.line(out)
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        const SPACES: [u8; 64] = [b' '; 64];
        let Some(width) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        let mut left = width.saturating_mul(self.level);
        while left > 0 {
            let part = left.min(SPACES.len());
            out.write_all(&SPACES[..part])?;
            left -= part;
        }
        Ok(())
    }
}

impl serde_json::ser::Formatter for Format<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}
