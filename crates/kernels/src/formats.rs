//! The weight types: what their blocks hold, as files store them.
//!
//! # Source
//! The block structures of ggml, as the GGUF format documents them. All numbers are little-endian.

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Blocks of 32: d · (q − 8).
    Q4_0,
    /// Blocks of 32: d · q + m.
    Q4_1,
    /// Blocks of 32: d · (q − 16).
    Q5_0,
    /// Blocks of 32: d · q + m.
    Q5_1,
    /// Blocks of 32: d · q, q signed.
    Q8_0,
    /// Blocks of 256 in eighths: d · s · q − dmin · t, with six-bit s and t.
    Q4K,
    /// As [`WeightType::Q4K`] with five-bit codes.
    Q5K,
    /// Blocks of 256 in sixteenths: d · s · (q − 32), with signed eight-bit s.
    Q6K,
}

/// How codes and scales make a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// No codes: the number itself.
    Dense,
    /// d · (q − offset).
    Centred(i32),
    /// d · q + m.
    Affine,
    /// d · s · q + m · t, with `m` negative in practice, s and t for each 32.
    Super,
    /// d · s · (q − 32), s for each 16.
    Halves,
}

impl WeightType {
    /// Every type.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The name that files and people use: `bf16`, `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Elements in a block; a row is a whole number of blocks.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of an `[n, k]` weight in a file; nothing if `k` is not a whole number of blocks or
    /// the number does not fit.
    pub const fn bytes(self, n: usize, k: usize) -> Option<usize> {
        if !k.is_multiple_of(self.block_elements()) {
            return None;
        }
        match (k / self.block_elements()).checked_mul(self.block_bytes()) {
            Some(row) => row.checked_mul(n),
            None => None,
        }
    }

    /// Bits of a code; 0 for dense types.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    pub(crate) const fn is_dense(self) -> bool {
        self.bits() == 0
    }

    pub(crate) const fn scaling(self) -> Scaling {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => Scaling::Dense,
            Self::Q4_0 => Scaling::Centred(8),
            Self::Q5_0 => Scaling::Centred(16),
            Self::Q8_0 => Scaling::Centred(128),
            Self::Q4_1 | Self::Q5_1 => Scaling::Affine,
            Self::Q4K | Self::Q5K => Scaling::Super,
            Self::Q6K => Scaling::Halves,
        }
    }
}

/// A block of a quantised type, taken apart. Codes are unsigned whatever the type.
pub(crate) struct Parsed {
    pub(crate) codes: [u8; 256],
    /// f16: the block's scale.
    pub(crate) d: [u8; 2],
    /// f16: the number that is added; for K types the negated scale of the minima.
    pub(crate) m: [u8; 2],
    /// Scales within the block: s for each 32 (Q4K, Q5K) or for each 16 (Q6K).
    pub(crate) scales: [u8; 16],
    /// t for each 32.
    pub(crate) mins: [u8; 8],
}

impl Parsed {
    /// Takes `block`, of `ty.block_bytes()` bytes, apart.
    pub(crate) fn new(ty: WeightType, block: &[u8]) -> Self {
        let mut parsed = Self { codes: [0; 256], d: [0; 2], m: [0; 2], scales: [0; 16], mins: [0; 8] };
        let two = |at: usize| [block[at], block[at + 1]];
        match ty {
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {}
            WeightType::Q4_0 => {
                parsed.d = two(0);
                parsed.nibbles(&block[2..18]);
            }
            WeightType::Q4_1 => {
                (parsed.d, parsed.m) = (two(0), two(2));
                parsed.nibbles(&block[4..20]);
            }
            WeightType::Q5_0 => {
                parsed.d = two(0);
                parsed.nibbles(&block[6..22]);
                parsed.fifth_bits(&block[2..6]);
            }
            WeightType::Q5_1 => {
                (parsed.d, parsed.m) = (two(0), two(2));
                parsed.nibbles(&block[8..24]);
                parsed.fifth_bits(&block[4..8]);
            }
            WeightType::Q8_0 => {
                parsed.d = two(0);
                for (code, byte) in parsed.codes.iter_mut().zip(&block[2..34]) {
                    *code = byte.wrapping_add(128);
                }
            }
            WeightType::Q4K => {
                parsed.super_scales(block);
                parsed.pairs_of_blocks(&block[16..144]);
            }
            WeightType::Q5K => {
                parsed.super_scales(block);
                parsed.pairs_of_blocks(&block[48..176]);
                // Byte i of the plane holds the fifth bits of element i of all eight sub-blocks.
                for (i, code) in parsed.codes.iter_mut().enumerate() {
                    *code |= (block[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
            WeightType::Q6K => {
                parsed.d = two(208);
                parsed.scales.copy_from_slice(&block[192..208]);
                let (low, high) = (&block[..128], &block[128..192]);
                // Two halves of 128; in each, 32 bytes of high bits serve four quarters.
                for (i, code) in parsed.codes.iter_mut().enumerate() {
                    let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
                    let nibbles = low[half * 64 + quarter % 2 * 32 + at];
                    let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
                    *code = nibble | (high[half * 32 + at] >> (2 * quarter) & 3) << 4;
                }
            }
        }
        parsed
    }

    /// Sixteen bytes: elements 0..16 in the low nibbles, 16..32 in the high ones.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.codes[i] = byte & 15;
            self.codes[i + 16] = byte >> 4;
        }
    }

    /// Thirty-two bits, element 0 the lowest.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for i in 0..32 {
            self.codes[i] |= (bytes[i / 8] >> (i % 8) & 1) << 4;
        }
    }

    /// Each 32 bytes hold two sub-blocks of 32: low nibbles, then high ones.
    fn pairs_of_blocks(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let (pair, at) = (i / 32, i % 32);
            self.codes[pair * 64 + at] = byte & 15;
            self.codes[pair * 64 + 32 + at] = byte >> 4;
        }
    }

    /// d, dmin, and eight six-bit pairs in twelve bytes: the first four pairs in the low six bits
    /// of bytes 0..8, the last four in the nibbles of bytes 8..12 and the high bits of 0..8.
    fn super_scales(&mut self, block: &[u8]) {
        self.d = [block[0], block[1]];
        // The minimum is subtracted; turning the sign bit makes it an addition, exactly.
        self.m = [block[2], block[3] ^ 0x80];
        let packed = &block[4..16];
        for i in 0..4 {
            self.scales[i] = packed[i] & 63;
            self.mins[i] = packed[i + 4] & 63;
            self.scales[i + 4] = packed[i + 8] & 15 | packed[i] >> 6 << 4;
            self.mins[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
        }
    }
}
