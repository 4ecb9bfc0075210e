//! The tables of the command on the terminal.

use llm_engine::attention::HeadInText;

use super::View;

/// The rows of a ranking.
const ROWS: usize = 10;

/// All tables.
pub(super) fn report(view: &View) -> String {
    let mut text = match view.from {
        Some(from) => looks(view, from),
        None => kinds(view),
    };
    if let (Some(from), Some(to)) = (view.from, view.to) {
        text += &links(view, from, to);
    }
    text += &ablation(view);
    text
}

/// A name of a word, with its place.
fn name(view: &View, word: usize) -> String {
    let text = &view.text.words[word].text;
    let same: Vec<usize> = (0..view.text.words.len()).filter(|&at| view.text.words[at].text == *text).collect();
    match same.iter().position(|&at| at == word) {
        Some(at) if same.len() > 1 => format!("{text}:{}", at + 1),
        _ => text.clone(),
    }
}

/// The heads that the options select.
fn heads<'a>(view: &'a View) -> impl Iterator<Item = &'a HeadInText> {
    view.attention.heads.iter().filter(|head| view.args.shows(head.layer, head.head))
}

/// The weights of a head on words; without the first token if the options say so.
fn on_words(view: &View, weights: &[f32]) -> Vec<f32> {
    let mut weights = weights.to_vec();
    if view.args.skip_first {
        weights[0] = 0.;
    }
    view.text.sums(&weights)
}

/// The indices of the largest values, the largest first, without zeros.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&at| values[at] > 0.).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(count);
    order
}

fn percent(value: impl Into<f64>) -> String {
    format!("{:.1}%", 100. * value.into())
}

/// What the word looks at: words by the mean of the heads, then each head.
fn looks(view: &View, from: usize) -> String {
    let words = &view.text.words;
    let tokens = words[from].tokens.len();
    let mean_of = if tokens == 1 { String::new() } else { format!(", the mean over its {tokens} tokens") };
    let first = if view.args.skip_first { ", without the first token" } else { "" };
    let rows: Vec<(&HeadInText, Vec<f32>)> = heads(view).map(|head| (head, on_words(view, &head.weights))).collect();
    let mut mean = vec![0.; words.len()];
    for (_, row) in &rows {
        mean.iter_mut().zip(row).for_each(|(sum, weight)| *sum += weight / rows.len() as f32);
    }
    let layer = view.args.layer.unwrap_or(view.attention.layers() - 1);
    let rollout = on_words(view, &view.attention.rollout[layer].weights);
    let mut table = Table::new(["word", "mean", "roll-out", "heads with the largest weight on it"]);
    for word in largest(&mean, ROWS) {
        let on_word: Vec<f32> = rows.iter().map(|(_, row)| row[word]).collect();
        let best = largest(&on_word, 3).into_iter().map(|at| {
            let head = rows[at].0;
            format!("{}.{} {}", head.layer, head.head, percent(on_word[at]))
        });
        let best = best.collect::<Vec<_>>().join("  ");
        table.row([name(view, word), percent(mean[word]), percent(rollout[word]), best]);
    }
    let title = format!("{:?} looks at{mean_of}{first}:", name(view, from));
    let mut each = Table::new(["head", "first token", "looks at most"]);
    for (head, row) in &rows {
        let best = largest(row, 4).into_iter().map(|word| format!("{} {}", name(view, word), percent(row[word])));
        let lazy = if view.attention.is_lazy(head.layer) { " lazy" } else { "" };
        let best = best.collect::<Vec<_>>().join("  ");
        each.row([format!("{}.{}{lazy}", head.layer, head.head), percent(head.weights[0]), best]);
    }
    format!("{title}\n\n{}\nBy layer and head:\n\n{}", table.text(), each.text())
}

