//! Mixture of experts: a router sends each token to its top-k experts (Shazeer et al. 2017, arXiv 1701.06538; Jiang et
//! al. 2024, arXiv 2401.04088). Experts have no capacity limit, so no token is dropped.
//!
//! n: tokens, e: experts, k: experts per token.

use candle_core::{D, DType, Device, Tensor};

use crate::config::ExpertsConfig;
use crate::decoder::Mlp;
use crate::linear::Linear;
use crate::weight_path::WeightPath;
use crate::{ModelConfig, Result};

#[derive(Debug, Clone)]
pub(crate) struct Experts {
    router: Linear, // (e, hidden)
    experts: Vec<Mlp>,
    experts_per_token: usize,
    norm_topk_prob: bool,
}

impl Experts {
    pub fn new(config: &ModelConfig, experts: &ExpertsConfig, w: &WeightPath) -> Result<Self> {
        let expert = |i: usize| Mlp::new(config, &w.pp("experts").pp(i));
        Ok(Self {
            // In f32: rounding would change the selected experts.
            router: Linear::new(&w.pp("gate"))?.in_f32(),
            experts: (0..experts.num_experts).map(expert).collect::<Result<_>>()?,
            experts_per_token: experts.num_experts_per_tok,
            norm_topk_prob: experts.norm_topk_prob,
        })
    }

    /// The weighted sum of the expert outputs `(b, t, hidden)`, and the router logits `(n, e)`; `dropout` is the seed of a forward
    /// pass with dropout.
    pub fn forward(&self, x: &Tensor, dropout: Option<u64>) -> Result<(Tensor, Tensor)> {
        let rows = x.flatten(0, 1)?.contiguous()?; // (n, hidden)
        let logits = self.router.projection(dropout)?.forward(&rows)?;
        let (n, k, device) = (rows.dim(0)?, self.experts_per_token, x.device());
        let selected: Vec<u32> = top_k(&logits, k)?.concat(); // expert of each pair (token, slot), n·k
        let mut weights = softmax(&logits)?.gather(&Tensor::from_slice(&selected, (n, k), device)?, 1)?; // (n, k)
        if self.norm_topk_prob {
            weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        }
        // Sort the n·k pairs by expert.
        let mut order: Vec<u32> = (0..(n * k) as u32).collect();
        order.sort_by_key(|&pair| selected[pair as usize]); // stable: tokens keep their order
        let mut outputs = Vec::new();
        for pairs in order.chunk_by(|&a, &b| selected[a as usize] == selected[b as usize]) {
            let tokens: Vec<u32> = pairs.iter().map(|&pair| pair / k as u32).collect();
            let tokens = rows.index_select(&Tensor::from_slice(&tokens, tokens.len(), device)?, 0)?;
            outputs.push(self.experts[selected[pairs[0] as usize] as usize].forward_with(&tokens, dropout)?);
        }
        let mut inverse = vec![0u32; n * k];
        for (i, &pair) in order.iter().enumerate() {
            inverse[pair as usize] = i as u32;
        }
        let inverse = Tensor::from_slice(&inverse, n * k, device)?;
        let y = Tensor::cat(&outputs, 0)?.index_select(&inverse, 0)?.reshape((n, k, ()))?; // (n, k, hidden)
        let y = y.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?;
        Ok((y.reshape(x.shape())?, logits))
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.router.tensors().chain(self.experts.iter().flat_map(Mlp::tensors))
    }
}

/// The column indices of the `k` largest entries of each row, largest first; ties go to the lower index.
fn top_k(logits: &Tensor, k: usize) -> Result<Vec<Vec<u32>>> {
    let rows = logits.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let top = |row: Vec<f64>| {
        let mut columns: Vec<u32> = (0..row.len() as u32).collect();
        columns.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        columns.truncate(k);
        columns
    };
    Ok(rows.into_iter().map(top).collect())
}

fn softmax(logits: &Tensor) -> Result<Tensor> {
    let weights = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
}

/// Router losses and statistics of a batch.
#[derive(Debug, Clone)]
pub struct Routing {
    /// The auxiliary loss to add to the training loss: the two losses below times their coefficients. A scalar.
    pub loss: Tensor,
    /// `e · Σ_e (tokens of e / n) · (mean probability of e)` over all layers: `k` if the load is balanced, higher if not
    /// (Fedus et al. 2021, arXiv 2101.03961).
    pub load_balancing_loss: f64,
    /// Router z-loss: the mean of `logsumexp(logits)²`; it keeps the logits small (Zoph et al. 2022, arXiv 2202.08906).
    pub z_loss: f64,
    /// Number of tokens sent to each expert, for each layer with experts.
    pub tokens_per_expert: Vec<Vec<usize>>,
}

impl Routing {
    /// Computes the losses from the router logits `(n, e)` of each layer; `padding` tokens are ignored.
    pub(crate) fn of(config: &ExpertsConfig, logits: &[Tensor], padding: Option<&[bool]>) -> Result<Self> {
        let without_padding = |logits: &Tensor| -> Result<Tensor> {
            let Some(padding) = padding else { return Ok(logits.clone()) };
            let tokens: Vec<u32> = (0..padding.len() as u32).filter(|&i| !padding[i as usize]).collect();
            Ok(logits.index_select(&Tensor::from_slice(&tokens, tokens.len(), logits.device())?, 0)?)
        };
        let layers = logits.iter().map(without_padding).collect::<Result<Vec<_>>>()?;
        let mut tokens_per_expert = Vec::new();
        for layer in &layers {
            let mut counts = vec![0; config.num_experts];
            for expert in top_k(layer, config.num_experts_per_tok)?.concat() {
                counts[expert as usize] += 1;
            }
            tokens_per_expert.push(counts);
        }
        let logits = Tensor::cat(&layers, 0)?; // (layers·n, e)
        let rows = logits.dim(0)? as f64;
        let load = |expert: usize| tokens_per_expert.iter().map(|layer| layer[expert]).sum::<usize>() as f64 / rows;
        let load: Vec<f64> = (0..config.num_experts).map(load).collect();
        let load = Tensor::from_vec(load, config.num_experts, logits.device())?.to_dtype(logits.dtype())?; // (e,)
        let balance = ((softmax(&logits)?.mean(0)? * load)?.sum_all()? * config.num_experts as f64)?;
        let max = logits.detach().max_keepdim(D::Minus1)?;
        let logsumexp = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?; // (layers·n, 1)
        let z = logsumexp.sqr()?.mean_all()?;
        let number = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>();
        Ok(Self {
            load_balancing_loss: number(&balance)?,
            z_loss: number(&z)?,
            loss: ((balance * config.router_aux_loss_coef)? + (z * config.router_z_loss_coef)?)?,
            tokens_per_expert,
        })
    }
}
