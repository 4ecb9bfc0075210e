//! The text of one answer while it is generated: UTF-8, stop strings, and which tokens belong to which text.

use llm_tokenizer::{StreamDecoder, Tokenizer};

use crate::text::StopStrings;
use crate::{Result, Token};

/// Turns the tokens of one answer into pieces of text that cannot change any more.
pub(super) struct Answer<'t> {
    decoder: Option<StreamDecoder<'t>>,
    stops: StopStrings,
    /// Tokens that were not returned. `end` is the length of the text with it in bytes, none if the text is not known.
    pending: Vec<(Token, Option<usize>)>,
    /// Bytes of text that were returned.
    returned: usize,
    tokens: usize,
    /// Stop strings are not searched for in the text of this many tokens.
    min_tokens: usize,
}

/// Text of an answer with its tokens.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub tokens: Vec<Token>,
}

impl Piece {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }

    /// Appends the piece after it.
    pub fn extend(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
    }
}

impl<'t> Answer<'t> {
    /// For the text after `prompt`.
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32], stops: &[String], min_tokens: usize) -> Self {
        Self {
            decoder: Some(tokenizer.stream_after(prompt).unwrap_or_else(|_| tokenizer.stream())),
            stops: StopStrings::new(stops),
            pending: Vec::new(),
            returned: 0,
            tokens: 0,
            min_tokens,
        }
    }

    /// The number of tokens, with those of a stop string.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether a stop string was found; the answer is complete then.
    pub fn stopped(&self) -> bool {
        self.stops.found
    }

    /// Appends a token that is not an end token.
    pub fn push(&mut self, token: Token) -> Result<Piece> {
        self.tokens += 1;
        let id = token.id;
        self.pending.push((token, None));
        let Some(decoder) = &mut self.decoder else { return Ok(Piece::default()) };
        let piece = decoder.push(id)?;
        let has_text = piece.is_some();
        let piece = piece.unwrap_or_default();
        let text = match self.tokens <= self.min_tokens {
            true => self.stops.pass(&piece),
            false => self.stops.push(&piece),
        };
        let text = text.to_owned();
        if has_text {
            self.set_ends();
        }
        Ok(self.release(text))
    }

    /// Ends the answer, by the end token if there is one: the text and the tokens that were held back. The tokens of a stop string
    /// are not among them.
    pub fn finish(&mut self, end: Option<Token>) -> Result<Piece> {
        let mut text = String::new();
        let rest = self.decoder.take().map(StreamDecoder::finish).transpose()?.flatten();
        if !self.stops.found
            && let Some(rest) = rest
        {
            text.push_str(self.stops.push(&rest));
        }
        text.push_str(self.stops.finish());
        self.set_ends();
        let mut piece = self.release(text);
        self.pending.clear();
        self.tokens += usize::from(end.is_some());
        piece.tokens.extend(end.filter(|_| !self.stops.found));
        Ok(piece)
    }

    /// The text up to here is known.
    fn set_ends(&mut self) {
        let end = self.stops.length;
        for (_, unknown) in self.pending.iter_mut().filter(|(_, end)| end.is_none()) {
            *unknown = Some(end);
        }
    }

    /// The next text with the tokens whose text ends in it.
    fn release(&mut self, text: String) -> Piece {
        self.returned += text.len();
        let known = |(_, end): &&(Token, Option<usize>)| end.is_some_and(|end| end <= self.returned);
        let count = self.pending.iter().take_while(known).count();
        let tokens = self.pending.drain(..count).map(|(token, _)| token).collect();
        Piece { text, tokens }
    }
}
