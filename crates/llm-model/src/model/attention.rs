//! The attention of a model: weights of all heads, one head at a time, and forward passes with heads ablated.

use candle_core::Tensor;

use super::Model;
use crate::inspect::Inspection;
use crate::{Ablation, Batch, Error, HeadAttention, Result};

impl Model {
    /// The attention weights of every layer, each `(b, h, t, t)`: query by key, each row sums to one.
    pub fn attentions(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let mut layers: Vec<Vec<Tensor>> = vec![Vec::new(); self.config.num_hidden_layers];
        self.inspect_heads(batch, &[], &mut |head| {
            layers[head.layer].push(head.weights.clone());
            Ok(())
        })?;
        Ok(layers.iter().map(|heads| Tensor::stack(heads, 1)).collect::<candle_core::Result<_>>()?)
    }

    /// The hidden states `(b, t, hidden)` of a forward pass that calls `on_head` for each head, layer by layer: its attention
    /// weights and value norms. The weights of one head are in memory at once, also of a long text. The heads of `ablations` are
    /// changed before the layer goes on. An error if a head is not in the model or the batch is ragged.
    pub fn inspect_heads(
        &self,
        batch: &Batch,
        ablations: &[Ablation],
        on_head: &mut dyn FnMut(&HeadAttention) -> candle_core::Result<()>,
    ) -> Result<Tensor> {
        self.inspected(batch, Inspection { ablations, on_head: Some(on_head) })
    }

    /// The hidden states `(b, t, hidden)` with the heads of `ablations` changed. An error if a head is not in the model.
    pub fn hidden_ablated(&self, batch: &Batch, ablations: &[Ablation]) -> Result<Tensor> {
        self.inspected(batch, Inspection { ablations, on_head: None })
    }

    fn inspected(&self, batch: &Batch, inspection: Inspection) -> Result<Tensor> {
        let (layers, heads) = (self.config.num_hidden_layers, self.config.num_attention_heads);
        if let Some(head) = inspection.ablations.iter().find(|head| head.layer >= layers || head.head >= heads) {
            return Err(Error::Input(format!(
                "head {}.{} is not in the model; it has {layers} layers of {heads} heads, counted from 0",
                head.layer, head.head
            )));
        }
        self.check_ids(batch)?;
        Ok(self.decoder.forward(batch, None, Some(inspection))?.hidden)
    }
}
