//! Checkpoints of llama2.c: a header of seven i32, then the weights of a Llama model in f32.
//!
//! Format: version 0 of `export.py` in <https://github.com/karpathy/llama2.c>. Tensors of one kind are together, for all layers. The
//! rows of a query or key head are interleaved, as in a GGUF file of a "llama".

use std::path::Path;

use candle_core::DType;
use llm_files::Bytes;
use llm_kernels::MappedWeight;

use super::gguf::deinterleave_rows;
use crate::weight::Weight;
use crate::{Error, Head, Model, ModelConfig, Params, Result};

/// Bytes of the header.
const HEADER: usize = 28;
/// The first number of a file of version 1 or later.
const LATER_VERSION: u32 = 0x616b_3432;

impl Model {
    /// Opens the frozen model of a llama2.c checkpoint with memory-mapped matrices.
    ///
    /// The end of a text is token 1, which llama2.c puts between the texts of the training data.
    pub fn from_llama2c(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Bytes::open(path).map_err(Error::io(path))?;
        let mut file = File { origin: path.display().to_string(), bytes, at: HEADER };
        let config = file.header()?;
        let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
        let [wide, narrow] = [heads, groups].map(|count| count * config.head_dim);

        let mut params = Params::default();
        params.insert("model.embed_tokens.weight".to_owned(), file.matrix(vocab, hidden, None)?);
        let kinds = [
            ("input_layernorm", hidden, 1, None),
            ("self_attn.q_proj", wide, hidden, Some(heads)),
            ("self_attn.k_proj", narrow, hidden, Some(groups)),
            ("self_attn.v_proj", narrow, hidden, None),
            ("self_attn.o_proj", hidden, wide, None),
            ("post_attention_layernorm", hidden, 1, None),
            ("mlp.gate_proj", inner, hidden, None),
            ("mlp.down_proj", hidden, inner, None),
            ("mlp.up_proj", inner, hidden, None),
        ];
        for (kind, rows, cols, heads) in kinds {
            for layer in 0..config.num_hidden_layers {
                params.insert(format!("model.layers.{layer}.{kind}.weight"), file.matrix(rows, cols, heads)?);
            }
        }
        params.insert("model.norm.weight".to_owned(), file.matrix(hidden, 1, None)?);
        file.take(config.max_position_embeddings, config.head_dim)?; // tables of rotary frequencies
        if !config.tie_word_embeddings {
            params.insert("lm_head.weight".to_owned(), file.matrix(vocab, hidden, None)?);
        }
        match file.bytes.len() - file.at {
            0 => Self::new(config, Head::LanguageModel, params),
            rest => file.wrong(format!("{rest} bytes after the last weight")),
        }
    }
}

struct File {
    origin: String,
    bytes: Bytes,
    /// The next byte to read.
    at: usize,
}

impl File {
    fn wrong<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::config(self.origin.clone(), format!("not a llama2.c checkpoint: {}", message.into())))
    }

    fn header(&self) -> Result<ModelConfig> {
        let Some(header) = self.bytes.get(..HEADER) else { return self.wrong("it has no header of 28 bytes") };
        let numbers = header.as_chunks::<4>().0;
        if u32::from_le_bytes(numbers[0]) == LATER_VERSION {
            return self.wrong("version 1 and later are not supported; export it again with `--version 0`");
        }
        let mut sizes = [0; 7];
        for (i, (size, bytes)) in sizes.iter_mut().zip(numbers).enumerate() {
            let number = i32::from_le_bytes(*bytes);
            // A negative vocabulary size means that the output layer is stored, too.
            let positive = if i == 5 { number.unsigned_abs() } else { u32::try_from(number).unwrap_or(0) };
            *size = positive as usize;
        }
        let [hidden, inner, layers, heads, groups, vocab, context] = sizes;
        let config = ModelConfig {
            hidden_size: hidden,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: groups,
            vocab_size: vocab,
            max_position_embeddings: context,
            tie_word_embeddings: i32::from_le_bytes(numbers[5]) > 0,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.,
            bos_token_id: Some(1),
            eos_token_id: Some(1),
            ..ModelConfig::default()
        };
        config.validated(&self.origin)
    }

    /// The next `rows · cols` numbers.
    fn take(&mut self, rows: usize, cols: usize) -> Result<Bytes> {
        let end = rows.checked_mul(cols).and_then(|count| count.checked_mul(4)?.checked_add(self.at));
        let Some((end, part)) = end.and_then(|end| Some((end, self.bytes.slice(self.at..end)?))) else {
            return self
                .wrong(format!("it ends in a tensor of {rows} x {cols}; the file is truncated or has other sizes"));
        };
        self.at = end;
        Ok(part)
    }

    /// The next matrix, or a vector if `cols` is 1. With `heads`, its rows get de-interleaved.
    fn matrix(&mut self, rows: usize, cols: usize, heads: Option<usize>) -> Result<Weight> {
        let bytes = self.take(rows, cols)?;
        let bytes = heads.map_or(bytes.clone(), |heads| deinterleave_rows(&bytes, rows, heads).into());
        let matrix = Weight::Mapped(MappedWeight::new(bytes, (rows, cols), DType::F32)?);
        Ok(if cols == 1 { Weight::from(matrix.to_dense()?.flatten_all()?) } else { matrix })
    }
}
