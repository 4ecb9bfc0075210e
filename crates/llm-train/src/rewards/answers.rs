//! The final answer of a reply, compared with the reference: numbers after `####` (GSM8K, Cobbe et al. 2021, arXiv 2110.14168), in
//! `\boxed{…}` (MATH, Hendrycks et al. 2021, arXiv 2103.03874), or the last number of the text.

use serde_json::Value;

use super::Answer;
use crate::{Error, Result};

/// What the final answer of a reply is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactAnswer {
    /// The column of the data with the reference answer: a text, or a number.
    pub column: String,
}

impl ExactAnswer {
    /// Whether the reply has the reference answer of its row. It is an error if the row has none.
    pub(super) fn is_right(&self, answer: &Answer) -> Result<bool> {
        let reference = match answer.row.get(&self.column) {
            Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            found => {
                let found = found.map_or("missing".to_owned(), |value| format!("{value}"));
                let key = &self.column;
                return Err(Error::BadRequest(format!(
                    "\"{key}\" of a row of the data is {found}; it must be the right answer as a text or a number; \
                     \"column\" of the table [[rewards]] names the column"
                )));
            }
        };
        Ok(is_same_answer(answer.text, &reference))
    }
}

/// Whether the final answer of `reply` is that of `reference`.
///
/// The final answer of a text is what is after its last `####`, else in its last `\boxed{…}`, else its last number, else the whole text.
/// Numbers are compared by value: `$1,234.00` is `1234`. Other answers are compared without spaces and a final period.
///
/// ```
/// use llm_train::rewards::is_same_answer;
/// assert!(is_same_answer("She earns 9 * 2 = $18.00 a day.", "9 * 2 = <<9*2=18>>18\n#### 18"));
/// assert!(!is_same_answer("It is 18 or 19.", "#### 18"));
/// ```
pub fn is_same_answer(reply: &str, reference: &str) -> bool {
    match marked(reference) {
        Some(marked) => match number(marked) {
            Some(expected) => number_of(reply).is_some_and(|found| found == expected),
            None => text_of(reply) == normal(marked),
        },
        None => match number(reference) {
            Some(expected) => number_of(reply).is_some_and(|found| found == expected),
            None => text_of(reply) == normal(reference),
        },
    }
}

/// The final number of a reply.
fn number_of(reply: &str) -> Option<String> {
    match marked(reply) {
        Some(marked) => number(marked),
        None => last_number(reply),
    }
}

/// The final answer of a reply that is not a number.
fn text_of(reply: &str) -> String {
    normal(marked(reply).unwrap_or(reply))
}

/// What is after the last `####`, up to the end of the line, or in the last `\boxed{…}`.
fn marked(text: &str) -> Option<&str> {
    match text.rsplit_once("####") {
        Some((_, after)) => after.trim().lines().next(),
        None => boxed(text),
    }
}

/// The content of the last `\boxed{…}`, which may contain braces.
fn boxed(text: &str) -> Option<&str> {
    let (_, after) = text.rsplit_once("\\boxed{")?;
    let mut depth = 1;
    for (at, character) in after.char_indices() {
        depth += match character {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(after[..at].trim());
        }
    }
    None
}

/// The value of a text that is one number, with a currency, a unit or `x =` around it.
fn number(text: &str) -> Option<String> {
    let text = without_latex_spaces(text);
    let mut found = Numbers { text: &text, at: 0 };
    let (number, next) = (found.next()?, found.next());
    let before = text[..number.start].trim_end_matches(is_currency).chars().next_back();
    let after = text[number.end..].chars().next();
    let is_alone = before.is_none_or(|c| c.is_whitespace() || "=\\".contains(c))
        && after.is_none_or(|c| c.is_whitespace() || is_currency(c) || "%.\\,;".contains(c));
    (next.is_none() && is_alone).then_some(number.value)
}

/// The value of the last number in a text.
fn last_number(text: &str) -> Option<String> {
    let text = without_latex_spaces(text);
    Numbers { text: &text, at: 0 }.last().map(|number| number.value)
}

/// `10{,}000` and `10\,000` are `10,000`; `\!` is nothing.
fn without_latex_spaces(text: &str) -> String {
    text.replace("{,}", ",").replace("\\,", ",").replace("\\!", "").replace('−', "-")
}

fn is_currency(c: char) -> bool {
    "$€£¥₹".contains(c)
}

/// A text without spaces, dollar signs around it and a final period.
fn normal(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let text = text.trim_end_matches('.');
    text.trim_matches('$').to_owned()
}

/// A number in a text: its bytes, with its sign, and its value as decimal digits without needless zeros.
#[derive(Debug, PartialEq)]
struct Number {
    start: usize,
    end: usize,
    value: String,
}

/// The numbers of a text: digits, in groups of three or not, with a fraction or not.
struct Numbers<'a> {
    text: &'a str,
    at: usize,
}

