//! Values as text: `str`, `repr`, `%` and `format` of Python.

use super::Problem;
use super::interpreter::Interpreter;
use super::text::{Char, Text, string};
use super::value::Value;

type Result<T> = std::result::Result<T, Problem>;

/// `str(value)`
pub(super) fn str(value: &Value, interpreter: &Interpreter) -> Result<Text> {
    match value {
        Value::Undefined(_) => Ok(Text::template("")),
        Value::Text(text) => Ok(text.clone()),
        other => repr(other, interpreter),
    }
}

/// `repr(value)`
pub(super) fn repr(value: &Value, interpreter: &Interpreter) -> Result<Text> {
    let mut out = Vec::new();
    write_repr(value, &mut out, interpreter)?;
    Ok(out.into())
}

fn push(out: &mut Vec<Char>, text: &str) {
    out.extend_from_slice(Text::template(text).chars());
}

fn write_repr(value: &Value, out: &mut Vec<Char>, interpreter: &Interpreter) -> Result<()> {
    interpreter.charge(1)?;
    let mut items = |items: &[Value], open: &str, close: &str| {
        push(out, open);
        for (index, item) in items.iter().enumerate() {
            push(out, if index == 0 { "" } else { ", " });
            write_repr(item, out, interpreter)?;
        }
        push(out, close);
        Ok(())
    };
    match value {
        Value::Undefined(_) => push(out, "Undefined"),
        Value::None => push(out, "None"),
        Value::Bool(true) => push(out, "True"),
        Value::Bool(false) => push(out, "False"),
        Value::Int(value) => push(out, &value.to_string()),
        Value::Float(value) => push(out, &float(*value)),
        Value::Text(text) => quote(text.chars(), out),
        Value::List(list) => return items(&list.items, "[", "]"),
        Value::Tuple(list) => return items(&list.items, "(", if list.items.len() == 1 { ",)" } else { ")" }),
        Value::Dict(dict) => {
            push(out, "{");
            for (index, (key, value)) in dict.entries.iter().enumerate() {
                push(out, if index == 0 { "" } else { ", " });
                write_repr(key, out, interpreter)?;
                push(out, ": ");
                write_repr(value, out, interpreter)?;
            }
            push(out, "}");
        }
        other => return Err(Problem::new(format!("a {} has no text", other.kind()))),
    }
    Ok(())
}

/// A text as a string literal of Python.
fn quote(text: &[Char], out: &mut Vec<Char>) {
    let has = |quote| text.iter().any(|c| c.char == quote);
    let mark = if has('\'') && !has('"') { '"' } else { '\'' };
    push(out, &mark.to_string());
    for c in text {
        let escaped = match c.char {
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            '\\' => "\\\\".to_owned(),
            char if char == mark => format!("\\{char}"),
            char if is_printable(char) => {
                out.push(*c);
                continue;
            }
            char if char <= '\u{ff}' => format!("\\x{:02x}", u32::from(char)),
            char if char <= '\u{ffff}' => format!("\\u{:04x}", u32::from(char)),
            char => format!("\\U{:08x}", u32::from(char)),
        };
        out.extend(escaped.chars().map(|char| Char { char, origin: c.origin }));
    }
    push(out, &mark.to_string());
}

/// Python's `str.isprintable`, without the characters that Unicode has not assigned.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..);
    !(c.is_control() || hidden || (c.is_whitespace() && c != ' '))
}

/// `repr` of a float: the shortest decimal that reads as the same number.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{value}");
        return if text.contains('.') { text } else { text + ".0" };
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `text % value`
pub(super) fn percent(text: &Text, value: &Value, interpreter: &Interpreter) -> Result<Text> {
    let mut rest = match value {
        Value::Tuple(list) => list.items.clone(),
        other => vec![other.clone()],
    }
    .into_iter();
    let mut out = Vec::new();
    let mut chars = text.chars().iter().peekable();
    while let Some(c) = chars.next() {
        if c.char != '%' {
            out.push(*c);
            continue;
        }
        let mut spec = String::new();
        let mut named = None;
        if chars.next_if(|c| c.char == '(').is_some() {
            let name: Vec<Char> = chars.by_ref().take_while(|c| c.char != ')').copied().collect();
            named = Some(value.item(&Value::Text(name.into()))?);
        }
        while let Some(flag) = chars.next_if(|c| "-+ #0123456789.".contains(c.char)) {
            spec.push(flag.char);
        }
        let kind = chars.next().map(|c| c.char);
        if kind == Some('%') {
            out.push(*c);
            continue;
        }
        let argument = named.or_else(|| rest.next()).ok_or_else(|| Problem::new("% has too few values"))?;
        let left = spec.starts_with('-');
        let spec = format!("{}{}", if left { "<" } else { ">" }, spec.trim_start_matches('-'));
        let shown = match kind {
            Some('s') => Value::Text(str(&argument, interpreter)?),
            Some('r') => Value::Text(repr(&argument, interpreter)?),
            Some('d' | 'i') => argument.int().map(Value::Int).unwrap_or(argument),
            Some('f') => argument.float().map(Value::Float).unwrap_or(argument),
            _ => return Err(Problem::new("% supports the formats s, r, d, i and f")),
        };
        let precise = kind == Some('f') && !spec.contains('.');
        let spec = if kind == Some('f') { format!("{spec}{}f", if precise { ".6" } else { "" }) } else { spec };
        out.extend(formatted(&shown, &spec, interpreter)?);
    }
    if rest.next().is_some() && !matches!(value, Value::Dict(_)) {
        return Err(Problem::new("% has more values than the text"));
    }
    Ok(out.into())
}

