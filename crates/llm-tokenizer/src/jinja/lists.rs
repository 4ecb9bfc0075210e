//! The filters on lists and dictionaries.

use std::cmp::Ordering;

use super::Problem;
use super::interpreter::{Args, Interpreter};
use super::text::{self, Text};
use super::value::Value;
use super::{ast, checks, operators, python};

type Result<T> = std::result::Result<T, Problem>;

/// `value | name(args)`
pub(super) fn apply(name: &str, value: Value, mut args: Args, interpreter: &Interpreter) -> Result<Value> {
    match name {
        "items" => Value::generator(items(&value)?.iterate()?),
        "reverse" => match &value {
            Value::Text(text) => Ok(Value::Text(text.chars().iter().rev().copied().collect::<Vec<_>>().into())),
            other => Value::generator(other.iterate()?.into_iter().rev().collect()),
        },
        "dictsort" => {
            let [sensitive, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
            let by_value = matches!(by, Some(Value::Text(by)) if by.is("value"));
            let entries = match &value {
                Value::Dict(dict) => dict.entries.clone(),
                other => return Err(Problem::new(format!("dictsort: a {} is not a dict", other.kind()))),
            };
            let key = |(key, value): &(Value, Value)| Ok(if by_value { value.clone() } else { key.clone() });
            let sorted = sorted(entries, key, is_true(sensitive.as_ref()), is_true(reverse.as_ref()))?;
            Value::list(sorted.into_iter().map(|(key, value)| Value::tuple(vec![key, value])).collect::<Result<_>>()?)
        }
        _ => {
            let lazy = ["select", "reject", "selectattr", "rejectattr"].contains(&name);
            let items = items_of(&value, lazy, interpreter)?;
            match name {
                "list" => Value::list(items),
                "first" => Ok(items.into_iter().next().unwrap_or_else(|| Value::undefined("there is no first item"))),
                "last" => Ok(items.into_iter().last().unwrap_or_else(|| Value::undefined("there is no last item"))),
                "join" => join(&items, args, interpreter),
                "select" | "reject" => {
                    let test = args.positional.first();
                    let rest = args.positional.get(1..).unwrap_or_default();
                    kept(items, |item| Ok(passes(item, test, rest)? == (name == "select")))
                }
                "selectattr" | "rejectattr" => {
                    if args.positional.is_empty() {
                        return Err(Problem::new(format!("{name} needs the name of an attribute")));
                    }
                    let attribute = args.positional.remove(0);
                    let test = args.positional.first();
                    let rest = args.positional.get(1..).unwrap_or_default();
                    kept(items, |item| {
                        Ok(passes(&by_attribute(item, Some(&attribute))?, test, rest)? == (name == "selectattr"))
                    })
                }
                "sum" => {
                    let [attribute, start] = args.bind(name, ["attribute", "start"])?;
                    items.iter().try_fold(start.unwrap_or(Value::Int(0)), |sum, item| {
                        add(&sum, &by_attribute(item, attribute.as_ref())?, interpreter)
                    })
                }
                "batch" => batch(&items, args),
                _ => ordered(name, items, args),
            }
        }
    }
}

/// The items that a filter works on. For a lazy filter every value that is not true has none.
pub(super) fn items_of(value: &Value, lazy: bool, interpreter: &Interpreter) -> Result<Vec<Value>> {
    let items = if lazy && !value.is_true() { Vec::new() } else { value.iterate()? };
    interpreter.charge(items.len())?;
    Ok(items)
}

fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// The pairs of a dictionary.
pub(super) fn items(value: &Value) -> Result<Value> {
    match value {
        Value::Undefined(_) => Value::list(Vec::new()),
        Value::Dict(dict) => {
            let pairs = dict.entries.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()]));
            Value::list(pairs.collect::<Result<_>>()?)
        }
        other => Err(Problem::new(format!("a {} has no items", other.kind()))),
    }
}

fn kept(items: Vec<Value>, keep: impl Fn(&Value) -> Result<bool>) -> Result<Value> {
    let mut found = Vec::new();
    for item in items {
        if keep(&item)? {
            found.push(item);
        }
    }
    Value::generator(found)
}

