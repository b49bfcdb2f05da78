//! Rotary position embeddings: the angle that each pair of dimensions turns by a position.

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::weights::Weights;
use trefoil_kernels::WeightType;

/// How the frequencies are stretched for a longer context than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// What every frequency is divided by.
        factor: f32,
    },
    /// Llama 3.1's: low frequencies by a factor, high ones not at all, those between in proportion.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f32,
        /// Wavelengths above `original_context / low_frequency_factor` are low frequencies.
        low_frequency_factor: f32,
        /// Wavelengths below `original_context / high_frequency_factor` are high frequencies.
        high_frequency_factor: f32,
        /// The context of the first training, in tokens.
        original_context: f32,
    },
    /// Each by its own factor (`[head_dim / 2]`), as GGUF stores Llama 3.1's.
    Factors(Vec<f32>),
}

pub(super) const BASES: std::ops::RangeInclusive<f64> = 1.0..=1e12;
const FACTORS: std::ops::RangeInclusive<f64> = 1e-3..=1e6;
const DEFAULT_BASE: f64 = 10_000.0;

impl RopeScaling {
    /// The base and the scaling of a `config.json`, old style (`rope_theta`, `rope_scaling`) or new
    /// (`rope_parameters`).
    pub(super) fn from_json(fields: &Fields) -> Result<(f64, Self)> {
        let parameters = fields.within("rope_parameters")?;
        let base = match &parameters {
            Some(parameters) => parameters.optional_float("rope_theta", BASES)?,
            None => None,
        };
        let base = match base {
            Some(base) => base,
            None => fields.optional_float("rope_theta", BASES)?.unwrap_or(DEFAULT_BASE),
        };
        let Some(scaling) = parameters.map_or_else(|| fields.within("rope_scaling"), |it| Ok(Some(it)))?
        else {
            return Ok((base, Self::None));
        };
        if scaling.optional_float("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|share| share < 1.0) {
            return Err(scaling.unsupported("partial_rotary_factor", "below 1", "1"));
        }
        let name = if scaling.has("rope_type") { "rope_type" } else { "type" };
        let scaling = match scaling.optional_text(name)?.unwrap_or("default") {
            "default" => Self::None,
            "linear" => Self::Linear { factor: scaling.float("factor", FACTORS)? as f32 },
            "llama3" => Self::llama3(&scaling)?,
            other => return Err(scaling.unsupported(name, other, "default, linear and llama3")),
        };
        Ok((base, scaling))
    }

    fn llama3(fields: &Fields) -> Result<Self> {
        let low = fields.float("low_freq_factor", FACTORS)?;
        let high = fields.float("high_freq_factor", FACTORS)?;
        if high <= low {
            return Err(fields.broken("high_freq_factor", &format!("numbers above low_freq_factor, {low}")));
        }
        Ok(Self::Llama3 {
            factor: fields.float("factor", FACTORS)? as f32,
            low_frequency_factor: low as f32,
            high_frequency_factor: high as f32,
            original_context: fields.count("original_max_position_embeddings", 1..=1 << 30)? as f32,
        })
    }

