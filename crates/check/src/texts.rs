//! Greedy texts of real models, on the device and on the CPU.

use trefoil_kernels::{Kernels, WeightType};

use crate::Result;
use crate::carried::Model;
use crate::exact::part;
use crate::report::Report;
use crate::subject::{Subject, Way, gap};

const SECTION: &str = "texts";

/// How far scores may lie from the CPU's, as a share of their own spread.
///
/// Tensor cores take activations in the type of 16-bit weights. Each product rounds them once, by this share of their size at
/// most, and rounding adds up over layers as a random walk does: fixtures were seen 12 roundings away in emulation.
/// Elsewhere only the order of sums differs, and what an activation that lies between two bytes is rounded to.
fn allowed(ty: WeightType) -> f64 {
    match ty {
        WeightType::Bf16 => 32.0 * 2f64.powi(-9),
        WeightType::F16 => 32.0 * 2f64.powi(-12),
        WeightType::F32 => 1e-5,
        _ => 1e-3,
    }
}

/// Texts of so many tokens behind every prompt of a model, and the scores behind the prompts. A text may part from the
/// CPU's only where the scores are as near as they are allowed to be; on the CPU itself nothing may differ.
pub(crate) fn texts(
    report: &mut Report,
    model: &Model,
    cpu: &Kernels,
    device: &Kernels,
    tokens: usize,
) -> Result<()> {
    let here = Subject::open(&model.name, &model.source, cpu)?;
    let there = Subject::open(&model.name, &model.source, device)?;
    let allowed = if device.name() == cpu.name() { 0.0 } else { allowed(here.ty) };
    let (mut worst, mut notes) = (0.0f64, Vec::new());
    let found = model.prompts.iter().enumerate().try_for_each(|(at, prompt)| {
        let expected = here.write(prompt, Way::Plain, tokens)?;
        let text = there.write(prompt, Way::Plain, tokens)?;
        let parted = part(&expected, &text);
        let until = &expected[..parted.unwrap_or(0)];
        let scores = here.scores(prompt, until)?;
        let distance = distance(&scores, &there.scores(prompt, until)?);
        worst = worst.max(distance);
        if let Some(token) = parted {
            let gap = gap(&scores);
            notes.push(format!("; prompt {at} parts at token {token}, the best two scores {gap:e} apart"));
        }
        if distance <= allowed && (parted.is_none() || allowed > 0.0) {
            return Ok(());
        }
        let said = notes.concat();
        Err(format!("prompt {at}: scores are {distance:e} from the CPU's, {allowed:e} is allowed{said}")
            .into())
    });
    let (texts, notes) = (model.prompts.len(), notes.concat());
    let said = format!("{texts} texts of {tokens} tokens, scores within {worst:e} of the CPU's{notes}");
    report.check(SECTION, format!("{}, {}", model.name, here.ty.name()), found.map(|()| said));
    Ok(())
}

/// How far `other` is from `scores`, as a share of their spread.
fn distance(scores: &[f32], other: &[f32]) -> f64 {
    let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / scores.len() as f64;
    let spread: f64 = scores.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let off: f64 = scores.iter().zip(other).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    if off == 0.0 { 0.0 } else { (off / spread).sqrt() }
}
