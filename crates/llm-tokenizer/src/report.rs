//! What a tokenizer makes of texts: how short they become, which tokens they use, which texts do not come back.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::{Result, Tokenizer};

/// Counts of texts that a tokenizer encoded.
///
/// ```
/// use llm_tokenizer::{TextReport, TrainConfig, train_bpe};
///
/// let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, ["the cat sat on the mat"].iter())?;
/// let mut report = TextReport::new(&tokenizer);
/// assert!(report.add("the cat")?, "the text comes back");
/// assert_eq!((report.bytes, report.words), (7, 2));
/// assert!(report.bytes_per_token() > 1.);
/// # Ok::<(), llm_tokenizer::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextReport<'a> {
    tokenizer: &'a Tokenizer,
    /// The number of texts.
    pub texts: u64,
    /// The number of their bytes.
    pub bytes: u64,
    /// The number of their words: runs without blanks.
    pub words: u64,
    /// The number of their tokens.
    pub tokens: u64,
    /// How often each id is among them.
    pub counts: Vec<u64>,
    /// The number of texts that `decode(encode(text))` changes.
    pub changed: u64,
    /// The time that encoding took.
    pub time: Duration,
}

impl<'a> TextReport<'a> {
    /// A report without texts.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let counts = vec![0; tokenizer.vocab_size()];
        Self { tokenizer, texts: 0, bytes: 0, words: 0, tokens: 0, counts, changed: 0, time: Duration::ZERO }
    }

    /// Encodes a text and counts it; returns whether `decode(encode(text))` is the text.
    pub fn add(&mut self, text: &str) -> Result<bool> {
        let start = Instant::now();
        let ids = self.tokenizer.encode(text)?;
        self.time += start.elapsed();
        self.texts += 1;
        self.bytes += text.len() as u64;
        self.words += text.split_whitespace().count() as u64;
        self.tokens += ids.len() as u64;
        for &id in &ids {
            if let Some(count) = self.counts.get_mut(id as usize) {
                *count += 1;
            }
        }
        let same = self.tokenizer.decode(&ids)? == text;
        self.changed += u64::from(!same);
        Ok(same)
    }

    /// Bytes per token.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.tokens.max(1) as f64
    }

    /// Tokens per word, the fertility of a tokenizer (Rust et al. 2021, arXiv 2012.15613).
    pub fn tokens_per_word(&self) -> f64 {
        self.tokens as f64 / self.words.max(1) as f64
    }

    /// The number of ids that occur.
    pub fn used(&self) -> usize {
        self.counts.iter().filter(|&&count| count > 0).count()
    }

    /// How many of the tokens are the unknown token; none: the tokenizer has none.
    pub fn unknown(&self) -> Option<u64> {
        let id = self.tokenizer.unknown_id()?;
        self.counts.get(id as usize).copied()
    }

    /// The ids of the longest tokens that occur, with their bytes; the longest first, of equal ones the lowest id.
    pub fn longest(&self, count: usize) -> Vec<(u32, u32)> {
        let bytes = self.tokenizer.token_bytes();
        let used = bytes.into_iter().enumerate().filter(|(id, _)| self.counts[*id] > 0);
        let mut used: Vec<(u32, u32)> = used.map(|(id, bytes)| (id as u32, bytes)).collect();
        used.sort_by_key(|&(id, bytes)| (std::cmp::Reverse(bytes), id));
        used.truncate(count);
        used
    }

    /// Megabytes of text that were encoded per second.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.time.as_secs_f64().max(1e-9)
    }
}

/// What is put before a token to find it in a text: nothing, a blank, a letter, a digit, a sign.
const BEFORE: [&str; 5] = ["", " ", "a", "1", "."];

