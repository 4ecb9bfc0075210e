//! Tests of the parts that need no model.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

use super::{AttentionMap, HeadScores, Keep, Words, repeated_tokens};

fn tokenizer() -> Tokenizer {
    let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
    train_bpe(&config, ["She poured water into the glass, and drank it. She poured it."].iter()).unwrap()
}

fn words(text: &str) -> Words {
    let tokenizer = tokenizer();
    Words::of(&tokenizer, &tokenizer.encode(text).unwrap()).unwrap()
}

fn texts(words: &Words) -> Vec<&str> {
    words.words.iter().map(|word| word.text.as_str()).collect()
}

#[test]
fn each_token_belongs_to_one_word() {
    for text in ["She poured water into the glass, and drank it.", "don't (stop) 日本 é🦀!", "a\n\n b", "x", ""] {
        let words = words(text);
        let mut next = 0;
        for word in &words.words {
            assert_eq!(word.tokens.start, next, "{text:?}: {words:?}");
            next = word.tokens.end;
        }
        assert_eq!(next, words.tokens.len(), "{text:?}");
        assert_eq!(words.tokens.concat(), text);
    }
    assert_eq!(texts(&words("the glass, don't!")), ["the", "glass", ",", "don't", "!"]);
    assert_eq!(texts(&words("é🦀 日本")), ["é", "🦀", "日本"]);
}

#[test]
fn a_special_token_is_a_word() {
    let tokenizer = tokenizer();
    let mut ids = tokenizer.special_ids()[..1].to_vec();
    ids.extend(tokenizer.encode("the glass").unwrap());
    let words = Words::of(&tokenizer, &ids).unwrap();
    let special = tokenizer.token(ids[0]).unwrap();
    assert_eq!(texts(&words), [special.as_str(), "the", "glass"]);
    assert_eq!(words.words[0].tokens, 0..1);
}

#[test]
fn a_word_is_found_by_its_text_and_number() {
    let words = words("She poured it and drank it: it.");
    assert_eq!(words.find("drank").unwrap(), 4);
    assert_eq!(words.find("it:2").unwrap(), 5);
    assert_eq!(words.find(":").unwrap(), 6);
    let message = |name: &str| words.find(name).unwrap_err().to_string();
    assert_eq!(message("it"), r#""it" is 3 times in the text; write "it:1" for the first, up to "it:3""#);
    assert_eq!(message("it:4"), r#""it:4": "it" is 3 times in the text; the number must be from 1 to 3"#);
    assert_eq!(message("it:0"), r#""it:0": "it" is 3 times in the text; the number must be from 1 to 3"#);
    let expected = r#""cat" is not a word of the text; its words are: She poured it and drank : ."#;
    assert_eq!(message("cat"), expected);
    assert!(words.find("cat").unwrap_err().is_callers_fault());
}

#[test]
fn weights_on_words_are_sums_over_their_tokens() {
    let words = words("glasses it");
    assert!(words.words[0].tokens.len() > 1, "{words:?}");
    let weights: Vec<f32> = (0..words.tokens.len()).map(|at| at as f32).collect();
    let sums = words.sums(&weights);
    assert_eq!(sums.iter().sum::<f32>(), weights.iter().sum::<f32>());
    assert_eq!(sums[0], weights[words.words[0].tokens.clone()].iter().sum::<f32>());
}

#[test]
fn a_head_that_follows_a_pattern_has_the_score_one() {
    let ids = [4, 9, 7, 4, 9, 7];
    let map = |target: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..6)
            .flat_map(|query| (0..6).map(move |key| (query, key)))
            .map(|(q, key)| f32::from(key == target(q)))
            .collect()
    };
    // The first query can only look at itself, which is in no pattern.
    let previous = HeadScores::of(&map(&|query| query.saturating_sub(1)), &ids, false);
    assert!((previous.previous_token - 5. / 6.).abs() < 1e-9, "{previous:?}");
    let duplicate = HeadScores::of(&map(&|query| if query < 3 { query } else { query - 3 }), &ids, false);
    assert!((duplicate.duplicate_token - 0.5).abs() < 1e-9 && duplicate.induction == 0., "{duplicate:?}");
    let induction = HeadScores::of(&map(&|query| if query < 3 { 0 } else { query - 2 }), &ids, true);
    assert!((induction.induction - 1.).abs() < 1e-9 && induction.duplicate_token == 0., "{induction:?}");
    let sink = HeadScores::of(&map(&|_| 0), &ids, true);
    assert_eq!(sink, HeadScores { first_token: 1., ..HeadScores::default() });
}

#[test]
fn a_map_keeps_weights_to_a_step_and_the_largest_of_each_query() {
    let t = 7;
    let rows: Vec<f32> = (0..t)
        .flat_map(|query| {
            let weights: Vec<f32> =
                (0..t).map(|key| if key <= query { (key * 3 % 7 + 1) as f32 } else { 0. }).collect();
            let sum: f32 = weights.iter().sum();
            weights.into_iter().map(move |weight| weight / sum)
        })
        .collect();
    let all = AttentionMap::new(&rows, t, Keep::All);
    assert_eq!(all.bytes.len(), 28);
    let few = AttentionMap::new(&rows, t, Keep::Largest(3));
    assert_eq!(few.bytes.len(), t * 9);
    for query in 0..t {
        let exact = &rows[query * t..=query * t + query];
        for (key, weight) in all.row(query) {
            assert!((weight - exact[key]).abs() < 0.004, "{weight} for {}", exact[key]);
        }
        let mut order: Vec<usize> = (0..=query).collect();
        order.sort_by(|&a, &b| exact[b].total_cmp(&exact[a]));
        order.truncate(3);
        assert_eq!(few.row(query).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), order, "query {query}");
    }
}

#[test]
fn maps_stay_within_their_bytes() {
    assert_eq!(Keep::within(1000, 10, 13), Keep::All);
    let keep = Keep::within(12 << 20, 30 * 10, 2048);
    let Keep::Largest(k) = keep else { panic!("{keep:?}") };
    let bytes = AttentionMap::new(&vec![0.; 2048 * 2048], 2048, keep).bytes.len();
    assert!(k >= 1 && 300 * bytes <= 12 << 20, "{k}");
    assert_eq!(Keep::within(10, 300, 2048), Keep::Largest(1));
}

#[test]
fn random_tokens_are_repeated_within_the_limit() {
    let tokenizer = tokenizer();
    for max in [0, 1, 2, 17, 1000] {
        let ids = repeated_tokens(&tokenizer, max);
        let bos = usize::from(tokenizer.bos_id().is_some());
        assert!(ids.len() <= max.max(bos), "{max}");
        let (first, second) = ids[bos..].split_at((ids.len() - bos) / 2);
        assert_eq!(first, second);
        assert_eq!(ids, repeated_tokens(&tokenizer, max));
    }
}
