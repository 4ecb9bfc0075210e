//! The filters of jinja2 that chat templates use.

use super::Problem;
use super::interpreter::{Args, Interpreter};
use super::operators;
use super::text::{self, Text};
use super::value::Value;
use super::{json, lists, python};

type Result<T> = std::result::Result<T, Problem>;

/// `value | name(args)`
pub(super) fn apply(name: &str, value: Value, args: Args, interpreter: &Interpreter) -> Result<Value> {
    match name {
        "tojson" => {
            let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
            let options = json::Options::new(args.bind(name, names)?)?;
            json::dumps(&value, &options, interpreter).map(Value::Text)
        }
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let missing =
                matches!(value, Value::Undefined(_)) || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
            Ok(if missing { default.unwrap_or_else(|| Value::text("")) } else { value })
        }
        "length" | "count" => length(&value),
        "abs" => match value.defined()? {
            Value::Float(value) => Ok(Value::Float(value.abs())),
            other => match other.int() {
                Some(value) if value < 0 => operators::negative(other),
                Some(value) => Ok(Value::Int(value)),
                None => Err(Problem::new(format!("abs: a {} is not a number", other.kind()))),
            },
        },
        "int" => {
            let [default, _] = args.bind(name, ["default", "base"])?;
            Ok(int(&value).map(Value::Int).or(default).unwrap_or(Value::Int(0)))
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let parsed = match &value {
                Value::Text(text) => text.string().trim().replace('_', "").parse().ok(),
                other => other.float(),
            };
            Ok(parsed.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
        "round" => round(&value, args),
        "attr" => match args.bind(name, ["name"])? {
            [Some(Value::Text(name))] => Ok(match (&value, value.attribute(&name.string())?) {
                (Value::Dict(_), method @ Value::Method(_)) => method,
                (Value::Dict(_), _) => Value::undefined(format!("there is no attribute \"{}\"", name.string())),
                (_, found) => found,
            }),
            _ => Err(Problem::new("attr needs the name of the attribute")),
        },
        "map" => map(&value, args, interpreter),
        "first" | "last" | "list" | "reverse" | "join" | "items" | "dictsort" | "sort" | "unique" | "min" | "max"
        | "sum" | "select" | "reject" | "selectattr" | "rejectattr" | "batch" => {
            lists::apply(name, value, args, interpreter)
        }
        _ => on_text(name, &python::str(&value, interpreter)?, args, interpreter).map(Value::Text),
    }
}

fn length(value: &Value) -> Result<Value> {
    Ok(Value::Int(i128::try_from(value.length()?).unwrap_or(i128::MAX)))
}

/// The filters on texts; other values are converted first.
fn on_text(name: &str, value: &Text, args: Args, interpreter: &Interpreter) -> Result<Text> {
    let chars = value.chars();
    interpreter.charge(chars.len())?;
    Ok(match name {
        "string" => value.clone(),
        "safe" => value.clone().into_markup(),
        "trim" => {
            let [set] = args.bind(name, ["chars"])?;
            let set = set.filter(|set| !matches!(set, Value::None));
            let set = set.map(|set| python::str(&set, interpreter)).transpose()?;
            text::strip(chars, set.as_ref().map(Text::chars), true, true).into()
        }
        "upper" => text::in_case(chars, true).into(),
        "lower" => text::in_case(chars, false).into(),
        "capitalize" => text::capitalize(chars).into(),
        "title" => text::title(chars, |c| text::is_space(c) || "-({[<".contains(c)).into(),
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Err(Problem::new("replace needs the old and the new text"));
            };
            let count = count.and_then(|count| count.int()).and_then(|count| usize::try_from(count).ok());
            let (old, new) = (python::str(&old, interpreter)?, python::str(&new, interpreter)?);
            replace(value, &old, &new, count.unwrap_or(usize::MAX), interpreter)?
        }
        "indent" => indent(value, args, interpreter)?,
        "format" if args.named.is_empty() => python::percent(value, &Value::tuple(args.positional)?, interpreter)?,
        "format" => {
            let named = args.named.into_iter().map(|(key, value)| (Value::text(&key), value)).collect();
            python::percent(value, &Value::dict(named)?, interpreter)?
        }
        "escape" | "e" => value.escaped(),
        _ => return Err(Problem::new(format!("there is no filter \"{name}\""))),
    })
}