    /// The base and the scaling of a GGUF file of this architecture.
    ///
    /// # Source
    /// `load_hparams` of llama.cpp for what a missing type, an old name and a factor of zero mean.
    pub(super) fn from_gguf(
        fields: &Fields,
        architecture: &str,
        head_dim: usize,
        weights: &Weights,
    ) -> Result<(f64, Self)> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let base = fields.optional_float(&key("freq_base"), BASES)?.unwrap_or(DEFAULT_BASE);
        // A factor means linear scaling where the file does not say otherwise, and so it did under its first name.
        let mut factor = None;
        for name in ["scaling.factor", "scale_linear"].map(key) {
            if factor.is_none() && fields.optional_float(&name, 0.0..=*FACTORS.end())? != Some(0.0) {
                factor = fields.optional_float(&name, FACTORS)?.map(|factor| factor as f32);
            }
        }
        let factor = match fields.optional_text(&key("scaling.type"))? {
            Some("none") => None,
            Some("linear") if factor.is_none() => {
                return Err(fields.broken(&key("scaling.factor"), "the factor of linear scaling"));
            }
            Some("linear") | None => factor,
            Some(other) => return Err(fields.unsupported(&key("scaling.type"), other, "none and linear")),
        };
        let scaling = match (Self::stored_factors(head_dim, weights)?, factor) {
            (None, None) => Self::None,
            (None, Some(factor)) => Self::Linear { factor },
            (Some(factors), None) => Self::Factors(factors),
            // Both stretch the frequencies.
            (Some(factors), Some(factor)) => Self::Factors(factors.iter().map(|it| it * factor).collect()),
        };
        Ok((base, scaling))
    }

    /// The factors of a GGUF file that stores one for each frequency.
    fn stored_factors(head_dim: usize, weights: &Weights) -> Result<Option<Vec<f32>>> {
        const NAME: &str = "rope_freqs.weight";
        if !weights.has(NAME) {
            return Ok(None);
        }
        let raw = weights.read(NAME, &[head_dim / 2])?;
        if raw.ty != WeightType::F32 {
            return Err(Error::unsupported(format!("tensor {NAME} has type {:?}; allowed is F32", raw.ty)));
        }
        let factors: Vec<f32> =
            raw.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(factor) = factors.iter().find(|factor| !FACTORS.contains(&f64::from(**factor))) {
            let (least, most) = (FACTORS.start(), FACTORS.end());
            return Err(Error::load(format!("tensor {NAME} holds {factor}; allowed are {least} to {most}")));
        }
        Ok(Some(factors))
    }

    /// The angle per position of each pair of dimensions: `[head_dim / 2]`, in radians.
    ///
    /// Every operation is rounded to f32 in the order of Hugging Face's `modeling_rope_utils`, because an angle at
    /// position 30,000 magnifies the last bit of its frequency. The power alone is taken in f64 and rounded once.
    pub(super) fn inverse_frequencies(&self, base: f64, head_dim: usize) -> Vec<f32> {
        let base = f64::from(base as f32);
        let plain = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / base.powf(f64::from(exponent)) as f32
        });
        match self {
            Self::None => plain.collect(),
            Self::Linear { factor } => plain.map(|inverse| inverse / factor).collect(),
            Self::Factors(factors) => plain.zip(factors).map(|(inverse, factor)| inverse / factor).collect(),
            Self::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                let (low, high) = (*low_frequency_factor, *high_frequency_factor);
                plain
                    .map(|inverse| {
                        let wavelength = (1.0 / inverse) * std::f32::consts::TAU;
                        if wavelength > original_context / low {
                            return inverse / factor;
                        }
                        if wavelength < original_context / high {
                            return inverse;
                        }
                        let smooth = ((1.0 / wavelength) * original_context - low) / (high - low);
                        (1.0 - smooth) * inverse / factor + smooth * inverse
                    })
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ROPE_INIT_FUNCTIONS["llama3"]` of transformers 5.23, f32, for Llama 3.2 1B (base 500,000; 64 dimensions).
    #[expect(clippy::unreadable_literal, reason = "bits")]
    const LLAMA_3_2: [u32; 32] = [
        1065353216, 1059709382, 1054963644, 1049992931, 1044812720, 1040434848, 1034871981, 1030233703,
        1025116360, 1020030793, 1015523779, 1010044269, 1005516623, 1000248322, 995260192, 984164251,
        971060768, 952867063, 933446029, 928558209, 923781368, 918476020, 914179523, 908595819, 903811268,
        898893515, 893679120, 889347892, 883754919, 879076685, 874013863, 868893104,
    ];

    #[test]
    fn llama3_frequencies_are_the_published_bits() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        let bits: Vec<u32> =
            scaling.inverse_frequencies(500_000.0, 64).into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, LLAMA_3_2);
    }

    #[test]
    fn plain_and_linear_frequencies() {
        let plain = RopeScaling::None.inverse_frequencies(10_000.0, 4);
        assert_eq!(plain, [1.0, 0.01]);
        let linear = RopeScaling::Linear { factor: 2.0 }.inverse_frequencies(10_000.0, 4);
        assert_eq!(linear, [0.5, 0.005]);
    }
}
