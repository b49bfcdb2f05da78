//! Filters whose results can be longer than what goes in.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, Value};

use super::budget::Budget;
use super::json::json;

pub(super) fn add_growing(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("replace", move |text: &Value, from: &str, to: &str, count: Option<i64>| {
        let text = own.text(&[text])?;
        own.read(text.len())?;
        replace(&own, &text, from, to, count)
    });
    let own = budget.clone();
    environment.add_filter("join", move |list: &Value, between: Option<&str>, options: Kwargs| {
        let between = match between {
            Some(between) => Some(between),
            None => options.get("d")?,
        };
        let attribute: Option<&str> = options.get("attribute")?;
        options.assert_all_used()?;
        join(&own, list, between.unwrap_or(""), attribute)
    });
    let own = budget.clone();
    environment.add_filter("string", move |value: &Value| own.text(&[value]));
    let own = budget.clone();
    environment.add_filter(
        "indent",
        move |text: &str, width: Option<usize>, first: Option<bool>, options: Kwargs| {
            let width = width.or(options.get("width")?).unwrap_or(4);
            let first = first.or(options.get("first")?).unwrap_or(false);
            let blank: bool = options.get::<Option<bool>>("blank")?.unwrap_or(false);
            options.assert_all_used()?;
            indent(&own, text, width, first, blank)
        },
    );
    let own = budget.clone();
    environment.add_filter("tojson", move |value: &Value, options: Kwargs| json(&own, value, &options));
}

/// Replaces at most `count` times; always, where there is none or it is below 0.
pub(super) fn replace(
    budget: &Budget,
    text: &str,
    from: &str,
    to: &str,
    count: Option<i64>,
) -> Result<Value, Error> {
    let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    budget.read(from.len())?;
    let times = text.matches(from).take(most).count();
    budget.draw(text.len().saturating_add(times.saturating_mul(to.len())))?;
    Ok(Value::from(text.replacen(from, to, times)))
}

/// The items of a list, or an attribute of each, as one text.
pub(super) fn join(
    budget: &Budget,
    list: &Value,
    between: &str,
    attribute: Option<&str>,
) -> Result<Value, Error> {
    budget.read_value(list)?;
    let mut text = String::new();
    for (at, item) in list.try_iter()?.enumerate() {
        if at > 0 {
            budget.draw(between.len())?;
            text.push_str(between);
        }
        let item = match attribute {
            Some(path) => path.split('.').try_fold(item, |item, name| {
                budget.read(name.len())?;
                let at = name.parse::<usize>().map_or_else(|_| Value::from(name), Value::from);
                item.get_item(&at)
            })?,
            None => item,
        };
        text.push_str(&budget.text(&[&item])?);
    }
    Ok(Value::from(text))
}

fn indent(budget: &Budget, text: &str, width: usize, first: bool, blank: bool) -> Result<Value, Error> {
    budget.read(text.len())?;
    let lines = text.matches('\n').count().saturating_add(1);
    budget.draw(text.len().saturating_add(lines.saturating_mul(width)))?;
    let margin = " ".repeat(width);
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        // Jinja puts the margin in front of the first line whatever it holds.
        if (at > 0 && (blank || !line.is_empty())) || (at == 0 && first) {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}
