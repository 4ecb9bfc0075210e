//! The methods of texts, dictionaries, lists and of `loop`; `value/attributes.rs` lists their names.

use super::Problem;
use super::interpreter::{Args, Interpreter};
use super::text::{self, Char, Text};
use super::value::Value;
use super::{filters, lists, python};

type Result<T> = std::result::Result<T, Problem>;

/// `value.name(args)`
pub(super) fn call(value: &Value, name: &str, args: Args, interpreter: &Interpreter) -> Result<Value> {
    match (value, name) {
        (Value::Text(text), _) => {
            interpreter.charge(text.chars().len())?;
            match name {
                "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => parts(text, name, args),
                "format" => python::format(text, &args.positional, &args.named, interpreter).map(Value::Text),
                "join" => {
                    let [items] = args.bind(name, ["iterable"])?;
                    let items = items.ok_or_else(|| Problem::new("join needs a list"))?;
                    if let Some(other) = items.iterate()?.iter().find(|item| !matches!(item, Value::Text(_))) {
                        return Err(Problem::new(format!("join: an item is a {}, not a text", other.kind())));
                    }
                    let args = Args { positional: vec![value.clone()], named: Vec::new() };
                    lists::apply("join", items, args, interpreter)
                }
                _ => match question(text, name, &args)? {
                    Some(answer) => Ok(answer),
                    None => changed(text, name, args, interpreter).map(Value::Text),
                },
            }
        }
        (Value::Dict(dict), "get") => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = key.ok_or_else(|| Problem::new("get needs a key"))?;
            Ok(dict.get(&key).cloned().or(default).unwrap_or(Value::None))
        }
        (Value::Dict(_), "items") => lists::items(value),
        (Value::Dict(_), "keys") => Value::list(value.iterate()?),
        (Value::Dict(dict), "values") => Value::list(dict.entries.iter().map(|(_, value)| value.clone()).collect()),
        (Value::List(list) | Value::Tuple(list), "count" | "index") => {
            let [item] = args.bind(name, ["value"])?;
            let item = item.ok_or_else(|| Problem::new(format!("{name} needs a value")))?;
            let found = if name == "count" {
                Some(list.items.iter().filter(|other| other.equals(&item)).count())
            } else {
                list.items.iter().position(|other| other.equals(&item))
            };
            found.map(number).ok_or_else(|| Problem::new("index: the value is not in the list"))
        }
        (Value::Loop(state), "cycle") if !args.positional.is_empty() => {
            Ok(args.positional[state.index % args.positional.len()].clone())
        }
        (Value::Loop(state), "changed") => {
            let now = Value::tuple(args.positional)?;
            let changed = state.changed.borrow().as_ref().is_none_or(|last| !last.equals(&now));
            *state.changed.borrow_mut() = Some(now);
            Ok(Value::Bool(changed))
        }
        _ => Ok(value.clone()),
    }
}

fn number(value: usize) -> Value {
    Value::Int(i128::try_from(value).unwrap_or(i128::MAX))
}

/// An argument that must be a text.
fn text_argument(value: Option<Value>, what: &str) -> Result<Option<Text>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(other) => Err(Problem::new(format!("{what} needs a text, not a {}", other.kind()))),
    }
}

fn needed(value: Option<Value>, what: &str) -> Result<Text> {
    text_argument(value, what)?.ok_or_else(|| Problem::new(format!("{what} needs a text")))
}

/// A number that limits something; negative or missing means no limit.
fn limit(value: Option<Value>) -> usize {
    value.and_then(|value| value.int()).and_then(|value| usize::try_from(value).ok()).unwrap_or(usize::MAX)
}

/// The methods that cut a text.
fn parts(value: &Text, name: &str, args: Args) -> Result<Value> {
    let chars = value.chars();
    let texts = |parts: Vec<&[Char]>| parts.into_iter().map(|part| Value::Text(part.into())).collect::<Vec<_>>();
    match name {
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            Value::list(texts(text::lines(chars, keep.is_some_and(|keep| keep.is_true()))))
        }
        "split" | "rsplit" => {
            let [separator, count] = args.bind(name, ["sep", "maxsplit"])?;
            let count = limit(count);
            match text_argument(separator, name)? {
                Some(separator) if separator.chars().is_empty() => Err(Problem::new("split: the separator is empty")),
                Some(separator) if name == "split" => Value::list(texts(text::split(chars, separator.chars(), count))),
                Some(separator) => Value::list(texts(text::rsplit(chars, separator.chars(), count))),
                None if name == "rsplit" && count != usize::MAX => {
                    Err(Problem::new("rsplit with a limit needs a separator"))
                }
                None => Value::list(texts(text::words(chars, count))),
            }
        }
        _ => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = needed(separator, name)?;
            let (found, first) = match name {
                "partition" => (text::find(chars, separator.chars(), 0), true),
                _ => (text::rfind(chars, separator.chars()), false),
            };
            let empty: &[Char] = &[];
            Value::tuple(texts(match found {
                Some(at) => {
                    let end = at + separator.chars().len();
                    vec![&chars[..at], &chars[at..end], &chars[end..]]
                }
                None if first => vec![chars, empty, empty],
                None => vec![empty, empty, chars],
            }))
        }
    }
}

