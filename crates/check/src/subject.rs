//! A model on a device, and what it writes there.

use std::path::Path;
use std::sync::{Arc, Mutex};

use trefoil_decode::{
    Bild, BildSettings, Jacobi, Little, Lookahead, LookaheadSettings, Plain, Rule, Sampling, Session,
    Strategy, fill,
};
use trefoil_kernels::{Devices, Kernels, PAGE, WeightType};
use trefoil_models::{
    BranchId, CacheType, CausalLm, CrossKv, Draft, Kv, Llama, ModelConfig, RowId, Sharded, T5, Token,
    Weights, encode,
};

use crate::Result;

/// Numbers that random weights are made from.
const SEED: u64 = 20_261_121;

/// A model on a device.
pub(crate) struct Subject {
    pub(crate) name: String,
    /// The type of most weights.
    pub(crate) ty: WeightType,
    lm: Lm,
    devices: Devices,
    cache: CacheType,
}

/// A model, once for each of its devices.
enum Lm {
    Causal(Vec<Arc<Llama>>),
    Seq2Seq(Vec<Arc<T5>>),
}

/// How a text is decoded.
#[derive(Clone, Copy)]
pub(crate) enum Way<'a> {
    Plain,
    Jacobi,
    Lookahead,
    /// With the model's own first half as the draft model.
    Speculative,
    /// By BiLD or exact speculation, with a draft model on one device.
    Paired(&'a Subject, BildSettings),
}

impl std::fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain => f.write_str("plain"),
            Self::Jacobi => f.write_str("jacobi"),
            Self::Lookahead => f.write_str("lookahead"),
            Self::Speculative => f.write_str("speculative with its first half"),
            Self::Paired(little, BildSettings { rule: Rule::Exact, .. }) => {
                write!(f, "speculative with {}", little.name)
            }
            Self::Paired(little, BildSettings { fallback, rule: Rule::Bild { rollback, .. }, .. }) => {
                write!(f, "bild with {}, fallback {fallback}, rollback {rollback}", little.name)
            }
        }
    }
}

impl Subject {
    /// The model in a folder or a .gguf file.
    pub(crate) fn open(name: &str, source: &Path, devices: impl Into<Devices>) -> Result<Self> {
        let weights = Weights::open(source)?;
        let config = ModelConfig::read(source, &weights)?;
        let ty = weights.main_type().unwrap_or(WeightType::F32);
        Self::load(name, &config, &weights, ty, devices.into(), CacheType::F32)
    }

    /// A model of a shape, with random weights and a cache in half precision.
    pub(crate) fn random(
        name: &str,
        config: &ModelConfig,
        ty: WeightType,
        devices: impl Into<Devices>,
    ) -> Result<Self> {
        let name = format!("{name} {}", ty.name());
        Self::load(&name, config, &Weights::random(ty, SEED), ty, devices.into(), CacheType::F16)
    }

    fn load(
        name: &str,
        config: &ModelConfig,
        weights: &Weights,
        ty: WeightType,
        devices: Devices,
        cache: CacheType,
    ) -> Result<Self> {
        fn on_each<M>(
            devices: &Devices,
            load: impl Fn(&Kernels) -> trefoil_models::Result<M>,
        ) -> Result<Vec<Arc<M>>> {
            devices.each().iter().map(|kernels| Ok(Arc::new(load(kernels)?))).collect()
        }
        let lm = match config {
            ModelConfig::Llama(config) => Lm::Causal(on_each(&devices, |kernels| {
                Llama::load(config.clone(), weights, kernels, &mut |_| Ok(()))
            })?),
            ModelConfig::T5(config) => Lm::Seq2Seq(on_each(&devices, |kernels| {
                T5::load(config.clone(), weights, kernels, &mut |_| Ok(())).map(|model| model.keeping(cache))
            })?),
        };
        Ok(Self { name: name.to_owned(), ty, lm, devices, cache })
    }

    /// The part that writes.
    pub(crate) fn decoder(&self) -> Arc<dyn CausalLm> {
        let devices: Vec<Arc<dyn CausalLm>> = match &self.lm {
            Lm::Causal(devices) => devices.iter().map(|model| Arc::clone(model) as _).collect(),
            Lm::Seq2Seq(devices) => devices.iter().map(|model| Arc::clone(model) as _).collect(),
        };
        match devices.as_slice() {
            [only] => Arc::clone(only),
            // However few rows: what they cost is to be seen.
            _ => Arc::new(Sharded::over(devices, 1)),
        }
    }

