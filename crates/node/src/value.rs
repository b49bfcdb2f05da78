//! JavaScript values as the engine's data.

use napi::bindgen_prelude::{Array, FromNapiValue, Object, Unknown};
use napi::{JsValue, Result, ValueType};
use trefoil_engine::Raw;

/// Levels of nesting that options may have; what lies deeper, or in a circle, is no data.
const DEPTH: usize = 8;

/// Reads any JavaScript value. What is no data (a function, a symbol) keeps its kind's name, for the error.
pub(crate) fn raw(value: Unknown<'_>) -> Result<Raw> {
    read(value, DEPTH)
}

fn read(value: Unknown<'_>, depth: usize) -> Result<Raw> {
    Ok(match value.get_type()? {
        ValueType::Undefined | ValueType::Null => Raw::Absent,
        ValueType::Boolean => Raw::Bool(bool::from_unknown(value)?),
        ValueType::Number => Raw::Number(f64::from_unknown(value)?),
        ValueType::String => Raw::Text(String::from_unknown(value)?),
        ValueType::Object if depth == 0 => Raw::Other("deeply nested object"),
        ValueType::Object if value.is_array()? => {
            let array = Array::from_unknown(value)?;
            let items = (0..array.len()).map(|index| match array.get::<Unknown<'_>>(index)? {
                Some(item) => read(item, depth - 1),
                None => Ok(Raw::Absent),
            });
            Raw::List(items.collect::<Result<_>>()?)
        }
        ValueType::Object => {
            let object = Object::from_unknown(value)?;
            let fields = Object::keys(&object)?.into_iter().map(|name| {
                let field = match object.get::<Unknown<'_>>(&name)? {
                    Some(field) => read(field, depth - 1)?,
                    None => Raw::Absent,
                };
                Ok((name, field))
            });
            Raw::Map(fields.collect::<Result<_>>()?)
        }
        ValueType::Function => Raw::Other("function"),
        ValueType::Symbol => Raw::Other("symbol"),
        ValueType::BigInt => Raw::Other("bigint"),
        _ => Raw::Other("foreign value"),
    })
}
