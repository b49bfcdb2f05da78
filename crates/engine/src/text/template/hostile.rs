//! Templates that try to take all memory, all time or all of the stack.

use super::tests::{failure, template};
use super::*;

/// Renders a template that must fail for a reason that it gives back. Each takes up to a second where nothing else
/// runs, and would take minutes or hours without bounds.
fn fails(source: &str) -> String {
    let before = std::time::Instant::now();
    let message = failure(source);
    assert!(message.starts_with("the chat template fails"), "{message:.200}");
    assert!(before.elapsed().as_secs() < 5, "{source:.300} took {:?}", before.elapsed());
    message
}

#[test]
fn hostile_templates() {
    let doubled = |operation: &str| {
        format!(
            "{{% set ns = namespace(s='0123456789') %}}{{% for i in range(45) %}}{operation}{{% endfor %}}{{{{ ns.s|length }}}}"
        )
    };
    let hostile = [
        doubled("{% set ns.s = ns.s ~ ns.s %}"),
        doubled("{% set ns.s = ns.s + ns.s %}"),
        doubled("{% set ns.s = ns.s * 2 %}"),
        doubled("{% set ns.s = [ns.s, ns.s]|join %}"),
        doubled("{% set ns.s = ns.s|replace('0', '00000000001234') %}"),
        doubled("{% set ns.s = ns.s.replace('', ns.s) %}"),
        doubled("{% set ns.s = ns.s.join([ns.s, ns.s]) %}"),
        doubled("{% set ns.s = (ns.s ~ '\"')|tojson %}").replace("45", "200"),
        doubled("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        doubled("{% set ns.s = [ns.s, ns.s] %}").replace("|length", ""),
        doubled("{% set ns.s = [ns.s, ns.s] %}").replace("|length", "|tojson"),
        doubled("{% set ns.s = [ns.s, ns.s] %}").replace("|length", "|string"),
        doubled("{% set ns.s = ns.s ~ 'x' %}").replace("45", "1000000000"),
        "{% set ns = namespace(l=[1]) %}{% for i in range(45) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l|length }}".into(),
        "{% set ns = namespace(l=[], s='x') %}{% for i in range(20) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}\
         {% for i in range(99999) %}{% set ns.l = ns.l + [ns.s[1:]] %}{% endfor %}".into(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}".into(),
        "{% for a in range(1000000000) %}{% endfor %}".into(),
        "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('x') }}".into(),
        "{{ 'x' * 2000000000 }}".into(),
        "{{ 'x' * 100000000 ~ 'x' * 100000000 }}".into(),
        "{{ '%1000000000d'|format(1) }}".into(),
        "{{ '{:1000000000}'.format(1) }}".into(),
        "{{ 'x'|indent(2000000000, true) }}".into(),
        "{{ [1]|tojson(indent=2000000000) }}".into(),
        "{{ ''.join(range(99999)|map('string')|list * 99999) }}".into(),
        format!("{{% for a in range(99999) %}}{}{{% endfor %}}", "x".repeat(200_000)),
        format!("{}1{}", "{{ ".to_owned() + &"(".repeat(5000), ")".repeat(5000) + " }}"),
        doubled("{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}").replace("ns.s|length", "ns.s == ns.t"),
        doubled("{% set ns.s = {'a': ns.s, 'b': ns.s} %}").replace("|length", "|tojson"),
        doubled("{% set ns.s = [ns.s] %}").replace("45", "99999"),
        doubled("{% set ns.s = namespace(x=ns.s) %}").replace("45", "99999"),
        doubled("{% set ns.s = ns.s|map('list')|list %}").replace("45", "99999"),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|reverse %}{% endfor %}{{ 'x'|nothing }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|tojson }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{% set n2 = namespace() %}{% set n2.x = n2 %}{{ ns == n2 }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ [1, ns]|unique|list }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ {'a': 1}[ns] }}{{ {ns: 1} }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns in [ns] }}".into(),
        "{{ 0 < messages|length < 3 }}".into(),
        "{% include 'x' %}".into(),
        "{{ 1 is divisibleby 0 }}".into(),
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}".into(),
        "{% if".into(),
    ];
    for source in hostile {
        fails(&source);
    }
    let long = "x".repeat(300_000);
    assert!(Template::new(long, String::new(), String::new(), "test").is_err());
}

