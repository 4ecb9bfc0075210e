//! Conversations for training: ids with a loss mask.
//!
//! What the assistant says is found by `{% generation %}` of the template, if it has this tag. Else it is the text between the
//! generation prompt of the messages before and the token that ends the turn; the origin of each character (`jinja`) tells where
//! the message is. A model is trained on the ids that it sees when it generates: if the template writes earlier messages in another
//! way than the last one (Qwen 3 leaves out earlier reasoning), or a token covers the end of the prompt and the beginning of the answer,
//! the conversation becomes several examples.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::chat_template::End;
use crate::jinja::TEMPLATE;
use crate::message::Chat;
use crate::rendered::Rendered;
use crate::tokenizer::Token;
use crate::{Error, Result, Tokenizer};

/// The assistant messages that are trained on. `train` or `weight` of a message wins over this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// All of them.
    #[default]
    All,
    /// The last one.
    Last,
}

/// The ids of a conversation, or of its beginning, with the loss mask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrainingExample {
    /// The ids.
    pub ids: Vec<u32>,
    /// One value per id: true for what the assistant says and for the token that ends its turn.
    pub loss_mask: Vec<bool>,
    /// The places where encoding the whole text gives other ids than encoding the prompt and the answer.
    pub boundaries: Vec<Boundary>,
}

/// A place where a token of the whole text covers the end of a prompt and the beginning of an answer. The example has the ids of the
/// prompt as it is encoded for generation, followed by those of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    /// The index of the first id of the answer.
    pub position: usize,
    /// The last id of the prompt, if it is not empty.
    pub prompt: Option<u32>,
    /// The first id of the answer.
    pub answer: u32,
    /// The id that covers both in the encoding of the whole text, if there is one.
    pub merged: Option<u32>,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prompt {
            Some(id) => write!(f, "the prompt ends with id {id}")?,
            None => write!(f, "the prompt is empty")?,
        }
        write!(f, ", the answer begins with id {}", self.answer)?;
        self.merged.map_or(Ok(()), |id| write!(f, ", and id {id} covers both in the encoding of the whole text"))
    }
}

/// An assistant message that is trained on.
struct Turn {
    /// The rendered conversation up to this message.
    rendered: Rendered,
    /// What the assistant says, in bytes of `rendered`, up to the end of the turn.
    answer: Range<usize>,
    /// The rendered prompt, if `rendered` begins with it.
    prompt: Option<Rendered>,
}