impl Tokenizer {
    /// The ids that the text of their token does not give: a merge or the pattern of the pieces is in the way (Land and Bartolo 2024, arXiv
    /// 2405.05417). A token that begins within a word is tried after a blank, a letter, a digit and a sign too. Special tokens, the
    /// unknown token, bytes and parts of characters are not tried.
    pub fn unreachable_tokens(&self) -> Result<Vec<u32>> {
        let special = self.special_ids();
        let unknown = self.unknown_id();
        let is_byte = |id| self.token(id).is_some_and(|token| token.starts_with("<0x") && token.len() == 6);
        let unreachable = |(id, bytes): (u32, Vec<u8>)| -> Result<Option<u32>> {
            let Ok(text) = String::from_utf8(bytes) else { return Ok(None) };
            if text.is_empty() || special.binary_search(&id).is_ok() || Some(id) == unknown || is_byte(id) {
                return Ok(None);
            }
            for before in BEFORE {
                if self.encode(&format!("{before}{text}"))?.contains(&id) {
                    return Ok(None);
                }
            }
            Ok(Some(id))
        };
        let texts: Vec<(u32, Vec<u8>)> = (0..).zip(self.token_texts()).collect();
        let found: Vec<Result<Option<u32>>> = texts.into_par_iter().map(unreachable).collect();
        let found = found.into_iter().collect::<Result<Vec<_>>>()?; // the first error in the order of the ids
        Ok(found.into_iter().flatten().collect())
    }

    /// The id of the token for unknown words, characters or bytes.
    pub fn unknown_id(&self) -> Option<u32> {
        let model = serde_json::to_value(self.inner.get_model()).unwrap_or_default();
        match (model["unk_token"].as_str(), model["unk_id"].as_u64()) {
            (Some(token), _) => self.token_id(token),
            (None, id) => id.map(|id| id as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Kind, TextReport, Tokenizer, TrainConfig, TrainSettings, Trainer, train_bpe};

    const TEXT: &str = "the cat sat on the mat, and the other cat sat on the other mat";

    fn bpe() -> Tokenizer {
        train_bpe(&TrainConfig { vocab_size: 290, min_frequency: 2 }, [TEXT].iter()).unwrap()
    }

    #[test]
    fn a_report_counts_texts_words_and_tokens() {
        let tokenizer = bpe();
        let mut report = TextReport::new(&tokenizer);
        for text in ["the cat", "é", ""] {
            assert!(report.add(text).unwrap());
        }
        assert_eq!((report.texts, report.bytes, report.words, report.changed), (3, 9, 3, 0));
        assert_eq!(report.tokens, report.counts.iter().sum::<u64>());
        assert_eq!(report.tokens, (tokenizer.encode("the cat").unwrap().len() + 2) as u64);
        let longest = report.longest(1)[0];
        assert_eq!(longest.1, 4, "{}", tokenizer.token(longest.0).unwrap());
    }

    #[test]
    fn a_text_that_does_not_come_back_is_counted() {
        let settings = TrainSettings { kind: Kind::Word, vocab_size: 20, min_frequency: 1, ..TrainSettings::default() };
        let mut trainer = Trainer::new(&settings).unwrap();
        trainer.add(TEXT.to_owned(), &std::path::Path::new("text").into());
        let (tokenizer, _) = trainer.finish().unwrap();
        let mut report = TextReport::new(&tokenizer);
        assert!(report.add("the cat").unwrap());
        assert!(!report.add("the dog").unwrap());
        assert_eq!((report.changed, report.unknown()), (1, Some(1)));
        assert!(bpe().unknown_id().is_none());
    }

    #[test]
    fn a_token_that_no_text_gives_is_unreachable() {
        let tokenizer = bpe();
        assert!(tokenizer.unreachable_tokens().unwrap().is_empty());
        // A token without a merge that makes it, and one that the pattern of the pieces cuts.
        let mut json = serde_json::to_value(&tokenizer.inner).unwrap();
        let ids = [tokenizer.vocab_size() as u32, tokenizer.vocab_size() as u32 + 1];
        json["model"]["vocab"]["catsat"] = ids[0].into();
        json["model"]["vocab"]["aĠb"] = ids[1].into();
        let inner: tokenizers::Tokenizer = serde_json::from_value(json).unwrap();
        let changed = Tokenizer::new(inner, serde_json::Map::new(), None).unwrap();
        assert_eq!(changed.unreachable_tokens().unwrap(), ids);
    }
}
