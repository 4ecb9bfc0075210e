//! Evaluates expressions.

use std::rc::Rc;

use super::Problem;
use super::ast::{Arguments, Comparison, Expr, FilterCall};
use super::interpreter::{Args, Interpreter};
use super::text::Text;
use super::value::{Closure, Function, Scope, Value};
use super::{checks, filters, methods, operators, python};

type Result<T> = std::result::Result<T, Problem>;

/// Limit on calls inside calls.
const MAX_CALLS: u32 = 60;

impl Interpreter {
    pub(super) fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let eval = |expr: &Expr| self.eval(expr, scope);
        let all = |items: &[Expr]| items.iter().map(eval).collect::<Result<Vec<_>>>();
        self.charge(0)?;
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Text(text) => Ok(Value::Text(text.clone())),
            Expr::Name(name) => Ok(variable(name, scope)),
            Expr::List(items) => Value::list(all(items)?),
            Expr::Tuple(items) => Value::tuple(all(items)?),
            Expr::Dict(entries) => {
                let pairs = entries.iter().map(|(key, value)| Ok((eval(key)?, eval(value)?)));
                Value::dict(pairs.collect::<Result<_>>()?)
            }
            Expr::Attribute(value, name) => eval(value)?.attribute(name),
            Expr::Item(value, key) => eval(value)?.item(&eval(key)?),
            Expr::Slice(value, parts) => {
                let value = eval(value)?;
                let part = |part: &Option<Box<Expr>>| part.as_deref().map(eval).transpose();
                let [start, stop, step] = parts;
                self.charged(operators::slice(&value, [part(start)?, part(stop)?, part(step)?])?)
            }
            Expr::Call(callee, arguments) => {
                let callee = eval(callee)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&callee, args)
            }
            Expr::Filter(value, filter) => self.filter(eval(value)?, filter, scope),
            Expr::Test(value, test, negated) => {
                let args = self.arguments(&test.arguments, scope)?;
                Ok(Value::Bool(checks::check(&test.name, &eval(value)?, args)? != *negated))
            }
            Expr::Negative(value) => operators::negative(&eval(value)?),
            Expr::Positive(value) => eval(value),
            Expr::Not(value) => Ok(Value::Bool(!eval(value)?.is_true())),
            Expr::And(left, right) => match eval(left)? {
                left if left.is_true() => eval(right),
                left => Ok(left),
            },
            Expr::Or(left, right) => match eval(left)? {
                left if left.is_true() => Ok(left),
                _ => eval(right),
            },
            Expr::Binary(operator, left, right) => {
                self.charged(operators::binary(*operator, &eval(left)?, &eval(right)?, self)?)
            }
            Expr::Concat(parts) => {
                let mut out = Vec::new();
                for part in parts {
                    let text = python::str(&eval(part)?, self)?;
                    self.charge(text.chars().len())?;
                    out.extend_from_slice(text.chars());
                }
                Ok(Value::Text(out.into()))
            }
            Expr::Compare(left, comparisons) => self.compare(eval(left)?, comparisons, scope),
            Expr::Conditional { value, condition, other } => match (eval(condition)?.is_true(), other) {
                (true, _) => eval(value),
                (false, Some(other)) => eval(other),
                (false, None) => Ok(Value::undefined("the condition is false and there is no \"else\"")),
            },
        }
    }

    fn compare(&self, mut left: Value, comparisons: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        for (comparison, right) in comparisons {
            let right = self.eval(right, scope)?;
            self.charge(match &right {
                Value::Text(text) => text.chars().len(),
                Value::List(list) => list.items.len(),
                _ => 0,
            })?;
            let holds = match comparison {
                Comparison::Equal => left.equals(&right),
                Comparison::NotEqual => !left.equals(&right),
                Comparison::Less => left.order(&right)?.is_lt(),
                Comparison::LessEqual => left.order(&right)?.is_le(),
                Comparison::Greater => left.order(&right)?.is_gt(),
                Comparison::GreaterEqual => left.order(&right)?.is_ge(),
                Comparison::In => right.contains(&left)?,
                Comparison::NotIn => !right.contains(&left)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(super) fn arguments(&self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Args> {
        let mut args = Args::default();
        for value in &arguments.positional {
            args.positional.push(self.eval(value, scope)?);
        }
        for (name, value) in &arguments.named {
            args.named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(list) = &arguments.list {
            args.positional.extend(self.eval(list, scope)?.iterate()?);
        }
        if let Some(map) = &arguments.map {
            match self.eval(map, scope)? {
                Value::Dict(dict) => {
                    for (key, value) in &dict.entries {
                        args.named.push((python::str(key, self)?.string(), value.clone()));
                    }
                }
                other => return Err(Problem::new(format!("** needs a dict, not a {}", other.kind()))),
            }
        }
        Ok(args)
    }

    pub(super) fn filter(&self, value: Value, filter: &FilterCall, scope: &Rc<Scope>) -> Result<Value> {
        let args = self.arguments(&filter.arguments, scope)?;
        self.charged(filters::apply(&filter.name, value, args, self)?)
    }

    pub(super) fn call(&self, callee: &Value, args: Args) -> Result<Value> {
        let calls = self.calls.get() + 1;
        if calls > MAX_CALLS {
            return Err(Problem::new(format!("more than {MAX_CALLS} calls inside each other")));
        }
        self.calls.set(calls);
        let value = match callee {
            Value::Function(function) => function.call(args, self),
            Value::Method(method) => methods::call(&method.0, &method.1, args, self),
            Value::Macro(closure) => self.call_macro(closure, args),
            other => {
                other.defined().and_then(|other| Err(Problem::new(format!("a {} cannot be called", other.kind()))))
            }
        };
        self.calls.set(calls - 1);
        self.charged(value?)
    }

    fn call_macro(&self, closure: &Closure, mut args: Args) -> Result<Value> {
        let name = &closure.decl.name;
        let outer = closure.scope.upgrade();
        let outer = outer.ok_or_else(|| Problem::new(format!("\"{name}\" is called outside of its block")))?;
        let scope = outer.inner();
        if let Some(at) = args.named.iter().position(|(name, _)| name == "caller") {
            scope.set("caller", args.named.remove(at).1);
        }
        let parameters = &closure.decl.parameters;
        if args.positional.len() > parameters.len() {
            return Err(Problem::new(format!("\"{name}\" takes at most {} arguments", parameters.len())));
        }
        let mut positional = args.positional.into_iter();
        for (parameter, default) in parameters {
            let named = args.named.iter().position(|(name, _)| name == parameter);
            let value = match (positional.next(), named) {
                (None, Some(at)) => args.named.remove(at).1,
                (Some(value), None) => value,
                (Some(_), Some(_)) => return Err(Problem::new(format!("\"{name}\" got \"{parameter}\" twice"))),
                (None, None) => match default {
                    Some(default) => self.eval(default, &scope)?,
                    None => Value::undefined(format!("\"{parameter}\" is undefined")),
                },
            };
            scope.set(parameter, value);
        }
        if let Some((unknown, _)) = args.named.first() {
            return Err(Problem::new(format!("\"{name}\" takes no argument \"{unknown}\"")));
        }
        let mut out = Vec::new();
        self.run(&closure.decl.body, &scope, &mut out)?;
        Ok(Value::Text(Text::from(out)))
    }
}

fn variable(name: &str, scope: &Scope) -> Value {
    let value = scope.get(name).or_else(|| Function::named(name).map(Value::Function));
    value.unwrap_or_else(|| Value::undefined(format!("\"{name}\" is undefined")))
}
