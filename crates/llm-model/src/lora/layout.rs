//! What an adapter changes in a model: the tensors of its file, and the decoder's matrices that they change.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{ALL_LINEAR, LoraConfig, is_named};
use super::modules::{Module, Parameter, Part, modules, parameters};
use super::tokens::{EMBEDDING, OUTPUT, TokenTarget};
use crate::{Error, Head, ModelConfig, Result};

/// The tensors of an adapter for a model.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The adapted modules.
    pub targets: Vec<Target>,
    /// The matrices with trainable rows.
    pub tokens: Vec<TokenTarget>,
    /// The tensors that are trained as a whole.
    pub saved: Vec<Saved>,
    /// Target and part of each adapted matrix of the decoder.
    index: BTreeMap<String, (usize, usize)>,
}

/// An adapted module.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The name before `lora_A`: the module in transformers, with `base_layer` for an inner parameter of a module.
    pub name: String,
    /// What is adapted.
    pub kind: TargetKind,
    /// The rank.
    pub r: usize,
    /// `s`.
    pub scale: f64,
    /// Output features (rows); of an embedding, the number of ids.
    pub out: usize,
    /// Input features (columns).
    pub width: usize,
    /// The decoder's matrices that it contains.
    pub parts: Vec<Part>,
}

/// The kind of an adapted module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetKind {
    Linear,
    /// `lora_embedding_A` `(r, ids)` and `lora_embedding_B` `(hidden, r)`.
    Embedding,
    /// The matrices of this number of experts: `lora_A` `(experts·r, in)`, by expert, and `lora_B` `(out, r·experts)`, whose
    /// columns of expert `e` are `e`, `e + experts`, and so on.
    Experts(usize),
}

/// A tensor that is trained as a whole.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// The name in the file.
    pub key: String,
    /// The decoder's name of the tensor.
    pub name: String,
    pub shape: Vec<usize>,
    /// The key of the tensor that it always equals, for tied modules.
    pub same_as: Option<String>,
}

/// Last part of the name of the tensor `A`.
pub(super) const A: &str = "lora_A.weight";
/// Last part of the name of the tensor `B`.
pub(super) const B: &str = "lora_B.weight";
/// Last part of the name of `A` of an embedding.
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
/// Last part of the name of `B` of an embedding.
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
/// Last part of the name of the magnitudes of `DoRA`.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";

impl Target {
    /// The full name of one of its tensors.
    pub fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// The names of `A` and `B`, without the name of the target.
    pub fn factors(&self) -> [&'static str; 2] {
        if self.kind == TargetKind::Embedding { [EMBEDDING_A, EMBEDDING_B] } else { [A, B] }
    }

    /// The number of matrices with factors of their own.
    pub fn experts(&self) -> usize {
        if let TargetKind::Experts(n) = self.kind { n } else { 1 }
    }

    /// Its tensors: last part of the name, and shape.
    pub fn tensors(&self, use_dora: bool) -> Vec<(&'static str, Vec<usize>)> {
        let [a, b] = self.factors();
        let (r, out, width) = (self.r * self.experts(), self.out, self.width);
        let (input, output) = if self.kind == TargetKind::Embedding { (out, width) } else { (width, out) };
        let mut tensors = vec![(a, vec![r, input]), (b, vec![output, r])];
        tensors.extend(use_dora.then(|| (MAGNITUDE, vec![out])));
        tensors
    }
}

impl Layout {
    /// The layout of an adapter with this configuration; errors name `origin`.
    pub fn new(config: &LoraConfig, model: &ModelConfig, head: Head, origin: &str) -> Result<Self> {
        config.check(origin)?;
        let modules = modules(model, head);
        let tokens = match &config.trainable_token_indices {
            Some(indices) => indices.targets(model, origin)?,
            None => Vec::new(),
        };
        let targets = Resolver { config, model, modules: &modules, origin }.targets()?;
        let saved = Resolver { config, model, modules: &modules, origin }.saved()?;
        if targets.is_empty() && saved.is_empty() && tokens.is_empty() {
            let message = "\"target_modules\" is empty; name at least one linear layer, or \"all-linear\"";
            return Err(Error::config(origin, message));
        }
        let mut index = BTreeMap::new();
        for (i, target) in targets.iter().enumerate() {
            for (j, part) in target.parts.iter().enumerate() {
                if index.insert(part.name.clone(), (i, j)).is_some() {
                    let message = format!("\"target_parameters\" and \"target_modules\" both name {}", target.name);
                    return Err(Error::config(origin, message));
                }
            }
        }
        let layout = Self { targets, tokens, saved, index };
        layout.check_overlaps(origin)?;
        Ok(layout)
    }

    /// The target of a matrix of the decoder, and the part that it is.
    pub fn target(&self, name: &str) -> Option<(&Target, &Part)> {
        let &(i, j) = self.index.get(name)?;
        Some((&self.targets[i], &self.targets[i].parts[j]))
    }

