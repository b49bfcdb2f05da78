//! Greedy texts of real models, on the device and on the CPU.

use trefoil_decode::{BildSettings, Rule};
use trefoil_kernels::{Kernels, WeightType};
use trefoil_models::Token;

use crate::Result;
use crate::carried::Model;
use crate::exact::{DRAFTED, FALLBACK, part};
use crate::report::Report;
use crate::subject::{Subject, Way, gap};

const SECTION: &str = "texts";

/// How far scores may lie from the CPU's, as a share of their own spread.
///
/// The CPU rounds activations to weights of sixteen bits as tensor cores take them, so only the order of sums differs, and
/// with it, now and then, to which side an activation between two numbers is rounded: by this share of its size.
fn allowed(ty: WeightType) -> f64 {
    match ty {
        WeightType::Bf16 => 8.0 * 2f64.powi(-9),
        WeightType::F16 => 8.0 * 2f64.powi(-12),
        WeightType::F32 => 1e-5,
        _ => 1e-3,
    }
}

/// A model on the CPU and on the device.
struct Both {
    here: Subject,
    there: Subject,
    /// How far scores may lie apart.
    allowed: f64,
}

impl Both {
    fn open(model: &Model, cpu: &Kernels, device: &Kernels) -> Result<Self> {
        let alike = device.name() == cpu.name();
        let cpu = if alike { cpu.clone() } else { cpu.rounding() };
        let here = Subject::open(&model.name, &model.source, &cpu)?;
        let there = Subject::open(&model.name, &model.source, device)?;
        let allowed = if alike { 0.0 } else { allowed(here.ty) };
        Ok(Self { here, there, allowed })
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
    let both = Both::open(model, cpu, device)?;
    agree(report, &[&both], [Way::Plain; 2], &model.prompts, tokens);
    Ok(())
}

/// The same of BiLD's texts, which two models decide.
pub(crate) fn paired(
    report: &mut Report,
    (large, little): (&Model, &Model),
    cpu: &Kernels,
    device: &Kernels,
    tokens: usize,
) -> Result<()> {
    let prompts = &large.prompts;
    let (large, little) = (Both::open(large, cpu, device)?, Both::open(little, cpu, device)?);
    let rule = Rule::Bild { rollback: 3.0, verify_tail: true };
    let settings =
        BildSettings { fallback: FALLBACK, cumulative: false, candidates: 1.0, max_draft: DRAFTED, rule };
    let ways = [&little.here, &little.there].map(|little| Way::Paired(little, settings));
    agree(report, &[&large, &little], ways, prompts, tokens);
    Ok(())
}

/// Texts of the first of `models`, by the first way on the CPU and by the second on the device.
fn agree(report: &mut Report, models: &[&Both], ways: [Way<'_>; 2], prompts: &[Vec<Token>], tokens: usize) {
    let Both { here, there, .. } = models[0];
    let (mut worst, mut notes) = (0.0f64, Vec::new());
    let found = prompts.iter().enumerate().try_for_each(|(at, prompt)| {
        let expected = here.write(prompt, ways[0], tokens)?;
        let parted = part(&expected, &there.write(prompt, ways[1], tokens)?);
        let until = &expected[..parted.unwrap_or(0)];
        if let Some(token) = parted {
            let gap = gap(&here.scores(prompt, until)?);
            notes.push(format!("; prompt {at} parts at token {token}, the best two scores {gap:e} apart"));
        }
        for &&Both { ref here, ref there, allowed } in models {
            let distance = distance(&here.scores(prompt, until)?, &there.scores(prompt, until)?);
            worst = worst.max(distance);
            if distance > allowed || (parted.is_some() && allowed == 0.0) {
                let (name, said) = (&here.name, notes.concat());
                return Err(format!(
                    "prompt {at}: scores of {name} are {distance:e} from the CPU's, {allowed:e} is allowed{said}"
                )
                .into());
            }
        }
        Ok(())
    });
    let (texts, notes) = (prompts.len(), notes.concat());
    let said = format!("{texts} texts of {tokens} tokens, scores within {worst:e} of the CPU's{notes}");
    let name = format!("{}, {}, {}", here.name, here.ty.name(), ways[0]);
    report.check(SECTION, name, found.map(|()| said));
}

/// How far `other` is from `scores`, as a share of their spread.
fn distance(scores: &[f32], other: &[f32]) -> f64 {
    let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / scores.len() as f64;
    let spread: f64 = scores.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let off: f64 = scores.iter().zip(other).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    if off == 0.0 { 0.0 } else { (off / spread).sqrt() }
}
