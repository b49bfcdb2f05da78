//! Sessions on a card that this CPU plays: what a step copies, and what is drawn there.
#![cfg(feature = "emulate")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, Mutex};

use trefoil_decode::{
    Bild, BildSettings, Little, Lookahead, LookaheadSettings, Plain, Rule, Sampling, Session, Strategy,
};
use trefoil_kernels::{Activation, Kernels, TOP, WeightType};
use trefoil_models::{
    CacheType, CausalLm, Draft, Kv, KvShape, Llama, LlamaConfig, Result, RopeScaling, Scores, Seq2SeqLm,
    Staged, T5, T5Config, Token, Weights,
};

/// Many more tokens than a card hands out for a draw.
const VOCABULARY: usize = 9000;
/// Bytes of a row of scores.
const ROW: usize = VOCABULARY * size_of::<f32>();

/// A model of quantised weights, whose scores are the same bits on a CPU.
fn llama(kernels: &Kernels) -> Llama {
    let config = LlamaConfig {
        architecture: "llama".into(),
        vocabulary: VOCABULARY,
        width: 64,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        feed_forward: 64,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: false,
        qk_norm: false,
        tied_head: false,
        context_length: 1024,
        window: None,
        eos: Vec::new(),
        bos: None,
    };
    Llama::load(config, &Weights::random(WeightType::Q8_0, 7), kernels, &mut |_| Ok(())).unwrap()
}

fn t5(kernels: &Kernels) -> T5 {
    let config = T5Config {
        architecture: "t5".into(),
        vocabulary: VOCABULARY,
        width: 64,
        head_dim: 32,
        heads: 2,
        encoder_layers: 1,
        decoder_layers: 2,
        feed_forward: 64,
        gated: false,
        activation: Activation::Relu,
        norm_eps: 1e-6,
        buckets: 8,
        max_distance: 20,
        tied_head: false,
        scale_outputs: false,
        start: 0,
        pad: 0,
        eos: Vec::new(),
        context_length: 512,
    };
    T5::load(config, &Weights::random(WeightType::Q8_0, 8), kernels, &mut |_| Ok(())).unwrap()
}

fn kv(kernels: &Kernels, shape: KvShape) -> Kv {
    Kv::new(kernels, shape, CacheType::F16, 64).unwrap()
}

fn text(len: usize) -> Vec<Token> {
    (0..len).map(|at| (at * at % 23) as Token).collect()
}

fn lookahead() -> Box<dyn Strategy> {
    let settings =
        LookaheadSettings { window: 3, ngram: 3, guesses: 3, pool_from_prompt: true, reference: false };
    Box::new(Lookahead::new(settings, &[]))
}

/// Draws that stay among the tokens that a card puts in order.
const DRAWN: Sampling = Sampling {
    temperature: 0.8,
    top_k: 50,
    top_p: 0.9,
    min_p: 0.01,
    repetition_penalty: 1.1,
    seed: 3,
    logprobs: true,
};

/// BiLD with the model's own first layer.
fn bild(kernels: &Kernels) -> Box<dyn Strategy> {
    let little = llama(kernels).first_layers(1);
    let cache = Arc::new(Mutex::new(kv(kernels, little.kv_shape())));
    let settings = BildSettings {
        fallback: 0.0,
        cumulative: false,
        candidates: 0.05,
        max_draft: 3,
        rule: Rule::Bild { rollback: 4.0, verify_tail: true },
    };
    Box::new(Bild::new(settings, Little::new(Arc::new(little), cache, None), [].into()))
}

/// Uploads and downloads of a step, and the bytes of those.
type Copied = (usize, usize, usize);

/// Texts of three prompts, none of which a page holds, and what each step copied.
fn write(
    model: &dyn CausalLm,
    kernels: &Kernels,
    strategy: Box<dyn Strategy>,
    sampling: Sampling,
) -> (Vec<Vec<Token>>, Vec<Copied>) {
    let mut kv = kv(kernels, model.kv_shape());
    let mut session = Session::new(strategy, [].into());
    for key in 0..3 {
        session.add(kv.open(None), text(40 + key), 8, sampling, key as u64);
    }
    let mut copies = Vec::new();
    while !session.is_done() {
        let before = kernels.calls();
        session.step(model, &mut kv).unwrap();
        let after = kernels.calls();
        let downloaded = after.downloaded - before.downloaded;
        copies.push((after.uploads - before.uploads, after.downloads - before.downloads, downloaded));
    }
    ((0..3).map(|branch| session.text(branch).written().to_vec()).collect(), copies)
}

