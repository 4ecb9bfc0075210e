//! The heads of a model.

/// The output layer of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits of the next token (`…ForCausalLM`).
    LanguageModel,
    /// One score per sequence, read at its last token (`…ForSequenceClassification` with one label): a reward model.
    Sequence,
    /// This many scores per sequence, at least two (`…ForSequenceClassification` with several labels): a reward model with several
    /// heads.
    Scores(usize),
    /// One value per token (`…ForTokenClassification` with one label): the value model (critic) of PPO.
    Token,
}
