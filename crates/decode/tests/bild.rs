//! BiLD against its own algorithm, written again over whole texts: no cache, no draft, no session.

#![expect(clippy::unwrap_used, reason = "a test")]

mod scripted;

use std::sync::{Arc, Mutex};

use scripted::{Scripted, Task, Took, Written, write};
use trefoil_decode::{Bild, BildSettings, Plain, Rule, Sampler, Sampling, Transcript};
use trefoil_models::{Kv, Token};

const END: Token = 12;
const PAGES: usize = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Two models, texts to write with them, and how.
struct Setting {
    large: Scripted,
    little: u64,
    tasks: Vec<Task>,
    sampling: Sampling,
    bild: BildSettings,
}

impl Setting {
    fn random(random: &mut Random) -> Self {
        let count = 1 + random.below(4);
        let tasks = (0..count).map(|_| Task {
            prompt: (0..=random.below(40)).map(|_| random.below(scripted::VOCABULARY) as Token).collect(),
            limit: random.below(70),
        });
        let tasks = tasks.collect();
        let sampled = random.below(2) == 1;
        let rollback = match random.below(4) {
            0 => f64::INFINITY,
            1 => 0.0,
            _ => random.below(500) as f64 / 100.0,
        };
        let rule = match random.below(4) {
            0 => Rule::Exact,
            _ => Rule::Bild { rollback, verify_tail: random.below(2) == 1 },
        };
        let fallback = match random.below(8) {
            0 => 0.0,
            1 => 1.5,
            _ => random.below(60) as f64 / 100.0,
        };
        Self {
            tasks,
            large: Scripted::new(random.below(9) as u64),
            little: random.below(9) as u64,
            sampling: Sampling {
                temperature: if sampled { 0.8 } else { 0.0 },
                top_p: if sampled { 0.9 } else { 1.0 },
                repetition_penalty: if random.below(2) == 1 { 1.1 } else { 1.0 },
                seed: random.below(1000) as u64,
                ..Sampling::default()
            },
            bild: BildSettings {
                fallback,
                cumulative: random.below(3) == 0,
                candidates: if random.below(2) == 1 { 1.0 } else { (2 + random.below(40)) as f64 / 100.0 },
                max_draft: 1 + random.below(12),
                rule,
            },
        }
    }

    fn write(&self) -> (Vec<Written>, Vec<Took>) {
        let (little, pages) = Scripted::little(self.little, PAGES);
        let strategy = Bild::new(self.bild, little, [END].into());
        let written = write(
            &self.large,
            &mut self.large.kv(PAGES),
            Box::new(strategy),
            self.sampling,
            &self.tasks,
            &[END],
        );
        all_free(&pages);
        written
    }

    fn plain(&self, model: &Scripted) -> Vec<Written> {
        write(model, &mut model.kv(PAGES), Box::new(Plain), self.sampling, &self.tasks, &[END]).0
    }
}

fn all_free(kv: &Arc<Mutex<Kv>>) {
    let kv = kv.lock().unwrap();
    assert_eq!(kv.available(), kv.capacity(), "every page of the little model came back");
}

/// What the algorithm, written plainly, gives for one text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    tokens: Vec<Token>,
    large: usize,
    little: usize,
    fallbacks: usize,
    rollbacks: usize,
    candidates: usize,
    drafted: usize,
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit).exp() / sum).collect()
}

