//! Reproducible inputs: numbers, weights of every type, and the instruction sets to try.
#![expect(dead_code, reason = "each test file uses a part")]

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use trefoil_kernels::{Isa, Kernels, Weight, WeightType};

/// A small generator (xorshift).
pub(crate) struct Sample(u64);

impl Sample {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// Between -1 and 1, with more small numbers than large ones.
    pub(crate) fn float(&mut self) -> f32 {
        let mut unit = || (self.bits() >> 40) as f32 / 16_777_216.0 * 2.0 - 1.0;
        unit() * unit().abs()
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let count = dims.iter().product();
        Tensor::from_vec(self.floats(count), dims, &Device::Cpu).unwrap()
    }

    /// The bytes of an `[n, k]` weight: random codes under plausible scales.
    pub(crate) fn weight_bytes(&mut self, ty: WeightType, n: usize, k: usize) -> Vec<u8> {
        let count = ty.bytes(n, k).unwrap();
        match ty {
            WeightType::F32 => self.floats(n * k).into_iter().flat_map(f32::to_le_bytes).collect(),
            WeightType::F16 => {
                self.floats(n * k).into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()
            }
            WeightType::Bf16 => {
                self.floats(n * k).into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()
            }
            _ => {
                let mut bytes: Vec<u8> = (0..count).map(|_| (self.bits() >> 29) as u8).collect();
                for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                    let scales: &[usize] = match ty {
                        WeightType::Q6K => &[208],
                        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
                        _ => &[0],
                    };
                    for &at in scales {
                        let scale = f16::from_f32(self.float() * 0.02);
                        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
                bytes
            }
        }
    }

    pub(crate) fn weight(&mut self, kernels: &Kernels, ty: WeightType, n: usize, k: usize) -> Weight {
        let bytes = self.weight_bytes(ty, n, k);
        Weight::pack(kernels, ty, n, k, &bytes).unwrap()
    }
}

/// Kernels for every instruction set of this machine, portable last, with so many threads.
pub(crate) fn all(threads: usize) -> Vec<Kernels> {
    Isa::ALL.iter().filter_map(|&isa| Kernels::cpu_with(threads, isa).ok()).collect()
}

pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// Rows `at` of `x`, as a new tensor.
pub(crate) fn pick(x: &Tensor, at: &[usize]) -> Tensor {
    let index: Vec<u32> = at.iter().map(|&i| i as u32).collect();
    let index = Tensor::from_vec(index, at.len(), &Device::Cpu).unwrap();
    x.index_select(&index, 0).unwrap()
}