/// A pass that fills the cache scores nothing.
const FILL: Copied = (1, 0, 0);
/// Bytes of what is known of a row; what a greedy pick with a penalty adds, and a draw.
const KNOWN: usize = 16;
const PENALISED: usize = 16;
const DRAW: usize = 32 + 8 * TOP;

fn is_one(&(up, down, _): &Copied) -> bool {
    (up, down) == (1, 1)
}

#[test]
fn a_step_is_one_upload_and_one_download() {
    let card = Kernels::emulated(&[]).unwrap();
    let model = llama(&card);
    let greedy = Sampling::default();
    for (sampling, more) in [
        (greedy, 0),
        (DRAWN, DRAW),
        (Sampling { repetition_penalty: 1.0, ..DRAWN }, DRAW),
        (Sampling { repetition_penalty: 0.7, ..DRAWN }, DRAW),
        (Sampling { temperature: 0.0, ..DRAWN }, PENALISED),
        (Sampling { repetition_penalty: 0.7, ..greedy }, PENALISED),
    ] {
        let (_, copies) = write(&model, &card, Box::new(Plain), sampling);
        assert_eq!(copies[0], FILL);
        // Three branches with a row each.
        let one = (1, 1, 3 * (KNOWN + more));
        assert!(copies[1..].iter().all(|&copies| copies == one), "{sampling:?}: {copies:?}");
        let (_, copies) = write(&model, &card, lookahead(), sampling);
        assert!(copies[1..].iter().all(is_one), "{sampling:?}, lookahead: {copies:?}");
    }
}

/// Each pass of the little model is one, and so is the large one's.
#[test]
fn a_pass_of_a_little_model_is_one_upload_and_one_download() {
    let (card, cpu) = (Kernels::emulated(&[]).unwrap(), Kernels::cpu(1).unwrap());
    let (model, here) = (llama(&card), llama(&cpu));
    let greedy = Sampling { logprobs: true, ..Sampling::default() };
    for sampling in [greedy, DRAWN, Sampling { repetition_penalty: 0.7, ..DRAWN }] {
        let (found, copies) = write(&model, &card, bild(&card), sampling);
        assert_eq!(copies[..2], [FILL, FILL]);
        // Chains of three tokens, or fewer where a text ends.
        let passes = |&(up, down, _): &Copied| up == down && (2..=4).contains(&up);
        assert!(copies[2..].iter().all(passes), "{sampling:?}: {copies:?}");
        assert_eq!(found, write(&here, &cpu, bild(&cpu), sampling).0, "{sampling:?}");
    }
}

/// Prompts to an encoded document, and to one in the cache, whose last page each copies.
#[test]
fn prompts_to_a_document_share_uploads() {
    let card = Kernels::emulated(&[]).unwrap();
    let (model, reader) = (llama(&card), t5(&card));
    let documents = [0, 1].map(|more| reader.encode(&text(40 + more)).unwrap());
    for encoded in [true, false] {
        let lm: &dyn CausalLm = if encoded { &reader } else { &model };
        let mut kv = kv(&card, lm.kv_shape());
        let mut session = Session::new(Box::new(Plain), [].into());
        let document = kv.open(None);
        if !encoded {
            let mut draft = Draft::new();
            trefoil_decode::fill(lm, &mut kv, &mut draft, &[(document, &text(41))]).unwrap();
        }
        for key in 0..9 {
            let prompt = [if encoded { vec![0] } else { text(41) }, vec![key as Token + 5]].concat();
            let branch = if encoded {
                kv.open(Some(Arc::clone(&documents[key % 2])))
            } else {
                kv.fork(document).unwrap()
            };
            session.add(branch, prompt, 5, DRAWN, key as u64);
        }
        for _ in 0..4 {
            let before = card.calls();
            session.step(lm, &mut kv).unwrap();
            let after = card.calls();
            assert_eq!((after.uploads - before.uploads, after.downloads - before.downloads), (1, 1));
        }
    }
}