/// The attribute `a.b.0` of an item, or the item itself.
pub(super) fn by_attribute(item: &Value, attribute: Option<&Value>) -> Result<Value> {
    match attribute {
        None | Some(Value::None) => Ok(item.clone()),
        Some(Value::Text(path)) => path.string().split('.').try_fold(item.clone(), |value, part| {
            value.item(&part.parse().map_or_else(|_| Value::text(part), Value::Int))
        }),
        Some(key) => item.item(key),
    }
}

fn join(items: &[Value], args: Args, interpreter: &Interpreter) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = separator.map(|d| python::str(&d, interpreter)).transpose()?.unwrap_or_else(|| Text::template(""));
    let mut out = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(separator.chars());
        }
        let text = python::str(&by_attribute(item, attribute.as_ref())?, interpreter)?;
        interpreter.charge(text.chars().len() + separator.chars().len())?;
        out.extend_from_slice(text.chars());
    }
    Ok(Value::Text(out.into()))
}

fn batch(items: &[Value], args: Args) -> Result<Value> {
    let [size, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let size = size.and_then(|size| size.int()).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    let size = size.ok_or_else(|| Problem::new("batch needs a number above 0"))?;
    let batches = items.chunks(size).map(|chunk| {
        let mut chunk = chunk.to_vec();
        if let Some(fill) = &fill {
            chunk.resize(size.min(items.len().max(chunk.len())), fill.clone());
        }
        Value::list(chunk)
    });
    Value::generator(batches.collect::<Result<_>>()?)
}

/// `sort`, `unique`, `min` and `max`.
fn ordered(name: &str, mut items: Vec<Value>, args: Args) -> Result<Value> {
    let names =
        if name == "sort" { ["reverse", "case_sensitive", "attribute"] } else { ["case_sensitive", "attribute", ""] };
    let [first, second, third] = args.bind(name, names)?;
    let (reverse, sensitive, attribute) = match name {
        "sort" => (is_true(first.as_ref()), is_true(second.as_ref()), third),
        _ => (false, is_true(first.as_ref()), second),
    };
    let key = |item: &Value| by_attribute(item, attribute.as_ref());
    match name {
        "unique" => {
            let mut seen: Vec<Value> = Vec::new();
            kept_mut(&mut items, |item| {
                let key = folded(key(item)?, sensitive);
                let new = !seen.iter().any(|other| other.equals(&key));
                seen.extend(new.then_some(key));
                Ok(new)
            })?;
            Value::generator(items)
        }
        "sort" => Value::list(sorted(items, key, sensitive, reverse)?),
        _ => {
            // The first of equal items, as in Python.
            let best = sorted(items, key, sensitive, name == "max")?.into_iter().next();
            Ok(best.unwrap_or_else(|| Value::undefined("there are no items")))
        }
    }
}

fn kept_mut(items: &mut Vec<Value>, mut keep: impl FnMut(&Value) -> Result<bool>) -> Result<()> {
    let mut found = Vec::new();
    for item in items.drain(..) {
        if keep(&item)? {
            found.push(item);
        }
    }
    *items = found;
    Ok(())
}

/// A text in lower case, unless case matters.
fn folded(value: Value, sensitive: bool) -> Value {
    match value {
        Value::Text(text) if !sensitive => Value::Text(text::in_case(text.chars(), false).into()),
        other => other,
    }
}

/// The items in the order of their keys; items with equal keys stay in their order.
fn sorted<T>(items: Vec<T>, key: impl Fn(&T) -> Result<Value>, sensitive: bool, reverse: bool) -> Result<Vec<T>> {
    let keyed = items.into_iter().map(|item| Ok((folded(key(&item)?, sensitive), item)));
    let mut keyed: Vec<(Value, T)> = keyed.collect::<Result<_>>()?;
    let mut wrong = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.order(b).unwrap_or_else(|problem| {
            wrong = Some(problem);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match wrong {
        Some(problem) => Err(problem),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

/// Whether an item passes a test by name, for `select`; without a name, whether it is true.
fn passes(value: &Value, test: Option<&Value>, rest: &[Value]) -> Result<bool> {
    match test {
        None => Ok(value.is_true()),
        Some(Value::Text(name)) => {
            checks::check(&name.string(), value, Args { positional: rest.to_vec(), named: Vec::new() })
        }
        Some(other) => Err(Problem::new(format!("a test needs a name, not a {}", other.kind()))),
    }
}

/// The sum of two values, for `sum`.
fn add(left: &Value, right: &Value, interpreter: &Interpreter) -> Result<Value> {
    operators::binary(ast::Operator::Add, left, right, interpreter)
}