/// The methods that ask something about a text; `None` for others.
fn question(value: &Text, name: &str, args: &Args) -> Result<Option<Value>> {
    let chars = value.chars();
    let every = |test: fn(char) -> bool| !chars.is_empty() && chars.iter().all(|c| test(c.char));
    let cased = |wrong: fn(char) -> bool| {
        chars.iter().any(|c| c.char.is_lowercase() || c.char.is_uppercase()) && !chars.iter().any(|c| wrong(c.char))
    };
    let holds = match name {
        "isalnum" => every(char::is_alphanumeric),
        "isalpha" => every(char::is_alphabetic),
        "isascii" => chars.iter().all(|c| c.char.is_ascii()),
        "isdecimal" | "isdigit" => every(|c| c.is_ascii_digit()),
        "isnumeric" => every(char::is_numeric),
        "isspace" => every(text::is_space),
        "islower" => cased(char::is_uppercase),
        "isupper" => cased(char::is_lowercase),
        "startswith" | "endswith" => {
            let first = args.positional.first();
            let options = match first {
                Some(Value::Tuple(list)) => list.items.clone(),
                other => other.cloned().into_iter().collect(),
            };
            let bound = |at: usize| args.positional.get(at).cloned();
            let range = super::operators::slice(&Value::Text(value.clone()), [bound(1), bound(2), None])?;
            let Value::Text(range) = range else { return Ok(None) };
            let mut found = false;
            for option in options {
                let option = needed(Some(option), name)?;
                found |= match name {
                    "startswith" => range.chars().starts_with(option.chars()),
                    _ => range.chars().ends_with(option.chars()),
                };
            }
            found
        }
        "count" | "find" | "rfind" | "index" | "rindex" => {
            let part = needed(args.positional.first().cloned(), name)?;
            let from = args.positional.get(1).and_then(Value::int).and_then(|from| usize::try_from(from).ok());
            let found = match name {
                "count" => Some(text::split(chars, part.chars(), usize::MAX).len() - 1),
                "find" | "index" => text::find(chars, part.chars(), from.unwrap_or(0)),
                _ => text::rfind(chars, part.chars()),
            };
            return match found {
                Some(at) => Ok(Some(number(at))),
                None if name.ends_with("find") => Ok(Some(Value::Int(-1))),
                None => Err(Problem::new(format!("{name}: the text does not contain {:?}", part.string()))),
            };
        }
        _ => return Ok(None),
    };
    Ok(Some(Value::Bool(holds)))
}

/// The methods that return a changed text.
fn changed(value: &Text, name: &str, args: Args, interpreter: &Interpreter) -> Result<Text> {
    let chars = value.chars();
    Ok(match name {
        "upper" => text::in_case(chars, true).into(),
        "lower" | "casefold" => text::in_case(chars, false).into(),
        "capitalize" => text::capitalize(chars).into(),
        "title" => text::title(chars, |c| !c.is_alphabetic()).into(),
        "swapcase" => {
            let swapped = chars.iter().flat_map(|c| text::in_case(std::slice::from_ref(c), c.char.is_lowercase()));
            swapped.collect::<Vec<_>>().into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let [set] = args.bind(name, ["chars"])?;
            let set = text_argument(set, name)?;
            text::strip(chars, set.as_ref().map(Text::chars), name != "rstrip", name != "lstrip").into()
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.bind(name, ["part"])?;
            let part = needed(part, name)?;
            let rest = match name {
                "removeprefix" => chars.strip_prefix(part.chars()),
                _ => chars.strip_suffix(part.chars()),
            };
            rest.unwrap_or(chars).into()
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            filters::replace(value, &needed(old, name)?, &needed(new, name)?, limit(count), interpreter)?
        }
        _ => padded(chars, name, args, interpreter)?,
    })
}

/// `center`, `ljust`, `rjust` and `zfill`.
fn padded(chars: &[Char], name: &str, args: Args, interpreter: &Interpreter) -> Result<Text> {
    let [width, fill] = args.bind(name, ["width", "fillchar"])?;
    let width = width.and_then(|width| width.int()).and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    interpreter.charge(width)?;
    let fill = text_argument(fill, name)?.unwrap_or_else(|| Text::template(if name == "zfill" { "0" } else { " " }));
    let missing = width.saturating_sub(chars.len());
    let before = match name {
        "ljust" => 0,
        // Python puts the odd character to the left if the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let sign = usize::from(name == "zfill" && chars.first().is_some_and(|c| "+-".contains(c.char)));
    let (sign, rest) = chars.split_at(sign);
    let padding = |count: usize| fill.chars().repeat(count);
    Ok([sign, &padding(before), rest, &padding(missing - before)].concat().into())
}
