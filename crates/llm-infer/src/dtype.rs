//! The options `--dtype` and `--quantize`: dtypes of weights.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use llm_cli::Failure;
use llm_model::{BlockFormat, Model, WeightDtype};

use crate::failure::input;

/// Weight dtype in memory; none: the dtype of the file, memory-mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dtype(Option<WeightDtype>);

impl Dtype {
    /// The parser of `--dtype`.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        let mapped = PossibleValue::new("mapped").alias("stored");
        let mapped = mapped.help("The dtype of the file, memory-mapped: fastest start, no copy in memory");
        let values = WeightDtype::ALL.into_iter().filter(|dtype| *dtype != WeightDtype::F16).map(|dtype| {
            let speed = "16 bits per weight: decodes about twice as fast as f32; about 3 significant digits";
            PossibleValue::new(dtype.name()).help(if dtype == WeightDtype::Bf16 { speed } else { bits(dtype) })
        });
        // The names that are no dtype are "mapped" and its alias.
        PossibleValuesParser::new(std::iter::once(mapped).chain(values)).map(|name| Self(name.parse().ok()))
    }

    /// Converts the weights of a model to this dtype.
    pub(crate) fn convert(self, model: Model) -> Result<Model, Failure> {
        match self.0 {
            Some(dtype) => model.frozen_as(dtype).map_err(input),
            None => Ok(model),
        }
    }
}

/// The size of a weight, for help texts.
pub(crate) fn bits(dtype: WeightDtype) -> &'static str {
    match dtype {
        WeightDtype::F32 => "32 bits per weight",
        WeightDtype::Bf16 => "16 bits per weight: the range of f32, about 3 significant digits",
        WeightDtype::F16 => "16 bits per weight: up to 65504, about 4 significant digits",
        WeightDtype::Quantized(BlockFormat::Q8_0) => "8.5 bits per weight",
        WeightDtype::Quantized(BlockFormat::Q4_0) => "4.5 bits per weight",
        WeightDtype::Quantized(BlockFormat::Q4_K) => {
            "4.5 bits per weight, with finer scales; 8.5 bits if the row length is not a multiple of 256"
        }
        WeightDtype::Quantized(BlockFormat::Q6_K) => {
            "6.6 bits per weight; 8.5 bits if the row length is not a multiple of 256"
        }
        WeightDtype::Quantized(_) => "read only",
    }
}