/// A template's beginning that makes `s`, a text of 20 MB.
fn long(of: &str) -> String {
    let ten = of.repeat(10);
    format!(
        "{{% set ns = namespace(s='{ten}') %}}{{% for i in range(21) %}}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}\
         {{% set s = ns.s %}}"
    )
}

#[test]
fn deep_expressions() {
    let chain =
        |start: &str, part: &str, end: &str| format!("{start}{}{end}", part.repeat(180_000 / part.len()));
    let deep = [
        chain("{{ x", ".a", " }}"),
        chain("{{ x", "|trim", " }}"),
        chain("{{ a", "+a", " }}"),
        chain("{{ a", "~a", " }}"),
        chain("{{ a", " and a", " }}"),
        chain("{{ a", " or a", " }}"),
        chain("{{ ", "not ", "a }}"),
        chain("{{ ", "-", "1 }}"),
        chain("{{ x", "[0]", " }}"),
        chain("{{ x", "()", " }}"),
        chain("{{ x", " is none", " }}"),
        chain("{{ ", "1 if a else ", "2 }}"),
        chain("{{ a", "+a", ""),
        chain("{% set x | trim", "|trim", " %}{% endset %}"),
        chain("{% filter trim", "|trim", " %}{% endfilter %}"),
        chain("{% if a %}", "{% elif a %}", "{% endif %}"),
        chain("{% if a %}", "{%- elif a -%}", ""),
        "{% for x in s recursive %}{{ loop(s) }}{% endfor %}".to_owned(),
        "{{ dict(*[1]) }}".to_owned(),
    ];
    // The main thread of a program on Windows has a stack of 1 MB.
    let render = move || {
        for source in deep {
            let message = fails(&source);
            assert!(message.contains("allowed"), "{message}");
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(render).unwrap().join().unwrap();
}

#[test]
fn as_deep_as_allowed() {
    let chain =
        |start: &str, part: &str, times: usize, end: &str| format!("{start}{}{end}", part.repeat(times));
    let fits = [
        chain("{{ x is defined or y", ".a", 246, " }}"),
        chain("{{ a", "|trim", 249, " }}"),
        chain("{{ a", "~a", 249, " }}"),
        chain("{{ a", " or a", 249, " }}"),
        chain("{{ ", "not ", 499, "a }}"),
        chain("{{ ", "1 if a else ", 124, "2 }}"),
        chain("{% if a %}", "{% elif a %}", 200, "{% endif %}"),
        chain("{{ ", "(", 140, "1") + &")".repeat(140) + " }}",
        chain("{{ ", "[", 140, "1") + &"]".repeat(140) + "|length }}",
        chain("{{ ", "{1:", 110, "1") + &"}".repeat(110) + "|length }}",
        chain("{{ ", "f(", 140, "1") + &")".repeat(140) + " }}",
        chain("", "{% macro f() %}", 140, "") + &"{% endmacro %}".repeat(140),
        chain("", "{% for a in [1] %}", 90, "") + &"{% endfor %}".repeat(90),
        chain("", "{% set a %}", 140, "") + &"{% endset %}".repeat(140),
        chain(&"{% if true %}".repeat(60), "{% if a %}{% elif a %}", 60, &"{% endif %}".repeat(120)),
        format!(
            "{}{}{}",
            "{% if true %}".repeat(120),
            chain("{{ a", "~a", 249, " }}"),
            "{% endif %}".repeat(120)
        ),
    ];
    let render = move || {
        for source in fits {
            if let Err(cause) = template(&source).render(&[], true) {
                // One that has no attribute to look into fails later, of its own accord.
                assert!(!cause.message().contains("allowed"), "{source:.80}: {}", cause.message());
            }
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(render).unwrap().join().unwrap();
}

#[test]
fn texts_looked_through_again_and_again() {
    let again = |of: &str, operation: &str| {
        format!("{}{{% for i in range(99999) %}}{operation}{{% endfor %}}", long(of))
    };
    let hostile = [
        again("x", "{% if 'xy' in s %}{% endif %}"),
        again("x", "{% if s|length == 3 %}{% endif %}"),
        again("x", "{% if s.find('y') %}{% endif %}"),
        again("x", "{% if s.count('y') %}{% endif %}"),
        again("x", "{% if s.count('') %}{% endif %}"),
        again("x", "{% if s.split('y') %}{% endif %}"),
        again("x", "{% if s.splitlines() %}{% endif %}"),
        again("x", "{% if s.partition('y') %}{% endif %}"),
        again("x", "{% if s.removeprefix('y') %}{% endif %}"),
        again("x", "{% if s.replace('y', '') %}{% endif %}"),
        again(" ", "{% if s.strip() %}{% endif %}"),
        again(" ", "{% if s|trim %}{% endif %}"),
        again(" ", "{% if s.split() %}{% endif %}"),
        again("1", "{% if s|float %}{% endif %}"),
        again("1", "{% if s.isdigit() %}{% endif %}"),
        again("X", "{% if s is upper %}{% endif %}"),
        again("X", "{% if s.isupper() %}{% endif %}"),
        again("X", "{% if [s]|select('upper')|list %}{% endif %}"),
        again("x", "{% if [s]|map('trim')|list %}{% endif %}"),
        again("x", "{% if [s]|map('=trim')|list %}{% endif %}"),
        again("x", "{% if s[0] %}{% endif %}"),
        again("x", "{% if s[1:2] %}{% endif %}"),
        again("x", "{% if {}[s] %}{% endif %}"),
        again("x", "{% if {}.get(s) %}{% endif %}"),
        again("x", "{% if [s].count('x') %}{% endif %}"),
        again("x", "{% if 'x'.startswith(s) %}{% endif %}"),
        again("x", "{% for c in s %}{% break %}{% endfor %}"),
        again("x", "{% for c in s if c %}{% break %}{% endfor %}"),
        again("x", "{% if s.upper() %}{% endif %}"),
        again("x", "{% if s|title %}{% endif %}"),
        again("x", "{% if [s, s ~ '']|sort %}{% endif %}"),
        again("x", "{% if s|max %}{% endif %}"),
        again("x", "{% if s|unique|list %}{% endif %}"),
        again("x", "{% if s|map('upper')|list %}{% endif %}"),
        again("x", "{% if loop.changed(s) %}{% endif %}"),
        again("x", "{% if strftime_now(s) %}{% endif %}"),
        long("x") + "{% set t = s[:9999999] %}{% set u = t[:] ~ '' %}{% for i in range(99999) %}{% if t == u %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% if range(99999)|last %}{% endif %}{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% if -1 in range(99999) %}{% endif %}{% endfor %}".to_owned(),
        "{% set ns = namespace(s=1) %}{% for i in range(45) %}{% set ns.s = [ns.s, ns.s] %}{% if loop.changed(ns.s) %}{% endif %}{% endfor %}".to_owned(),
        "{{ ('x' * 50000000)".to_owned() + &"~'a'".repeat(200) + " }}",
        "{{ 'x' * 2 ** 26 ~ 'a' }}".to_owned(),
        "{{ [1] * 1000 * 1000 }}".to_owned(),
        "{{ 'x' * 1000 * 1000 }}".to_owned(),
        "{{ ((1 ~ 2) * 40000000)".to_owned() + &"~'a'".repeat(200) + " }}",
        "{{ ((1e300 ~ 1e300) * 100)".to_owned() + &"~'a'".repeat(200) + " }}",
        "{{ 2 * 2 * 2 }}".repeat(9),
        format!("{{{{ 'x' * 16000{}{} }}}}{{{{ 'x'|nothing }}}}", "~'a'".repeat(123), "~x".repeat(123)).repeat(9),
        format!("{{{{ '{}'{}{} }}}}{{{{ 'x'|nothing }}}}", "x".repeat(200_000), "~'a'".repeat(124), "~x".repeat(124)),
        "{% set s = 'x' * 20000000 %}{% for i in range(99999) %}{% if 'xy' in s %}{% endif %}{% endfor %}".to_owned(),
    ];
    for source in hostile {
        fails(&source);
    }
}

#[test]
fn lists_are_counted_before_they_are_made() {
    for list in
        ["s.split('x')", "s.rsplit('x')", "s.rsplit('x', 99999999)", "s|split('x')", "s|list", "s.split('')"]
    {
        fails(&format!("{}{{{{ {list}|length }}}}", long("x")));
    }
    fails(&format!("{}{{{{ s.splitlines()|length }}}}", long("\\n")));
    fails(&format!("{}{{{{ s.split()|length }}}}", long("x ")));
    fails(&format!("{}{{{{ s.rsplit(none, 9999999)|length }}}}", long("x ")));
}
