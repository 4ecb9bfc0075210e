//! Log-probabilities of tokens as the two endpoints write them.

use llm_engine::{Token, TokenLogprobs};
use serde_json::{Map, Value};

use crate::vocabulary::Vocabulary;
use crate::wire::logprobs::{ChatToken, CompletionLogprobs, TokenLogprob};

/// JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.)
}

/// A token of a chat answer.
pub(crate) fn chat_token(vocabulary: &Vocabulary, token: &Token) -> Option<ChatToken> {
    let logprobs = token.logprobs.as_ref()?;
    let entry = |id: u32, logprob: f32| TokenLogprob {
        token: vocabulary.text(id),
        logprob: finite(logprob),
        bytes: Some(vocabulary.bytes(id).to_vec()),
    };
    let top_logprobs = logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
    Some(ChatToken { token: entry(token.id, logprobs.logprob), top_logprobs })
}

/// The log-probabilities of the next tokens of a completion. The positions go on from those of earlier tokens.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// Characters of the tokens so far.
    characters: usize,
}

impl Offsets {
    /// The entries of tokens; a token without log-probabilities has null.
    pub(crate) fn entries<'a>(
        &mut self,
        vocabulary: &Vocabulary,
        tokens: impl Iterator<Item = (u32, Option<&'a TokenLogprobs>)>,
    ) -> CompletionLogprobs {
        let mut entries = CompletionLogprobs::default();
        for (id, logprobs) in tokens {
            entries.text_offset.push(self.characters);
            // A character belongs to the token with its first byte.
            let is_first = |byte: &&u8| !(0x80..0xc0).contains(*byte);
            if !vocabulary.is_special(id) {
                self.characters += vocabulary.bytes(id).iter().filter(is_first).count();
            }
            entries.tokens.push(vocabulary.text(id));
            entries.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
            entries.top_logprobs.push(logprobs.map(|logprobs| top_map(vocabulary, id, logprobs)));
        }
        entries
    }
}

/// The most likely tokens and the token itself. Tokens with the same text are told apart by their ids.
fn top_map(vocabulary: &Vocabulary, id: u32, logprobs: &TokenLogprobs) -> Map<String, Value> {
    let mut map = Map::new();
    let own = Some((id, logprobs.logprob)).filter(|(id, _)| logprobs.top.iter().all(|(top, _)| top != id));
    for (id, logprob) in logprobs.top.iter().copied().chain(own) {
        let text = vocabulary.text(id);
        let key = if map.contains_key(&text) { format!("token_id:{id}") } else { text };
        // The shortest decimal number of the f32, as in the list of log-probabilities: a client compares both for equality.
        let number = finite(logprob).to_string().parse::<f64>().unwrap_or(-9999.);
        map.insert(key, number.into());
    }
    map
}

#[cfg(test)]
mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    #[test]
    fn the_same_number_is_in_both_places_and_every_token_has_an_entry() {
        let config = TrainConfig { vocab_size: 270, min_frequency: 2 };
        let tokenizer = train_bpe(&config, ["the cat é"].iter()).unwrap();
        let vocabulary = Vocabulary::new(&tokenizer);
        let ids = tokenizer.encode("é").unwrap();
        let [first, second] = ids[..] else { panic!("{ids:?}") };
        assert_eq!(
            (vocabulary.text(first), vocabulary.text(second)),
            ("bytes:\\xc3".to_owned(), "bytes:\\xa9".to_owned())
        );
        let logprobs = TokenLogprobs { logprob: -0.1234567, top: vec![(second, -0.1), (40, f32::NEG_INFINITY)] };
        let tokens = [(first, None), (second, None), (40, Some(&logprobs)), (first, Some(&logprobs))];
        let entries = Offsets::default().entries(&vocabulary, tokens.into_iter());
        assert_eq!(entries.text_offset, [0, 1, 1, 2]);
        assert_eq!((entries.token_logprobs[0], &entries.top_logprobs[0]), (None, &None));
        let top = entries.top_logprobs[3].as_ref().unwrap();
        assert_eq!(top.len(), 3);
        let written: Value = serde_json::from_str(&serde_json::to_string(&entries).unwrap()).unwrap();
        assert_eq!(written["token_logprobs"][3], written["top_logprobs"][3]["bytes:\\xc3"]);
        assert_eq!(written["top_logprobs"][3][vocabulary.text(40)], -9999.);
    }
}
