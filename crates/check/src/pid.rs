//! Prompts in the decoder: many prompts about documents that were read once, beside the same with a copy a prompt.

use trefoil_kernels::WeightType;
use trefoil_models::{ModelConfig, Token};

use crate::Result;
use crate::costs::{Bench, median, text};
use crate::report::{Goal, Report};
use crate::subject::Subject;

const SECTION: &str = "pid";

/// Prompts a document.
const PROMPTS: usize = 30;

/// Documents at once, their tokens, and tokens of an answer.
const WHOLE: [usize; 3] = [8, 1024, 16];
const SHORT: [usize; 3] = [2, 64, 4];

/// Both forms at the shapes of T5-large.
pub(crate) fn measure(report: &mut Report, bench: Bench<'_>, config: &ModelConfig) -> Result<()> {
    let [batch, length, tokens] = if bench.short { SHORT } else { WHOLE };
    let subject = Subject::random("T5-large", config, WeightType::Bf16, bench.kernels)?;
    let documents: Vec<Vec<Token>> = (0..batch).map(|at| text(length + at)[at..].to_vec()).collect();
    let prompts: Vec<Vec<Token>> = (0..PROMPTS).map(|at| text(at + 4)[at..].to_vec()).collect();
    let before = bench.free()?;
    // The first warms the device.
    subject.ask(&documents[..1], &prompts, 2, false)?;
    let shared = subject.ask(&documents, &prompts, tokens, false)?;
    let own = subject.ask(&documents, &prompts, tokens, true)?;
    let found = if shared.answers == own.answers { Ok(String::new()) } else { Err("answers differ".into()) };
    report.check(SECTION, "shared documents against copies", found);
    let alone = subject.ask(&documents[..1], &prompts[..1], tokens, false)?;
    let found =
        if shared.answers[0] == alone.answers[0] { Ok(String::new()) } else { Err("answers differ".into()) };
    report.check(SECTION, "the first prompt against itself alone", found);

    let named = |name: &str| format!("U {PROMPTS}, b {batch}, n_s {length}: {name}");
    let speed = |steps: Vec<f64>| (batch * PROMPTS) as f64 / median(steps);
    let (shared, own) = (speed(shared.steps), speed(own.steps));
    report.figure(SECTION, named("one copy"), shared, "tokens/s", None);
    report.figure(SECTION, named("a copy a prompt"), own, "tokens/s", None);
    let goal = (!bench.short).then_some(Goal::AtLeast(4.0));
    report.figure(SECTION, named("the first to the second"), shared / own, "", goal);
    if let (Some(before), Some(after)) = (before, bench.free()?) {
        let kept = before.saturating_sub(after) as f64 / 1e9;
        report.figure(SECTION, named("memory still taken"), kept, "GB", None);
    }
    Ok(())
}
