//! Several devices on one model: their steps against one device's, bit for bit, and what a lookahead step costs on both.

use trefoil_kernels::{Cards, Devices, Kernels, WeightType};
use trefoil_models::{Draft, ModelConfig, RowId, Token};

use crate::Result;
use crate::carried::Model;
use crate::costs::{Bench, comb, text};
use crate::exact;
use crate::report::Report;
use crate::subject::{Subject, Way};

const SECTION: &str = "devices";

/// Rows of the step that is timed: those of lookahead's published window for 7B.
const ROWS: usize = 120;

/// Rows that the step keeps.
const KEPT: u32 = 4;

/// Steps that are compared, and the rows of each.
const STEPS: usize = 6;
const DRAFTED: u32 = 30;

/// The devices that can work with the one of this name, which is first; none where it is alone.
pub(crate) fn team(name: &str, first: &Kernels) -> Result<Option<Devices>> {
    let kernels = match name.strip_prefix("cuda:") {
        Some(ordinal) => {
            let (ordinal, cards): (usize, _) = (ordinal.parse()?, Cards::find()?);
            let alike = |&other: &usize| other != ordinal && cards.alike(&[ordinal, other]).is_ok();
            let others: Vec<usize> = (0..cards.cards.len()).filter(alike).collect();
            let others = others.into_iter().map(Kernels::cuda);
            std::iter::once(Ok(first.clone())).chain(others).collect::<trefoil_kernels::Result<Vec<_>>>()?
        }
        #[cfg(feature = "emulate")]
        None if name == "emulated" => vec![first.clone(), Kernels::emulated(&[])?],
        None => {
            let threads = (first.threads() / 2).max(1);
            vec![Kernels::cpu(threads)?, Kernels::cpu(threads)?]
        }
    };
    Ok(if kernels.len() > 1 { Some(Devices::join(&kernels)?) } else { None })
}

/// Steps and texts of `model` on all devices and on the first of them.
pub(crate) fn agree(report: &mut Report, model: &Model, devices: &Devices, tokens: usize) -> Result<()> {
    let one = Subject::open(&model.name, &model.source, &devices.each()[0])?;
    let several = Subject::open(&model.name, &model.source, devices)?;
    let count = devices.each().len();
    let found = model.prompts.iter().enumerate().try_for_each(|(at, prompt)| {
        let (expected, found) = (steps(&one, prompt)?, steps(&several, prompt)?);
        match expected.iter().zip(&found).filter(|(a, b)| a != b).count() {
            0 if expected.len() == found.len() => Ok(()),
            others => Err(format!("prompt {at}: {others} of {} scores differ", expected.len()).into()),
        }
    });
    let name = format!("{}, steps on {count} devices against one", model.name);
    report.check(SECTION, name, found.map(|()| format!("{STEPS} steps of {DRAFTED} rows a prompt")));
    for way in [Way::Plain, Way::Lookahead, Way::Speculative] {
        let found = model.prompts.iter().enumerate().try_for_each(|(at, prompt)| {
            let (plain, other) =
                (one.write(prompt, Way::Plain, tokens)?, several.write(prompt, way, tokens)?);
            exact::same(&one, &format!("prompt {at}"), prompt, &plain, &other)
        });
        let name = format!("{}, {way} on {count} devices against plain on one", model.name);
        report.check(SECTION, name, found.map(|()| format!("texts of {tokens} tokens")));
    }
    Ok(())
}

/// The bits of all scores of some steps behind `prompt`, each of which keeps a path and drops the rest.
fn steps(subject: &Subject, prompt: &[Token]) -> Result<Vec<u32>> {
    let (mut kv, branch) = subject.begun(prompt, STEPS * DRAFTED as usize)?;
    let mut bits = Vec::new();
    for step in 0..STEPS as u32 {
        let mut draft = Draft::new();
        let root = draft.root(branch, step + 3);
        draft.score(root);
        for row in 1..DRAFTED {
            // Each row under one of those before it.
            let row = draft.child(RowId(row * (7 + step) / 3 % row), row % 11 + 3);
            draft.score(row);
        }
        let scores = subject.decoder().score(&draft, &mut kv)?;
        for row in 0..DRAFTED {
            let logits = scores.row(RowId(row)).ok_or("a row without scores")?;
            bits.extend(logits.all()?.iter().map(|score| score.to_bits()));
        }
        let mut path = Vec::new();
        draft.path(RowId(DRAFTED - 1 - step * 5 % DRAFTED), &mut path);
        kv.commit(branch, &path)?;
    }
    Ok(bits)
}

/// Times a lookahead step, with what it keeps, on the first of the devices and on all of them.
pub(crate) fn measure(
    report: &mut Report,
    bench: Bench<'_>,
    (name, config): (&str, &ModelConfig),
    ty: WeightType,
    devices: &Devices,
) -> Result<()> {
    let first: Devices = (&devices.each()[0]).into();
    let mut seconds = Vec::new();
    for devices in [&first, devices] {
        let subject = Subject::random(name, config, ty, devices)?;
        let (mut kv, branch) = subject.begun(&text(if bench.short { 40 } else { 512 }), ROWS)?;
        let (draft, len) = (comb(branch, ROWS), kv.len(branch)?);
        let path: Vec<RowId> = (0..KEPT).map(RowId).collect();
        let step = bench.time(|| {
            subject.step(&draft, &mut kv)?;
            kv.commit(branch, &path)?;
            Ok(kv.truncate(branch, len)?)
        })?;
        let (name, count) = (&subject.name, devices.each().len());
        let what = format!("{name}: {ROWS} rows on {count} device{}", if count == 1 { "" } else { "s" });
        report.figure(SECTION, what, step * 1e3, "ms", None);
        seconds.push(step);
    }
    let name = format!("{name} {}: the first to the second", ty.name());
    report.figure(SECTION, name, seconds[0] / seconds[1], "", None);
    Ok(())
}
