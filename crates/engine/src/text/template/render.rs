//! Rendering within bounds.
//!
//! A chat template is a program by a stranger. Fuel ends its loops and a recursion limit its macros, but a text that
//! is added to itself forty-five times takes two hundred steps and 2⁴⁵ bytes, and a failed allocation ends the
//! process. So every operation that makes a text or a list draws the bytes from one budget before it makes them, and
//! one that takes a list apart walks through it first, since a list can hold itself. What reads a text or a list draws
//! its length from a second budget, or a template could look through a long text a million times. The engine has no
//! hook for its operators; they are turned into filters in the compiled template, one instruction for one, which is why
//! its unstable parts are used and its version is pinned.
//!
//! `strftime_now` tells the date, in UTC: a prompt that has it changes at midnight, in every time zone at once.
//!
//! # Source
//! What transformers gives to chat templates (`utils/chat_template_utils.py`): trimmed blocks, loop controls,
//! `raise_exception`, and `tojson` as Python writes it.

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Vm, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};

use super::budget::{Budget, refused};
use super::filters;
use super::source::{SPACE, Source};

/// Text that a render may make, beyond a multiple of what it is given.
const BYTES: usize = 64 << 20;
/// Bytes that a render may read, beyond a multiple of what it is given.
const READ: usize = 256 << 20;
/// Templates look through a message more often than they copy it.
const READINGS: usize = 4 * PASSES;
/// Templates pass a message through a handful of operations.
const PASSES: usize = 32;
/// Steps that a render may take.
const STEPS: u64 = 4_000_000;
/// Literal text that a render may write. It draws from no budget; each step writes one piece of it at most.
const LITERAL: usize = 256 << 20;
/// Nested calls and blocks.
const DEPTH: usize = 100;
/// Instructions look a filter up by name where it has no place among the first fifty.
const BY_NAME: u8 = u8::MAX;

pub(super) fn render(
    template: &str,
    messages: &[(String, String)],
    answer: bool,
    bos: &str,
    eos: &str,
) -> Result<String, Error> {
    let Source { text: source, longest } = Source::new(template)?;
    let given: usize = messages.iter().map(|(role, content)| role.len() + content.len()).sum();
    let budget = Budget::new(
        BYTES.saturating_add(given.saturating_mul(PASSES)),
        READ.saturating_add(given.saturating_mul(READINGS)),
    );
    let mut environment = Environment::empty();
    filters::add_all(&mut environment, &budget);
    environment.set_fuel(Some(STEPS.min((LITERAL / longest.max(1)) as u64)));
    environment.set_recursion_limit(DEPTH);
    environment.set_formatter(move |out, _, value| {
        // What is undefined writes nothing, as in Python.
        out.write_str(&budget.text(&[value])?).map_err(Error::from)
    });

    let tree = parse(&source, "chat template", SyntaxConfig, SPACE)?;
    let mut generator = CodeGenerator::new("chat template", &source);
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
            Instruction::CallMethod("changed", Some(operands)) => (".changed", usize::from(*operands)),
            Instruction::CallMethod("cycle", Some(operands)) => (".cycle", usize::from(*operands)),
            Instruction::UnpackLists(_) | Instruction::MergeKwargs(_) => {
                return Err(refused("it makes arguments of a list or a map; allowed are single arguments"));
            }
            Instruction::FastRecurse | Instruction::CallFunction("loop", _) => {
                return Err(refused("it calls a loop; allowed are macros"));
            }
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
