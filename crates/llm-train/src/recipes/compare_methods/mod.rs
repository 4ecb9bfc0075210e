//! Ways to give a model an ability, compared on the synthetic dataset: pre-training, prompting, domain fine-tuning, instruction
//! fine-tuning, both, each with and without general text mixed in, and training from scratch.
//!
//! A model is pre-trained on general text, which has none of the facts. The other methods then get the text of the facts (the domain),
//! or conversations about a part of them. The tasks ask for facts that are in the domain text but in no conversation.

mod measure;

use std::path::{Path, PathBuf};

use llm_data::write_jsonl;
use llm_synthetic::{Domain, Split, Task, World, WorldConfig};
use llm_tokenizer::TrainConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::measure::{Measured, Measuring};
use super::{
    FinetuneInputs, FinetuneRecipe, PrepareInputs, PretrainInputs, PretrainRecipe, finetune, prepare, pretrain,
    train_tokenizer,
};
use crate::Result;
use crate::run::{FINISHED, RunOptions, RunSetup, Start, write_json};

/// The recipe of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareMethodsRecipe {
    /// Seed of the dataset.
    pub seed: u64,
    /// Bytes of general training text.
    pub general_bytes: usize,
    /// Bytes of training text of the domain.
    pub domain_bytes: usize,
    /// Conversations to fine-tune on.
    pub tasks: usize,
    /// Tasks on held-out facts to score.
    pub held_out: usize,
    /// The tokenizer, trained on the text of both domains.
    pub tokenizer: TrainConfig,
    /// Pre-training, and training from scratch.
    pub pretrain: PretrainRecipe,
    /// Domain and instruction fine-tuning.
    pub finetune: FinetuneRecipe,
}

impl Default for CompareMethodsRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// A fine-tuning run of the comparison.
struct Method {
    /// The folder.
    dir: &'static str,
    /// The name in the table.
    name: &'static str,
    /// The folder of the model it starts from.
    from: &'static str,
    /// The file of its data.
    data: &'static str,
    /// Whether general text is mixed in.
    mixed: bool,
}

const METHODS: [Method; 6] = [
    Method { dir: "domain", name: "domain fine-tuning", from: BASE, data: FACTS, mixed: false },
    Method { dir: "domain-mixed", name: "— with general text mixed in", from: BASE, data: FACTS, mixed: true },
    Method { dir: "instruct", name: "instruction fine-tuning", from: BASE, data: CONVERSATIONS, mixed: false },
    Method {
        dir: "instruct-mixed",
        name: "— with general text mixed in",
        from: BASE,
        data: CONVERSATIONS,
        mixed: true,
    },
    Method {
        dir: "both",
        name: "domain, then instruction fine-tuning",
        from: "domain",
        data: CONVERSATIONS,
        mixed: false,
    },
    Method {
        dir: "both-mixed",
        name: "— with general text mixed in",
        from: "domain-mixed",
        data: CONVERSATIONS,
        mixed: true,
    },
];

/// The model that is pre-trained on general text.
const BASE: &str = "base";
/// The model that is trained from scratch on the text of the domain.
const SCRATCH: &str = "scratch";
const FACTS: &str = "facts-train.jsonl";
const CONVERSATIONS: &str = "conversations.jsonl";
const REPORT: &str = "report.md";

/// Runs all methods in folders of `out` and writes `report.md` there; returns the report.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn compare_methods(recipe: &CompareMethodsRecipe, out: impl AsRef<Path>, options: RunOptions) -> Result<String> {
    let out = out.as_ref();
    let setup = match RunSetup::check(recipe, &(), out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => return measure::read(&out.join(REPORT)),
    };
    let (_, options, _lock) = setup.open_folder()?;
    let RunOptions { device, observer, stop, .. } = options;
    let data =
        Data::write(recipe, out, RunOptions { resume: true, device: device.clone(), observer: &mut *observer, stop })?;
    let mut measured = Vec::new();
    for (dir, shards, name) in [
        (BASE, &data.general, "pre-training on general text"),
        (SCRATCH, &data.facts, "training from scratch on the domain"),
    ] {
        let run = out.join(dir);
        let inputs = PretrainInputs { model: None, tokenizer: data.tokenizer.clone(), data: vec![shards.clone()] };
        let outcome = pretrain(&recipe.pretrain, &inputs, &run, RunOptions::of_stage(&run, &device, observer, stop))?;
        measured.push(Measured::new(name, run, outcome.seconds));
    }
    for method in &METHODS {
        let run = out.join(method.dir);
        let inputs = FinetuneInputs {
            model: out.join(method.from),
            data: vec![data.dir.join(method.data)],
            validation: None,
            text: method.mixed.then(|| data.general.clone()),
            adapter: None,
        };
        let outcome = finetune(&recipe.finetune, &inputs, &run, RunOptions::of_stage(&run, &device, observer, stop))?;
        measured.push(Measured::new(method.name, run, outcome.seconds));
    }
    let measuring =
        Measuring { recipe, general: &data.general, facts: &data.facts, tasks: &data.tasks, device: &device };
    let report = measuring.report(measured)?;
    llm_model::write_atomic(&out.join(REPORT), report.as_bytes())?;
    write_json(&out.join(FINISHED), &json!({}))?;
    Ok(report)
}

/// The data of the comparison.
struct Data {
    dir: PathBuf,
    tokenizer: PathBuf,
    /// Token shards of the domains.
    general: PathBuf,
    facts: PathBuf,
    tasks: Vec<Task>,
}

impl Data {
    /// Writes the text of both domains, the conversations, the tokenizer and the token shards, except what is there.
    fn write(recipe: &CompareMethodsRecipe, out: &Path, options: RunOptions) -> Result<Self> {
        let world = World::new(WorldConfig { seed: recipe.seed, ..WorldConfig::default() });
        let dir = out.join("data");
        let file = |name: &str, split: &str| dir.join(format!("{name}-{split}.jsonl"));
        for (name, domain, bytes) in
            [("general", Domain::General, recipe.general_bytes), ("facts", Domain::Facts, recipe.domain_bytes)]
        {
            for (split, part, bytes) in [(Split::Train, "train", bytes), (Split::HeldOut, "validation", bytes / 20)] {
                let texts = world.domain(domain, split, bytes).into_iter().map(|text| json!({ "text": text }));
                write_jsonl(file(name, part), &texts.collect::<Vec<_>>())?;
            }
        }
        let conversations: Vec<_> = world.tasks(Split::Train, recipe.tasks).iter().map(Task::conversation).collect();
        write_jsonl(dir.join(CONVERSATIONS), &conversations)?;
        let tokenizer = out.join("tokenizer");
        let texts = [file("general", "train"), file("facts", "train")];
        train_tokenizer(&recipe.tokenizer, &texts, &tokenizer, true)?;
        let RunOptions { resume, device, observer, stop } = options;
        let mut shards = Vec::new();
        for name in ["general", "facts"] {
            let inputs = PrepareInputs {
                tokenizer: tokenizer.clone(),
                train: vec![file(name, "train")],
                validation: vec![file(name, "validation")],
                ..PrepareInputs::default()
            };
            let folder = out.join(format!("shards-{name}"));
            let options = RunOptions { resume, device: device.clone(), observer: &mut *observer, stop };
            prepare(&inputs, &folder, options)?;
            shards.push(folder);
        }
        let [general, facts] = [shards[0].clone(), shards[1].clone()];
        Ok(Self { dir, tokenizer, general, facts, tasks: world.tasks(Split::HeldOut, recipe.held_out) })
    }
}
