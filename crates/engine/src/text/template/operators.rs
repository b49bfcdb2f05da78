//! The operators of templates, as filters.
//!
//! Names that no template can write (`~`, `[:]`, `==`) are the operators, which the renderer turns into filters.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, tests};

use super::budget::{Budget, refused};

pub(super) fn add_operators(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("~", move |left: &Value, right: &Value| own.text(&[left, right]));
    let own = budget.clone();
    environment.add_filter("+", move |left: &Value, right: &Value| add(&own, left, right));
    let own = budget.clone();
    environment.add_filter("*", move |left: &Value, right: &Value| multiply(&own, left, right));
    let own = budget.clone();
    environment.add_filter("[:]", move |value: &Value, start: &Value, stop: &Value, step: &Value| {
        slice(&own, value, start, stop, step)
    });
}

/// Lists, maps and the operators that look into them.
pub(super) fn add_containers(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("[,]", move |items: Rest<Value>| {
        let list = Value::from(items.0);
        own.walk(&list).map(|()| list)
    });
    let own = budget.clone();
    environment.add_filter("{:}", move |pairs: Rest<Value>| {
        pairs.iter().try_for_each(|value| own.walk(value))?;
        let pairs = pairs.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok::<_, Error>(pairs.collect::<Value>())
    });
    let own = budget.clone();
    environment.add_filter("[]", move |value: &Value, key: &Value| {
        own.walk(key)?;
        own.read_value(value)?;
        value.get_item(key)
    });
    let own = budget.clone();
    let within = move |state: &State<'_, '_>, item: &Value, list: &Value| {
        own.walk(item)?;
        own.walk(list)?;
        tests::is_in(state, item, list)
    };
    environment.add_test("in", within.clone());
    environment.add_filter("in", within);
    macro_rules! compare {
        ($($names:tt $operator:tt),*) => {$(
            let own = budget.clone();
            let compare = move |left: &Value, right: &Value| {
                own.walk(left)?;
                own.walk(right)?;
                Ok::<_, Error>(left $operator right)
            };
            for name in $names {
                environment.add_test(name, compare.clone());
            }
            environment.add_filter($names[0], compare);
        )*};
    }
    compare!(
        ["==", "eq", "equalto"] ==,
        ["!=", "ne"] !=,
        ["<", "lt"] <,
        ["<=", "le"] <=,
        [">", "gt"] >,
        [">=", "ge"] >=
    );
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn is_number(value: &Value) -> bool {
    value.kind() == ValueKind::Number
}

fn float(value: &Value) -> Result<f64, Error> {
    f64::try_from(value.clone())
}

fn add(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        budget.draw(a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    if is_list(left) && is_list(right) {
        let mut items = budget.items(left)?;
        items.extend(budget.items(right)?);
        return Ok(Value::from(items));
    }
    if !is_number(left) || !is_number(right) {
        return Err(refused(format!("{} and {} cannot be added", left.kind(), right.kind())));
    }
    match (left.as_i64(), right.as_i64()) {
        (Some(a), Some(b)) => a.checked_add(b).map(Value::from).ok_or_else(|| refused("a sum is too large")),
        _ => Ok(Value::from(float(left)? + float(right)?)),
    }
}

fn multiply(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    let (text, count) = if left.as_str().is_some() { (left, right) } else { (right, left) };
    if let Some(text) = text.as_str() {
        let count = usize::try_from(count.as_i64().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
        budget.draw(text.len().saturating_mul(count))?;
        return Ok(Value::from(text.repeat(count)));
    }
    if !is_number(left) || !is_number(right) {
        return Err(refused(format!("{} and {} cannot be multiplied", left.kind(), right.kind())));
    }
    match (left.as_i64(), right.as_i64()) {
        (Some(a), Some(b)) => {
            a.checked_mul(b).map(Value::from).ok_or_else(|| refused("a product is too large"))
        }
        _ => Ok(Value::from(float(left)? * float(right)?)),
    }
}

/// Python's slices of texts and lists.
fn slice(budget: &Budget, value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let bound = |value: &Value| -> Result<Option<i64>, Error> {
        if value.is_none() || value.is_undefined() {
            return Ok(None);
        }
        value.as_i64().map(Some).ok_or_else(|| refused("a slice takes whole numbers"))
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if value.is_none() || value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if let Some(text) = value.as_str() {
        budget.read(text.len())?;
        let len = text.chars().count();
        if step == 1 {
            let mut picked = positions(len, start, stop, step)?;
            let Some(first) = picked.next() else { return Ok(Value::from("")) };
            let last = picked.last().unwrap_or(first);
            let mut starts = text.char_indices().map(|(at, _)| at).skip(first);
            let from = starts.next().unwrap_or(text.len());
            let to = if last == first { starts.next() } else { starts.nth(last - first) };
            let part = &text[from..to.unwrap_or(text.len())];
            budget.draw(part.len())?;
            return Ok(Value::from(part));
        }
        budget.draw(text.len().saturating_add(len.saturating_mul(size_of::<char>())))?;
        let characters: Vec<char> = text.chars().collect();
        let picked = positions(characters.len(), start, stop, step)?;
        return Ok(Value::from(picked.map(|at| characters[at]).collect::<String>()));
    }
    let items = budget.items(value)?;
    let picked = positions(items.len(), start, stop, step)?;
    Ok(Value::from(picked.map(|at| items[at].clone()).collect::<Vec<_>>()))
}

fn positions(
    len: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> Result<impl Iterator<Item = usize>, Error> {
    let len = len as i64;
    if step == 0 {
        return Err(refused("a slice's step is 0; allowed is every other whole number"));
    }
    let (least, most) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i64| (if bound < 0 { bound.saturating_add(len) } else { bound }).clamp(least, most);
    let (first, last) = if step > 0 { (least, most) } else { (most, least) };
    let stop = stop.map_or(last, clamp);
    let mut next = start.map_or(first, clamp);
    Ok(std::iter::from_fn(move || {
        let at = next;
        next = next.saturating_add(step);
        let within = if step > 0 { at < stop } else { at > stop };
        within.then_some(at as usize)
    }))
}
