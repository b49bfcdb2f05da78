//! The filters, tests, functions and methods that a template may use, each drawing from the budget what it makes.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions, tests};
use minijinja_contrib::pycompat;

use super::budget::{Budget, refused};
use super::operators::{add_containers, add_operators};

/// Fills an empty environment.
pub(super) fn add_all(environment: &mut Environment<'_>, budget: &Budget) {
    add_operators(environment, budget);
    add_containers(environment, budget);
    add_growing(environment, budget);
    add_plain(environment, budget);
    add_tests(environment);
    let own = budget.clone();
    environment.add_function("namespace", move |defaults: Option<Value>| {
        own.walk(&defaults.clone().unwrap_or_default())?;
        functions::namespace(defaults)
    });
    let own = budget.clone();
    environment.add_function("dict", move |values: Option<Value>, more: Kwargs| {
        own.walk(&values.clone().unwrap_or_default())?;
        functions::dict(values, more)
    });
    environment.add_function("range", functions::range);
    environment
        .add_function("raise_exception", |what: String| -> Result<Value, Error> { Err(refused(what)) });
    let methods = budget.clone();
    environment.set_unknown_method_callback(move |state, value, method, args| {
        match (method, value.as_str()) {
            ("replace", Some(text)) => match args {
                [from, to] => replace(&methods, text, text_of(from)?, text_of(to)?),
                _ => Err(refused("replace() takes two texts")),
            },
            ("join", Some(between)) => match args {
                [list] => join(&methods, list, between),
                _ => Err(refused("join() takes one list")),
            },
            ("format", _) => Err(refused("format() is not allowed in a chat template")),
            _ => pycompat::unknown_method_callback(state, value, method, args)
                .and_then(|value| methods.draw_value(value)),
        }
    });
}

fn text_of(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| refused(format!("a text was expected, not {}", value.kind())))
}

/// Filters whose results can be longer than what goes in.
fn add_growing(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("replace", move |text: &Value, from: &str, to: &str| {
        replace(&own, &own.text(&[text])?, from, to)
    });
    let own = budget.clone();
    environment.add_filter("join", move |list: &Value, between: Option<&str>| {
        join(&own, list, between.unwrap_or(""))
    });
    let own = budget.clone();
    environment.add_filter("string", move |value: &Value| own.text(&[value]));
    let own = budget.clone();
    environment.add_filter("indent", move |text: &str, width: Option<usize>, first: Option<bool>| {
        indent(&own, text, width.unwrap_or(4), first.unwrap_or(false))
    });
    let own = budget.clone();
    environment.add_filter("tojson", move |value: &Value, options: Kwargs| {
        let indent: Option<usize> = options.get("indent")?;
        // Python's further options do not change what a chat template is given to write.
        json(&own, value, indent)
    });
}

fn replace(budget: &Budget, text: &str, from: &str, to: &str) -> Result<Value, Error> {
    let count = text.matches(from).count();
    budget.draw(text.len().saturating_add(count.saturating_mul(to.len())))?;
    Ok(Value::from(text.replace(from, to)))
}

fn join(budget: &Budget, list: &Value, between: &str) -> Result<Value, Error> {
    let mut text = String::new();
    for (at, item) in list.try_iter()?.enumerate() {
        if at > 0 {
            budget.draw(between.len())?;
            text.push_str(between);
        }
        text.push_str(&budget.text(&[&item])?);
    }
    Ok(Value::from(text))
}

