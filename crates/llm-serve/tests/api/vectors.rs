//! `/v1/embeddings`, `/v1/score` and `/v1/rerank`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llm_model::{Batch, Head, Model};
use serde_json::{Value, json};

use crate::{Test, engine_options};

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn embeddings_are_the_normalised_hidden_states_of_the_last_token() {
    let test = Test::new();
    let answer = test.post("/v1/embeddings", &json!({"model": "tiny", "input": ["the cat", "a dog"]}));
    let vector = numbers(&answer["data"][1]["embedding"]);
    let tokens = test.post("/tokenize", &json!({"prompt": "a dog"}))["tokens"].clone();
    let ids: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
    let model = Model::load(test.dir.path()).unwrap();
    let hidden = model.hidden(&Batch::new(std::slice::from_ref(&ids)).unwrap(), None).unwrap().get(0).unwrap();
    let last = hidden.get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
    let length = last.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(vector.iter().zip(&last).all(|(a, b)| (a - b / length).abs() < 1e-5));
    assert_eq!(answer["usage"]["prompt_tokens"].as_u64().unwrap(), answer["usage"]["total_tokens"].as_u64().unwrap());
    for input in [tokens.clone(), json!([tokens]), json!("a dog")] {
        assert_eq!(numbers(&test.post("/v1/embeddings", &json!({"input": input}))["data"][0]["embedding"]), vector);
    }
    let coded = test.post("/v1/embeddings", &json!({"input": "a dog", "encoding_format": "base64"}));
    let bytes = STANDARD.decode(coded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>(), vector);
    let short =
        numbers(&test.post("/v1/embeddings", &json!({"input": "a dog", "dimensions": 5}))["data"][0]["embedding"]);
    assert!(short.len() == 5 && (short.iter().map(|x| x * x).sum::<f32>() - 1.).abs() < 1e-5);
    assert!((short[0] / short[1] - vector[0] / vector[1]).abs() < 1e-3);
    for (key, value) in
        [("dimensions", json!(0)), ("dimensions", json!(33)), ("input", json!([])), ("encoding_format", json!("hex"))]
    {
        let mut request = json!({"input": "a"});
        request[key] = value;
        assert_eq!(test.refused("/v1/embeddings", &request.to_string()).1["param"], key);
    }
}

#[test]
fn documents_are_ordered_by_their_embeddings() {
    let test = Test::new();
    let request =
        json!({"query": "the cat", "documents": ["the log", {"text": "the cat"}, "bird"], "return_documents": true});
    let answer = test.post("/v1/rerank", &request);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(
        (results.len(), &results[0]["index"], &results[0]["document"]["text"]),
        (3, &json!(1), &json!("the cat"))
    );
    assert!((results[0]["relevance_score"].as_f64().unwrap() - 1.).abs() < 1e-5, "the same text");
    assert!(results[1]["relevance_score"].as_f64() >= results[2]["relevance_score"].as_f64());
    let first = test.post("/rerank", &json!({"query": "the cat", "documents": ["the log", "the cat"], "top_n": 1}));
    assert_eq!((first["results"].as_array().unwrap().len(), &first["results"][0]["index"]), (1, &json!(1)));
    for body in [
        r#"{"query": "a", "documents": []}"#,
        r#"{"query": "a", "documents": ["b"], "top_n": 0}"#,
        r#"{"documents": ["b"]}"#,
    ] {
        assert_eq!(test.refused("/rerank", body).0, 400);
    }
    assert_eq!(test.refused("/v1/score", r#"{"input": "a"}"#).0, 400, "no score head");
}

#[test]
fn a_reward_model_scores_texts_and_conversations() {
    let test = Test::with(Head::Sequence, None, engine_options(), |_| ());
    let conversation = json!([{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]);
    let by_messages = test.post("/v1/score", &json!({"messages": [conversation, conversation]}));
    let tokens =
        test.post("/tokenize", &json!({"messages": conversation, "add_generation_prompt": false}))["tokens"].clone();
    let by_ids = test.post("/v1/score", &json!({"input": tokens}));
    assert_eq!(by_messages["data"][1]["score"], by_ids["data"][0]["score"]);
    let ids: Vec<u32> = serde_json::from_value(tokens).unwrap();
    let model = Model::load(test.dir.path()).unwrap();
    let score = model.forward(&Batch::new(&[ids]).unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!((f64::from(score[score.len() - 1]) - by_ids["data"][0]["score"].as_f64().unwrap()).abs() < 1e-4);
    let ranked = test.post("/v1/rerank", &json!({"query": "the cat", "documents": ["sat", "log"]}));
    let own = ranked["results"].as_array().unwrap().iter().find(|result| result["index"] == 0).unwrap();
    assert_eq!(own["relevance_score"], by_messages["data"][0]["score"]);
    assert_eq!(test.refused("/v1/completions", r#"{"prompt": "a"}"#).0, 400, "no language model");
}