    /// The decoder's names of all matrices that low-rank updates change.
    pub fn adapted(&self) -> impl Iterator<Item = &String> {
        self.index.keys()
    }

    /// The key of a tensor of the decoder that is trained as a whole.
    pub fn saved_key(&self, name: &str) -> Option<&str> {
        let saved = self.saved.iter().find(|saved| saved.name == name)?;
        Some(saved.same_as.as_deref().unwrap_or(&saved.key))
    }

    /// A matrix can be trained in one way only.
    fn check_overlaps(&self, origin: &str) -> Result<()> {
        let wrong = |message: String| Err(Error::config(origin, message));
        for Saved { name, .. } in &self.saved {
            let matrix = name.strip_suffix(".weight").unwrap_or(name);
            if self.index.contains_key(matrix) {
                return wrong(format!("\"modules_to_save\" and \"target_modules\" both name {matrix}; choose one"));
            }
            if self.tokens.iter().any(|target| target.name == matrix) {
                let both = "\"modules_to_save\" and \"trainable_token_indices\"";
                return wrong(format!("{both} both name {matrix}; choose one"));
            }
        }
        let adapted = |target: &&TokenTarget| {
            [EMBEDDING, OUTPUT]
                .iter()
                .any(|name| self.index.contains_key(*name) && (*name == target.name || target.name == EMBEDDING))
        };
        if let Some(target) = self.tokens.iter().find(adapted) {
            let both = "\"target_modules\" and \"trainable_token_indices\"";
            return wrong(format!("{both} both change {}; choose one", target.module));
        }
        Ok(())
    }
}

/// Finds the modules that a configuration names.
struct Resolver<'a> {
    config: &'a LoraConfig,
    model: &'a ModelConfig,
    modules: &'a [Module],
    origin: &'a str,
}

