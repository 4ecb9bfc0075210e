//! A model of some layers of another one.

use std::collections::BTreeMap;

use super::Model;
use crate::formats::families;
use crate::{Error, ModelConfig, Params, Result};

/// What the names of the weights of layers begin with.
const PREFIX: &str = "model.layers.";

impl Model {
    /// A frozen model of these layers, counted from 0 in ascending order, with the embedding, the final norm and the head: the start of a
    /// student (Sanh et al. 2019, arXiv 1910.01108, section 3). Weights are shared. An error if a layer is not in the model, or an adapter
    /// is active.
    pub fn with_layers(&self, layers: &[usize]) -> Result<Self> {
        let all = self.config.num_hidden_layers;
        if layers.is_empty() || layers.iter().any(|&layer| layer >= all) || !layers.is_sorted_by(|a, b| a < b) {
            return Err(Error::Input(format!(
                "layers {layers:?} of a model with {all}; give at least one, ascending, from 0 to {}",
                all - 1
            )));
        }
        if !self.params.adapters().is_empty() {
            return Err(Error::Input("an adapter is active; merge it before taking layers".to_owned()));
        }
        let config = config_of_layers(&self.config, layers);
        families::to_json(&config, self.head)?;
        let mut weights = BTreeMap::new();
        for (name, weight) in self.params.iter() {
            let layer = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
            let name = match layer.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest))) {
                None => name.to_owned(),
                Some((number, rest)) => match layers.iter().position(|&layer| layer == number) {
                    Some(at) => format!("{PREFIX}{at}.{rest}"),
                    None => continue,
                },
            };
            weights.insert(name, weight.detached());
        }
        let params = Params::from_weights(weights).in_precision(self.params.precision());
        let mut model = Self::new(config, self.head, params)?.with_generation(self.generation.clone());
        model.extra.clone_from(&self.extra);
        Ok(model)
    }
}

/// The configuration of a model of these layers: lists with an entry for each layer, or of layers, are of the new ones.
fn config_of_layers(config: &ModelConfig, layers: &[usize]) -> ModelConfig {
    let mut small = ModelConfig { num_hidden_layers: layers.len(), ..config.clone() };
    let renumbered = |list: &[usize]| (0..layers.len()).filter(|&at| list.contains(&layers[at])).collect();
    small.layers_without_rope = renumbered(&config.layers_without_rope);
    if !config.layer_types.is_empty() {
        small.layer_types = layers.iter().map(|&layer| config.layer_types[layer]).collect();
    }
    if let Some(experts) = &mut small.experts {
        experts.dense_layers = renumbered(&experts.dense_layers);
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Head, LayerType};

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 20,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 5,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            initializer_range: 0.3,
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 3).unwrap()
    }

    #[test]
    fn layers_keep_their_weights_and_the_order_of_their_kinds() {
        let teacher = model();
        let student = teacher.with_layers(&[0, 2, 4]).unwrap();
        let (all, kept) = (teacher.params().tensors(), student.params().tensors());
        let bits = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (at, layer) in [0, 2, 4].into_iter().enumerate() {
            let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
            assert_eq!(bits(&kept[&name(at)]), bits(&all[&name(layer)]));
        }
        assert_eq!(bits(&kept["model.embed_tokens.weight"]), bits(&all["model.embed_tokens.weight"]));
        assert_eq!(student.config().num_hidden_layers, 3);
        let batch = Batch::new(&[vec![1, 2, 3]]).unwrap();
        let same = teacher.with_layers(&[0, 1, 2, 3, 4]).unwrap();
        assert_eq!(bits(&same.forward(&batch).unwrap()), bits(&teacher.forward(&batch).unwrap()));
        assert_ne!(bits(&student.forward(&batch).unwrap()), bits(&teacher.forward(&batch).unwrap()));
        for wrong in [&[][..], &[5], &[2, 0], &[1, 1]] {
            assert!(teacher.with_layers(wrong).is_err(), "{wrong:?}");
        }
        let (full, sliding) = (LayerType::FullAttention, LayerType::SlidingAttention);
        let config = ModelConfig {
            layer_types: vec![full, sliding, full, sliding, sliding],
            layers_without_rope: vec![1, 4],
            ..teacher.config().clone()
        };
        let small = config_of_layers(&config, &[0, 3, 4]);
        assert_eq!((small.layer_types, small.layers_without_rope), (vec![full, sliding, sliding], vec![2]));
    }
}
