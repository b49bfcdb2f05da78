//! The methods of texts and maps, as Python has them.

use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::budget::{Budget, ITEM, refused};
use super::texts::{join, replace};

/// What a part of a text takes: its value, and what the allocator keeps with its text.
const PART: usize = 2 * ITEM;

pub(super) fn add_methods(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("split", move |text: &Value, args: Rest<Value>| match text.as_str() {
        Some(text) => read(&own, text, &args).and_then(|()| split(&own, text, &args)),
        None => Err(refused(format!("split takes a text, not {}", text.kind()))),
    });
    let own = budget.clone();
    environment.set_unknown_method_callback(move |state, value, method, args| {
        if let Some(text) = value.as_str() {
            read(&own, text, args)?;
            if let Some(made) = of_text(&own, text, method, args)? {
                return Ok(made);
            }
        } else {
            if method == "count" {
                own.walk(value)?;
            }
            args.iter().try_for_each(|arg| own.walk(arg))?;
        }
        inherited(&own, state, value, method, args)
    });
}

/// Every method may look through all of its text, and of what it is given.
fn read(budget: &Budget, text: &str, args: &[Value]) -> Result<(), Error> {
    budget.read(text.len())?;
    args.iter().try_for_each(|arg| budget.walk(arg))
}

fn inherited(
    budget: &Budget,
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    pycompat::unknown_method_callback(state, value, method, args).and_then(|made| budget.draw_value(made))
}

/// The methods of texts that differ from the inherited ones, or draw what they make before they make it.
fn of_text(budget: &Budget, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let made = match method {
        "format" => return Err(refused("format() is not allowed in a chat template")),
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(budget, text, from, to, count)?
        }
        "join" => {
            let (list,): (&Value,) = from_args(args)?;
            join(budget, list, text, None)?
        }
        "split" => split(budget, text, args)?,
        "rsplit" => rsplit(budget, text, args)?,
        "splitlines" => {
            let (kept, options): (Option<bool>, Kwargs) = from_args(args)?;
            let kept = kept.or(options.get("keepends")?).unwrap_or(false);
            options.assert_all_used()?;
            parts(budget, text, || lines(text, kept))?
        }
        "partition" | "rpartition" => {
            let (between,): (&str,) = from_args(args)?;
            let between = separator(between)?;
            let (found, missing) = if method == "partition" {
                (text.split_once(between), [text, "", ""])
            } else {
                (text.rsplit_once(between), ["", "", text])
            };
            let three = found.map_or(missing, |(before, after)| [before, between, after]);
            parts(budget, text, || three.into_iter())?
        }
        "removeprefix" | "removesuffix" => {
            let (end,): (&str,) = from_args(args)?;
            let rest = if method == "removeprefix" { text.strip_prefix(end) } else { text.strip_suffix(end) };
            budget.draw(text.len())?;
            Value::from(rest.unwrap_or(text))
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            let count = if what.is_empty() { text.chars().count() + 1 } else { text.matches(what).count() };
            Value::from(count)
        }
        // Python counts characters, not bytes.
        "find" | "rfind" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if method == "find" { text.find(what) } else { text.rfind(what) };
            Value::from(found.map_or(-1, |at| text[..at].chars().count() as i64))
        }
        _ => return Ok(None),
    };
    Ok(Some(made))
}

/// A list of parts of a text. It is counted before it is made.
fn parts<'a, I: Iterator<Item = &'a str>>(
    budget: &Budget,
    text: &str,
    of: impl Fn() -> I,
) -> Result<Value, Error> {
    budget.draw(of().count().saturating_mul(PART).saturating_add(text.len()))?;
    Ok(Value::from(of().map(Value::from).collect::<Vec<_>>()))
}

fn separator<T: AsRef<str>>(between: T) -> Result<T, Error> {
    if between.as_ref().is_empty() {
        return Err(refused("a separator is empty; allowed is a text of one character or more"));
    }
    Ok(between)
}

/// What `split` and `rsplit` are given: a separator, and how often they split at most.
fn split_args(args: &[Value]) -> Result<(Option<String>, Option<usize>), Error> {
    let (between, most, options): (Option<String>, Option<i64>, Kwargs) = from_args(args)?;
    let between = match between {
        Some(between) => Some(between),
        None => options.get("sep")?,
    };
    let most = most.or(options.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    options.assert_all_used()?;
    Ok((between.map(separator).transpose()?, most))
}

fn split(budget: &Budget, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (between, most) = split_args(args)?;
    match (between.as_deref(), most) {
        (Some(between), None) => parts(budget, text, || text.split(between)),
        (Some(between), Some(most)) => parts(budget, text, || text.splitn(most.saturating_add(1), between)),
        (None, None) => parts(budget, text, || text.split_whitespace()),
        (None, Some(most)) => parts(budget, text, || {
            let (mut rest, mut left) = (text.trim_start(), most);
            std::iter::from_fn(move || {
                if rest.is_empty() {
                    return None;
                }
                let at = if left == 0 { None } else { rest.find(char::is_whitespace) };
                let (part, behind) = rest.split_at(at.unwrap_or(rest.len()));
                (rest, left) = (behind.trim_start(), left.saturating_sub(1));
                Some(part)
            })
        }),
    }
}

fn rsplit(budget: &Budget, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (between, most) = split_args(args)?;
    let Some(most) = most else { return split(budget, text, args) };
    let parts = match between.as_deref() {
        Some(between) => parts(budget, text, || text.rsplitn(most.saturating_add(1), between)),
        None => parts(budget, text, || {
            let (mut rest, mut left) = (text.trim_end(), most);
            std::iter::from_fn(move || {
                if rest.is_empty() {
                    return None;
                }
                let space =
                    if left == 0 { None } else { rest.char_indices().rfind(|(_, c)| c.is_whitespace()) };
                let (before, part) = rest.split_at(space.map_or(0, |(at, c)| at + c.len_utf8()));
                (rest, left) = (before.trim_end(), left.saturating_sub(1));
                Some(part)
            })
        }),
    };
    let mut parts = budget.items(&parts?)?;
    parts.reverse();
    Ok(Value::from(parts))
}

/// The lines of a text, with their ends where these are kept.
fn lines(text: &str, kept: bool) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(at) = rest.find(ENDS) else { return Some(std::mem::take(&mut rest)) };
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        let line = &rest[..if kept { at + end } else { at }];
        rest = &rest[at + end..];
        Some(line)
    })
}

/// A loop's methods, which the engine runs without a budget: `changed` compares all it is given, and `cycle` divides
/// by how many values it is given.
pub(super) fn add_loops(environment: &mut Environment<'_>, budget: &Budget) {
    for (name, method) in [(".changed", "changed"), (".cycle", "cycle")] {
        let own = budget.clone();
        environment.add_filter(name, move |state: &State<'_, '_>, of: &Value, args: Rest<Value>| {
            if args.is_empty() {
                return Err(Error::new(ErrorKind::MissingArgument, format!("{method}() takes a value")));
            }
            args.iter().try_for_each(|arg| own.walk(arg))?;
            of.call_method(state, method, &args)
        });
    }
}
