use super::*;

fn template(source: &str) -> Template {
    Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned(), "test").unwrap()
}

fn messages(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned())).collect()
}

fn failure(source: &str) -> String {
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
    let text = template(source).render(&messages(&[("system", " s "), ("user", "u\n")]), true).unwrap();
    let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\ns<|eot_id|>\
                    <|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(text, expected);

    let source = "{{ bos_token }}{% for message in messages %}\
                  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
                  {{ raise_exception('Conversation roles must alternate!') }}{% endif %}\
                  {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
                  {% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}";
    let chat = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    assert_eq!(template(source).render(&chat, true).unwrap(), "<s>[INST] a [/INST]b</s>[INST] c [/INST]");
    assert!(failure(&source.replace("== 0", "== 1")).contains("Conversation roles must alternate!"));
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
    for (source, expected) in cases {
        let text = template(source).render(&messages(&[("user", "hello")]), true);
        assert_eq!(text.as_deref().map_err(Error::message), Ok(expected), "{source}");
    }
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
        "{% if".into(),
    ];
    for source in hostile {
        let before = std::time::Instant::now();
        let message = failure(&source);
        assert!(message.starts_with("the chat template fails"), "{message}");
        assert!(before.elapsed().as_secs() < 2, "{source:.80} took {:?}", before.elapsed());
    }
    let long = "x".repeat(300_000);
    assert!(Template::new(long, String::new(), String::new(), "test").is_err());
}

#[test]
fn long_conversations_fit() {
    let chat: Vec<_> =
        (0..400).map(|n| (["user", "assistant"][n % 2].to_owned(), "word ".repeat(500))).collect();
    let source =
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</>' + '\n' }}{% endfor %}";
    assert!(template(source).render(&chat, true).unwrap().len() > 1_000_000);
}
