//! ggml's block formats.

use candle_core::quantized::GgmlDType;

/// The block format of a quantised weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum BlockFormat {
    /// 8 bits and a scale per 32 weights: 8.5 bits per weight.
    Q8_0,
    /// 4 bits and a scale per 32 weights: 4.5 bits per weight.
    Q4_0,
    /// 4 bits; a 6-bit scale and minimum per 32 weights, in blocks of 256: 4.5 bits per weight.
    Q4_K,
    /// 6 bits; an 8-bit scale per 16 weights, in blocks of 256: 6.56 bits per weight.
    Q6_K,
}

impl BlockFormat {
    /// Every format.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [Self::Q8_0, Self::Q4_0, Self::Q4_K, Self::Q6_K];

    /// Weights per block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    pub(super) fn ggml(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q6_K => GgmlDType::Q6K,
        }
    }
}
