//! Rendering within bounds.
//!
//! A chat template is a program by a stranger. Fuel ends its loops and a recursion limit its macros, but a text that
//! is added to itself forty-five times takes two hundred steps and 2⁴⁵ bytes, and a failed allocation ends the
//! process. So every operation that makes a text or a list draws the bytes from one budget before it makes them, and
//! one that takes a list apart walks through it first, since a list can hold itself. The engine has no hook for its operators; they are turned into filters in the compiled template, one instruction for
//! one, which is why its unstable parts are used and its version is pinned.
//!
//! The time of day is not given to templates (`strftime_now` is undefined, and they fall back on a fixed date): the
//! same messages must make the same prompt tomorrow.
//!
//! # Source
//! What transformers gives to chat templates (`utils/chat_template_utils.py`): trimmed blocks, loop controls,
//! `raise_exception`, and `tojson` as Python writes it.

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig, make_string_output, parse,
    tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};

use super::budget::Budget;
use super::filters;

/// Text that a render may make, beyond a multiple of what it is given.
const BYTES: usize = 64 << 20;
/// Templates pass a message through a handful of operations.
const PASSES: usize = 32;
/// Steps that a render may take.
const STEPS: u64 = 4_000_000;
/// Literal text that a render may write. It draws from no budget; each step writes one piece of it at most.
const LITERAL: usize = 256 << 20;
/// Nested calls and blocks.
const DEPTH: usize = 100;
/// Constant expressions are computed while compiling, before any budget; one product makes at most 100 MB.
const PRODUCTS: usize = 1;
/// Instructions look a filter up by name where it has no place among the first fifty.
const BY_NAME: u8 = u8::MAX;

const SPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

pub(super) fn render(
    source: &str,
    messages: &[(String, String)],
    answer: bool,
    bos: &str,
    eos: &str,
) -> Result<String, Error> {
    let longest = scan(source)?;
    let given: usize = messages.iter().map(|(role, content)| role.len() + content.len()).sum();
    let budget = Budget::new(BYTES.saturating_add(given.saturating_mul(PASSES)));
    let mut environment = Environment::empty();
    filters::add_all(&mut environment, &budget);
    environment.set_fuel(Some(STEPS.min((LITERAL / longest.max(1)) as u64)));
    environment.set_recursion_limit(DEPTH);
    environment.set_formatter(move |out, _, value| {
        // What is undefined writes nothing, as in Python.
        out.write_str(&budget.text(&[value])?).map_err(Error::from)
    });

    let tree = parse(source, "chat template", SyntaxConfig, SPACE)?;
    let mut generator = CodeGenerator::new("chat template", source);
    generator.compile_stmt(&tree);
    let (mut root, mut blocks) = generator.finish();
    bind_operators(&mut root)?;
    blocks.values_mut().try_for_each(bind_operators)?;

    let messages: Vec<Value> =
        messages.iter().map(|(role, content)| context! { role => role, content => content }).collect();
    let given = context! {
        messages,
        add_generation_prompt => answer,
        bos_token => bos,
        eos_token => eos,
        tools => (),
        documents => (),
    };
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    Vm::new(&environment).eval(&root, given, &blocks, &mut out, AutoEscape::None)?;
    Ok(text)
}

/// Refuses what could not be bounded later; gives the length of the longest literal text.
fn scan(source: &str) -> Result<usize, Error> {
    let (mut products, mut longest) = (0, 0);
    for token in tokenize(source, false, SyntaxConfig, SPACE) {
        match token?.0 {
            Token::Mul | Token::Pow => products += 1,
            Token::TemplateData(text) => longest = longest.max(text.len()),
            _ => {}
        }
    }
    if products > PRODUCTS {
        let what = format!("it has {products} multiplications; allowed is {PRODUCTS}");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(longest)
}

/// Makes filters of the operators that make texts and lists or take them apart.
fn bind_operators(instructions: &mut Instructions<'_>) -> Result<(), Error> {
    for at in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get_mut(at) else { break };
        let (name, operands) = match instruction {
            Instruction::StringConcat => ("~", 2),
            Instruction::Add => ("+", 2),
            Instruction::Mul => ("*", 2),
            Instruction::Slice => ("[:]", 4),
            Instruction::GetItem => ("[]", 2),
            Instruction::BuildList(Some(items)) => ("[,]", *items),
            Instruction::BuildMap(pairs) => ("{:}", 2 * *pairs),
            Instruction::Eq => ("==", 2),
            Instruction::Ne => ("!=", 2),
            Instruction::Lt => ("<", 2),
            Instruction::Lte => ("<=", 2),
            Instruction::Gt => (">", 2),
            Instruction::Gte => (">=", 2),
            Instruction::In => ("in", 2),
            Instruction::CompareAndPreserve(_) => {
                let what = "it compares three values at once; allowed are two";
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
            _ => continue,
        };
        let operands = u16::try_from(operands)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "it writes out too long a list"))?;
        *instruction = Instruction::ApplyFilter(name, Some(operands), BY_NAME);
    }
    Ok(())
}
