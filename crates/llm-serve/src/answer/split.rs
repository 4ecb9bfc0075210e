//! Splits the text of an answer into reasoning, content and calls of tools, while it is generated.

use super::call::{CallPart, CallReader};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// Text of the reasoning.
    Reasoning(String),
    /// Text of the answer.
    Content(String),
    /// The call of this index begins.
    CallName(usize, String),
    /// The next piece of the arguments of the call of this index.
    CallArguments(usize, String),
}

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";
const CALL: &str = "<tool_call>";
const END_CALL: &str = "</tool_call>";

/// What a text may contain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Form {
    /// Reasoning between `<think>` and `</think>`.
    pub(crate) thinks: bool,
    /// The text begins within the reasoning.
    pub(crate) in_reasoning: bool,
    /// The functions that may be called; none: a call is ordinary text.
    pub(crate) callable: Vec<String>,
    /// Calls are written `<tool_call>…</tool_call>`; else the whole content is one JSON object.
    pub(crate) tags: bool,
}

/// Splits one answer.
#[derive(Debug)]
pub(crate) struct Splitter {
    form: Form,
    state: State,
    /// Text that may be the beginning of a tag.
    held: String,
    calls: usize,
}

#[derive(Debug)]
enum State {
    /// Before the first character that is no blank.
    Start,
    Reasoning,
    /// After a tag: blanks are left out.
    AfterTag,
    Content,
    Call(CallReader),
    /// A list of calls, read at its end.
    Calls,
}

impl Splitter {
    pub(crate) fn new(form: Form) -> Self {
        let state = match (form.in_reasoning, form.thinks || !form.callable.is_empty()) {
            (true, _) => State::Reasoning,
            (false, true) => State::Start,
            (false, false) => State::Content,
        };
        Self { form, state, held: String::new(), calls: 0 }
    }

