//! Each kind of constraint and each kind of vocabulary.

use llm_engine::{Constraint, ConstraintCompiler, ConstraintLimits, Sampler, Sampling};
use llm_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::{engine, refusal, tokenizer, write};

#[test]
fn a_text_matches_its_constraint() {
    let engine = engine(tokenizer());
    let choice = vec!["yes".to_owned(), "no".to_owned(), "I don't \"know\" é".to_owned()];
    let lark = "start: item (\",\" item)*\nitem: \"a\" | \"b\" DIGIT\nDIGIT: /[0-9]/".to_owned();
    let item = |text: &str| {
        text == "a" || text.strip_prefix('b').is_some_and(|rest| rest.len() == 1 && rest.as_bytes()[0].is_ascii_digit())
    };
    let mut complete = 0;
    for seed in 0..8 {
        let answers = [
            Constraint::JsonObject,
            Constraint::Regex("[a-c]{2,5}-[0-9]+".to_owned()),
            Constraint::Choice(choice.clone()),
            Constraint::Grammar(lark.clone()),
        ]
        .map(|constraint| write(&engine, constraint, seed));
        complete += answers.iter().flatten().count();
        let [object, regex, one, list] = answers;
        assert!(object.is_none_or(|text| serde_json::from_str::<Value>(&text).unwrap().is_object()));
        assert!(regex.is_none_or(|text| {
            let (letters, digits) = text.split_once('-').unwrap();
            (2..=5).contains(&letters.len())
                && letters.bytes().all(|c| (b'a'..=b'c').contains(&c))
                && digits.parse::<f64>().is_ok()
        }));
        assert!(one.is_none_or(|text| choice.contains(&text)));
        assert!(list.is_none_or(|text| text.split(',').all(item)));
    }
    assert!(complete > 24, "{complete} of 32 ended");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let engine = engine(tokenizer());
    let schema = |schema: Value| refusal(&engine, Constraint::JsonSchema(schema));
    for (keyword, value) in [
        ("not", json!({"type": "string"})),
        ("if", json!({})),
        ("uniqueItems", json!(true)),
        ("contains", json!({})),
        ("propertyNames", json!({})),
        ("x-guidance", json!({"lenient": true})),
    ] {
        let error = schema(json!({keyword: value}));
        assert!(error.contains(&format!("\"{keyword}\"")) && !error.contains('\n'), "{error}");
    }
    assert!(schema(json!({"oneOf": [{"minLength": 2}, {"maxLength": 4}]})).contains("\"anyOf\""));
    assert!(schema(json!(5)).contains("object"));
    assert!(schema(json!({"type": "string", "minLength": 3, "maxLength": 2})).contains("constraint: "));
    assert!(schema(json!({"$ref": "https://example.org/schema"})).contains("$ref"));
    let of = |constraint| refusal(&engine, constraint);
    assert!(of(Constraint::Choice(Vec::new())).contains("choice"));
    assert!(of(Constraint::Regex("(a".to_owned())).contains("constraint: "));
    assert!(of(Constraint::Grammar("start: missing".to_owned())).contains("missing"));
    assert!(of(Constraint::Grammar(" ".to_owned())).contains("empty"));
}

#[test]
fn depth_and_size_are_bounded() {
    let engine = engine(tokenizer());
    let nested =
        |levels: usize| (0..levels).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    // As deep as a schema may be.
    assert!(write(&engine, Constraint::JsonSchema(nested(60)), 1).is_none_or(|text| text.starts_with('[')));
    // The test itself copies and drops the schema, by recursion.
    let deepest = || refusal(&engine, Constraint::JsonSchema(nested(10_000)));
    let error = std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(256 << 20).spawn_scoped(scope, deepest).unwrap().join().unwrap()
    });
    assert!(error.contains("64 levels"), "{error}");
    for brackets in ["(", "[", "{"] {
        let text = brackets.repeat(100_000);
        assert!(refusal(&engine, Constraint::Regex(text.clone())).contains("64 levels"));
        assert!(refusal(&engine, Constraint::Grammar(format!("start: {text}"))).contains("64 levels"));
    }
    let large = json!({"enum": [" ".repeat(300_000)]});
    assert!(refusal(&engine, Constraint::JsonSchema(large)).contains("bytes"));
    assert!(refusal(&engine, Constraint::Choice(vec!["a".repeat(300_000)])).contains("bytes"));
    // Long chains of rules recurse in the compiler.
    let chain: String = (0..1_000).map(|i| format!("a{i}: a{}\n", i + 1)).collect();
    let chain = format!("start: a0\n{chain}a1000: \"x\"");
    let text = match crate::submit(&engine, Constraint::Grammar(chain), 0, 20) {
        Ok(generation) => crate::receive(generation).0,
        Err(_) => "x".to_owned(),
    };
    assert_eq!(text, "x");
}

