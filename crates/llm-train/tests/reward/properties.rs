//! Scores that do not depend on padding, the split by prompt, normalised scores, and ensembles.

use super::common::{fresh_model, quietly};
use super::heads::{TEXT, inputs, learning, train};
use super::scores::metrics;
use llm_data::{ChatMessage, Ranking, write_jsonl};
use llm_engine::{GenerateOptions, Sampling};
use llm_model::{Head, Model};
use llm_tokenizer::Tokenizer;
use llm_train::recipes::{RewardModel, RewardRecipe, reward};
use llm_train::rewards::{Prompt, Reward};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// The preferences of each prompt are random, so nothing can be learned about other prompts; but the other pairs of a prompt tell
/// them.
#[test]
fn l6_a_split_by_pair_leaks_and_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 32, 0.3);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let words = ["sun", "rain", "tree", "stone"].map(str::to_owned).to_vec();
    let orders: Vec<Vec<usize>> = (0..44)
        .map(|_| {
            let mut order = vec![0, 1, 2, 3];
            rand::seq::SliceRandom::shuffle(&mut order[..], &mut rng);
            order
        })
        .collect();
    // Of each order the pairs of neighbours, or the other pairs.
    let pairs = |prompts: std::ops::Range<usize>, near: bool| {
        let all = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)];
        let kept = move |(a, b): &(usize, usize)| (b - a == 1) == near;
        let mut rankings = Vec::new();
        for number in prompts {
            for (better, worse) in all.into_iter().filter(kept) {
                let answers = [better, worse].map(|at| words[orders[number][at]].clone()).to_vec();
                let prompt = vec![ChatMessage::user(format!("Say {number}."))];
                rankings.push(Ranking::strict(String::new(), prompt, answers, &[0, 1]));
            }
        }
        rankings
    };
    let (seen, other) = (0..24, 24..44);
    write_jsonl(&path("train.jsonl"), &pairs(seen.clone(), true)).unwrap();
    write_jsonl(&path("pairs.jsonl"), &pairs(seen.clone(), false)).unwrap();
    write_jsonl(&path("prompts.jsonl"), &pairs(other.clone(), false)).unwrap();
    let recipe = RewardRecipe { eval_every: 0, center_rewards_coefficient: 0., batch_size: 8, ..learning(100) };
    let model = train(&recipe, &inputs(dir.path(), Some("prompts.jsonl")), &path("out"));
    let (leaked, honest) =
        (model.accuracy(&pairs(seen, false)).unwrap(), model.accuracy(&pairs(other, false)).unwrap());
    assert!(
        leaked > 0.75 && leaked > honest + 0.15 && (honest - 0.5).abs() < 0.2,
        "by pair {leaked}, by prompt {honest}"
    );

    let refused = quietly(|options| reward(&recipe, &inputs(dir.path(), Some("pairs.jsonl")), &path("no"), options));
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("pairs.jsonl: the prompts of 72 of 72 rankings are also in --data"), "{message}");
    assert!(message.contains("split by prompt and not by pair") && !path("no").exists(), "{message}");
    // A few of them are left out.
    let few = [pairs(24..44, false), pairs(0..1, false)].concat();
    write_jsonl(&path("few.jsonl"), &few).unwrap();
    let still = RewardRecipe { epochs: 1, ..recipe };
    let model = train(&still, &inputs(dir.path(), Some("few.jsonl")), &path("few"));
    let logged = metrics(&path("few")).last().unwrap()["eval_accuracy"].as_f64().unwrap();
    assert_eq!(logged, model.accuracy(&few[..60]).unwrap());
}

