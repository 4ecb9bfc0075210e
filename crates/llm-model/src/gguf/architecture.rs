//! What the families are called in GGUF files: one entry of the table for each.

/// A family: the names of its keys and tensors in `config.json` and safetensors on one side, in GGUF on the other.
pub(crate) struct Architecture {
    /// `general.architecture`, and what its keys begin with.
    pub name: &'static str,
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The class of its language model.
    pub class: &'static str,
    /// Its keys, and those of `config.json`.
    pub keys: &'static [Key],
    /// Tensors here and there; `{}` is the number of a block.
    pub tensors: &'static [(&'static str, &'static str)],
    /// Whether a head's rows of queries and keys stand in turns, one of the first half and one of the second: llama.cpp
    /// rotates neighbours in such a family, where transformers rotates halves.
    pub interleaved: bool,
}

/// A key of a family.
pub(crate) struct Key {
    /// Behind the name of the architecture and a dot.
    pub gguf: &'static str,
    /// In `config.json`.
    pub config: &'static str,
    /// Whether a file without it is refused.
    pub needed: bool,
}

const fn needed(gguf: &'static str, config: &'static str) -> Key {
    Key { gguf, config, needed: true }
}

const fn optional(gguf: &'static str, config: &'static str) -> Key {
    Key { gguf, config, needed: false }
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    keys: &[
        needed("embedding_length", "hidden_size"),
        needed("block_count", "num_hidden_layers"),
        needed("feed_forward_length", "intermediate_size"),
        needed("context_length", "max_position_embeddings"),
        needed("attention.head_count", "num_attention_heads"),
        optional("attention.head_count_kv", "num_key_value_heads"),
        optional("attention.key_length", "head_dim"),
        optional("attention.value_length", "head_dim"),
        optional("rope.dimension_count", "head_dim"),
        needed("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        optional("rope.freq_base", "rope_theta"),
        optional("vocab_size", "vocab_size"),
    ],
    tensors: &[
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
        ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
        ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
        ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
        ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
        ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
        ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
        ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
        ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ],
    interleaved: true,
};

/// Every family that a GGUF file is read or written for.
pub(crate) const ALL: [&Architecture; 1] = [&LLAMA];

impl Architecture {
    /// A tensor's name in GGUF.
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        self.tensors.iter().find_map(|(ours, theirs)| renamed(name, ours, theirs))
    }

    /// A tensor's name in safetensors.
    pub fn tensor_name(&self, gguf: &str) -> Option<String> {
        self.tensors.iter().find_map(|(ours, theirs)| renamed(gguf, theirs, ours))
    }
}

/// `name` written as `to`, if it is written as `from`; both may hold a number `{}`.
fn renamed(name: &str, from: &str, to: &str) -> Option<String> {
    let Some((before, after)) = from.split_once("{}") else {
        return (name == from).then(|| to.to_owned());
    };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    let canonical = number.parse::<u32>().is_ok_and(|n| n.to_string() == number);
    canonical.then(|| to.replacen("{}", number, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (ours, theirs) in [
            ("model.layers.12.self_attn.o_proj.weight", "blk.12.attn_output.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ] {
            assert_eq!(LLAMA.gguf_name(ours).as_deref(), Some(theirs));
            assert_eq!(LLAMA.tensor_name(theirs).as_deref(), Some(ours));
        }
        for unknown in ["blk.x.attn_q.weight", "blk.01.attn_q.weight", "blk..attn_q.weight", "rope_freqs.weight", ""] {
            assert_eq!(LLAMA.tensor_name(unknown), None, "{unknown}");
        }
    }
}