    /// Half the layers, on the first device.
    fn first_half(&self) -> Arc<dyn CausalLm> {
        let layers = self.decoder().kv_shape().layers.div_ceil(2);
        match &self.lm {
            Lm::Causal(devices) => Arc::new(devices[0].first_layers(layers)),
            Lm::Seq2Seq(devices) => Arc::new(devices[0].first_layers(layers)),
        }
    }

    /// Resident bytes of the weights, on each device.
    pub(crate) fn bytes(&self) -> usize {
        match &self.lm {
            Lm::Causal(devices) => devices[0].bytes(),
            Lm::Seq2Seq(devices) => devices[0].bytes(),
        }
    }

    /// Whether it answers about a document that an encoder has read.
    pub(crate) fn encodes(&self) -> bool {
        matches!(self.lm, Lm::Seq2Seq(_))
    }

    /// A document as the encoder reads it; nothing where there is no encoder.
    pub(crate) fn encode(&self, document: &[Token]) -> Result<Option<Arc<CrossKv>>> {
        match &self.lm {
            Lm::Causal(_) => Ok(None),
            Lm::Seq2Seq(devices) => Ok(Some(encode(devices, document)?)),
        }
    }

    /// What the decoder begins with, and what it reads.
    fn begin(&self, prompt: &[Token]) -> Result<(Vec<Token>, Option<Arc<CrossKv>>)> {
        Ok(match &self.lm {
            Lm::Causal(_) => (prompt.to_vec(), None),
            Lm::Seq2Seq(devices) => (vec![devices[0].config().start], self.encode(prompt)?),
        })
    }

    /// An empty cache with room for so many texts of at most so many tokens.
    pub(crate) fn kv(&self, texts: usize, tokens: usize) -> Result<Kv> {
        Ok(Kv::new(&self.devices, self.decoder().kv_shape(), self.cache, texts * (tokens / PAGE + 2))?)
    }

    /// So many tokens behind `prompt`; nothing ends the text before.
    pub(crate) fn write(&self, prompt: &[Token], way: Way<'_>, tokens: usize) -> Result<Vec<Token>> {
        let (begin, source) = self.begin(prompt)?;
        let mut kv = self.kv(1, begin.len() + tokens)?;
        let mut session =
            Session::new(self.strategy(way, prompt, begin.len() + tokens, source.as_ref())?, [].into());
        session.add(kv.open(source), begin.clone(), tokens, Sampling::default(), 0);
        while !session.is_done() {
            session.step(self.decoder().as_ref(), &mut kv)?;
        }
        Ok(session.text(0).tokens()[begin.len()..].to_vec())
    }

    fn strategy(
        &self,
        way: Way<'_>,
        prompt: &[Token],
        tokens: usize,
        source: Option<&Arc<CrossKv>>,
    ) -> Result<Box<dyn Strategy>> {
        let bild = |little: Arc<dyn CausalLm>, device: &Kernels, source, settings| -> Result<Bild> {
            let kv = Kv::new(device, little.kv_shape(), self.cache, tokens / PAGE + 2)?;
            Ok(Bild::new(settings, Little::new(little, Arc::new(Mutex::new(kv)), source), [].into()))
        };
        Ok(match way {
            Way::Plain => Box::new(Plain),
            Way::Jacobi => Box::new(Jacobi::new(8)),
            Way::Lookahead => {
                let settings = LookaheadSettings {
                    window: 5,
                    ngram: 4,
                    guesses: 5,
                    pool_from_prompt: true,
                    reference: false,
                };
                Box::new(Lookahead::new(settings, prompt))
            }
            Way::Speculative => {
                let settings = BildSettings {
                    fallback: 0.0,
                    cumulative: false,
                    candidates: 0.1,
                    max_draft: 5,
                    rule: Rule::Exact,
                };
                Box::new(bild(self.first_half(), &self.devices.each()[0], source.cloned(), settings)?)
            }
            Way::Paired(little, settings) => {
                Box::new(bild(little.decoder(), &little.devices.each()[0], little.encode(prompt)?, settings)?)
            }
        })
    }

