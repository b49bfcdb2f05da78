//! Greedy texts of real models, on the device and on the CPU.

use trefoil_kernels::{Kernels, WeightType};

use crate::Result;
use crate::carried::Model;
use crate::exact::part;
use crate::report::Report;
use crate::subject::{Subject, Way};

const SECTION: &str = "texts";

/// How near the two best scores may be for a device to prefer the other one: its sums have another order, and
/// activations are rounded to the type of 16-bit weights.
fn tie(ty: WeightType) -> f32 {
    match ty {
        WeightType::F16 | WeightType::Bf16 => 0.05,
        _ => 1e-3,
    }
}

/// Texts of so many tokens behind every prompt of a model. On the CPU itself nothing may differ.
pub(crate) fn texts(
    report: &mut Report,
    model: &Model,
    cpu: &Kernels,
    device: &Kernels,
    tokens: usize,
) -> Result<()> {
    let here = Subject::open(&model.name, &model.source, cpu)?;
    let there = Subject::open(&model.name, &model.source, device)?;
    let tie = if device.name() == cpu.name() { 0.0 } else { tie(here.ty) };
    let mut notes = Vec::new();
    let found = model.prompts.iter().enumerate().try_for_each(|(at, prompt)| {
        let expected = here.write(prompt, Way::Plain, tokens)?;
        let text = there.write(prompt, Way::Plain, tokens)?;
        let Some(token) = part(&expected, &text) else { return Ok(()) };
        let gap = here.gap(prompt, &expected[..token])?;
        let said =
            format!("prompt {at} parts at token {token}, where the CPU's best two scores are {gap:e} apart");
        if gap < tie {
            notes.push(said);
            return Ok(());
        }
        Err(format!("{said}; {tie:e} is allowed").into())
    });
    let notes = format!(
        "{} texts of {tokens} tokens; {} near ties {}",
        model.prompts.len(),
        notes.len(),
        notes.join("; ")
    );
    report.check(SECTION, format!("{}, {}", model.name, here.ty.name()), found.map(|()| notes));
    Ok(())
}