impl Iterator for Numbers<'_> {
    type Item = Number;

    fn next(&mut self) -> Option<Number> {
        let bytes = self.text.as_bytes();
        let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        let digits_from = |at: usize| bytes.iter().skip(at).take_while(|byte| byte.is_ascii_digit()).count();
        let begins = |at: usize| is_digit(at) || bytes[at] == b'.' && is_digit(at + 1);
        let first = (self.at..bytes.len()).find(|&at| begins(at))?;
        let mut end = first + digits_from(first);
        let is_grouped = (1..=3).contains(&(end - first));
        while is_grouped && bytes.get(end) == Some(&b',') && digits_from(end + 1) == 3 {
            end += 4;
        }
        let whole: String = self.text[first..end].chars().filter(|&c| c != ',').collect();
        let mut fraction = "";
        if bytes.get(end) == Some(&b'.') && is_digit(end + 1) {
            let length = digits_from(end + 1);
            fraction = &self.text[end + 1..end + 1 + length];
            end += 1 + length;
        }
        self.at = end;
        let (start, is_negative) = signed(self.text, first);
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let mut value = if whole.is_empty() { "0".to_owned() } else { whole.to_owned() };
        if !fraction.is_empty() {
            value = format!("{value}.{fraction}");
        }
        let sign = if is_negative && value != "0" { "-" } else { "" };
        Some(Number { start, end, value: format!("{sign}{value}") })
    }
}

/// Where the number whose digits begin at `first` begins with its sign, and whether it is negative: `-5`, `-$5` and `$-5` are,
/// the 5 in `10-5` is not.
fn signed(text: &str, first: usize) -> (usize, bool) {
    let before = text[..first].trim_end_matches(is_currency).trim_end_matches('\\');
    for before in [&text[..first], before] {
        if let Some(rest) = before.strip_suffix('-') {
            let is_minus = rest.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == ')');
            return if is_minus { (first, false) } else { (rest.len(), true) };
        }
    }
    (first, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_with_their_sign_and_value() {
        for (text, expected) in [
            ("1,234,567.50 and 0.500", vec!["1234567.5", "0.5"]),
            ("a list 1,2,3", vec!["1", "2", "3"]),
            ("12345,678", vec!["12345", "678"]),
            ("-5, 10-5, $-5, -$5, (3)-2, 007, -0.0", vec!["-5", "10", "5", "-5", "-5", "3", "2", "7", "0"]),
            (".5 3. 4.", vec!["0.5", "3", "4"]),
            ("−7 and 10{,}000", vec!["-7", "10000"]),
            ("none", vec![]),
        ] {
            let text = without_latex_spaces(text);
            let found: Vec<String> = Numbers { text: &text, at: 0 }.map(|number| number.value).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn right_answers_are_recognised_in_every_form() {
        for (reply, reference) in [
            ("9 * 2 = <<9*2=18>>18\n#### 18", "9 * 2 = <<9*2=18>>18\n#### 18"),
            ("The answer is 18.", "#### 18"),
            ("She has $18.00 left", "18"),
            ("#### $1,234", "#### 1234.0"),
            ("It costs \\boxed{\\$1{,}000}.", "1000"),
            ("so \\boxed{ 50\\% }", "50"),
            ("\\boxed{x = 5}", "5"),
            ("\\boxed{72 \\text{ clips}}", "#### 72"),
            ("first 3, then \\boxed{4}", "4"),
            ("first \\boxed{3}, no: \\boxed{4}, checked 5 times", "4"),
            ("#### 7\nI checked it 3 times.", "7"),
            ("the sum is -7", "#### -7"),
            ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{2}}"),
            ("\\boxed{x + 1}", "x+1"),
            ("#### Paris", "Paris"),
            (" Paris.\n", "Paris"),
        ] {
            assert!(is_same_answer(reply, reference), "{reply} is {reference}");
        }
    }

    #[test]
    fn wrong_answers_are_refused() {
        for (reply, reference) in [
            ("The answer is 18 or 19.", "#### 18"),
            ("18 apples, 3 eaten", "18"),
            ("", "18"),
            ("no number", "18"),
            ("#### ", "18"),
            ("#### 18 19", "18"),
            ("\\boxed{2x}", "2"),
            ("\\boxed{x^2}", "2"),
            ("\\boxed{\\frac{1}{2}}", "2"),
            ("\\boxed{18", "19"),
            ("1.8", "18"),
            ("-18", "18"),
            ("118", "18"),
            ("It is in Paris", "Paris"),
        ] {
            assert!(!is_same_answer(reply, reference), "{reply} is not {reference}");
        }
    }

    #[test]
    fn a_row_without_the_reference_is_an_error() {
        let exact = ExactAnswer { column: "answer".to_owned() };
        for row in [serde_json::json!({"question": "q"}), serde_json::json!({"answer": " "}), Value::Null] {
            let answer = Answer { prompt: &[], row: &row, query: &[], response: &[], text: "18", finished: true };
            let message = exact.is_right(&answer).unwrap_err().to_string();
            assert!(message.contains("\"answer\" of a row of the data is") && message.contains("column"), "{message}");
        }
        let row = serde_json::json!({"answer": 18});
        let answer = Answer { prompt: &[], row: &row, query: &[], response: &[], text: "18.0", finished: true };
        assert!(exact.is_right(&answer).unwrap());
    }
}
