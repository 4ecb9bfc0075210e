//! The choices of a [`ModelConfig`](super::ModelConfig): kinds of norms, biases, layers and activations, and experts.

use serde::{Deserialize, Serialize};

/// The kind of a norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / rms(x) · w`.
    #[default]
    Rms,
    /// `x / rms(x) · (1 + w)` (Gemma).
    RmsPlusOne,
    /// `(x - mean(x)) / std(x) · w + b`.
    Layer,
}

/// The position of the norms in a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before attention and before the MLP.
    #[default]
    Pre,
    /// After attention and after the MLP, before the residual addition (`OLMo` 2).
    Post,
    /// Before and after each (Gemma).
    Sandwich,
}

/// The norm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Over each head separately (Qwen3, Gemma 3).
    Head,
    /// Over all heads together (`OLMo` 2).
    Whole,
}

/// The attention projections that have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionBias {
    /// None.
    #[default]
    None,
    /// Queries, keys and values (Qwen2).
    Qkv,
    /// Queries, keys, values and output.
    All,
}

/// The attention type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// Causal attention over the whole context.
    FullAttention,
    /// Causal attention over the last `sliding_window` tokens.
    SlidingAttention,
}

/// The activation function of an MLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluPytorchTanh,
}

impl Activation {
    pub(crate) fn kernel(self) -> llm_kernels::Activation {
        match self {
            Self::Silu => llm_kernels::Activation::Silu,
            Self::Gelu => llm_kernels::Activation::Gelu,
            Self::GeluPytorchTanh => llm_kernels::Activation::GeluTanh,
        }
    }
}

/// A mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): a router selects a few experts (MLPs) for each token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertsConfig {
    /// Experts per layer.
    pub num_experts: usize,
    /// Experts selected for each token (top-k).
    pub num_experts_per_tok: usize,
    /// Hidden width of each expert.
    pub moe_intermediate_size: usize,
    /// Whether the router probabilities of the selected experts are normalised to sum to one.
    pub norm_topk_prob: bool,
    /// Coefficient of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961).
    pub router_aux_loss_coef: f64,
    /// Coefficient of the router's z-loss (Zoph et al. 2022, arXiv 2202.08906).
    pub router_z_loss_coef: f64,
    /// Layers with one dense MLP of `intermediate_size` instead of experts, counted from 0.
    pub dense_layers: Vec<usize>,
}

impl Default for ExpertsConfig {
    fn default() -> Self {
        Self {
            num_experts: 8,
            num_experts_per_tok: 2,
            moe_intermediate_size: 512,
            norm_topk_prob: true,
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.001,
            dense_layers: Vec::new(),
        }
    }
}