#[test]
fn white_space_is_bounded() {
    let tokenizer = tokenizer();
    let end = tokenizer.document_end_id().unwrap();
    let vocab = tokenizer.vocab_size();
    let compiler = ConstraintCompiler::new(&tokenizer, vocab, &[end], ConstraintLimits::default()).unwrap();
    let compiled = compiler.compile(&Constraint::JsonObject).unwrap();
    let blank = tokenizer.token_texts().iter().position(|text| text == b" ").unwrap();
    // A model that wants nothing but blanks.
    let greedy = Sampling { temperature: 0., ..Sampling::default() };
    let mut sampler = Sampler::new(&greedy, vocab, 0).with_end_ids(&[end]).with_constraint(&compiled);
    let mut logits = vec![0f32; vocab];
    logits[blank] = 50.;
    // Strings may have any number of blanks.
    let quotes = tokenizer.token_texts();
    quotes.iter().zip(&mut logits).filter(|(text, _)| text.contains(&b'"')).for_each(|(_, logit)| *logit = -50.);
    let blanks = (0..60).take_while(|&at| {
        let id = sampler.next(&mut logits.clone(), at, None).unwrap().id;
        id != end
    });
    assert!(blanks.count() < 60, "the text ends");
}

/// The end token is allowed when the text is complete, and forced when nothing else fits.
#[test]
fn the_end_token_is_allowed_when_the_text_is_complete_only() {
    let tokenizer = tokenizer();
    let end = tokenizer.document_end_id().unwrap();
    let vocab = tokenizer.vocab_size();
    let compiler = ConstraintCompiler::new(&tokenizer, vocab, &[end], ConstraintLimits::default()).unwrap();
    let compiled = compiler.compile(&Constraint::Regex("ab?".to_owned())).unwrap();
    // `min_tokens` gives way to a text that is complete.
    let settings = Sampling { min_tokens: 9, ..Sampling::default() };
    let mut sampler = Sampler::new(&settings, vocab, 0).with_end_ids(&[end]).with_constraint(&compiled);
    let allowed = |sampler: &mut Sampler, at| -> Vec<u32> {
        sampler.distribution(&mut vec![0.; vocab], at).unwrap().iter().map(|(id, _)| *id).collect()
    };
    let id = |text: &[u8]| tokenizer.token_texts().iter().position(|other| other == text).unwrap() as u32;
    let (a, b) = (id(b"a"), id(b"b"));
    assert!(!allowed(&mut sampler, 0).contains(&end) && allowed(&mut sampler, 0).contains(&a));
    sampler.accept(a, 1.);
    assert!(!sampler.is_complete());
    assert_eq!(allowed(&mut sampler, 1), [b]);
    assert_eq!(allowed(&mut sampler, 9), {
        let mut both = [b, end];
        both.sort_unstable();
        both
    });
    sampler.accept(b, 1.);
    assert!(sampler.is_complete());
    assert_eq!(allowed(&mut sampler, 2), [end]);
    sampler.accept(end, 1.);
    assert_eq!(allowed(&mut sampler, 3), [end]);
    // Rejected drafts are taken back.
    sampler.rollback(2);
    assert_eq!(allowed(&mut sampler, 1), [b]);
    sampler.rollback(1);
    assert!(allowed(&mut sampler, 0).contains(&a));
}