fn indent(budget: &Budget, text: &str, width: usize, first: bool) -> Result<Value, Error> {
    budget.draw(text.len().saturating_add(text.lines().count().saturating_mul(width)))?;
    let margin = " ".repeat(width);
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 || first) && !line.is_empty() {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// JSON as Python's `json.dumps` writes it: with a space behind commas and colons, and nothing escaped for HTML.
fn json(budget: &Budget, value: &Value, indent: Option<usize>) -> Result<Value, Error> {
    budget.walk(value)?;
    let mut out = Json { bytes: Vec::new(), budget };
    let failed = |cause| Error::new(ErrorKind::InvalidOperation, "JSON cannot be written").with_source(cause);
    if let Some(width) = indent {
        budget.draw(width)?;
        let margin = " ".repeat(width);
        let format = serde_json::ser::PrettyFormatter::with_indent(margin.as_bytes());
        let mut writer = serde_json::Serializer::with_formatter(&mut out, format);
        serde::Serialize::serialize(value, &mut writer).map_err(failed)?;
    } else {
        let mut writer = serde_json::Serializer::with_formatter(&mut out, Spaced);
        serde::Serialize::serialize(value, &mut writer).map_err(failed)?;
    }
    String::from_utf8(out.bytes).map(Value::from).map_err(|_| refused("JSON is not UTF-8"))
}

struct Json<'a> {
    bytes: Vec<u8>,
    budget: &'a Budget,
}

impl std::io::Write for Json<'_> {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.budget.draw(part.len()).map_err(std::io::Error::other)?;
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Filters that make no more than they are given, which is drawn when it is made.
fn add_plain(environment: &mut Environment<'_>, budget: &Budget) {
    macro_rules! add {
        ($walk:expr; $($name:literal $hidden:literal $filter:path),* $(,)?) => {$(
            environment.add_filter($hidden, $filter);
            let own = budget.clone();
            environment.add_filter($name, move |state: &State<'_, '_>, args: Rest<Value>| {
                if $walk {
                    args.iter().try_for_each(|value| own.walk(value))?;
                }
                state.apply_filter($hidden, &args).and_then(|value| own.draw_value(value))
            });
        )*};
    }
    add!(false;
        "abs" "=abs" filters::abs,
        "bool" "=bool" filters::bool,
        "capitalize" "=capitalize" filters::capitalize,
        "count" "=count" filters::length,
        "d" "=d" filters::default,
        "default" "=default" filters::default,
        "first" "=first" filters::first,
        "float" "=float" filters::float,
        "int" "=int" filters::int,
        "last" "=last" filters::last,
        "length" "=length" filters::length,
        "lower" "=lower" filters::lower,
        "round" "=round" filters::round,
        "safe" "=safe" filters::safe,
        "split" "=split" filters::split,
        "title" "=title" filters::title,
        "trim" "=trim" filters::trim,
        "upper" "=upper" filters::upper,
    );
    // These compare what they are given, or make lists of it.
    add!(true;
        "dictsort" "=dictsort" filters::dictsort,
        "items" "=items" filters::items,
        "list" "=list" filters::list,
        "map" "=map" filters::map,
        "max" "=max" filters::max,
        "min" "=min" filters::min,
        "reject" "=reject" filters::reject,
        "rejectattr" "=rejectattr" filters::rejectattr,
        "reverse" "=reverse" filters::reverse,
        "select" "=select" filters::select,
        "selectattr" "=selectattr" filters::selectattr,
        "sort" "=sort" filters::sort,
        "unique" "=unique" filters::unique,
    );
}

fn add_tests(environment: &mut Environment<'_>) {
    macro_rules! add {
        ($($name:literal $test:path),* $(,)?) => { $(environment.add_test($name, $test);)* };
    }
    add!(
        "boolean" tests::is_boolean,
        "defined" tests::is_defined,
        "divisibleby" tests::is_divisibleby,
        "endingwith" tests::is_endingwith,
        "even" tests::is_even,
        "false" tests::is_false,
        "float" tests::is_float,
        "integer" tests::is_integer,
        "iterable" tests::is_iterable,
        "lower" tests::is_lower,
        "mapping" tests::is_mapping,
        "none" tests::is_none,
        "number" tests::is_number,
        "odd" tests::is_odd,
        "sequence" tests::is_sequence,
        "startingwith" tests::is_startingwith,
        "string" tests::is_string,
        "true" tests::is_true,
        "undefined" tests::is_undefined,
        "upper" tests::is_upper,
    );
}
