//! Every lossless decoding writes the text of plain decoding, on a scripted model, over random settings.

#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod scripted;

use std::sync::{Arc, Mutex, mpsc};

use scripted::{Break, Scripted, Task, Took, Written, write};
use trefoil_decode::{
    Auto, AutoGround, Bild, BildSettings, Costs, Jacobi, Live, Lookahead, LookaheadSettings, Plain, Result,
    Rule, Sampler, Sampling, Strategy, Verdict,
};
use trefoil_models::{CausalLm, Draft, Scores, Sharded, Token};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

const END: Token = 12;

/// A random setting of everything that a text depends on.
struct Setting {
    model: Scripted,
    tasks: Vec<Task>,
    sampling: Sampling,
    ends: Vec<Token>,
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
        Self {
            tasks,
            model: Scripted::new(random.below(9) as u64),
            sampling: Sampling {
                temperature: if sampled { 0.8 } else { 0.0 },
                top_p: if sampled { 0.9 } else { 1.0 },
                repetition_penalty: if random.below(2) == 1 { 1.1 } else { 1.0 },
                seed: random.below(1000) as u64,
                logprobs: random.below(2) == 1,
                ..Sampling::default()
            },
            ends: if random.below(2) == 1 { vec![END] } else { Vec::new() },
        }
    }

    fn write(&self, strategy: Box<dyn Strategy>) -> (Vec<Written>, Vec<Took>) {
        self.write_by(&self.model, strategy)
    }

    fn write_by(&self, model: &dyn CausalLm, strategy: Box<dyn Strategy>) -> (Vec<Written>, Vec<Took>) {
        let mut kv = self.model.kv(64);
        write(model, &mut kv, strategy, self.sampling, &self.tasks, &self.ends)
    }

    fn plain(&self) -> (Vec<Written>, Vec<Took>) {
        self.write(Box::new(Plain))
    }
}

fn lookahead(random: &mut Random) -> LookaheadSettings {
    LookaheadSettings {
        window: random.below(6),
        ngram: 2 + random.below(5),
        guesses: random.below(6),
        pool_from_prompt: random.below(2) == 1,
        reference: random.below(4) == 0,
    }
}

/// A random lossless strategy, with its description.
fn strategy(random: &mut Random, setting: &Setting) -> (String, Box<dyn Strategy>) {
    if random.below(3) == 0 {
        // Rolling back at any doubt forgives nothing either.
        let rule = match random.below(2) {
            0 => Rule::Exact,
            _ => Rule::Bild { rollback: 0.0, verify_tail: true },
        };
        let fallback = random.below(40) as f64 / 100.0;
        let settings = BildSettings {
            fallback,
            cumulative: random.below(2) == 1,
            candidates: if random.below(2) == 1 { 1.0 } else { (2 + random.below(40)) as f64 / 100.0 },
            max_draft: 1 + random.below(12),
            rule,
        };
        let (little, _) = Scripted::little(random.below(9) as u64, 64);
        return (
            format!("{settings:?}"),
            Box::new(Bild::new(settings, little, setting.ends.as_slice().into())),
        );
    }
    if random.below(4) == 0 {
        let costs = |random: &mut Random| {
            let mut seconds = 1.0;
            let mut point = |rows| {
                seconds += random.below(30) as f64 / 10.0;
                (rows, seconds)
            };
            Costs::new([1, 2, 4, 8].map(&mut point).to_vec()).unwrap()
        };
        let little = (random.below(2) == 1).then(|| Scripted::little(random.below(9) as u64, 64).0);
        let ground = AutoGround {
            costs: Arc::new(Mutex::new(costs(random))),
            little: little.map(|little| (little, costs(random).into())),
            about: setting.tasks[0].prompt.clone(),
            shared: 0,
            rows: 1 + random.below(40),
            ends: setting.ends.as_slice().into(),
        };
        return ("auto".to_owned(), Box::new(Auto::new(ground)));
    }
    if random.below(5) == 0 {
        let block = random.below(9);
        return (format!("jacobi {block}"), Box::new(Jacobi::new(block)));
    }
    let settings = lookahead(random);
    (format!("{settings:?}"), Box::new(Lookahead::new(settings, &setting.tasks[0].prompt)))
}

