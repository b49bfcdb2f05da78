//! How Python writes values.

use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::ValueKind;

/// Writes a value as Python's `str` does. Lists and maps must have been walked through: this recurses into them.
pub(super) fn write(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => number(out, value),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (at, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if at > 0 { ", " } else { "" })?;
                within(out, &item)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (at, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if at > 0 { ", " } else { "" })?;
                within(out, &key)?;
                out.write_str(": ")?;
                within(out, &value.get_item(&key).map_err(|_| fmt::Error)?)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// What a list or a map holds, as Python's `repr` writes it.
fn within(out: &mut dyn Write, value: &Value) -> fmt::Result {
    if let Some(text) = value.as_str() { quoted(out, text) } else { write(out, value) }
}

fn quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            _ if c == quote || c == '\\' => write!(out, "\\{c}")?,
            ' ' => out.write_char(' ')?,
            _ if c.is_control()
                || c.is_whitespace()
                || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{feff}') =>
            {
                let code = u32::from(c);
                if code < 0x100 { write!(out, "\\x{code:02x}")? } else { write!(out, "\\u{code:04x}")? }
            }
            _ => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// A number with a fraction. Its exponent has a sign, and two digits.
fn number(out: &mut dyn Write, value: &Value) -> fmt::Result {
    let Ok(number) = f64::try_from(value.clone()) else { return write!(out, "{value}") };
    if number.is_nan() {
        return out.write_str("nan");
    }
    let digits = format!("{number:?}");
    match digits.split_once('e') {
        None => out.write_str(&digits),
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            write!(out, "{digits}e{sign}{exponent:0>2}")
        }
    }
}