/// A tokenizer of the crate `tokenizers` from its model and decoder.
fn tokenizer_of(model: Value, decoder: Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let special = json!({"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let file = json!({"version": "1.0", "added_tokens": [special], "decoder": decoder, "model": model});
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

/// The text of an answer by a sampler with logits that prefer the last ids.
fn text_of(tokenizer: &Tokenizer, constraint: &Constraint) -> String {
    let vocab = tokenizer.vocab_size();
    let compiler = ConstraintCompiler::new(tokenizer, vocab, &[0], ConstraintLimits::default()).unwrap();
    let compiled = compiler.compile(constraint).unwrap();
    let settings = Sampling { seed: Some(4), ..Sampling::default() };
    let mut sampler = Sampler::new(&settings, vocab, 0).with_end_ids(&[0]).with_constraint(&compiled);
    let mut ids = Vec::new();
    for at in 0..200 {
        let mut logits: Vec<f32> = (0..vocab).map(|id| if id == 0 { 3. } else { 0. }).collect();
        let id = sampler.next(&mut logits, at, None).unwrap().id;
        if id == 0 {
            return tokenizer.decode(&ids).unwrap();
        }
        ids.push(id);
    }
    panic!("no end: {:?}", tokenizer.decode(&ids));
}

#[test]
fn sentencepiece_spells_by_bytes_and_blanks() {
    let mut vocabulary = json!({"</s>": 0, "\u{2581}": 1, "a": 2, "\u{2581}a": 3, "é": 4, "b": 5});
    for byte in 0..=255u8 {
        vocabulary[format!("<0x{byte:02X}>")] = (6 + u32::from(byte)).into();
    }
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    let tokenizer =
        tokenizer_of(json!({"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []}), decoder);
    let choice = vec!["é a".to_owned(), "日本 🐈".to_owned(), "b".to_owned()];
    assert!(choice.contains(&text_of(&tokenizer, &Constraint::Choice(choice.clone()))));
    let text = text_of(&tokenizer, &Constraint::Regex("(日| a|é){3}".to_owned()));
    let rest = text.replace('日', "|").replace(" a", "|").replace('é', "|");
    assert_eq!(rest, "|||", "{text:?}");
}

#[test]
fn wordpiece_puts_blanks_between_words() {
    let vocabulary = json!({"</s>": 0, "red": 1, "##dish": 2, "blue": 3, "[UNK]": 4, "##er": 5});
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocabulary});
    let tokenizer = tokenizer_of(model, json!({"type": "WordPiece", "prefix": "##", "cleanup": false}));
    let choice = vec![" reddish blue".to_owned(), " blueer red".to_owned()];
    // Decoding leaves out the blank before the first word.
    let text = text_of(&tokenizer, &Constraint::Choice(choice.clone()));
    assert!(choice.contains(&format!(" {text}")), "{text:?}");
}

/// Time of a token with and without a constraint. With the tokenizer of a real model:
/// `LLM_TEST_TOKENIZER=DIR cargo test --release -p llm-engine --test constraint speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed_of_masks() {
    let tokenizer = tokenizer();
    let (end, vocab) = (tokenizer.eos_id().or(tokenizer.document_end_id()).unwrap(), tokenizer.vocab_size());
    let start = std::time::Instant::now();
    let compiler = ConstraintCompiler::new(&tokenizer, vocab, &[end], ConstraintLimits::default()).unwrap();
    println!("vocabulary of {vocab} tokens: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}}, "required": ["name", "age", "tags"]});
    let settings = Sampling { seed: Some(1), temperature: 0.7, ..Sampling::default() };
    for (name, constraint) in
        [("free", None), ("any object", Some(json!({"type": "object"}))), ("schema", Some(person))]
    {
        let compiled = constraint.map(|schema| {
            let start = std::time::Instant::now();
            let compiled = compiler.compile(&Constraint::JsonSchema(schema)).unwrap();
            println!("{name}: compiled in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
            compiled
        });
        let (mut tokens, mut times) = (0, Vec::new());
        for choice in 0..20 {
            let mut sampler = Sampler::new(&settings, vocab, choice).with_end_ids(&[end]);
            if let Some(compiled) = &compiled {
                sampler = sampler.with_constraint(compiled);
            }
            for at in 0..60 {
                let mut logits: Vec<f32> =
                    (0..vocab).map(|id| ((id * 7919 + at * 104_729) % 1000) as f32 / 100.).collect();
                let start = std::time::Instant::now();
                let id = sampler.next(&mut logits, at, None).unwrap().id;
                times.push(start.elapsed().as_secs_f64() * 1e3);
                tokens += 1;
                if id == end {
                    break;
                }
            }
        }
        times.sort_by(f64::total_cmp);
        let mean = times.iter().sum::<f64>() / f64::from(tokens);
        println!("{name}: {mean:.3} ms a token, median {:.3}, of {tokens}", times[times.len() / 2]);
    }
}
