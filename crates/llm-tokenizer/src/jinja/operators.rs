//! The operators of Python: arithmetic, concatenation, repetition, slices.

use super::Problem;
use super::ast::Operator;
use super::interpreter::Interpreter;
use super::python;
use super::value::Value;

type Result<T> = std::result::Result<T, Problem>;

pub(super) fn negative(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(value) => Ok(Value::Float(-value)),
        other => {
            let negative = other.int().and_then(i128::checked_neg).map(Value::Int);
            negative.ok_or_else(|| Problem::new(format!("a {} cannot be negated", other.kind())))
        }
    }
}

/// `left operator right`
pub(super) fn binary(operator: Operator, left: &Value, right: &Value, interpreter: &Interpreter) -> Result<Value> {
    let (left, right) = match (operator, left) {
        // Python's % of a text accepts an undefined value as text.
        (Operator::Mod, Value::Text(text)) => return python::percent(text, right, interpreter).map(Value::Text),
        _ => (left.defined()?, right.defined()?),
    };
    match (operator, left, right) {
        (Operator::Add, Value::Text(a), Value::Text(b)) => {
            interpreter.charge(a.chars().len() + b.chars().len())?;
            Ok(Value::Text(a.plus(b)))
        }
        (Operator::Add, Value::List(a), Value::List(b)) => Value::list([&a.items[..], &b.items].concat()),
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => Value::tuple([&a.items[..], &b.items].concat()),
        (Operator::Mul, sequence @ (Value::Text(_) | Value::List(_)), count)
        | (Operator::Mul, count, sequence @ (Value::Text(_) | Value::List(_)))
            if count.int().is_some() =>
        {
            let count = usize::try_from(count.int().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
            interpreter.charge(sequence.length()?.saturating_mul(count))?;
            match sequence {
                Value::Text(text) => Ok(Value::Text(text.chars().repeat(count).into())),
                other => Value::list(std::iter::repeat_n(other.iterate()?, count).flatten().collect()),
            }
        }
        _ => arithmetic(operator, left, right),
    }
}

fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Result<Value> {
    let problem = || {
        let name = match operator {
            Operator::Add => "+",
            Operator::Sub => "-",
            Operator::Mul => "*",
            Operator::Div => "/",
            Operator::FloorDiv => "//",
            Operator::Mod => "%",
            Operator::Pow => "**",
        };
        Problem::new(format!("{} {name} {} is not possible", left.kind(), right.kind()))
    };
    if let (Some(a), Some(b), false) = (left.int(), right.int(), operator == Operator::Div) {
        // Python rounds a quotient down, and the remainder has the sign of the divisor.
        let floor = |a: i128, b: i128| Some(a.checked_div(b)? - i128::from(a % b != 0 && (a < 0) != (b < 0)));
        let result = match operator {
            Operator::Add => a.checked_add(b),
            Operator::Sub => a.checked_sub(b),
            Operator::Mul => a.checked_mul(b),
            Operator::Div => None,
            Operator::FloorDiv => floor(a, b),
            Operator::Mod => floor(a, b).and_then(|quotient| a.checked_sub(quotient.checked_mul(b)?)),
            Operator::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        };
        return result.map(Value::Int).ok_or_else(|| Problem::new(format!("{a} and {b}: the result is not a number")));
    }
    let (Some(a), Some(b)) = (left.float(), right.float()) else {
        return Err(problem());
    };
    if b == 0.0 && matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod) {
        return Err(Problem::new("division by zero"));
    }
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div => a / b,
        Operator::FloorDiv => (a / b).floor(),
        Operator::Mod => a - b * (a / b).floor(),
        Operator::Pow => a.powf(b),
    }))
}

/// `value[start:stop:step]`
pub(super) fn slice(value: &Value, [start, stop, step]: [Option<Value>; 3]) -> Result<Value> {
    let number = |part: Option<Value>| match part {
        None | Some(Value::None) => Ok(None),
        Some(part) => match part.defined()?.int() {
            Some(number) => Ok(Some(number)),
            None => Err(Problem::new(format!("a slice needs numbers, not a {}", part.kind()))),
        },
    };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Problem::new("the step of a slice must not be 0"));
    }
    let indices = |length: usize| -> Vec<usize> {
        let length = i128::try_from(length).unwrap_or(0);
        // The position before the first item is -1 for a slice that runs backwards.
        let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let bound = |at: Option<i128>, default: i128| {
            at.map_or(default, |at| (if at < 0 { at.saturating_add(length) } else { at }).clamp(low, high))
        };
        let (mut at, end) = match step > 0 {
            true => (bound(start, low), bound(stop, high)),
            false => (bound(start, high), bound(stop, low)),
        };
        let mut found = Vec::new();
        while (step > 0 && at < end) || (step < 0 && at > end) {
            found.extend(usize::try_from(at));
            at = at.saturating_add(step);
        }
        found
    };
    match value.defined()? {
        Value::Text(text) => {
            let chars = text.chars();
            Ok(Value::Text(indices(chars.len()).into_iter().map(|at| chars[at]).collect::<Vec<_>>().into()))
        }
        Value::List(list) => {
            Value::list(indices(list.items.len()).into_iter().map(|at| list.items[at].clone()).collect())
        }
        Value::Tuple(list) => {
            Value::tuple(indices(list.items.len()).into_iter().map(|at| list.items[at].clone()).collect())
        }
        other => Err(Problem::new(format!("a {} has no slices", other.kind()))),
    }
}
