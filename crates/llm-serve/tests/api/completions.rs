//! `/v1/completions`.

use serde_json::{Value, json};

use crate::{Test, complete};

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[test]
fn a_prompt_is_a_text_texts_ids_or_lists_of_ids() {
    let test = Test::new();
    let ids = |text: &str| test.post("/tokenize", &json!({"prompt": text}))["tokens"].clone();
    let one = test.post("/v1/completions", &complete("the cat", json!({})));
    assert_eq!(
        (&one["usage"]["completion_tokens"], list(&one["choices"]).len()),
        (&json!(16), 1),
        "16 tokens by default"
    );
    assert_eq!(one["choices"][0]["finish_reason"], "length");
    let text = &one["choices"][0]["text"];
    for prompt in [json!(["the cat"]), ids("the cat"), json!([ids("the cat")])] {
        assert_eq!(test.post("/v1/completions", &complete(prompt, json!({})))["choices"][0]["text"], *text);
    }
    let two = test.post("/v1/completions", &complete(json!(["the dog", "the cat"]), json!({"n": 2})));
    let choices = list(&two["choices"]);
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((&choices[2]["text"], &choices[3]["text"]), (text, text), "the choices of the second prompt");
    assert_ne!(choices[0]["text"], *text);
    assert_eq!(two["usage"]["completion_tokens"], 64);
}

#[test]
fn echo_with_log_probabilities_scores_the_prompt() {
    let test = Test::new();
    let ids = test.post("/tokenize", &json!({"prompt": "the cat sat é"}))["tokens"].clone();
    let count = list(&ids).len();
    let request = complete(json!([ids]), json!({"max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234}));
    let answer = test.post("/v1/completions", &request);
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&logprobs[key]).len(), count + 1, "{key}");
    }
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    assert!(choice["text"].as_str().unwrap().starts_with("the cat sat é"));
    assert_eq!(logprobs["text_offset"][count], "the cat sat é".chars().count());
    for (own, top) in list(&logprobs["token_logprobs"]).iter().zip(list(&logprobs["top_logprobs"])).skip(1) {
        let top = top.as_object().unwrap();
        let best = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!(own.as_f64().unwrap() <= best && top.values().any(|value| value == own), "{own} in {top:?}");
        assert!((1..=2).contains(&top.len()));
    }
    assert_eq!(
        logprobs["token_logprobs"][count],
        *list(&logprobs["top_logprobs"])[count].as_object().unwrap().values().next().unwrap(),
        "greedy: the same number in both places"
    );
    // Only the prompt.
    let request = complete(json!([ids]), json!({"max_tokens": 0, "logprobs": 0, "echo": true}));
    let scored = test.post("/v1/completions", &request);
    assert_eq!(scored["choices"][0]["text"], "the cat sat é");
    assert_eq!(
        scored["choices"][0]["logprobs"]["token_logprobs"],
        Value::from(list(&logprobs["token_logprobs"])[..count].to_vec())
    );
    assert_eq!(
        (&scored["usage"]["completion_tokens"], &scored["choices"][0]["finish_reason"]),
        (&json!(0), &json!("length"))
    );
    // Without log-probabilities.
    let plain = test.post("/v1/completions", &complete("the cat", json!({"echo": true, "max_tokens": 2})));
    assert!(
        plain["choices"][0]["text"].as_str().unwrap().starts_with("the cat")
            && plain["choices"][0]["logprobs"].is_null()
    );
}

#[test]
fn a_stream_is_the_same_as_the_whole_answer() {
    let test = Test::new();
    for more in
        [json!({"max_tokens": 20, "logprobs": 2, "echo": true, "n": 2}), json!({"max_tokens": 20, "echo": true})]
    {
        let request = complete(json!(["the cat", "a dog sat"]), more);
        let whole = test.post("/v1/completions", &request);
        let parts = test.stream("/v1/completions", &request);
        for choice in list(&whole["choices"]) {
            let own =
                || parts.iter().flat_map(|part| list(&part["choices"])).filter(|part| part["index"] == choice["index"]);
            let text: String = own().map(|part| part["text"].as_str().unwrap()).collect();
            assert_eq!(text, choice["text"]);
            for key in ["tokens", "text_offset", "token_logprobs", "top_logprobs"]
                .iter()
                .filter(|_| request["logprobs"].is_u64())
            {
                let all: Vec<Value> = own()
                    .filter(|part| !part["logprobs"].is_null())
                    .flat_map(|part| list(&part["logprobs"][key]).clone())
                    .collect();
                assert_eq!(all, *list(&choice["logprobs"][key]), "{key}");
            }
            let reasons: Vec<&Value> =
                own().map(|part| &part["finish_reason"]).filter(|reason| !reason.is_null()).collect();
            assert_eq!(reasons, [&choice["finish_reason"]], "exactly one");
        }
    }
}

#[test]
fn a_seed_repeats_and_choices_differ() {
    let test = Test::new();
    let request = |more: Value| {
        let mut request = complete("the cat", more);
        request["temperature"] = 1.into();
        test.post("/v1/completions", &request)
    };
    let texts = |answer: &Value| {
        list(&answer["choices"]).iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = request(json!({"n": 3, "seed": 5}));
    let all = texts(&first);
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
    assert_eq!((texts(&request(json!({"n": 3, "seed": 5}))), &first["seed"]), (all, &json!(5)));
    let free = request(json!({}));
    assert_ne!(texts(&free), texts(&request(json!({}))), "fresh entropy without a seed");
    assert_eq!(texts(&request(json!({"seed": free["seed"]}))), texts(&free), "the seed that was used is given back");
}

#[test]
fn the_best_answers_are_returned() {
    let test = Test::new();
    let mut request = complete("the cat", json!({"n": 1, "best_of": 6, "seed": 3, "max_tokens": 6, "logprobs": 0}));
    request["temperature"] = 1.5.into();
    let best = test.post("/v1/completions", &request);
    assert_eq!((list(&best["choices"]).len(), &best["usage"]["completion_tokens"]), (1, &json!(36)));
    request["n"] = 6.into();
    let all = test.post("/v1/completions", &request);
    let mean =
        |choice: &Value| list(&choice["logprobs"]["token_logprobs"]).iter().map(|x| x.as_f64().unwrap()).sum::<f64>();
    let highest = list(&all["choices"]).iter().map(mean).fold(f64::NEG_INFINITY, f64::max);
    assert!((mean(&best["choices"][0]) - highest).abs() < 1e-4);
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let test = Test::new();
    let whole = test.post("/v1/completions", &complete("the cat", json!({"max_tokens": 24, "logprobs": 0})));
    let choice = &whole["choices"][0];
    let (text, tokens) = (choice["text"].as_str().unwrap(), list(&choice["logprobs"]["tokens"]));
    let characters: Vec<char> = text.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle..middle + 2].iter().collect();
    let request = complete("the cat", json!({"max_tokens": 24, "logprobs": 0, "stop": ["never there", stop]}));
    let stopped = test.post("/v1/completions", &request);
    let cut = &stopped["choices"][0];
    assert_eq!(
        (cut["text"].as_str().unwrap(), &cut["finish_reason"]),
        (text.split(&stop).next().unwrap(), &json!("stop"))
    );
    let kept = list(&cut["logprobs"]["tokens"]);
    assert!(kept.len() < tokens.len() && *kept == tokens[..kept.len()], "the tokens of the stop string are cut");
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() > kept.len() as u64, "and counted");
}
