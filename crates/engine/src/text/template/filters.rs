//! The filters, tests and functions that a template may use, each drawing from the budget what it reads and makes.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, filters, functions, tests};

use super::budget::{Budget, refused};
use super::clock;
use super::methods::{add_loops, add_methods};
use super::operators::{add_containers, add_operators};
use super::texts::add_growing;

/// Fills an empty environment.
pub(super) fn add_all(environment: &mut Environment<'_>, budget: &Budget) {
    add_operators(environment, budget);
    add_containers(environment, budget);
    add_growing(environment, budget);
    add_lists(environment, budget);
    add_plain(environment, budget);
    add_tests(environment, budget);
    add_methods(environment, budget);
    add_loops(environment, budget);
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
    let own = budget.clone();
    environment.add_function("strftime_now", move |format: &str| clock::now(&own, format));
}

/// Filters that give a list or how long it is.
fn add_lists(environment: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    environment.add_filter("list", move |value: &Value| own.items(value).map(Value::from));
    // Stands behind what each loop goes through.
    let own = budget.clone();
    environment.add_filter("iter", move |value: &Value| own.read_value(value).map(|()| value.clone()));
    for name in ["length", "count"] {
        let own = budget.clone();
        environment.add_filter(name, move |value: &Value| {
            own.read_value(value)?;
            if value.is_undefined() { Ok(0) } else { filters::length(value) }
        });
    }
}

/// Filters that make no more than they are given, which is drawn when it is made.
fn add_plain(environment: &mut Environment<'_>, budget: &Budget) {
    macro_rules! add {
        ($before:expr; $($name:literal $filter:path),* $(,)?) => {$(
            // Under no name: a template could call it by any with `map`, and nothing would draw.
            let filter = Value::from_function($filter);
            let own = budget.clone();
            environment.add_filter($name, move |state: &State<'_, '_>, args: Rest<Value>| {
                args.iter().try_for_each(|value| $before(&own, value))?;
                filter.call(state, &args).and_then(|value| own.draw_value(value))
            });
        )*};
    }
    add!(Budget::read_value;
        "abs" filters::abs,
        "bool" filters::bool,
        "capitalize" filters::capitalize,
        "d" filters::default,
        "default" filters::default,
        "first" filters::first,
        "float" filters::float,
        "int" filters::int,
        "last" filters::last,
        "lower" filters::lower,
        "round" filters::round,
        "safe" filters::safe,
        "title" filters::title,
        "trim" filters::trim,
        "upper" filters::upper,
    );
    // These make lists of what they are given.
    add!(Budget::walk_to_list;
        "items" filters::items,
        "map" filters::map,
        "reject" filters::reject,
        "rejectattr" filters::rejectattr,
        "reverse" filters::reverse,
        "select" filters::select,
        "selectattr" filters::selectattr,
    );
    add!(Budget::walk_to_sort;
        "dictsort" filters::dictsort,
        "max" filters::max,
        "min" filters::min,
        "sort" filters::sort,
        "unique" filters::unique,
    );
}

fn add_tests(environment: &mut Environment<'_>, budget: &Budget) {
    macro_rules! add {
        ($($name:literal $test:path),* $(,)?) => { $(environment.add_test($name, $test);)* };
    }
    add!(
        "boolean" tests::is_boolean,
        "defined" tests::is_defined,
        "even" tests::is_even,
        "false" tests::is_false,
        "float" tests::is_float,
        "integer" tests::is_integer,
        "mapping" tests::is_mapping,
        "none" tests::is_none,
        "odd" tests::is_odd,
        "string" tests::is_string,
        "true" tests::is_true,
        "undefined" tests::is_undefined,
    );
    // What is undefined is an empty list, but none is no list.
    environment.add_test("iterable", |value: &Value| match value.kind() {
        ValueKind::None | ValueKind::Number | ValueKind::Bool => false,
        ValueKind::String => true,
        _ => value.try_iter().is_ok(),
    });
    // The engine's own divides by what it is given.
    environment.add_test("divisibleby", |value: &Value, by: i64| match value.as_i64() {
        Some(_) if by == 0 => Err(refused("a number is divided by 0; allowed is every other whole number")),
        Some(number) => Ok(number.checked_rem(by).unwrap_or(0) == 0),
        None => Ok(false),
    });
    // In Python, texts and maps are sequences as well, and truth is a number.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map)
    });
    environment
        .add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    macro_rules! add_reading {
        ($($name:literal $test:path),* $(,)?) => {$(
            let test = Value::from_function($test);
            let own = budget.clone();
            environment.add_test($name, move |state: &State<'_, '_>, args: Rest<Value>| {
                args.iter().try_for_each(|value| own.walk(value))?;
                test.call(state, &args).map(|value| value.is_true())
            });
        )*};
    }
    add_reading!(
        "endingwith" tests::is_endingwith,
        "lower" tests::is_lower,
        "startingwith" tests::is_startingwith,
        "upper" tests::is_upper,
    );
}
