//! What a GGUF file says about its model.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::cursor::Cursor;
use crate::error::{Error, Result};

/// Far more than any model has, and few enough that their overhead stays small.
const MOST_ENTRIES: u64 = 1 << 16;
/// Key length, value type and one byte of value.
const SMALLEST_ENTRY: u64 = 8 + 4 + 1;

/// A file's keys and values.
#[derive(Debug)]
pub struct Metadata {
    file: String,
    entries: HashMap<String, Value>,
}

/// One value. Integers and floats of all widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A signed or unsigned integer.
    Integer(i128),
    /// A float.
    Float(f64),
    /// A truth value.
    Flag(bool),
    /// A string.
    Text(String),
    /// An array.
    Array(Array),
}

/// An array; arrays do not nest.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Elements of one byte: u8, i8 (as its bits) and bool.
    Bytes(Vec<u8>),
    /// Wider integers.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Strings.
    Texts(Vec<String>),
}

impl Value {
    /// The value as a whole number that is not negative.
    pub fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value as a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(n) => write!(f, "{n}"),
            Self::Float(n) => write!(f, "{n}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Array(_) => f.write_str("an array"),
        }
    }
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All keys and values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The strings of a key.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            Value::Array(Array::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// The integers of a key.
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.get(key)? {
            Value::Array(Array::Integers(integers)) => Some(integers),
            _ => None,
        }
    }

    /// The floats of a key.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            Value::Array(Array::Floats(floats)) => Some(floats),
            _ => None,
        }
    }

    /// The bytes of a key.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        match self.get(key)? {
            Value::Array(Array::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// The file that says so, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Reads the count and that many entries.
    pub(super) fn read(cursor: &mut Cursor<'_>, path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let count = cursor.count(SMALLEST_ENTRY, "metadata")?;
        if count > MOST_ENTRIES {
            return Err(Error::load(format!(
                "{file} has {count} metadata entries; allowed are {MOST_ENTRIES}"
            )));
        }
        let mut entries = HashMap::new();
        for _ in 0..count {
            let key = cursor.text("a metadata key")?;
            let ty = cursor.u32(&key)?;
            let value = if ty == ARRAY {
                Value::Array(array(cursor, &key, &file)?)
            } else {
                scalar(cursor, ty, &key, &file)?
            };
            if entries.contains_key(&key) {
                return Err(Error::load(format!("{file}: metadata key {key:?} appears twice")));
            }
            entries.insert(key, value);
        }
        Ok(Self { file, entries })
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a scalar type, by its number.
fn width(ty: u32) -> Option<usize> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn scalar(cursor: &mut Cursor<'_>, ty: u32, key: &str, file: &str) -> Result<Value> {
    if ty == TEXT {
        return cursor.text(key).map(Value::Text);
    }
    let width = width(ty).ok_or_else(|| unknown(ty, key, file))?;
    let bytes = cursor.take(width, key)?;
    match ty {
        6 | 12 => Ok(Value::Float(float(bytes))),
        7 if bytes[0] > 1 => Err(Error::load(format!("{file}: {key} is {}; allowed are 0 and 1", bytes[0]))),
        7 => Ok(Value::Flag(bytes[0] == 1)),
        _ => Ok(Value::Integer(integer(bytes, is_signed(ty)))),
    }
}

fn array(cursor: &mut Cursor<'_>, key: &str, file: &str) -> Result<Array> {
    let ty = cursor.u32(key)?;
    if ty == ARRAY {
        return Err(Error::load(format!("{file}: {key} is an array of arrays, which is not allowed")));
    }
    if ty == TEXT {
        let count = cursor.count(8, key)?;
        return (0..count).map(|_| cursor.text(key)).collect::<Result<_>>().map(Array::Texts);
    }
    let width = width(ty).ok_or_else(|| unknown(ty, key, file))?;
    let count = cursor.count(width as u64, key)? as usize;
    let bytes = cursor.take(count * width, key)?;
    let elements = bytes.chunks_exact(width);
    Ok(match ty {
        _ if width == 1 => Array::Bytes(bytes.to_vec()),
        6 | 12 => Array::Floats(elements.map(|bytes| float(bytes) as f32).collect()),
        _ => Array::Integers(elements.map(|bytes| integer(bytes, is_signed(ty)) as i64).collect()),
    })
}

fn unknown(ty: u32, key: &str, file: &str) -> Error {
    Error::load(format!("{file}: {key} has type {ty}; allowed are 0 to 12"))
}

fn is_signed(ty: u32) -> bool {
    matches!(ty, 1 | 3 | 5 | 11)
}

/// A little-endian integer of up to eight bytes.
fn integer(bytes: &[u8], signed: bool) -> i128 {
    let unsigned = bytes.iter().rev().fold(0i128, |value, &byte| value << 8 | i128::from(byte));
    let range = 1i128 << (8 * bytes.len());
    if signed && unsigned >= range / 2 { unsigned - range } else { unsigned }
}

/// A little-endian float of four or eight bytes.
fn float(bytes: &[u8]) -> f64 {
    match *bytes {
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}