/// Replaces `old` in a text; counts the work before the memory is used.
pub(super) fn replace(value: &Text, old: &Text, new: &Text, limit: usize, interpreter: &Interpreter) -> Result<Text> {
    let places = if old.chars().is_empty() { value.chars().len() + 1 } else { value.chars().len() / old.chars().len() };
    if places.saturating_mul(new.chars().len()) > 1 << 16 {
        let found = text::split(value.chars(), old.chars(), limit).len();
        interpreter.charge(found.min(places).saturating_mul(new.chars().len()))?;
    }
    Ok(text::replace(value.chars(), old.chars(), new.chars(), limit).into())
}

fn indent(value: &Text, args: Args, interpreter: &Interpreter) -> Result<Text> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let indentation = match width.unwrap_or(Value::Int(4)) {
        Value::Text(text) => text,
        other => {
            let width = other.int().and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
            interpreter.charge(width)?;
            Text::template(&" ".repeat(width))
        }
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_true(first), is_true(blank));
    let newline = Text::template("\n");
    let with_end = [value.chars(), newline.chars()].concat();
    let lines = text::lines(&with_end, false);
    interpreter.charge(lines.len().saturating_mul(indentation.chars().len()))?;
    let mut out = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(newline.chars());
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.extend_from_slice(indentation.chars());
        }
        out.extend_from_slice(line);
    }
    Ok(out.into())
}

#[allow(clippy::cast_possible_truncation, reason = "a float outside of the range becomes the nearest integer")]
fn int(value: &Value) -> Option<i128> {
    match value {
        Value::Text(text) => {
            let text = text.string().trim().replace('_', "");
            text.parse()
                .ok()
                .or_else(|| text.parse().ok().filter(|float: &f64| float.is_finite()).map(|float| float as i128))
        }
        Value::Float(value) if value.is_finite() => Some(*value as i128),
        other => other.int(),
    }
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.and_then(|precision| precision.int()).unwrap_or(0).clamp(-300, 300);
    let number = value.defined()?.float();
    let number = number.ok_or_else(|| Problem::new(format!("round: a {} is not a number", value.kind())))?;
    let method = match method {
        Some(Value::Text(method)) => method.string(),
        _ => "common".to_owned(),
    };
    let factor = 10f64.powi(i32::try_from(precision).unwrap_or(0));
    match method.as_str() {
        "common" if value.int().is_some() && precision >= 0 => Ok(value.clone()),
        // As Python: to the nearest, and to the even one of two that are equally near.
        "common" => Ok(Value::Float((number * factor).round_ties_even() / factor)),
        "ceil" => Ok(Value::Float((number * factor).ceil() / factor)),
        "floor" => Ok(Value::Float((number * factor).floor() / factor)),
        _ => Err(Problem::new("round: the method must be common, ceil or floor")),
    }
}

/// `map`: an attribute of each item, or a filter applied to each.
fn map(value: &Value, args: Args, interpreter: &Interpreter) -> Result<Value> {
    let items = lists::items_of(value, true, interpreter)?;
    let named = |name: &str| args.named.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    if let Some(attribute) = named("attribute") {
        let default = named("default");
        let values = items.iter().map(|item| match (lists::by_attribute(item, Some(&attribute))?, &default) {
            (Value::Undefined(_), Some(default)) => Ok(default.clone()),
            (value, _) => Ok(value),
        });
        return Value::generator(values.collect::<Result<_>>()?);
    }
    let Some((filter, rest)) = args.positional.split_first() else {
        return Err(Problem::new("map needs a filter or an attribute"));
    };
    let values = items
        .into_iter()
        .map(|item| by_name(filter, item, Args { positional: rest.to_vec(), named: args.named.clone() }, interpreter));
    Value::generator(values.collect::<Result<_>>()?)
}

/// Applies a filter by name to an item, for `map`.
fn by_name(name: &Value, value: Value, args: Args, interpreter: &Interpreter) -> Result<Value> {
    match name {
        Value::Text(name) => apply(&name.string(), value, args, interpreter),
        other => Err(Problem::new(format!("map needs the name of a filter, not a {}", other.kind()))),
    }
}