#[test]
fn texts_are_those_of_plain_decoding() {
    let mut random = Random(1);
    let (mut plain_steps, mut steps) = (0, 0);
    for round in 0..2500 {
        let setting = Setting::random(&mut random);
        let (expected, before) = setting.plain();
        let (name, strategy) = strategy(&mut random, &setting);
        let (found, after) = setting.write(strategy);
        assert_eq!(found, expected, "round {round}, {name}");
        for (before, after) in before.iter().zip(&after) {
            let (before, after) = (before.tally.steps, after.tally.steps);
            assert!(after <= before, "round {round}, {name}: {after} steps for {before}");
        }
        plain_steps += before.iter().map(|took| took.tally.steps).sum::<usize>();
        steps += after.iter().map(|took| took.tally.steps).sum::<usize>();
    }
    assert!(steps * 10 < plain_steps * 9, "drafts are accepted: {steps} steps for {plain_steps}");
}

#[test]
fn a_broken_mask_is_found() {
    for broken in [Break::MissesParent, Break::SeesNeighbour, Break::MissesPrefix, Break::TurnsPath] {
        let mut random = Random(1);
        let mut found = 0;
        for _ in 0..200 {
            let mut setting = Setting::random(&mut random);
            let (expected, _) = setting.plain();
            let (_, strategy) = strategy(&mut random, &setting);
            setting.model.broken = Some(broken);
            found += usize::from(setting.write(strategy).0 != expected);
        }
        assert!(found >= 10, "{broken:?} changed {found} texts of 200");
    }
}

#[test]
fn a_lookahead_step_has_at_most_the_rows_of_its_settings() {
    let mut random = Random(11);
    for round in 0..400 {
        let setting = Setting::random(&mut random);
        let settings = lookahead(&mut random);
        let (_, took) = setting.write(Box::new(Lookahead::new(settings, &setting.tasks[0].prompt)));
        for Took { tally, counters } in took {
            let most = tally.steps * (settings.rows() - 1);
            assert!(tally.drafted <= most, "round {round}, {settings:?}: {} rows of {most}", tally.drafted);
            assert!(counters.pool_hits <= tally.steps);
        }
    }
}

#[test]
fn workers_write_the_text_of_one_in_as_many_steps() {
    for round in 0..400 {
        let setting = Setting::random(&mut Random(round));
        // The same seed makes the same strategy again.
        let strategy = || strategy(&mut Random(round + 1000), &setting);
        let (name, one) = strategy();
        let expected = setting.write(one);
        for workers in [2, 3] {
            let model: Arc<dyn CausalLm> = Arc::new(setting.model.clone());
            let sharded = Sharded::new(Arc::clone(&model), vec![model; workers]);
            let found = setting.write_by(&sharded, strategy().1);
            assert_eq!(found, expected, "round {round}, {name}, {workers} workers");
        }
    }
}

#[test]
fn a_branch_writes_alone_what_it_writes_in_company() {
    let mut random = Random(3);
    for round in 0..300 {
        let setting = Setting::random(&mut random);
        let (together, _) = setting.plain();
        for (branch, task) in setting.tasks.iter().enumerate() {
            let mut kv = setting.model.kv(64);
            // A sampled branch draws by its number, so it keeps its place among empty ones.
            let mut tasks = vec![Task { prompt: vec![0], limit: 0 }; branch];
            tasks.push(task.clone());
            let (alone, _) =
                write(&setting.model, &mut kv, Box::new(Plain), setting.sampling, &tasks, &setting.ends);
            assert_eq!(alone[branch], together[branch], "round {round}, branch {branch}");
        }
    }
}

/// Plain decoding that tells how many rows it was timed for.
struct Timed(mpsc::Sender<usize>);

impl Strategy for Timed {
    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()> {
        Plain.propose(live, draft)
    }

    fn judge(
        &mut self,
        live: &Live<'_>,
        draft: &Draft,
        scores: &Scores,
        sampler: &Sampler,
    ) -> Result<Verdict> {
        Plain.judge(live, draft, scores, sampler)
    }

    fn timed(&mut self, rows: usize, _seconds: f64) {
        self.0.send(rows).unwrap();
    }
}

#[test]
fn a_step_that_reads_a_prompt_too_is_not_timed() {
    let model = Scripted::new(1);
    let (sender, heard) = mpsc::channel();
    let task = Task { prompt: vec![1, 2, 3, 4, 5], limit: 6 };
    let strategy = Box::new(Timed(sender));
    let (_, took) = write(&model, &mut model.kv(64), strategy, Sampling::default(), &[task], &[]);
    let heard: Vec<usize> = heard.iter().collect();
    assert_eq!(heard, vec![1; took[0].tally.steps - 1], "all but the first");
}