    /// Answers of so many tokens to prompts about documents, all in one session: every branch reads the one copy of its
    /// document, or a copy of its own.
    pub(crate) fn ask(
        &self,
        documents: &[Vec<Token>],
        prompts: &[Vec<Token>],
        tokens: usize,
        own: bool,
    ) -> Result<Asked> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or_default() + 1 + tokens;
        let prefix =
            if self.encodes() { 0 } else { documents.iter().map(Vec::len).max().unwrap_or_default() };
        let mut kv = self.kv(documents.len() * (prompts.len() + 1), prefix + longest)?;
        let mut session = Session::new(Box::new(Plain), [].into());
        for document in documents {
            let shared = Read::new(self, document, &mut kv)?;
            for prompt in prompts {
                let own = if own { Some(Read::new(self, document, &mut kv)?) } else { None };
                let (branch, text) = own.as_ref().unwrap_or(&shared).ask(prompt, &mut kv)?;
                session.add(branch, text, tokens, Sampling::default(), 0);
            }
        }
        let mut seconds = Vec::new();
        let lengths: Vec<usize> = (0..session.len()).map(|at| session.text(at).tokens().len()).collect();
        while !session.is_done() {
            let start = std::time::Instant::now();
            if !session.step(self.decoder().as_ref(), &mut kv)?.is_empty() {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let answers = lengths.iter().enumerate().map(|(at, &len)| session.text(at).tokens()[len..].to_vec());
        Ok(Asked { answers: answers.collect(), steps: seconds })
    }

    /// The scores of all tokens after `prompt` and `text`.
    pub(crate) fn scores(&self, prompt: &[Token], text: &[Token]) -> Result<Vec<f32>> {
        let (mut begin, source) = self.begin(prompt)?;
        begin.extend(text);
        let mut kv = self.kv(1, begin.len())?;
        let branch = kv.open(source);
        let Some((&last, known)) = begin.split_last() else { return Err("an empty text".into()) };
        let mut draft = Draft::new();
        while !fill(self.decoder().as_ref(), &mut kv, &mut draft, &[(branch, known)])?.is_empty() {}
        draft.clear();
        let row = draft.root(branch, last);
        draft.score(row);
        let scores = self.decoder().score(&draft, &mut kv)?;
        Ok(scores.row(row).ok_or("a row without scores")?.all()?.into_owned())
    }

    /// The text that a prompt's first branch holds, as one that the decoder begins with, in a cache with room for so many
    /// more tokens.
    pub(crate) fn begun(&self, prompt: &[Token], more: usize) -> Result<(Kv, BranchId)> {
        let (begin, source) = self.begin(prompt)?;
        let mut kv = self.kv(1, begin.len() + more)?;
        let branch = kv.open(source);
        let mut draft = Draft::new();
        while !fill(self.decoder().as_ref(), &mut kv, &mut draft, &[(branch, &begin)])?.is_empty() {}
        Ok((kv, branch))
    }

    /// Scores a draft and waits until it is known what follows every row.
    pub(crate) fn step(&self, draft: &Draft, kv: &mut Kv) -> Result<Vec<Token>> {
        let scores = self.decoder().score(draft, kv)?;
        let rows = (0..draft.len() as u32).map(RowId).filter(|&row| draft.row(row).scored);
        rows.map(|row| Ok(scores.row(row).ok_or("a row without scores")?.best()?)).collect()
    }
}

/// How far the best score stands above the second.
pub(crate) fn gap(scores: &[f32]) -> f32 {
    let mut two = [f32::NEG_INFINITY; 2];
    for &score in scores {
        if score > two[0] {
            two = [score, two[0]];
        } else if score > two[1] {
            two[1] = score;
        }
    }
    two[0] - two[1]
}

/// Answers, and the seconds of each step that wrote them.
pub(crate) struct Asked {
    pub(crate) answers: Vec<Vec<Token>>,
    pub(crate) steps: Vec<f64>,
}

/// A document that was read: by an encoder, or into the cache.
enum Read {
    Encoded(Arc<CrossKv>, Token),
    Cached(BranchId, Vec<Token>),
}

impl Read {
    fn new(subject: &Subject, document: &[Token], kv: &mut Kv) -> Result<Self> {
        match &subject.lm {
            Lm::Seq2Seq(devices) => Ok(Self::Encoded(encode(devices, document)?, devices[0].config().start)),
            Lm::Causal(_) => {
                let branch = kv.open(None);
                let mut draft = Draft::new();
                while !fill(subject.decoder().as_ref(), kv, &mut draft, &[(branch, document)])?.is_empty() {}
                Ok(Self::Cached(branch, document.to_vec()))
            }
        }
    }

    /// A branch for one prompt, and the text that it continues.
    fn ask(&self, prompt: &[Token], kv: &mut Kv) -> Result<(BranchId, Vec<Token>)> {
        Ok(match self {
            Self::Encoded(source, start) => (kv.open(Some(Arc::clone(source))), [&[*start], prompt].concat()),
            Self::Cached(branch, document) => (kv.fork(*branch)?, [document.as_slice(), prompt].concat()),
        })
    }
}
