//! The special tokens of a trained vocabulary, and those of a chat template.

/// The end of a document; also the begin-of-text token.
pub(crate) const DOCUMENT_END: &str = "<|endoftext|>";
/// The padding of short rows in a batch.
pub(crate) const PAD: &str = "<|pad|>";
/// The end of a message in a conversation.
pub(crate) const TURN_END: &str = "<|end|>";
/// The begin of a system, user or assistant message.
pub(crate) const ROLES: [&str; 3] = ["<|system|>", "<|user|>", "<|assistant|>"];

/// The special tokens of a chat template, found by rendering probe conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatFormat {
    /// The special token that ends an assistant message: the last special token after its content that occurs whether or not
    /// another message follows. Text after it, such as a line end, is not part of the turn.
    pub end_of_turn: u32,
    /// The padding of short rows: `pad_token`, else `end_of_turn`. Code must detect padding by row lengths, never by this id.
    pub pad: u32,
    /// All special tokens that the template writes (roles, end of turn, begin of text), in ascending order.
    pub special: Vec<u32>,
}
