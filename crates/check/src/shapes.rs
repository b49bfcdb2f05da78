//! Shapes of published models, and small ones that stand in for them where a run is short.

use trefoil_kernels::Activation;
use trefoil_models::{LlamaConfig, ModelConfig, RopeScaling, T5Config};

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct Shapes {
    /// Whether the run is a short one.
    pub(crate) short: bool,
}

impl Shapes {
    /// The shape that figures call `name`.
    pub(crate) fn named(self, name: &str) -> Option<ModelConfig> {
        match name {
            "1B" => Some(self.one_billion()),
            "7B" => Some(self.seven_billion()),
            "T5-large" => Some(self.t5_large()),
            _ => None,
        }
    }

    /// Llama 3.2 1B.
    pub(crate) fn one_billion(self) -> ModelConfig {
        self.llama(128_256, 2048, 16, (32, 8, 64), 8192, true)
    }

    /// Llama 2 7B.
    pub(crate) fn seven_billion(self) -> ModelConfig {
        self.llama(32_000, 4096, 32, (32, 32, 128), 11_008, false)
    }

    fn llama(
        self,
        vocabulary: usize,
        width: usize,
        layers: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        feed_forward: usize,
        tied_head: bool,
    ) -> ModelConfig {
        let whole = LlamaConfig {
            architecture: "llama".into(),
            vocabulary,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            qkv_bias: false,
            qk_norm: false,
            tied_head,
            context_length: 8192,
            window: None,
            eos: Vec::new(),
            bos: None,
        };
        ModelConfig::Llama(if self.short {
            LlamaConfig {
                vocabulary: 1000,
                width: 256,
                layers: 2,
                heads: heads / 8,
                kv_heads: kv_heads.div_ceil(8),
                feed_forward: 512,
                ..whole
            }
        } else {
            whole
        })
    }

    /// T5-large.
    pub(crate) fn t5_large(self) -> ModelConfig {
        let whole = T5Config {
            architecture: "t5".into(),
            vocabulary: 32_128,
            width: 1024,
            head_dim: 64,
            heads: 16,
            encoder_layers: 24,
            decoder_layers: 24,
            feed_forward: 4096,
            gated: false,
            activation: Activation::Relu,
            norm_eps: 1e-6,
            buckets: 32,
            max_distance: 128,
            tied_head: true,
            scale_outputs: true,
            start: 0,
            pad: 0,
            eos: Vec::new(),
            context_length: 512,
        };
        ModelConfig::T5(if self.short {
            T5Config {
                vocabulary: 1000,
                width: 256,
                heads: 4,
                encoder_layers: 2,
                decoder_layers: 2,
                feed_forward: 512,
                ..whole
            }
        } else {
            whole
        })
    }
}