/// A model that is never told where a token will be drawn: rows come over whole.
struct Whole<'a>(&'a dyn CausalLm);

impl CausalLm for Whole<'_> {
    fn kv_shape(&self) -> KvShape {
        self.0.kv_shape()
    }

    fn vocabulary(&self) -> usize {
        self.0.vocabulary()
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        let mut bare = Draft::new();
        for row in draft.rows() {
            let here = match row.parent {
                Some(parent) => bare.child(parent, row.token),
                None => bare.root(row.branch, row.token),
            };
            if row.scored {
                bare.score(here);
            }
        }
        self.0.forward(&bare, kv)
    }
}

#[test]
fn what_is_drawn_on_a_card_is_what_is_drawn_from_whole_rows() {
    let (card, cpu) = (Kernels::emulated(&[]).unwrap(), Kernels::cpu(1).unwrap());
    let (model, here) = (llama(&card), llama(&cpu));
    let base = Sampling { seed: 11, ..Sampling::default() };
    // So flat that draws go on to the end of what the filter keeps.
    let flat = Sampling { temperature: 60.0, top_k: 1000, ..base };
    let settings = [
        DRAWN,
        Sampling { temperature: 0.0, ..DRAWN },
        Sampling { temperature: 0.0, repetition_penalty: 0.6, ..base },
        Sampling { temperature: 0.1, top_k: 0, ..DRAWN },
        Sampling { top_k: 300, repetition_penalty: 0.8, ..DRAWN },
        Sampling { temperature: 0.1, ..base },
        Sampling { temperature: 1.5, top_p: 0.2, ..base },
        Sampling { temperature: 0.2, top_p: 0.7, repetition_penalty: 0.5, ..base },
        Sampling { temperature: 1.0, top_k: 20, ..base },
        Sampling { temperature: 1.0, top_k: 400, ..base },
        Sampling { temperature: 0.7, min_p: 0.1, repetition_penalty: 1.3, ..base },
        flat,
        Sampling { logprobs: true, repetition_penalty: 1.4, ..flat },
        Sampling { repetition_penalty: 0.5, ..flat },
    ];
    // Some draws go further down than what came over, and ask for what follows.
    let (mut went_on, mut spared) = (0, 0);
    for sampling in settings {
        let (found, copies) = write(&model, &card, Box::new(Plain), sampling);
        let (whole, _) = write(&Whole(&model), &card, Box::new(Plain), sampling);
        assert_eq!(found, whole, "{sampling:?}");
        assert_eq!(found, write(&here, &cpu, Box::new(Plain), sampling).0, "{sampling:?}, on the CPU");
        assert_eq!(found, write(&model, &card, lookahead(), sampling).0, "{sampling:?}, lookahead");
        // Three rows come in fewer bytes than one whole row.
        assert!(copies[1..].iter().all(|copies| copies.0 == 1 && copies.2 < ROW), "{sampling:?}: {copies:?}");
        let more = copies[1..].iter().filter(|copies| !is_one(copies)).count();
        (went_on, spared) = (went_on + more, spared + copies.len() - 1 - more);
    }
    assert!(went_on > 20 && spared > 40, "{went_on} steps went on, and {spared} did not");
}

/// A draw from a row of nothing but small differences may end anywhere in it.
#[test]
fn a_draw_from_the_whole_vocabulary_is_that_from_a_whole_row() {
    let (card, cpu) = (Kernels::emulated(&[]).unwrap(), Kernels::cpu(1).unwrap());
    let (model, here) = (llama(&card), llama(&cpu));
    let flat = Sampling { temperature: 60.0, seed: 5, ..Sampling::default() };
    let steep = Sampling { temperature: 0.3, ..flat };
    for sampling in [flat, steep, Sampling { top_p: 0.9, repetition_penalty: 1.2, ..flat }] {
        let (found, _) = write(&model, &card, Box::new(Plain), sampling);
        assert_eq!(found, write(&here, &cpu, Box::new(Plain), sampling).0, "{sampling:?}");
    }
}