impl Tokenizer {
    /// Encodes a conversation for training. The result is one example, or several if the template writes earlier messages in another
    /// way than the last one. An error if there is no chat template, it raises an error, or no special token ends an assistant
    /// message.
    ///
    /// Loss is on assistant messages only. A conversation without any gives an example whose mask is false.
    pub fn encode_for_training<'a>(
        &self,
        chat: impl Into<Chat<'a>>,
        train_on: TrainOn,
    ) -> Result<Vec<TrainingExample>> {
        let chat = chat.into();
        let whole = self.render(chat, End::Closed)?;
        let last = chat.messages.iter().rposition(|message| message.role() == "assistant");
        let trained: Vec<usize> = (0..chat.messages.len())
            .filter(|&index| {
                let message = &chat.messages[index];
                let default = train_on == TrainOn::All || last == Some(index);
                message.role() == "assistant" && message.train().unwrap_or(default)
            })
            .collect();
        let generated = whole.generated();
        if trained.is_empty() {
            return Ok(vec![self.example(chat, &whole, &[])?]);
        }
        if !generated.is_empty() {
            let answers = tagged_answers(chat, &whole, generated, &trained);
            return Ok(vec![self.example(chat, &whole, &answers)?]);
        }
        let end_of_turn = self.chat_format()?.end_of_turn;
        let mut examples = Vec::new();
        let mut group: Vec<Turn> = Vec::new();
        for index in trained {
            let Some(turn) = self.turn(chat, index, end_of_turn)? else { continue };
            let continues = group.last().is_none_or(|last| {
                let prompt = turn.prompt.as_ref().unwrap_or(&turn.rendered);
                prompt.text.starts_with(&last.rendered.text[..last.answer.end])
            });
            if !continues {
                examples.extend(self.examples(chat, std::mem::take(&mut group), None)?);
            }
            group.push(turn);
        }
        if group.is_empty() && examples.is_empty() {
            return Ok(vec![self.example(chat, &whole, &[])?]);
        }
        examples.extend(self.examples(chat, group, Some(whole))?);
        Ok(examples)
    }

    /// Encodes a conversation that ends with an assistant message, up to and including the token that ends its turn. These are the ids
    /// of a prompt with the reply that a policy generates, for example as input of a reward model.
    pub fn encode_answered<'a>(&self, chat: impl Into<Chat<'a>>) -> Result<Vec<u32>> {
        let chat = chat.into();
        let end_of_turn = self.chat_format()?.end_of_turn;
        let index = chat.messages.len().checked_sub(1).ok_or(Error::NoEndOfTurn)?;
        let turn = self.turn(chat, index, end_of_turn)?.ok_or(Error::NoEndOfTurn)?;
        let end = turn.answer.end;
        let example = self.single(chat, &Turn { rendered: turn.rendered.part(0..end), ..turn })?;
        Ok(example.ids)
    }

    /// The turn of assistant message `index`. `None` if the template does not write it.
    fn turn(&self, chat: Chat<'_>, index: usize, end_of_turn: u32) -> Result<Option<Turn>> {
        let rendered = self.render(chat.with_messages(&chat.messages[..=index]), End::Closed)?;
        let prompt = self.render(chat.with_messages(&chat.messages[..index]), End::GenerationPrompt).ok();
        let own = rendered.message(index);
        let control = self.special_spans(&rendered.text);
        let (start, prompt) = match (prompt, &own) {
            (Some(prompt), _) if rendered.text.starts_with(&prompt.text) => (prompt.text.len(), Some(prompt)),
            (prompt, Some(own)) => {
                let closed = self.render(chat.with_messages(&chat.messages[..index]), End::Closed).ok();
                let prompt = prompt.as_ref().map(|prompt| (prompt, closed.as_ref()));
                (answer_start(chat, &rendered, prompt, own.start, &control), None)
            }
            (_, None) => return Ok(None),
        };
        let said = own.map_or(start, |own| own.end);
        let mut after = control.iter().filter(|(_, span)| span.start >= said);
        // Templates with several kinds of turns end some of them with another token (a call of a tool, for example).
        let end = after.clone().find(|(id, _)| *id == end_of_turn).or_else(|| after.next());
        let Some((_, end)) = end else { return Err(Error::NoEndOfTurn) };
        Ok(Some(Turn { answer: start..end.end, rendered, prompt }))
    }

    /// The examples of turns of which each begins with the text of the one before; `whole` is the conversation after the last one.
    fn examples(&self, chat: Chat<'_>, group: Vec<Turn>, whole: Option<Rendered>) -> Result<Vec<TrainingExample>> {
        let Some(last) = group.last() else { return Ok(Vec::new()) };
        let text = whole.filter(|whole| whole.text.starts_with(&last.rendered.text[..last.answer.end]));
        let answers: Vec<Range<usize>> = group.iter().map(|turn| turn.answer.clone()).collect();
        let text = text.unwrap_or_else(|| last.rendered.clone());
        let example = self.example(chat, &text, &answers)?;
        if example.boundaries.is_empty() {
            return Ok(vec![example]);
        }
        if let [turn] = &group[..] {
            return Ok(vec![
                self.single(chat, &Turn { rendered: text, answer: turn.answer.clone(), prompt: turn.prompt.clone() })?,
            ]);
        }
        group.iter().map(|turn| self.single(chat, turn)).collect()
    }

    /// The example of one turn: the ids of its prompt as it is encoded for generation, then those of the answer.
    fn single(&self, chat: Chat<'_>, turn: &Turn) -> Result<TrainingExample> {
        let mut example = self.example(chat, &turn.rendered, std::slice::from_ref(&turn.answer))?;
        if let (Some(prompt), Some(boundary)) = (&turn.prompt, example.boundaries.first_mut()) {
            let ids = self.encode_ids(prompt)?;
            boundary.prompt = ids.last().copied();
            example.loss_mask.splice(..boundary.position, std::iter::repeat_n(false, ids.len()));
            let length = ids.len();
            example.ids.splice(..boundary.position, ids);
            boundary.position = length;
        }
        Ok(example)
    }

    /// Encodes a text of which the ranges `answers` are trained on. There is a border between two tokens at the beginning of each
    /// answer that is encoded in another way together with its prompt.
    fn example(&self, chat: Chat<'_>, text: &Rendered, answers: &[Range<usize>]) -> Result<TrainingExample> {
        let mut tokens = self.encode_rendered(text, &[])?;
        let mut cuts = Vec::new();
        for answer in answers {
            if !self.prompt_is_kept(text, &tokens, answer.start)? {
                cuts.push(answer.start);
            }
        }
        let mut merged = Vec::new();
        if !cuts.is_empty() {
            let covers =
                |cut: usize| tokens.iter().find(|(_, span)| span.start < cut && cut < span.end).map(|(id, _)| *id);
            merged = cuts.iter().map(|cut| covers(*cut)).collect();
            tokens = self.encode_rendered(text, &cuts)?;
        }
        let others = |span: &Range<usize>| {
            text.origins(span.clone()).any(|origin| match (origin as usize).checked_sub(1) {
                None => false,
                Some(index) => chat.messages.get(index).is_none_or(|message| message.role() != "assistant"),
            })
        };
        let mut answer = answers.iter().peekable();
        let mut mask = Vec::with_capacity(tokens.len());
        for (_, span) in &tokens {
            while answer.next_if(|answer| answer.end <= span.start).is_some() {}
            let inside = answer.peek().is_some_and(|answer| answer.start <= span.start && span.end <= answer.end);
            mask.push(inside && !others(span));
        }
        let boundaries = cuts.iter().zip(merged).filter_map(|(cut, merged)| {
            let position = tokens.iter().position(|(_, span)| span.start >= *cut)?;
            let prompt = position.checked_sub(1).map(|last| tokens[last].0);
            Some(Boundary { position, prompt, answer: tokens[position].0, merged })
        });
        let boundaries = boundaries.collect();
        Ok(TrainingExample { ids: tokens.into_iter().map(|(id, _)| id).collect(), loss_mask: mask, boundaries })
    }

    /// Whether the tokens before `at` are those of the text before `at`. Only the text after the last control token matters,
    /// because the text before it is encoded on its own.
    fn prompt_is_kept(&self, text: &Rendered, tokens: &[Token], at: usize) -> Result<bool> {
        let index = tokens.partition_point(|(_, span)| span.start < at);
        let before = &tokens[..index];
        let from = before.iter().rposition(|(id, _)| self.is_control(*id)).unwrap_or(0);
        let Some((_, first)) = before.get(from) else { return Ok(true) };
        if from + 1 == index && self.is_control(before[from].0) {
            return Ok(true);
        }
        let alone = self.encode_rendered(&text.part(first.start..at), &[])?;
        Ok(alone.iter().map(|(id, _)| id).eq(before[from..].iter().map(|(id, _)| id)))
    }
}

