//! The command `attention`: what a word looks at.

mod args;
mod image;
mod json;
mod page;
mod table;

use llm_cli::Failure;
use llm_engine::TextModel;
use llm_engine::attention::{
    AblationEffect, Attention, AttentionOptions, HeadEffect, HeadScores, Words, ablation_effect, head_effects,
    repeated_tokens,
};
use llm_model::{Ablation, AblationKind, Head, write_atomic};
use llm_tokenizer::ChatMessage;

pub(crate) use args::AttentionArgs;

use crate::failure::{input, refuse_existing};
use args::Ablated;

/// The maps of a page need at most this number of bytes, before base64, if each token can keep one weight of each head in them.
const MAP_BYTES: usize = 12 << 20;
/// The number of likely next words that are compared with and without ablation.
const TOP: usize = 5;

/// The attention in a text, with what was asked about it.
struct View<'a> {
    args: &'a AttentionArgs,
    model: TextModel,
    ids: Vec<u32>,
    text: Words,
    /// The index of the word that looks.
    from: Option<usize>,
    /// The index of the word that is looked at.
    to: Option<usize>,
    attention: Attention,
    /// The scores of the heads on random tokens that are repeated.
    random_scores: Vec<HeadScores>,
    ablation: Option<(Vec<Ablation>, AblationEffect)>,
    /// The effect of each head alone, after a token.
    effects: Option<(usize, Vec<HeadEffect>)>,
}

/// Runs the command.
pub(crate) fn attention(args: &AttentionArgs) -> Result<(), Failure> {
    for path in [&args.html, &args.png, &args.json].into_iter().flatten() {
        refuse_existing(path)?;
    }
    let text = args.text()?;
    let model = args.load()?;
    let view = View::of(args, model, &text)?;
    let mut written = Vec::new();
    if let Some(path) = &args.html {
        write_atomic(path, page::page(&view).as_bytes()).map_err(input)?;
        written.push(path);
    }
    if let Some(path) = &args.png {
        write_atomic(path, &image::png(&view)?).map_err(input)?;
        written.push(path);
    }
    if let Some(path) = &args.json {
        write_atomic(path, format!("{}\n", json::report(&view)).as_bytes()).map_err(input)?;
        written.push(path);
    }
    llm_cli::print(&table::report(&view))?;
    for path in written {
        llm_cli::print_status(&format!("{}: written\n", path.display()))?;
    }
    Ok(())
}

impl<'a> View<'a> {
    fn of(args: &'a AttentionArgs, model: TextModel, text: &str) -> Result<Self, Failure> {
        let ids = ids_of(args, &model, text)?;
        let words = Words::of(&model.tokenizer, &ids).map_err(input)?;
        let find = |name: &Option<String>, option: &str| {
            let find = |name: &String| words.find(name).map_err(|e| Failure::input(format!("{option}: {e}")));
            name.as_ref().map(find).transpose()
        };
        let (from, to) = (find(&args.from, "--from")?, find(&args.to, "--to")?);
        args.check_heads(&model)?;
        let queries = from.map_or(0..0, |from| words.words[from].tokens.clone());
        let maps = args.html.is_some() || args.png.is_some();
        let options = AttentionOptions { queries, skip_first: args.skip_first, map_bytes: maps.then_some(MAP_BYTES) };
        let attention = Attention::of(&model.model, &ids, &options).map_err(input)?;
        let random = repeated_tokens(&model.tokenizer, model.model.config().max_position_embeddings);
        let options = AttentionOptions { skip_first: args.skip_first, ..AttentionOptions::default() };
        let random_scores = if random.is_empty() {
            Vec::new()
        } else {
            let attention = Attention::of(&model.model, &random, &options).map_err(input)?;
            attention.heads.iter().map(|head| head.scores).collect()
        };
        let mut view =
            Self { args, model, ids, text: words, from, to, attention, random_scores, ablation: None, effects: None };
        view.ablate()?;
        Ok(view)
    }

    fn ablate(&mut self) -> Result<(), Failure> {
        let (model, last) = (&self.model.model, self.ids.len() - 1);
        let looking = self.from.map(|from| self.text.words[from].tokens.end - 1);
        let heads = self.args.ablations();
        if !heads.is_empty() {
            let positions: Vec<usize> = looking.into_iter().chain([last]).collect();
            let effect = ablation_effect(model, &self.ids, &heads, &positions, TOP).map_err(input)?;
            self.ablation = Some((heads, effect));
        }
        if self.args.ablate.contains(&Ablated::Each) {
            let position = looking.unwrap_or(last);
            let effects = head_effects(model, &self.ids, self.args.ablate_to.kind(), position).map_err(input)?;
            self.effects = Some((position, effects));
        }
        Ok(())
    }

    /// The number of heads of a layer.
    fn heads(&self) -> usize {
        self.attention.layer(0).len()
    }

    /// What ablated heads do, in words.
    fn ablated_to(&self) -> &'static str {
        match self.args.ablate_to.kind() {
            AblationKind::Zero => "output zero",
            AblationKind::Mean => "attention equal on all words",
        }
    }

    /// The word of a token, as it is written after "after".
    fn after(&self, token: usize) -> &str {
        let word = self.text.words.iter().find(|word| word.tokens.contains(&token));
        word.map_or(
            "",
            |word| if word.tokens.end == token + 1 { word.text.as_str() } else { self.text.tokens[token].trim() },
        )
    }

    /// A token as text.
    fn token(&self, id: u32) -> String {
        let tokenizer = &self.model.tokenizer;
        let special = tokenizer.special_ids().binary_search(&id).is_ok();
        let text = if special { None } else { tokenizer.decode(&[id]).ok().filter(|text| !text.is_empty()) };
        text.or_else(|| tokenizer.token(id)).unwrap_or_else(|| format!("id {id}"))
    }
}

/// The token ids of the text, as the options say.
fn ids_of(args: &AttentionArgs, model: &TextModel, text: &str) -> Result<Vec<u32>, Failure> {
    if args.chat {
        return model.chat_ids(&[ChatMessage::new("user", text)]).map_err(input);
    }
    if args.bos {
        if model.tokenizer.bos_id().is_none() {
            return Err(Failure::input("--bos: the tokenizer has no beginning-of-sequence token; leave --bos out"));
        }
        return model.document_ids(text).map_err(input);
    }
    model.text_ids(text).map_err(input)
}

impl AttentionArgs {
    /// Checks the heads of the options, before anything is computed.
    fn check_heads(&self, model: &TextModel) -> Result<(), Failure> {
        let config = model.model.config();
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        for (option, value, count, what) in
            [("--layer", self.layer, layers, "layers"), ("--head", self.head, heads, "heads in a layer")]
        {
            if let Some(value) = value.filter(|value| *value >= count) {
                return Err(Failure::input(format!(
                    "{option} is {value}; the model has {count} {what}, so it must be from 0 to {}",
                    count - 1
                )));
            }
        }
        let outside = |head: &&Ablation| head.layer >= layers || head.head >= heads;
        if let Some(head) = self.ablations().iter().find(outside) {
            return Err(Failure::input(format!(
                "--ablate: head {}.{} is not in the model; it has {layers} layers of {heads} heads, counted from 0",
                head.layer, head.head
            )));
        }
        if !self.ablate.is_empty() && model.model.head() != Head::LanguageModel {
            return Err(Failure::input(
                "--ablate: this model has a score head and predicts no words; leave --ablate out",
            ));
        }
        Ok(())
    }
}
