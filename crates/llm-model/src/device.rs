//! Models on other devices than the CPU.

use candle_core::Device;

use crate::{Model, Result};

impl Model {
    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.params().device()
    }

    /// A copy on `device`; a model that is there already is shared. Trainable weights stay trainable. Memory-mapped and
    /// quantised weights become dense on another device than the CPU: bf16 stays bf16, f16 and quantised weights become f32.
    ///
    /// Models are created and loaded on the CPU. Call this before [`Self::checkpoint_activations`]; [`Self::frozen_as`] with a
    /// quantised format needs a model on the CPU.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self.clone());
        }
        let mut model = self.with_params(self.params().to_device(device)?)?;
        for (name, adapter) in &mut model.adapters.known {
            // `with_params` set the active ones.
            if !model.adapters.active.contains(name) {
                *adapter = adapter.map(|weight| weight.to_device(device))?;
            }
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Tensor};

    use super::*;
    use crate::weight::Weight;
    use crate::{Batch, BlockFormat, Head, LoraConfig, ModelConfig, WeightDtype};

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 40,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            initializer_range: 0.3,
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 5).unwrap()
    }

    /// The copy that another device would get; the tests have the CPU only.
    fn copy(model: &Model) -> Model {
        model.with_params(model.params().to_device(&Device::Cpu).unwrap()).unwrap()
    }

    fn logits(model: &Model) -> Tensor {
        model.forward(&Batch::new(&[vec![3, 1, 4, 15, 9, 26]]).unwrap()).unwrap().detach()
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_model_on_the_same_device_is_shared() {
        let model = model();
        let same = model.to_device(&Device::Cpu).unwrap();
        assert!(model.device().is_cpu());
        assert_eq!(
            model.params().vars()["model.embed_tokens.weight"].id(),
            same.params().vars()["model.embed_tokens.weight"].id()
        );
    }

    #[test]
    fn a_copy_has_dense_weights_and_the_same_logits() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = model().frozen().unwrap();
        frozen.save(dir.path()).unwrap();
        let bf16 = frozen.frozen_as(WeightDtype::Bf16).unwrap();
        bf16.save(dir.path().join("bf16")).unwrap();
        let opened = |path| Model::open(path).unwrap();
        let quantized = frozen.frozen_as(WeightDtype::Quantized(BlockFormat::Q8_0)).unwrap();
        // Quantised weights multiply rounded activations on the CPU; f32 weights do not.
        for (model, tolerance) in
            [(opened(dir.path().to_owned()), 1e-5), (opened(dir.path().join("bf16")), 1e-5), (quantized, 0.2)]
        {
            let moved = copy(&model);
            assert!(moved.params().iter().all(|(_, weight)| matches!(weight, Weight::Dense(_))));
            let difference = max_difference(&logits(&model), &logits(&moved));
            assert!(difference <= tolerance, "{difference}");
        }
    }

    #[test]
    fn a_copy_of_a_trainable_model_has_its_own_variables() {
        let model = model();
        let moved = copy(&model);
        assert_eq!(moved.params().vars().len(), model.params().vars().len());
        let before = logits(&model);
        assert_eq!(max_difference(&before, &logits(&moved)), 0.);
        let var = &moved.params().vars()["model.embed_tokens.weight"];
        var.set(&var.zeros_like().unwrap()).unwrap();
        assert_eq!(max_difference(&before, &logits(&model)), 0.);
        assert!(max_difference(&before, &logits(&moved)) > 0.1);
    }

    #[test]
    fn a_copy_of_an_adapted_model_trains_its_adapter_only() {
        let config = LoraConfig { target_modules: vec!["q_proj".to_owned()], ..LoraConfig::default() };
        let adapted = model().frozen().unwrap().with_lora(&config, 1).unwrap();
        let moved = copy(&adapted);
        let names = |model: &Model| model.params().vars().keys().cloned().collect::<Vec<_>>();
        assert!(!names(&moved).is_empty() && names(&moved) == names(&adapted));
        let loss = logits_loss(&moved);
        let gradients = loss.backward().unwrap();
        for (name, var) in moved.params().vars() {
            assert!(gradients.get(&var).is_some(), "{name}");
        }
        assert_eq!(max_difference(&logits(&adapted), &logits(&moved)), 0.);
    }

    fn logits_loss(model: &Model) -> Tensor {
        model.forward(&Batch::new(&[vec![3, 1, 4]]).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap()
    }
}
