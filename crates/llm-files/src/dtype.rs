//! The dtypes of weights, in files and in memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The dtype of the matrices of a model. As text, and in TOML and JSON, it is one of [`WeightDtype::ALL`] in lower case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WeightDtype {
    /// 4 bytes per element.
    #[default]
    F32,
    /// 2 bytes per element, bfloat16.
    Bf16,
    /// 2 bytes per element, IEEE half precision. In files only.
    F16,
    /// Block-quantised as in ggml.
    Quantized(BlockFormat),
}

/// A block format of ggml: small integers with scales, in blocks along the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// 4 bits, a scale and a minimum per 32 weights: 5 bits per weight. Read only.
    Q4_1,
    /// 5 bits and a scale per 32 weights: 5.5 bits per weight. Read only.
    Q5_0,
    /// 5 bits, a scale and a minimum per 32 weights: 6 bits per weight. Read only.
    Q5_1,
    /// 2 bits; a 4-bit scale and minimum per 16 weights, in blocks of 256: 2.63 bits per weight. Read only.
    Q2_K,
    /// 3 bits; a 6-bit scale per 16 weights, in blocks of 256: 3.44 bits per weight. Read only.
    Q3_K,
    /// 5 bits; a 6-bit scale and minimum per 32 weights, in blocks of 256: 5.5 bits per weight. Read only.
    Q5_K,
    /// 4 bits, an index into 16 values, and a scale per 32 weights: 4.5 bits per weight. Read only.
    IQ4_NL,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 11] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_K,
        Self::Q6_K,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q5_K,
        Self::IQ4_NL,
    ];

    /// Weights per block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::IQ4_NL => 32,
            Self::Q4_K | Self::Q6_K | Self::Q2_K | Self::Q3_K | Self::Q5_K => 256,
        }
    }

    /// Bytes per block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q5_K => 176,
        }
    }
}

impl WeightDtype {
    /// The dtypes that weights can be converted to; the other block formats are read only.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Quantized(BlockFormat::Q8_0),
        Self::Quantized(BlockFormat::Q4_0),
        Self::Quantized(BlockFormat::Q4_K),
        Self::Quantized(BlockFormat::Q6_K),
    ];

    /// The name: `f32`, `bf16`, `f16`, or that of the block format in lower case, such as `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Quantized(BlockFormat::Q8_0) => "q8_0",
            Self::Quantized(BlockFormat::Q4_0) => "q4_0",
            Self::Quantized(BlockFormat::Q4_K) => "q4_k",
            Self::Quantized(BlockFormat::Q6_K) => "q6_k",
            Self::Quantized(BlockFormat::Q4_1) => "q4_1",
            Self::Quantized(BlockFormat::Q5_0) => "q5_0",
            Self::Quantized(BlockFormat::Q5_1) => "q5_1",
            Self::Quantized(BlockFormat::Q2_K) => "q2_k",
            Self::Quantized(BlockFormat::Q3_K) => "q3_k",
            Self::Quantized(BlockFormat::Q5_K) => "q5_k",
            Self::Quantized(BlockFormat::IQ4_NL) => "iq4_nl",
        }
    }

    /// Bytes of a row of `len` elements; none if `len` is not a multiple of the block size.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        match self {
            Self::F32 => len.checked_mul(4),
            Self::F16 | Self::Bf16 => len.checked_mul(2),
            Self::Quantized(f) if len.is_multiple_of(f.elements()) => (len / f.elements()).checked_mul(f.bytes()),
            Self::Quantized(_) => None,
        }
    }

    /// The dtype of a matrix with rows of `row` elements where this one is wanted: a block format that does not divide the
    /// rows falls back to `q8_0`, and to f32 if the row length is not a multiple of 32.
    #[must_use]
    pub fn for_rows_of(self, row: usize) -> Self {
        let fits = |dtype: &Self| dtype.row_bytes(row).is_some();
        [self, Self::Quantized(BlockFormat::Q8_0)].into_iter().find(fits).unwrap_or(Self::F32)
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WeightDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("\"{name}\" is not a dtype of weights; it must be one of {known}")
        })
    }
}

impl TryFrom<String> for WeightDtype {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<WeightDtype> for String {
    fn from(dtype: WeightDtype) -> Self {
        dtype.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_parsed_back() {
        for dtype in WeightDtype::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("q5_0".parse::<WeightDtype>().unwrap_err().contains("q4_0, q4_k, q6_k"));
    }

    #[test]
    fn a_block_format_that_does_not_divide_the_rows_falls_back() {
        let q4_k = WeightDtype::Quantized(BlockFormat::Q4_K);
        let names = [512, 96, 33].map(|row| q4_k.for_rows_of(row).name());
        assert_eq!(names, ["q4_k", "q8_0", "f32"]);
    }
}
