//! The tests of jinja2: `value is name(args)`.

use std::rc::Rc;

use super::Problem;
use super::interpreter::Args;
use super::value::Value;

type Result<T> = std::result::Result<T, Problem>;

/// Whether a value passes a test.
pub(super) fn check(name: &str, value: &Value, args: Args) -> Result<bool> {
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // Of Python a text is a sequence, and so is an undefined value of jinja2.
        "iterable" if matches!(value, Value::Generator(_)) => true,
        "sequence" | "iterable" => {
            matches!(value, Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_))
        }
        "callable" => matches!(value, Value::Function(_) | Value::Macro(_) | Value::Method(_) | Value::Undefined(_)),
        "lower" | "upper" => match value {
            Value::Text(text) => {
                let text = text.string();
                let has_case = text.chars().any(|c| c.is_lowercase() || c.is_uppercase());
                has_case && (if name == "lower" { text == text.to_lowercase() } else { text == text.to_uppercase() })
            }
            _ => false,
        },
        "odd" | "even" => remainder(value, &Value::Int(2))? == i128::from(name == "odd"),
        _ => {
            let [other] = args.bind(name, ["other"])?;
            let other = other.unwrap_or_else(|| Value::undefined(format!("the test \"{name}\" needs a value")));
            match name {
                "divisibleby" => remainder(value, &other)? == 0,
                "in" => other.contains(value)?,
                "sameas" => same(value, &other),
                "eq" | "equalto" | "==" => value.equals(&other),
                "ne" | "!=" => !value.equals(&other),
                "lt" | "lessthan" | "<" => value.order(&other)?.is_lt(),
                "le" | "<=" => value.order(&other)?.is_le(),
                "gt" | "greaterthan" | ">" => value.order(&other)?.is_gt(),
                "ge" | ">=" => value.order(&other)?.is_ge(),
                _ => return Err(Problem::new(format!("there is no test \"{name}\""))),
            }
        }
    })
}

fn remainder(value: &Value, divisor: &Value) -> Result<i128> {
    let numbers = value.defined()?.int().zip(divisor.defined()?.int().filter(|divisor| *divisor != 0));
    let (value, divisor) = numbers.ok_or_else(|| Problem::new("divisibleby, odd and even need whole numbers"))?;
    Ok(value.rem_euclid(divisor.abs()))
}

/// Whether two values are the same object.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Bool(_), _) | (_, Value::Bool(_)) => false,
        _ => a.equals(b),
    }
}