/// Algorithm 1 of the paper, and what is beyond it, over the models' probabilities, every one of them computed from the
/// whole text.
fn algorithm(setting: &Setting, key: u64) -> Account {
    let BildSettings { fallback, cumulative, candidates, max_draft, rule } = setting.bild;
    let little = Scripted::new(setting.little);
    let task = &setting.tasks[key as usize];
    let sampler = Sampler::new(setting.sampling, key);
    let choose = |logits: &[f32], text: &[Token]| {
        sampler.pick(logits, &Transcript::new(text.to_vec()), &[]).unwrap().token
    };
    let mut account = Account::default();
    let mut text = task.prompt.clone();
    let full = task.prompt.len() + task.limit;
    while text.len() < full {
        let judged = text.len();
        let (mut unsure, mut ended) = (false, false);
        let (mut sure, mut named) = (1.0, Vec::new());
        while !unsure && !ended && text.len() < full && text.len() - judged < max_draft {
            let logits = little.logits(&text);
            // A model that can't be sure enough is not asked.
            account.little += usize::from(fallback <= 1.0);
            let odds = probabilities(&logits);
            let best = odds.iter().fold(0.0f64, |most, &p| most.max(p));
            // What has room and a token behind it, and is likely enough.
            let worth = |&token: &Token| {
                candidates < 1.0
                    && token != END
                    && text.len() + 2 <= full
                    && sure * odds[token as usize] >= candidates
            };
            let place = text.len() - judged;
            let worthy = (0..odds.len() as Token).filter(worth);
            named.extend(worthy.map(|token| (place, token, sure * odds[token as usize])));
            if best * if cumulative { sure } else { 1.0 } < fallback {
                unsure = true;
                account.fallbacks += 1;
            } else {
                let written = choose(&logits, &text);
                sure *= odds[written as usize];
                named.retain(|&(at, token, _)| (at, token) != (place, written));
                text.push(written);
                ended = text.last() == Some(&END);
                account.drafted += 1;
            }
        }
        let chain = text.len() - judged;
        named.sort_by(|a, b| b.2.total_cmp(&a.2));
        named.truncate(max_draft - chain);
        if !(ended && matches!(rule, Rule::Bild { verify_tail: false, .. })) {
            account.large += 1;
            let offends = |at: usize, own: Token| match rule {
                _ if text[at] == own => false,
                Rule::Exact => true,
                Rule::Bild { rollback, .. } => {
                    -probabilities(&setting.large.logits(&text[..at]))[text[at] as usize].ln() > rollback
                }
            };
            let mut replaced = None;
            for at in judged..text.len() {
                let own = choose(&setting.large.logits(&text[..at]), &text[..at]);
                if offends(at, own) {
                    replaced = Some((at, own));
                    break;
                }
            }
            let own = match replaced {
                Some((at, own)) => {
                    account.rollbacks += 1;
                    text.truncate(at);
                    Some(own)
                }
                None if unsure
                    || (rule == Rule::Exact && !ended && chain == max_draft && text.len() < full) =>
                {
                    Some(choose(&setting.large.logits(&text), &text))
                }
                None => None,
            };
            if let Some(own) = own {
                let place = text.len() - judged;
                let named = named.iter().any(|&(at, token, _)| (at, token) == (place, own));
                text.push(own);
                if named && fallback <= 1.0 {
                    account.candidates += 1;
                    text.push(choose(&setting.large.logits(&text), &text));
                }
            }
        }
        if text.last() == Some(&END) {
            text.pop();
            break;
        }
    }
    account.tokens = text.split_off(task.prompt.len());
    account
}

#[test]
fn texts_and_calls_are_those_of_the_algorithm() {
    let mut random = Random(5);
    let (mut rollbacks, mut fallbacks, mut drafted, mut candidates) = (0, 0, 0, 0);
    for round in 0..2000 {
        let setting = Setting::random(&mut random);
        let (texts, took) = setting.write();
        for (key, (text, took)) in texts.iter().zip(&took).enumerate() {
            let found = Account {
                tokens: text.tokens.clone(),
                large: took.tally.steps,
                little: took.counters.draft_forwards,
                fallbacks: took.counters.fallbacks,
                rollbacks: took.counters.rollbacks,
                candidates: took.counters.candidates,
                drafted: took.tally.drafted,
            };
            assert_eq!(
                found,
                algorithm(&setting, key as u64),
                "round {round}, text {key}, {:?}",
                setting.bild
            );
            rollbacks += found.rollbacks;
            fallbacks += found.fallbacks;
            drafted += found.drafted;
            candidates += found.candidates;
        }
    }
    assert!(rollbacks > 1000 && fallbacks > 1000 && drafted > 10_000, "{rollbacks}, {fallbacks}, {drafted}");
    assert!(candidates > 1000, "{candidates}");
}

#[test]
fn a_little_model_that_is_never_sure_writes_nothing() {
    let mut random = Random(6);
    for round in 0..200 {
        let mut setting = Setting::random(&mut random);
        setting.bild.fallback = 1.0 + f64::EPSILON;
        let (texts, took) = setting.write();
        assert_eq!(texts, setting.plain(&setting.large), "round {round}");
        for took in took {
            assert_eq!((took.counters.draft_forwards, took.tally.drafted), (0, 0));
            assert_eq!(took.counters.fallbacks, took.tally.steps);
        }
    }
}