/// `text.format(..)`
pub(super) fn format(
    text: &Text,
    positional: &[Value],
    named: &[(String, Value)],
    interpreter: &Interpreter,
) -> Result<Text> {
    let (chars, mut out, mut at, mut next) = (text.chars(), Vec::new(), 0, 0);
    while let Some(c) = chars.get(at) {
        let doubled = chars.get(at + 1).is_some_and(|other| other == c);
        at += 1;
        match c.char {
            '{' | '}' if doubled => {
                out.push(*c);
                at += 1;
            }
            '{' => {
                let end = chars[at..].iter().position(|c| c.char == '}');
                let end = end.ok_or_else(|| Problem::new("format: a \"{\" has no \"}\""))?;
                let field = string(&chars[at..at + end]);
                at += end + 1;
                let (name, spec) = field.split_once(':').unwrap_or((&field, ""));
                let index = if name.is_empty() { Some(next) } else { name.parse().ok() };
                next += usize::from(name.is_empty());
                let value = match index {
                    Some(index) => positional.get(index),
                    None => named.iter().find(|(key, _)| key == name).map(|(_, value)| value),
                };
                let value = value.ok_or_else(|| Problem::new(format!("format: there is no value for {{{field}}}")))?;
                out.extend(formatted(value, spec, interpreter)?);
            }
            '}' => return Err(Problem::new("format: a \"}\" has no \"{\"")),
            _ => out.push(*c),
        }
    }
    Ok(out.into())
}

/// A value in the format `[[fill]align][+][0][width][.precision][kind]`.
fn formatted(value: &Value, spec: &str, interpreter: &Interpreter) -> Result<Vec<Char>> {
    let unsupported = || Problem::new(format!("format \"{spec}\" is not supported"));
    let chars: Vec<char> = spec.chars().collect();
    let (mut fill, mut align, mut rest) = (' ', None, spec);
    if let [first, second, ..] = chars[..]
        && "<>^".contains(second)
    {
        (fill, align, rest) = (first, Some(second), &spec[first.len_utf8() + 1..]);
    } else if let Some(first) = chars.first().filter(|c| "<>^".contains(**c)) {
        (align, rest) = (Some(*first), &spec[1..]);
    }
    let plus = rest.starts_with('+');
    rest = rest.trim_start_matches('+');
    if rest.starts_with('0') {
        (fill, align) = ('0', Some('>'));
    }
    let (rest, kind) = match rest.strip_suffix(['d', 's', 'f']) {
        Some(shorter) => (shorter, rest.chars().last()),
        None => (rest, None),
    };
    let (width, precision) = match rest.split_once('.') {
        Some((width, precision)) => (width, Some(precision.parse::<usize>().map_err(|_| unsupported())?)),
        None => (rest, None),
    };
    let width = if width.is_empty() { 0 } else { width.parse::<usize>().map_err(|_| unsupported())? };
    interpreter.charge(width + precision.unwrap_or(0))?;
    let mut text = match (value, kind, precision) {
        (Value::Float(_) | Value::Int(_), Some('f'), _) => {
            Text::template(&format!("{:.*}", precision.unwrap_or(6), value.float().unwrap_or(f64::NAN)))
        }
        (Value::Float(value), None, Some(precision)) => Text::template(&format!("{value:.precision$}")),
        (Value::Text(text), _, Some(precision)) => text.chars()[..text.chars().len().min(precision)].into(),
        _ => str(value, interpreter)?,
    };
    if plus && value.float().is_some_and(|value| value >= 0.0) {
        text = [Text::template("+").chars(), text.chars()].concat().into();
    }
    let missing = width.saturating_sub(text.chars().len());
    let number = value.float().is_some();
    let before = match align.unwrap_or(if number { '>' } else { '<' }) {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    let padding = |count| std::iter::repeat_n(Char { char: fill, origin: super::text::TEMPLATE }, count);
    Ok(padding(before).chain(text.chars().iter().copied()).chain(padding(missing - before)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float(value), text);
        }
    }
}