impl Resolver<'_> {
    fn wrong<T>(&self, message: String) -> Result<T> {
        Err(Error::config(self.origin, message))
    }

    fn targets(&self) -> Result<Vec<Target>> {
        let LoraConfig { target_modules, target_parameters, use_dora, lora_dropout, .. } = self.config;
        for wanted in target_modules.iter().filter(|wanted| *wanted != ALL_LINEAR) {
            let mut named = self.modules.iter().filter(|module| is_named(&module.name, wanted)).peekable();
            let valid = last_parts(self.modules.iter().filter(|module| module.is_adaptable()).map(|m| m.name.as_str()));
            let family = self.model.model_type.name();
            if named.peek().is_none() {
                return self.wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which is not a module of \"{family}\"; valid targets: {valid}"
                ));
            }
            if named.any(|module| !module.is_adaptable()) {
                return self.wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which is a norm; adapters need a matrix; valid targets: {valid}"
                ));
            }
        }
        let mut targets = Vec::new();
        for module in self.modules.iter().filter(|module| module.is_adaptable() && self.names(module)) {
            if *use_dora && module.is_embedding() {
                return self.wrong(format!("\"use_dora\" is true; \"{}\" can have plain LoRA only", module.name));
            }
            if *lora_dropout > 0. && module.is_head() {
                return self.wrong(format!(
                    "\"lora_dropout\" is {lora_dropout}; it must be 0 with \"{}\" among the \"target_modules\"",
                    module.name
                ));
            }
            targets.push(self.module_target(module)?);
        }
        let parameters = self.parameters()?;
        if !parameters.is_empty() && (*use_dora || *lora_dropout > 0.) {
            let key = if *use_dora { "use_dora" } else { "lora_dropout" };
            let names = if target_parameters.is_empty() { "experts" } else { "\"target_parameters\"" };
            return self.wrong(format!(
                "\"{key}\" does not apply to {names}; remove it, or name linear layers in \"target_modules\""
            ));
        }
        for parameter in &parameters {
            targets.push(self.parameter_target(parameter, &parameters)?);
        }
        Ok(targets)
    }

    fn names(&self, module: &Module) -> bool {
        self.config.target_modules.iter().any(|wanted| match wanted == ALL_LINEAR {
            true => module.is_linear_of_block(),
            false => is_named(&module.name, wanted),
        })
    }

    fn module_target(&self, module: &Module) -> Result<Target> {
        let (r, scale) = self.config.rank_and_scale(&module.name, self.origin)?;
        let kind = if module.is_embedding() { TargetKind::Embedding } else { TargetKind::Linear };
        let Module { name, out, width, parts, .. } = module.clone();
        Ok(Target { name, kind, r, scale, out, width, parts })
    }

    /// The parameters that `target_parameters` or "all-linear" names.
    fn parameters(&self) -> Result<Vec<Parameter>> {
        let mut parameters = parameters(self.model);
        let all = self.config.target_modules.iter().any(|wanted| wanted == ALL_LINEAR);
        let full = |parameter: &Parameter| format!("{}.{}", parameter.module, parameter.name);
        for wanted in &self.config.target_parameters {
            if !parameters.iter().any(|parameter| is_named(&full(parameter), wanted)) {
                let family = self.model.model_type.name();
                let mut valid: Vec<String> =
                    parameters.iter().map(|p| full(p).split('.').skip(3).collect::<Vec<_>>().join(".")).collect();
                valid.sort_unstable();
                valid.dedup();
                let valid = if valid.is_empty() { "none".to_owned() } else { valid.join(", ") };
                return self.wrong(format!(
                    "\"target_parameters\" names \"{wanted}\", which is not a parameter of \"{family}\"; valid: {valid}"
                ));
            }
        }
        let named = |parameter: &Parameter| {
            let wanted = &mut self.config.target_parameters.iter();
            all || wanted.any(|wanted| is_named(&full(parameter), wanted))
        };
        parameters.retain(named);
        Ok(parameters)
    }

    /// A parameter as a target. PEFT wraps a module once for each parameter, the first one innermost.
    fn parameter_target(&self, parameter: &Parameter, all: &[Parameter]) -> Result<Target> {
        let Parameter { module, name, out, width, experts, parts } = parameter.clone();
        let (r, scale) = self.config.rank_and_scale(&format!("{module}.{name}"), self.origin)?;
        let outer =
            all.iter().filter(|other| other.module == module).skip_while(|other| other.name != name).count() - 1;
        let name = format!("{module}{}", ".base_layer".repeat(outer));
        Ok(Target { name, kind: experts.map_or(TargetKind::Linear, TargetKind::Experts), r, scale, out, width, parts })
    }

    /// The tensors of `modules_to_save`.
    fn saved(&self) -> Result<Vec<Saved>> {
        // PEFT adds both names to the configuration of every classifier.
        let optional = |wanted: &str| ["score", "classifier"].contains(&wanted);
        let ends = |module: &Module, wanted: &str| module.name.ends_with(wanted);
        for wanted in &self.config.modules_to_save {
            let mut named = self.modules.iter().filter(|module| ends(module, wanted)).peekable();
            if named.peek().is_none() && !optional(wanted) {
                let valid = last_parts(self.modules.iter().filter(|module| module.plain).map(|m| m.name.as_str()));
                return self.wrong(format!("\"modules_to_save\" names \"{wanted}\"; valid modules: {valid}"));
            }
            if let Some(module) = named.find(|module| !module.plain || module.role.is_expert()) {
                return self.wrong(format!(
                    "\"modules_to_save\" names \"{wanted}\"; \"{}\" is fused or transposed in the files and can only be in \
                     \"target_modules\"",
                    module.name
                ));
            }
        }
        let named = |module: &&Module| self.config.modules_to_save.iter().any(|wanted| ends(module, wanted));
        let mut saved = Vec::new();
        for module in self.modules.iter().filter(named) {
            let shape = if module.width == 0 { vec![module.out] } else { vec![module.out, module.width] };
            let (key, name) = (format!("{}.weight", module.name), format!("{}.weight", module.parts[0].name));
            saved.push(Saved { key, name, shape, same_as: None });
            if let Some(name) = &module.bias {
                let (key, shape) = (format!("{}.bias", module.name), vec![module.out]);
                saved.push(Saved { key, name: name.clone(), shape, same_as: None });
            }
        }
        if self.config.ensure_weight_tying && self.model.tie_word_embeddings {
            self.tie(&mut saved)?;
        }
        Ok(saved)
    }

    /// Makes the trained embedding the output layer, too.
    fn tie(&self, saved: &mut Vec<Saved>) -> Result<()> {
        let is_token_matrix = |module: &&Module| module.has_token_rows() && self.names(module);
        if let Some(module) = self.modules.iter().find(is_token_matrix) {
            return self.wrong(format!(
                "\"ensure_weight_tying\" is true; it supports \"modules_to_save\" only, not \"{}\" in \"target_modules\"",
                module.name
            ));
        }
        let of = |name: &str| self.modules.iter().find(|module| module.parts[0].name == name);
        let named: BTreeSet<String> = saved.iter().map(|saved| saved.name.clone()).collect();
        let weights = [EMBEDDING, OUTPUT].map(|name| format!("{name}.weight"));
        if !weights.iter().any(|name| named.contains(name)) {
            return Ok(());
        }
        let (Some(embedding), Some(output)) = (of(EMBEDDING), of(OUTPUT)) else { return Ok(()) };
        saved.retain(|saved| !weights.contains(&saved.name));
        let key = |module: &Module| format!("{}.weight", module.name);
        let [input, out] = weights;
        let shape = vec![embedding.out, embedding.width];
        saved.push(Saved { key: key(embedding), name: input, shape: shape.clone(), same_as: None });
        saved.push(Saved { key: key(output), name: out, shape, same_as: Some(key(embedding)) });
        Ok(())
    }
}

/// The distinct last parts of module names, as a list for a message.
fn last_parts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.filter_map(|name| name.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