#[test]
fn a_large_model_that_forgives_everything_leaves_the_little_ones_text() {
    let mut random = Random(7);
    for round in 0..500 {
        let mut setting = Setting::random(&mut random);
        setting.bild.fallback = 0.0;
        setting.bild.rule = Rule::Bild { rollback: f64::INFINITY, verify_tail: random.below(2) == 1 };
        let (texts, took) = setting.write();
        assert_eq!(texts, setting.plain(&Scripted::new(setting.little)), "round {round}");
        for (text, took) in texts.iter().zip(took) {
            assert_eq!(took.tally.accepted, text.tokens.len());
            assert!(took.tally.steps <= text.tokens.len() / setting.bild.max_draft + 1);
        }
    }
}

#[test]
fn a_text_is_the_same_under_every_threshold_down_to_what_it_was_forgiven() {
    let mut random = Random(11);
    let (mut lower, mut exact) = (0, 0);
    for round in 0..1200 {
        let mut setting = Setting::random(&mut random);
        let rollback = random.below(500) as f64 / 100.0;
        setting.bild.rule = Rule::Bild { rollback, verify_tail: true };
        setting.tasks.truncate(1);
        let (texts, took) = setting.write();
        let forgiven = took[0].counters.forgiven;
        assert!(forgiven <= rollback);
        setting.bild.rule = Rule::Bild { rollback: forgiven, verify_tail: true };
        assert_eq!(setting.write(), (texts.clone(), took), "round {round}");
        lower += usize::from(forgiven > 0.0 && forgiven < rollback);
        if forgiven == 0.0 {
            assert_eq!(texts, setting.plain(&setting.large), "round {round}");
            exact += usize::from(!texts[0].tokens.is_empty());
        }
    }
    assert!(lower > 150 && exact > 300, "{lower}, {exact}");
}

#[test]
fn a_text_in_company_is_the_text_alone() {
    let mut random = Random(8);
    for round in 0..300 {
        let mut setting = Setting::random(&mut random);
        setting.sampling.logprobs = true;
        let (together, took) = setting.write();
        let tasks = setting.tasks.clone();
        for (branch, task) in tasks.into_iter().enumerate() {
            // A sampled branch draws by its number, so it keeps its place among empty ones.
            setting.tasks = vec![Task { prompt: vec![0], limit: 0 }; branch];
            setting.tasks.push(task);
            let (alone, took_alone) = setting.write();
            assert_eq!(alone[branch], together[branch], "round {round}, branch {branch}");
            assert_eq!(took_alone[branch].counters, took[branch].counters, "round {round}, branch {branch}");
        }
    }
}

#[test]
fn log_probabilities_are_the_large_models() {
    let mut random = Random(9);
    for _ in 0..100 {
        let mut setting = Setting::random(&mut random);
        setting.sampling.logprobs = true;
        setting.bild.rule = Rule::Bild { rollback: 2.0, verify_tail: true };
        let (texts, _) = setting.write();
        for (text, task) in texts.iter().zip(&setting.tasks) {
            let mut seen = task.prompt.clone();
            for (&token, logprob) in text.tokens.iter().zip(&text.logprobs) {
                let expected = probabilities(&setting.large.logits(&seen))[token as usize].ln();
                assert!((f64::from(logprob.unwrap()) - expected).abs() < 1e-5);
                seen.push(token);
            }
        }
    }
}

#[test]
fn the_little_model_processes_a_token_once() {
    let mut random = Random(10);
    for _ in 0..300 {
        let mut setting = Setting::random(&mut random);
        setting.bild.fallback = setting.bild.fallback.min(1.0);
        let little = Arc::new(scripted::Counted::new(setting.little));
        let kv = Arc::new(Mutex::new(Scripted::new(setting.little).kv(PAGES)));
        let shared = trefoil_decode::Little::new(Arc::clone(&little) as _, kv, None);
        let strategy = Bild::new(setting.bild, shared, [END].into());
        let (texts, took) = write(
            &setting.large,
            &mut setting.large.kv(PAGES),
            Box::new(strategy),
            setting.sampling,
            &setting.tasks,
            &[END],
        );
        let most: usize = texts
            .iter()
            .zip(&took)
            .zip(&setting.tasks)
            .filter(|(_, task)| task.limit > 0)
            .map(|((text, took), task)| {
                let dropped = took.tally.drafted - took.tally.accepted;
                task.prompt.len() + text.tokens.len() + dropped
            })
            .sum();
        assert!(little.rows() <= most, "{} rows, {most} tokens", little.rows());
    }
}
