//! A mixture of experts: a router gives each token to a few feed-forward networks (Shazeer et al. 2017, arXiv
//! 1701.06538; Jiang et al. 2024, arXiv 2401.04088). No token is dropped: each expert takes as many as come.
//!
//! Letters: n tokens, e experts, k experts of each token.

use candle_core::{D, DType, Tensor};

use crate::config::ExpertsConfig;
use crate::decoder::Mlp;
use crate::linear::Linear;
use crate::{ModelConfig, Params, Result};

#[derive(Debug, Clone)]
pub(crate) struct Experts {
    router: Linear, // (e, hidden)
    experts: Vec<Mlp>,
    taken: usize,
    norm_topk_prob: bool,
}

impl Experts {
    pub fn new(config: &ModelConfig, experts: &ExpertsConfig, params: &Params, name: &str) -> Result<Self> {
        let expert = |i: usize| Mlp::new(config, params, &format!("{name}.experts.{i}"));
        Ok(Self {
            router: Linear::new(params, &format!("{name}.gate"))?,
            experts: (0..experts.num_experts).map(expert).collect::<Result<_>>()?,
            taken: experts.num_experts_per_tok,
            norm_topk_prob: experts.norm_topk_prob,
        })
    }

    /// The mixture `(b, t, hidden)` and the router's logits `(n, e)`.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = x.flatten(0, 1)?.contiguous()?; // (n, hidden)
        let logits = self.router.apply(&rows)?;
        let (n, k, device) = (rows.dim(0)?, self.taken, x.device());
        let chosen = top_k(&logits, k)?;
        let places: Vec<u32> = chosen.concat();
        let mut shares = softmax(&logits)?.gather(&Tensor::from_slice(&places, (n, k), device)?, 1)?; // (n, k)
        if self.norm_topk_prob {
            shares = shares.broadcast_div(&shares.sum_keepdim(1)?)?;
        }
        // The n·k pairs of token and expert in the order of the experts.
        let mut order: Vec<u32> = (0..(n * k) as u32).collect();
        order.sort_by_key(|&pair| places[pair as usize]); // stable: tokens keep their order
        let mut outputs = Vec::new();
        for pairs in order.chunk_by(|&a, &b| places[a as usize] == places[b as usize]) {
            let tokens: Vec<u32> = pairs.iter().map(|&pair| pair / k as u32).collect();
            let tokens = rows.index_select(&Tensor::from_slice(&tokens, tokens.len(), device)?, 0)?;
            outputs.push(self.experts[places[pairs[0] as usize] as usize].forward(&tokens)?);
        }
        let mut back = vec![0u32; n * k];
        for (at, &pair) in order.iter().enumerate() {
            back[pair as usize] = at as u32;
        }
        let back = Tensor::from_slice(&back, n * k, device)?;
        let y = Tensor::cat(&outputs, 0)?.index_select(&back, 0)?.reshape((n, k, ()))?; // (n, k, hidden)
        let y = y.broadcast_mul(&shares.unsqueeze(2)?)?.sum(1)?;
        Ok((y.reshape(x.shape())?, logits))
    }

    /// The tensors that may train.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.router.tensors().chain(self.experts.iter().flat_map(Mlp::tensors))
    }
}

/// The columns of the `k` largest entries of each row, the largest first; of equals the first.
fn top_k(logits: &Tensor, k: usize) -> Result<Vec<Vec<u32>>> {
    let rows = logits.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let best = |row: Vec<f64>| {
        let mut columns: Vec<u32> = (0..row.len() as u32).collect();
        columns.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        columns.truncate(k);
        columns
    };
    Ok(rows.into_iter().map(best).collect())
}

fn softmax(logits: &Tensor) -> Result<Tensor> {
    let weights = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
}

/// How the routers of a batch distributed its tokens.
#[derive(Debug, Clone)]
pub struct Routing {
    /// What training adds to its loss: both losses below times their coefficients. A scalar.
    pub loss: Tensor,
    /// `e · Σ_e (tokens of e / n) · (mean share of e)` over all layers: `k` if all experts are alike, more if not (Fedus
    /// et al. 2021, arXiv 2101.03961).
    pub load_balancing_loss: f64,
    /// The mean of `logsumexp(logits)²`, which keeps the router's logits small (Zoph et al. 2022, arXiv 2202.08906).
    pub z_loss: f64,
    /// How many tokens each expert of each layer with experts took.
    pub tokens_per_expert: Vec<Vec<usize>>,
}

impl Routing {
    /// Of the router's logits `(n, e)` of each layer; tokens that are `padding` do not count.
    pub(crate) fn of(config: &ExpertsConfig, logits: &[Tensor], padding: Option<&[bool]>) -> Result<Self> {
        let kept = |logits: &Tensor| -> Result<Tensor> {
            let Some(padding) = padding else { return Ok(logits.clone()) };
            let tokens: Vec<u32> = (0..padding.len() as u32).filter(|&i| !padding[i as usize]).collect();
            Ok(logits.index_select(&Tensor::from_slice(&tokens, tokens.len(), logits.device())?, 0)?)
        };
        let layers = logits.iter().map(kept).collect::<Result<Vec<_>>>()?;
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
        let taken = |expert: usize| tokens_per_expert.iter().map(|layer| layer[expert]).sum::<usize>() as f64 / rows;
        let taken: Vec<f64> = (0..config.num_experts).map(taken).collect();
        let taken = Tensor::from_vec(taken, config.num_experts, logits.device())?.to_dtype(logits.dtype())?;
        let balance = ((softmax(&logits)?.mean(0)? * taken)?.sum_all()? * config.num_experts as f64)?;
        let top = logits.detach().max_keepdim(D::Minus1)?;
        let log_sums = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
        let z = log_sums.sqr()?.mean_all()?;
        let number = |x: &Tensor| x.to_dtype(DType::F64)?.to_scalar::<f64>();
        Ok(Self {
            load_balancing_loss: number(&balance)?,
            z_loss: number(&z)?,
            loss: ((balance * config.router_aux_loss_coef)? + (z * config.router_z_loss_coef)?)?,
            tokens_per_expert,
        })
    }
}