/// The beginning of an answer whose prompt is not the beginning of the text. Between the messages before and this message the template
/// writes a header: the answer begins after the generation prompt in it, else where the header begins to differ from the prompt, else
/// where the message begins.
fn answer_start(
    chat: Chat<'_>,
    rendered: &Rendered,
    prompt: Option<(&Rendered, Option<&Rendered>)>,
    message: usize,
    control: &[Token],
) -> usize {
    let Some((prompt, closed)) = prompt else { return message };
    let assistant = |origin: u32| {
        let index = (origin as usize).checked_sub(1);
        index.and_then(|index| chat.messages.get(index)).is_some_and(|message| message.role() == "assistant")
    };
    let other = |(_, origin): &(usize, u32)| *origin != TEMPLATE && !assistant(*origin);
    let header = rendered.origins(0..message).enumerate().filter(other).last().map_or(0, |(at, _)| at + 1);
    let generation = closed.and_then(|closed| prompt.text.strip_prefix(&closed.text)).filter(|text| !text.is_empty());
    if let Some(generation) = generation
        && let Some(at) = rendered.text[header..message].rfind(generation)
    {
        return header + at + generation.len();
    }
    let equal = rendered.text.char_indices().zip(prompt.text.chars()).take_while(|((_, a), b)| a == b);
    let common = equal.last().map_or(0, |((at, c), _)| at + c.len_utf8());
    let cut = control.iter().any(|(_, span)| span.start < common && common < span.end);
    if (header..=message).contains(&common) && !cut { common } else { message }
}