#[test]
fn scores_can_be_normalised_over_replies_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 16, 0.3);
    let row = |i: usize| format!(r#"{{"prompt": "Say {i}.", "chosen": "sun tree", "rejected": "rain"}}"#);
    std::fs::write(path("train.jsonl"), (0..60).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let recipe = RewardRecipe { normalize_samples: 50, normalize_max_new_tokens: 8, ..learning(1) };
    let model = train(&recipe, &inputs(dir.path(), None), &path("out"));
    let policy = Model::load(path("model")).unwrap();
    let query = |i: usize| model.tokenizer.encode_chat(&[ChatMessage::user(format!("Say {i}."))][..], true).unwrap();
    let queries: Vec<Vec<u32>> = (0..60).map(query).collect();
    let sampling = Sampling { temperature: 1., seed: Some(77), ..Sampling::default() };
    let end = model.tokenizer.chat_format().unwrap().end_of_turn;
    let options = GenerateOptions { max_new_tokens: 8, stop_ids: Some(vec![end]), sampling };
    let other = model.scale_on(&policy, &queries, &options, 16).unwrap();
    let off = (other.mean - model.scale.mean) / model.scale.std;
    assert!(off.abs() < 0.5 && (0.6..1.6).contains(&(other.std / model.scale.std)), "{other:?}, {:?}", model.scale);
    let over_answers =
        train(&RewardRecipe { normalize_samples: 0, ..recipe }, &inputs(dir.path(), None), &path("answers"));
    assert!((over_answers.scale.mean - model.scale.mean).abs() > 0.5 * model.scale.std, "another scale");
}

/// M3: a score depends on its own tokens only, whatever it is batched with, also where the padding is the end token.
#[test]
fn m3_scores_do_not_depend_on_padding() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 16, 0.3);
    let scorer = Model::load(path("model")).unwrap().with_head(Head::Sequence, 3).unwrap();
    let tokenizer = Tokenizer::load(path("model")).unwrap();
    let end = tokenizer.chat_format().unwrap().end_of_turn;
    let folder = |name: &str, pad: &str| {
        let folder = path(name);
        scorer.save(&folder).unwrap();
        tokenizer.save(&folder).unwrap();
        let config = folder.join("tokenizer_config.json");
        let mut keys: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        keys["pad_token"] = pad.into();
        std::fs::write(&config, keys.to_string()).unwrap();
        RewardModel::load(&folder).unwrap()
    };
    let (usual, ended) = (folder("usual", "<|pad|>"), folder("ended", "<|end|>"));
    assert_eq!(ended.tokenizer.chat_format().unwrap().pad, end, "the padding is the end token");
    let rows: Vec<Vec<u32>> = (1..6).map(|n| [vec![3, 7, 9, 8, 6][..n].to_vec(), vec![end]].concat()).collect();
    let alone: Vec<f64> = rows.iter().map(|row| usual.scores(std::slice::from_ref(row)).unwrap()[0]).collect();
    for model in [&usual, &ended] {
        let near = |found: &[f64], expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} is not {expected:?}");
        };
        near(&model.scores(&rows).unwrap(), &alone);
        let turned: Vec<_> = rows.iter().rev().cloned().collect();
        near(&model.scores(&turned).unwrap(), &alone.iter().rev().copied().collect::<Vec<_>>());
        let with_long = [rows.clone(), vec![(4..40).collect()]].concat();
        near(&model.scores(&with_long).unwrap()[..5], &alone);
    }
    // The position of the end token counts.
    let moved = [vec![end], rows[2].clone()].concat();
    assert!((usual.scores(&[moved]).unwrap()[0] - alone[2]).abs() > 1e-3);
}

#[test]
fn an_ensemble_scores_by_the_mean_or_the_lowest() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 16, 0.3);
    let (policy, tokenizer) = (Model::load(path("model")).unwrap(), Tokenizer::load(path("model")).unwrap());
    let folders = [(3, -1.1), (4, -0.4)].map(|(seed, mean)| {
        let folder = path(&seed.to_string());
        let mut scorer = policy.with_head(Head::Sequence, seed).unwrap().frozen().unwrap();
        scorer.extra.insert("reward_mean".to_owned(), serde_json::json!(mean));
        scorer.save(&folder).unwrap();
        tokenizer.save(&folder).unwrap();
        folder
    });
    let rows: Vec<Vec<u32>> = (0..12).map(|i| vec![3, 6 + i, 9, 5]).collect();
    let alone = folders.clone().map(|folder| RewardModel::load(folder).unwrap().scores(&rows).unwrap());
    let scores = |tables: &str| {
        std::fs::write(path("recipe.toml"), tables).unwrap();
        let recipe: llm_train::recipes::PpoRecipe =
            llm_train::read_recipe(&path("recipe.toml").display().to_string(), &[]).unwrap();
        let reward = Reward::open(&recipe.rewards, &folders, &tokenizer).unwrap();
        let prompts: Vec<Prompt> = rows.iter().map(|row| row[..2].to_vec().into()).collect();
        reward.score_replies(prompts.iter().zip(rows.iter().map(|row| &row[2..])), 5).unwrap()
    };
    let table = |keys: &str| format!("[[rewards]]\nkind = \"model\"\n{keys}\n");
    let pairs = || alone[0].iter().zip(&alone[1]);
    assert!(pairs().any(|(a, b)| a < b) && pairs().any(|(a, b)| a > b), "{alone:?}");
    let mean: Vec<f64> = pairs().map(|(a, b)| f64::midpoint(*a, *b)).collect();
    let sum: Vec<f64> = pairs().map(|(a, b)| 2. * a - 0.5 * b).collect();
    for (tables, expected) in [
        (String::new(), mean.clone()),
        (table("combine = \"mean\""), mean),
        (table("combine = \"min\""), pairs().map(|(a, b)| a.min(*b)).collect()),
        (table("folders = [1]\nweight = 2") + &table("folders = [2]\nweight = -0.5"), sum),
    ] {
        let found = scores(&tables);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{tables}: {found:?}, {expected:?}");
    }
}
