use super::*;

pub(super) fn template(source: &str) -> Template {
    Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned(), "test").unwrap()
}

fn messages(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned())).collect()
}

pub(super) fn failure(source: &str) -> String {
    template(source).render(&messages(&[("user", "hello")]), true).unwrap_err().message().to_owned()
}

#[test]
fn smollm2() {
    let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
                  {{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}\
                  {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let text = template(source).render(&messages(&[("user", "Hi <b> & 'you'")]), true).unwrap();
    let expected = "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi <b> & 'you'<|im_end|>\n\
                    <|im_start|>assistant\n";
    assert_eq!(text, expected);
    let text = template(source).render(&messages(&[("system", "s"), ("user", "u")]), false).unwrap();
    assert_eq!(text, "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n");
}

#[test]
fn qwen2() {
    let source = r#"
{%- if tools %}
    {{- '<|im_start|>system\n# Tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;
    let chat = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    let expected = "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\na<|im_end|>\n\
                    <|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(template(source).render(&chat, true).unwrap(), expected);
}

#[test]
fn llama3_and_mistral() {
    let source = "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n        \
                  {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n        \
                  {%- set date_string = '26 Jul 2024' %}\n    {%- endif %}\n{%- endif %}\n\
                  {%- if messages[0]['role'] == 'system' %}\n    \
                  {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n\
                  {%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n\
                  {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n{%- if tools is not none %}\n    \
                  {{- 'Tools' }}\n{%- endif %}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}\n\
                  {{- system_message }}\n{{- '<|eot_id|>' }}\n{%- for message in messages %}\n    \
                  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + \
                  '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    \
                  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";
    let today = || template("{{ strftime_now('%d %b %Y') }}").render(&[], true).unwrap();
    let (before, chat) = (today(), messages(&[("system", " s "), ("user", "u\n")]));
    let text = template(source).render(&chat, true).unwrap();
    let expected = |date: &str| {
        format!(
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: {date}\n\ns<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n"
        )
    };
    // Midnight may pass in between.
    assert!(text == expected(&before) || text == expected(&today()), "{text}");

    let source = "{{ bos_token }}{% for message in messages %}\
                  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
                  {{ raise_exception('Conversation roles must alternate!') }}{% endif %}\
                  {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
                  {% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}";
    let chat = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    assert_eq!(template(source).render(&chat, true).unwrap(), "<s>[INST] a [/INST]b</s>[INST] c [/INST]");
    assert!(failure(&source.replace("== 0", "== 1")).contains("Conversation roles must alternate!"));
}

/// Each template with what it writes.
fn all(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        let text = template(source).render(&messages(&[("user", "hello")]), true);
        assert_eq!(text.as_deref().map_err(Error::message), Ok(*expected), "{source}");
    }
}

#[test]
fn what_templates_use_of_python() {
    let cases = [
        ("{{ messages[0].content.upper()[1:4] }}", "ELL"),
        ("{{ messages[0].content[::-1] ~ 1 ~ none ~ true ~ x }}", "olleh1NoneTrue"),
        ("{{ [1, 2, 3, 4][1:3] | join('-') }}{{ ([1] + [2])|length }}", "2-32"),
        ("{{ 'a.b.c'.split('.')[-1] }}{{ ' x '.strip() }}{{ 'abc'.startswith('ab') }}", "cxTrue"),
        ("{{ {'a': [1, 'é<'], 'b': none}|tojson }}", "{\"a\": [1, \"é<\"], \"b\": null}"),
        (
            "{{ {'a': [1, 2]}['a'][1] }}{{ 'a' in ['a'] }}{{ 'b' not in 'abc' }}{{ 2 is eq 2 }}{{ 1 <= 2 }}",
            "2TrueFalseTrueTrue",
        ),
        ("{{ messages[0]['tool_calls'] is defined }}{{ messages[0].get('x', 'y') }}", "Falsey"),
        ("{{ {'a': 1}|tojson(indent=2) }}", "{\n  \"a\": 1\n}"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 2 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') + f('b') }}", "<a><b>"),
        (
            "{{ 'a\nb'|indent(2) }}|{{ 'aXb'|replace('X', '--') }}|{{ 'aXb'.replace('X', '') }}",
            "a\n  b|a--b|ab",
        ),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|first }}", "hello"),
        ("a\n{% if true %}\nb\n{% endif %}\nc\n", "a\nb\nc"),
    ];
    all(&cases);
}

#[test]
fn long_conversations_fit() {
    let chat: Vec<_> =
        (0..400).map(|n| (["user", "assistant"][n % 2].to_owned(), "word ".repeat(500))).collect();
    let source =
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</>' + '\n' }}{% endfor %}";
    assert!(template(source).render(&chat, true).unwrap().len() > 1_000_000);
}

#[test]
fn tags_and_tests_of_transformers() {
    let cases = [
        ("a{% generation %}b{{ 1 }}{% endgeneration %}c", "ab1c"),
        ("a \n{%- generation -%}\n b \n{%- endgeneration -%}\n c", "abc"),
        ("  {%+ generation +%} b {% endgeneration %}c", "   b c"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "hello"),
        (
            "{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}{# {% generation %} #}",
            "{% generation %}{% generation %}",
        ),
        ("{% set generation = 1 %}{{ generation }}{% if generation %}x{% endif %}", "1x"),
        (
            "{{ none is iterable }}{{ x is iterable }}{{ [] is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}",
            "FalseTrueTrueTrueFalse",
        ),
        ("{% if tools is iterable and tools | length > 0 %}t{% else %}n{% endif %}", "n"),
        ("{{ x|length }}{{ x|count }}{{ [1]|length }}", "001"),
        ("{{ strftime_now('%Y')|length }}{{ strftime_now is defined }}", "4True"),
    ];
    all(&cases);
}

#[test]
fn what_templates_use_less_often() {
    let cases = [
        (
            "{{ {'b': 1, 'a': 2}|tojson }}{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}",
            "{\"b\": 1, \"a\": 2}ba",
        ),
        ("{{ {'b': [1, {}], 'a': []}|tojson(sort_keys=true) }}", "{\"a\": [], \"b\": [1, {}]}"),
        ("{{ {'a': [1, 2]}|tojson(separators=(',', ':')) }}", "{\"a\":[1,2]}"),
        (
            "{{ {'a': [1, {}], 'b': []}|tojson(indent=1, ensure_ascii=false) }}",
            "{\n \"a\": [\n  1,\n  {}\n ],\n \"b\": []\n}",
        ),
        (
            "{{ {'b': [1, none, true], 'a': \"it's\"} }}{{ ['a\\n', 'é\\\\', 1.5] }}{{ [\"'\", '\"\\''] }}",
            r#"{'b': [1, None, True], 'a': "it's"}['a\n', 'é\\', 1.5]["'", '"\'']"#,
        ),
        (
            "{{ 4 is divisibleby 2 }}{{ 3 is divisibleby(-2) }}{{ 'cab'|sort|join }}{{ 'abc'|reverse }}",
            "TrueFalseabccba",
        ),
        ("{{ 1e20 }} {{ 1e-7 }} {{ 1.5 }} {{ 10 / 2 }} {{ 2 * 3 * 4 }}", "1e+20 1e-07 1.5 5.0 24"),
        ("{{ messages[0].content|length * 2 + 3 * 4 }}{{ '-' * 80 == [1] }}", "22False"),
        ("{% for c in 'a\\\nb' %}{{ c }}-{% endfor %}", "a-b-"),
        (
            "{{ 'a' is sequence }}{{ {} is sequence }}{{ none is sequence }}{{ true is number }}",
            "TrueTrueFalseTrue",
        ),
        ("\r\n{% if true %}\r\nx\ry\r\n{% endif %}\r\n", "\nx\ny\n"),
        ("{{ 'a\r\nb' }}", "a\nb"),
        ("{{ 'a\\\nb\\\\\nc' }}", "ab\\\nc"),
        (r#"{{ "\/\a\v\U0001F600\u00e9\d" }}"#, "\\/\x07\x0b😀é\\d"),
        (
            "{{ 'a b c'.rsplit(' ', 1)|join('|') }}{{ ' a  b c '.rsplit(none, 1)|join('|') }}{{ 'a b'.rsplit()|join('|') }}",
            "a b|c a  b|ca|b",
        ),
        (
            "{{ ' a  b c '.split(none, 1)|join('|') }}{{ 'a,b,c'.split(',', maxsplit=1)|join('|') }}{{ 'a,b'|split(',')|last }}",
            "a|b c a|b,cb",
        ),
        (
            "{{ 'a:b:c'.partition(':')|join('|') }}{{ 'a:b:c'.rpartition(':')|join('|') }}{{ 'a'.partition(':')|join('|') }}",
            "a|:|b:ca:b|:|ca||",
        ),
        (
            "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'abc'.removeprefix('x') }}",
            "bcababc",
        ),
        (
            "{{ 'aaa'|replace('a', 'b', 2) }}{{ 'aaa'.replace('a', 'b', 1) }}{{ 'aaa'.replace('a', 'b', -1) }}",
            "bbabaabbb",
        ),
        ("{{ messages|join(', ', attribute='role') }}{{ [[1, [2]]]|join(attribute='1.0') }}", "user2"),
        (
            "{{ 'é:x'.find('x') }}{{ 'éxéx'.rfind('x') }}{{ 'a'.find('b') }}{{ 'aaa'.count('a') }}{{ 'ab'.count('') }}",
            "23-133",
        ),
        ("{{ 'a\nb\r\nc\n'.splitlines()|join('|') }}{{ 'a\nb'.splitlines(true)|join('|') }}", "a|b|ca\n|b"),
        (
            "{{ 'héllo'[1:3] }}{{ 'héllo'[1:] }}{{ 'héllo'[:-1] }}{{ 'héllo'[3:1] }}{{ 'héllo'[2:3] }}{{ 'ab'[9:] }}",
            "éléllohélll",
        ),
        (
            "{{ 'a\n\nb'|indent(width=1, first=true) }}{{ 'a\n\nb'|indent(1, blank=true) }}",
            " a\n\n ba\n \n b",
        ),
        (
            "{% for c in 'ab' if c != 'a' %}{{ c }}{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
            "ba1",
        ),
        (
            "{% for a in [1, 2] if a > 1 %}{{ a }}{% else %}none{% endfor %}{% for a in messages[0].if or [3] %}{{ a }}{% endfor %}",
            "23",
        ),
        (
            "{% for a in [1, 1, 2] %}{{ loop.changed(a) }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "TruexFalseyTruex",
        ),
    ];
    all(&cases);
}