/// The heads by their weight on one word.
fn links(view: &View, from: usize, to: usize) -> String {
    let weighted = |head: &HeadInText| -> Vec<f32> {
        let weights = head.weights.iter().zip(&head.value_norms).map(|(weight, norm)| weight * norm);
        on_words(view, &weights.collect::<Vec<_>>())
    };
    let mut rows: Vec<(&HeadInText, f32, f32, usize)> = heads(view)
        .map(|head| {
            let (row, weighted) = (on_words(view, &head.weights), weighted(head));
            let rank = 1 + row.iter().filter(|weight| **weight > row[to]).count();
            let whole: f32 = weighted.iter().sum();
            (head, row[to], if whole > 0. { weighted[to] / whole } else { 0. }, rank)
        })
        .collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut table = Table::new(["head", "weight", "value-weighted", "rank of the word"]);
    for (head, weight, weighted, rank) in rows.iter().take(ROWS) {
        table.row([format!("{}.{}", head.layer, head.head), percent(*weight), percent(*weighted), rank.to_string()]);
    }
    let (from, to) = (name(view, from), name(view, to));
    format!("\nHeads by the weight of {from:?} on {to:?}:\n\n{}", table.text())
}

/// The kinds of heads.
fn kinds(view: &View) -> String {
    let mut table = Table::new([
        "head",
        "previous",
        "duplicate",
        "induction",
        "first token",
        "on random tokens twice: previous",
        "duplicate",
        "induction",
    ]);
    for (at, head) in view.attention.heads.iter().enumerate() {
        if view.args.shows(head.layer, head.head) {
            let scores = head.scores;
            let random = view.random_scores.get(at).copied().unwrap_or_default();
            let lazy = if view.attention.is_lazy(head.layer) { " lazy" } else { "" };
            table.row([
                format!("{}.{}{lazy}", head.layer, head.head),
                percent(scores.previous_token),
                percent(scores.duplicate_token),
                percent(scores.induction),
                percent(scores.first_token),
                percent(random.previous_token),
                percent(random.duplicate_token),
                percent(random.induction),
            ]);
        }
    }
    format!(
        "Attention of each head to the token before, to earlier copies of the token, to the tokens after them, to the first:\n\n{}",
        table.text()
    )
}

/// What the ablations change.
fn ablation(view: &View) -> String {
    let mut text = String::new();
    if let Some((heads, effect)) = &view.ablation {
        let names: Vec<String> = heads.iter().map(|head| format!("{}.{}", head.layer, head.head)).collect();
        let mean = effect.kl.iter().sum::<f64>() / effect.kl.len() as f64;
        text += &format!(
            "\nWithout {} ({}); KL of all tokens {mean:.4} nats on average\n",
            names.join(", "),
            view.ablated_to()
        );
        for change in &effect.changes {
            let mut table = Table::new(["next token", "before", "after"]);
            for token in &change.tokens {
                table.row([format!("{:?}", view.token(token.id)), percent(token.before), percent(token.after)]);
            }
            text += &format!("\nAfter {:?}: KL {:.4} nats\n\n{}", view.after(change.position), change.kl, table.text());
        }
    }
    if let Some((position, effects)) = &view.effects {
        let mut table = Table::new(["head", "KL"]);
        for effect in effects.iter().take(ROWS) {
            table.row([format!("{}.{}", effect.ablation.layer, effect.ablation.head), format!("{:.4}", effect.kl)]);
        }
        let after = view.after(*position);
        text += &format!(
            "\nEach head alone ({}), by the KL of the token after {after:?} in nats:\n\n{}",
            view.ablated_to(),
            table.text()
        );
    }
    text
}

/// Lines with columns: the first is left-aligned, numbers right, the last is as long as it is.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let is_number = |column: usize| {
            self.rows.iter().skip(1).all(|row| row[column].trim_end_matches('%').parse::<f64>().is_ok())
        };
        let columns: Vec<(usize, bool)> =
            (0..N).map(|column| (width(column), column > 0 && is_number(column))).collect();
        let line = |row: &[String; N]| {
            let cells = row.iter().zip(&columns).map(|(cell, &(width, number))| {
                if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}