    /// Whether a call was found.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Whether the reasoning has not ended.
    pub(crate) fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Appends text and returns the parts that are certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The rest, when the text has ended.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        let mut pieces = Vec::new();
        match std::mem::replace(&mut self.state, State::Content) {
            State::Reasoning => pieces.extend((!held.is_empty()).then_some(Piece::Reasoning(held))),
            State::Call(reader) => self.end_call(reader, &held, &mut pieces),
            State::Calls => self.end_calls(held, &mut pieces),
            State::Start | State::AfterTag | State::Content => {
                pieces.extend((!held.is_empty()).then_some(Piece::Content(held)));
            }
        }
        pieces
    }

    /// Takes something from the held text. False: more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &self.state {
            State::Start => self.start(),
            State::AfterTag => {
                let blanks = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blanks);
                let known = !self.held.is_empty();
                if known {
                    self.state = State::Start;
                    self.form.thinks = false;
                }
                known
            }
            State::Reasoning => {
                let (text, found) = self.take_until(END_THINK);
                pieces.extend((!text.is_empty()).then_some(Piece::Reasoning(text)));
                if found {
                    self.state = State::AfterTag;
                }
                found
            }
            State::Content if self.form.callable.is_empty() || !self.form.tags => {
                let text = std::mem::take(&mut self.held);
                pieces.extend((!text.is_empty()).then_some(Piece::Content(text)));
                false
            }
            State::Content => {
                let (text, found) = self.take_until(CALL);
                pieces.extend((!text.is_empty()).then_some(Piece::Content(text)));
                if found {
                    self.state = State::Call(CallReader::new(&self.form.callable));
                }
                found
            }
            State::Call(_) => self.call(pieces),
            State::Calls => false,
        }
    }

    /// Finds out what a text begins with.
    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        let blanks = self.held.len() - text.len();
        let open = [(self.form.thinks, THINK), (!self.form.callable.is_empty() && self.form.tags, CALL)];
        if open.iter().any(|(on, tag)| *on && tag.len() > text.len() && tag.starts_with(text)) {
            return false;
        }
        if self.form.thinks && text.starts_with(THINK) {
            self.held.drain(..blanks + THINK.len());
            self.state = State::Reasoning;
        } else if !self.form.callable.is_empty() && self.form.tags && text.starts_with(CALL) {
            self.held.drain(..blanks + CALL.len());
            self.state = State::Call(CallReader::new(&self.form.callable));
        } else if !self.form.callable.is_empty() && !self.form.tags && text.starts_with('{') {
            self.state = State::Call(CallReader::new(&self.form.callable));
        } else if !self.form.callable.is_empty() && !self.form.tags && text.starts_with('[') {
            self.state = State::Calls;
        } else {
            self.state = State::Content;
        }
        true
    }

    /// Reads a call.
    fn call(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let (text, found) = match self.form.tags {
            true => self.take_until(END_CALL),
            false => (std::mem::take(&mut self.held), false),
        };
        let State::Call(reader) = &mut self.state else { return false };
        let parts = reader.push(&text);
        let complete = reader.is_complete();
        self.add_call(parts, pieces);
        if found {
            let State::Call(reader) = std::mem::replace(&mut self.state, State::AfterTag) else { return true };
            self.end_call(reader, "", pieces);
        } else if complete && !self.form.tags {
            // The rest is the bracket that closes the call.
            return false;
        }
        found
    }

    /// Ends a call; a text that is no call is content.
    fn end_call(&mut self, mut reader: CallReader, rest: &str, pieces: &mut Vec<Piece>) {
        let parts = reader.push(rest);
        let is_call = reader.is_call();
        self.add_call(parts, pieces);
        match reader.finish() {
            Ok(parts) => self.add_call(parts, pieces),
            Err(text) => {
                pieces.push(Piece::Content(if self.form.tags { format!("{CALL}{text}") } else { text }));
            }
        }
        self.calls += usize::from(
            is_call || matches!(pieces.last(), Some(Piece::CallArguments(index, _)) if *index == self.calls),
        );
    }

    /// Reads a list of calls; a text that is none is content.
    fn end_calls(&mut self, text: String, pieces: &mut Vec<Piece>) {
        let list = serde_json::from_str::<Vec<serde_json::Value>>(text.trim()).unwrap_or_default();
        let read = |call: &serde_json::Value| {
            let mut reader = CallReader::new(&self.form.callable);
            let mut parts = reader.push(&call.to_string());
            parts.extend(reader.finish().ok()?);
            Some(parts)
        };
        match list.iter().map(read).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty()) {
            None => pieces.push(Piece::Content(text)),
            Some(calls) => {
                for parts in calls {
                    self.add_call(parts, pieces);
                    self.calls += 1;
                }
            }
        }
    }

    fn add_call(&mut self, parts: Vec<CallPart>, pieces: &mut Vec<Piece>) {
        let index = self.calls;
        pieces.extend(parts.into_iter().map(|part| match part {
            CallPart::Name(name) => Piece::CallName(index, name),
            CallPart::Arguments(text) => Piece::CallArguments(index, text),
        }));
    }

    /// Takes the text before a tag, and the tag if it is there. The beginning of a tag at the end stays.
    fn take_until(&mut self, tag: &str) -> (String, bool) {
        if let Some(at) = self.held.find(tag) {
            let text = self.held[..at].to_owned();
            self.held.drain(..at + tag.len());
            return (text, true);
        }
        let kept = (1..tag.len()).rev().find(|&length| self.held.ends_with(&tag[..length])).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reasoning, the content and the calls of a text in pieces of `size` characters.
    fn split(form: &Form, text: &str, size: usize) -> (String, String, Vec<(String, String)>) {
        let mut splitter = Splitter::new(form.clone());
        let characters: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> =
            characters.chunks(size).flat_map(|piece| splitter.push(&piece.iter().collect::<String>())).collect();
        pieces.extend(splitter.finish());
        let mut all = (String::new(), String::new(), Vec::<(String, String)>::new());
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => all.0 += &text,
                Piece::Content(text) => all.1 += &text,
                Piece::CallName(index, name) => {
                    assert_eq!(index, all.2.len());
                    all.2.push((name, String::new()));
                }
                Piece::CallArguments(index, text) => all.2[index].1 += &text,
            }
        }
        assert_eq!(splitter.has_calls(), !all.2.is_empty());
        all
    }

    fn check(form: &Form, text: &str, reasoning: &str, content: &str, calls: &[(&str, &str)]) {
        let calls: Vec<_> = calls.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        for size in 1..=text.chars().count() {
            assert_eq!(
                split(form, text, size),
                (reasoning.to_owned(), content.to_owned(), calls.clone()),
                "{text} {size}"
            );
        }
    }

    fn form(thinks: bool, in_reasoning: bool, callable: &[&str], tags: bool) -> Form {
        Form { thinks, in_reasoning, callable: callable.iter().map(|name| (*name).to_owned()).collect(), tags }
    }

    #[test]
    fn reasoning_is_split_from_the_answer() {
        let thinks = form(true, false, &[], false);
        check(&thinks, "<think>\na < b\n</think>\n\nyes", "\na < b\n", "yes", &[]);
        check(&thinks, "  no tag", "", "  no tag", &[]);
        check(&thinks, "a <think>", "", "a <think>", &[]);
        check(&thinks, "<thin", "", "<thin", &[]);
        check(&form(true, true, &[], false), "a</think>b</think>", "a", "b</think>", &[]);
        check(&form(true, true, &[], false), "cut </thi", "cut </thi", "", &[]);
        check(&form(false, false, &[], false), "<think>a</think>", "", "<think>a</think>", &[]);
    }

    #[test]
    fn calls_in_tags_are_split_from_the_answer() {
        let calls = form(false, false, &["f", "g"], true);
        let f = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"</t\"}}\n</tool_call>";
        check(&calls, f, "", "", &[("f", "{\"x\": \"</t\"}")]);
        let two = format!("ok {f}\n<tool_call>{{\"name\": \"g\", \"arguments\": {{}}}}</tool_call>");
        check(&calls, &two, "", "ok ", &[("f", "{\"x\": \"</t\"}"), ("g", "{}")]);
        check(&calls, "a <tool_call>no</tool_call>", "", "a <tool_call>no", &[]);
        check(&calls, "<tool", "", "<tool", &[]);
        check(
            &form(true, false, &["f"], true),
            &format!("<think>t</think>\n{f}"),
            "t",
            "",
            &[("f", "{\"x\": \"</t\"}")],
        );
        check(&form(false, false, &[], true), f, "", f, &[]);
    }

    #[test]
    fn an_answer_that_is_a_json_object_is_a_call() {
        let calls = form(false, false, &["f"], false);
        check(&calls, " {\"name\": \"f\", \"parameters\": {\"a\": 1}}\n", "", "", &[("f", "{\"a\": 1}")]);
        check(&calls, "{\"name\": \"z\", \"parameters\": {}}", "", "{\"name\": \"z\", \"parameters\": {}}", &[]);
        check(&calls, "a {\"name\": \"f\"}", "", "a {\"name\": \"f\"}", &[]);
        let list = "[{\"name\": \"f\", \"arguments\": {\"a\": [1]}}, {\"name\": \"f\"}]";
        check(&calls, list, "", "", &[("f", "{\"a\":[1]}"), ("f", "{}")]);
        check(&calls, "[1, 2]", "", "[1, 2]", &[]);
    }
}
