//! [`Params`] as a backend of candle's `VarBuilder`: a model of candle-transformers with the weights of a checked, memory-mapped
//! checkpoint, or with trainable ones.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_nn::{Module, VarBuilder, linear_no_bias};
//! use llm_model::{Head, Model, ModelConfig};
//!
//! let model = Model::init(ModelConfig::default(), Head::LanguageModel, 1)?;
//! let weights = VarBuilder::from_backend(Box::new(model.params().clone()), DType::F32, Device::Cpu);
//! let up_proj = linear_no_bias(192, 512, weights.pp("model.layers.0.mlp.up_proj"))?;
//! assert!(up_proj.weight().is_variable()); // it shares the variable of `model`
//! # Ok::<(), llm_model::Error>(())
//! ```

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use crate::Params;

/// Weights by the decoder's name, which is that of Llama in transformers. A trainable weight keeps its gradient if it has the
/// wanted dtype and device; mapped and quantised weights are converted. A weight that is missing is an error: it is not
/// initialised.
impl SimpleBackend for Params {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            bail!("tensor \"{name}\" has shape {:?}; the model expects {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let weight = Params::get(self, name).map_err(candle_core::Error::wrap)?;
        weight.to_dense()?.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}