/// The ranges of `{% generation %}` that belong to trained messages: by the message whose text they contain, else by their order.
fn tagged_answers(
    chat: Chat<'_>,
    whole: &Rendered,
    generated: Vec<Range<usize>>,
    trained: &[usize],
) -> Vec<Range<usize>> {
    let assistants: Vec<usize> =
        (0..chat.messages.len()).filter(|&index| chat.messages[index].role() == "assistant").collect();
    let in_order = assistants.len() == generated.len();
    let belongs = |(order, range): &(usize, Range<usize>)| {
        let own = whole.origins(range.clone()).find(|origin| *origin != TEMPLATE).map(|origin| origin as usize - 1);
        let own = own.filter(|index| assistants.contains(index));
        let index = own.or_else(|| assistants.get(*order).copied().filter(|_| in_order));
        index.is_some_and(|index| trained.contains(&index))
    };
    generated.into_iter().enumerate().filter(belongs).map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatMessage;
    use crate::chat::tests::with_template;

    fn chat(messages: &[(&str, &str)]) -> Vec<ChatMessage> {
        messages.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
    }

    /// The trained tokens of each example as text, and the examples.
    fn trained(template: &str, messages: &[ChatMessage], train_on: TrainOn) -> (Vec<String>, Vec<TrainingExample>) {
        let tokenizer = with_template(template);
        let examples = tokenizer.encode_for_training(messages, train_on).unwrap();
        let text = |id: u32| if id < 6 { tokenizer.token(id).unwrap() } else { tokenizer.decode(&[id]).unwrap() };
        let of = |example: &TrainingExample| {
            let tokens = example.ids.iter().zip(&example.loss_mask);
            tokens.filter(|(_, in_loss)| **in_loss).map(|(id, _)| text(*id)).collect()
        };
        (examples.iter().map(of).collect(), examples)
    }

    /// Leaves out the thoughts of earlier answers, as Qwen 3 does.
    const REWRITING: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}\
        [{{ m.reasoning_content }}]{% endif %}{{ m.content }}<|end|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";

    #[test]
    fn a_template_that_rewrites_earlier_answers_gives_one_example_per_answer() {
        let messages = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        let (texts, examples) = trained(REWRITING, &messages, TrainOn::All);
        assert_eq!(texts, ["[]b<|end|>", "[]d<|end|>"]);
        let tokenizer = with_template(REWRITING);
        for (example, until) in examples.iter().zip([1, 3]) {
            let prompt = tokenizer.encode_chat(&messages[..until], true).unwrap();
            assert!(example.ids.starts_with(&prompt), "the prompt is encoded as for generation");
            assert!(!example.loss_mask[prompt.len() - 1] && example.loss_mask[prompt.len()]);
        }
    }

    #[test]
    fn train_and_weight_of_a_message_win_over_train_on() {
        let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>{% endif %}";
        let mut messages = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        assert_eq!(trained(template, &messages, TrainOn::All).0, ["b<|end|>d<|end|>"]);
        assert_eq!(trained(template, &messages, TrainOn::Last).0, ["d<|end|>"]);
        messages[1] = messages[1].clone().with_train(true);
        assert_eq!(trained(template, &messages, TrainOn::Last).0, ["b<|end|>d<|end|>"]);
        messages[3] = messages[3].clone().with_train(false);
        assert_eq!(trained(template, &messages, TrainOn::Last).0, ["b<|end|>"]);
        let tagged = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>\
            {% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}";
        assert_eq!(trained(tagged, &messages, TrainOn::All).0, ["b<|end|>"]);
    }

    #[test]
    fn the_loss_is_never_on_text_of_others() {
        let template = "{% for m in messages %}{% generation %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endgeneration %}{% endfor %}";
        let messages = chat(&[("system", "zz"), ("user", "vv"), ("assistant", "b"), ("tool", "qq")]);
        let (texts, _) = trained(template, &messages, TrainOn::All);
        assert!(texts[0].contains('b') && !texts[0].contains(['z', 'v', 'q']), "{texts:?}");
    }

    #[test]
    fn an_answer_that_merges_with_its_prompt_is_reported_and_begins_after_the_ids_of_the_prompt() {
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
            {% if add_generation_prompt %}assistant: {% endif %}";
        let tokenizer = with_template(template);
        let messages = chat(&[("user", "a"), ("assistant", "the cat")]);
        let (texts, examples) = trained(template, &messages, TrainOn::All);
        assert_eq!(texts, ["the cat<|end|>"]);
        let prompt = tokenizer.encode_chat(&messages[..1], true).unwrap();
        assert_eq!(examples[0].ids[..prompt.len()], prompt);
        let [boundary] = &examples[0].boundaries[..] else { panic!("{examples:?}") };
        assert_eq!((boundary.position, boundary.prompt), (prompt.len(), prompt.last().copied()));
        assert_eq!(tokenizer.decode(&[boundary.merged.unwrap()]).unwrap(), " the");
        assert_eq!(tokenizer.encode_answered(&messages).unwrap(), examples[0].ids);
        let text = boundary.to_string();
        assert!(text.starts_with("the prompt ends with id ") && text.contains("covers both"), "{text}");
    }

    #[test]
    fn a_template_may_end_the_last_answer_with_another_token() {
        let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '<|pad|>' if loop.last else '<|end|>' }}{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>{% endif %}";
        let messages = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        assert_eq!(trained(template, &messages, TrainOn::All).0, ["b<|pad|>", "d<|pad|>"]);
    }
}
