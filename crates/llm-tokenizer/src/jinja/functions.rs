//! The functions of a template: `range`, `dict`, `namespace`, `raise_exception` and `strftime_now`.

use std::fmt::Write as _;

use super::Problem;
use super::interpreter::{Args, Interpreter};
use super::text::Text;
use super::value::{Function, Value};

type Result<T> = std::result::Result<T, Problem>;

/// Limit of `range`, as in the sandbox of jinja2.
const MAX_RANGE: i128 = 100_000;

impl Function {
    pub(super) fn call(self, args: Args, interpreter: &Interpreter) -> Result<Value> {
        match self {
            Self::Range => range(args, interpreter),
            Self::Dict => Value::dict(pairs(args)?),
            Self::Namespace => {
                let entries = pairs(args)?.into_iter().map(|(key, value)| match key {
                    Value::Text(key) if !key.string().starts_with('_') => Ok((key.string(), value)),
                    _ => Err(Problem::new("namespace: a name must be a text without an underscore at the beginning")),
                });
                Value::namespace(entries.collect::<Result<_>>()?)
            }
            Self::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = super::python::str(&message.unwrap_or(Value::None), interpreter)?;
                Err(Problem::new(message.string()))
            }
            Self::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let Some(Value::Text(format)) = format else {
                    return Err(Problem::new("strftime_now: the format must be a text"));
                };
                let mut text = String::new();
                write!(text, "{}", interpreter.now.format(&format.string()))
                    .map_err(|_| Problem::new(format!("strftime_now: {:?} is not a format", format.string())))?;
                Ok(Value::Text(Text::template(&text)))
            }
        }
    }
}

/// The entries of `dict(other, key=value)`.
fn pairs(args: Args) -> Result<Vec<(Value, Value)>> {
    let mut entries = Vec::new();
    for value in args.positional {
        match &value {
            Value::Dict(dict) => entries.extend(dict.entries.iter().cloned()),
            other => {
                for pair in other.iterate()? {
                    match <[Value; 2]>::try_from(pair.iterate()?) {
                        Ok([key, value]) => entries.push((key, value)),
                        Err(_) => return Err(Problem::new("dict: an item must be a pair")),
                    }
                }
            }
        }
    }
    entries.extend(args.named.into_iter().map(|(key, value)| (Value::text(&key), value)));
    Ok(entries)
}

fn range(args: Args, interpreter: &Interpreter) -> Result<Value> {
    let numbers: Option<Vec<i128>> = args.positional.iter().map(Value::int).collect();
    let (start, stop, step) = match numbers.as_deref() {
        Some([stop]) => (0, *stop, 1),
        Some([start, stop]) => (*start, *stop, 1),
        Some([start, stop, step]) if *step != 0 => (*start, *stop, *step),
        _ => return Err(Problem::new("range needs one to three numbers")),
    };
    let distance = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let count = distance.max(0).saturating_add(step.abs() - 1) / step.abs();
    if count > MAX_RANGE {
        return Err(Problem::new(format!("range has {count} numbers; the limit is {MAX_RANGE}")));
    }
    interpreter.charge(usize::try_from(count).unwrap_or(usize::MAX))?;
    Value::list((0..count).map(|at| Value::Int(start + at * step)).collect())
}
