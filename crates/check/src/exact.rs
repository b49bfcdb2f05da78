//! Exactness on one device: every lossless decoding writes plain decoding's text, and every prompt to a document the
//! answer that it gets alone.

use trefoil_decode::{BildSettings, Rule};
use trefoil_models::Token;

use crate::Result;
use crate::report::Report;
use crate::subject::{Subject, Way, gap};

const SECTION: &str = "exact";

/// How sure a draft model is of what it writes, at least, and its tokens a step, at most.
pub(crate) const FALLBACK: f64 = 0.6;
pub(crate) const DRAFTED: usize = 10;

/// Texts of `subject` behind each prompt, by every decoding that needs no other model.
pub(crate) fn decodings(report: &mut Report, subject: &Subject, prompts: &[Vec<Token>], tokens: usize) {
    for way in [Way::Jacobi, Way::Lookahead, Way::Speculative] {
        against_plain(report, subject, way, prompts, tokens);
    }
}

/// Texts with a draft model: by exact speculation, and by BiLD that forgives nothing.
pub(crate) fn paired(
    report: &mut Report,
    (large, little): (&Subject, &Subject),
    prompts: &[Vec<Token>],
    tokens: usize,
) {
    for rule in [Rule::Exact, Rule::Bild { rollback: 0.0, verify_tail: true }] {
        let settings =
            BildSettings { fallback: FALLBACK, cumulative: false, candidates: 0.1, max_draft: DRAFTED, rule };
        against_plain(report, large, Way::Paired(little, settings), prompts, tokens);
    }
}

fn against_plain(
    report: &mut Report,
    subject: &Subject,
    way: Way<'_>,
    prompts: &[Vec<Token>],
    tokens: usize,
) {
    let found = prompts.iter().enumerate().try_for_each(|(at, prompt)| {
        let plain = subject.write(prompt, Way::Plain, tokens)?;
        let other = subject.write(prompt, way, tokens)?;
        same(subject, &format!("prompt {at}"), prompt, &plain, &other)
    });
    let texts = prompts.len();
    let name = format!("{}, {way} against plain", subject.name);
    report.check(SECTION, name, found.map(|()| format!("{texts} texts of {tokens} tokens")));
}

/// Answers about a document, in company and alone.
pub(crate) fn documents(
    report: &mut Report,
    subject: &Subject,
    document: &[Token],
    prompts: &[Vec<Token>],
    tokens: usize,
) -> Result<()> {
    let document = [document.to_vec()];
    let together = subject.ask(&document, prompts, tokens, false)?;
    let found = prompts.iter().zip(&together.answers).enumerate().try_for_each(|(at, (prompt, answer))| {
        let alone = subject.ask(&document, std::slice::from_ref(prompt), tokens, false)?;
        if alone.answers[0] == *answer {
            Ok(())
        } else {
            Err(format!("prompt {at} is answered otherwise").into())
        }
    });
    let name = format!("{}, {} prompts against one", subject.name, prompts.len());
    report.check(SECTION, name, found.map(|()| format!("answers of {tokens} tokens")));
    Ok(())
}

/// Nothing where two texts are one; else where they part, and how near a tie the model was there.
pub(crate) fn same(
    subject: &Subject,
    what: &str,
    prompt: &[Token],
    plain: &[Token],
    other: &[Token],
) -> Result<()> {
    match part(plain, other) {
        None => Ok(()),
        Some(at) => {
            let gap = gap(&subject.scores(prompt, &plain[..at])?);
            let tokens = (plain.get(at), other.get(at));
            Err(format!(
                "{what}: token {at} is {:?}, not {:?}; the best two scores are {gap:e} apart",
                tokens.1, tokens.0
            )
            .into())
        }
    }
}

/// The first place where two texts differ.
pub(crate) fn part(one: &[Token], other: &[Token]) -> Option<usize> {
    let at = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    (at < one.len().max(other.len())).then_some(at)
}
