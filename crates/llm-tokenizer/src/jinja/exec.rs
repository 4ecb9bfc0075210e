//! Runs statements.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Problem;
use super::ast::{Expr, FilterCall, For, Kind, Macro, Statement, Target};
use super::interpreter::Interpreter;
use super::python;
use super::text::{Char, GENERATION, Text};
use super::value::{Closure, Loop, Scope, Value};

type Result<T> = std::result::Result<T, Problem>;

/// What follows a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl Interpreter {
    /// Runs statements; appends their text to `out`.
    pub(super) fn run(&self, body: &[Statement], scope: &Rc<Scope>, out: &mut Vec<Char>) -> Result<Flow> {
        for statement in body {
            let flow = self.charge(0).and_then(|()| self.statement(&statement.kind, scope, out));
            let flow = flow.map_err(|problem| problem.at_line(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&self, kind: &Kind, scope: &Rc<Scope>, out: &mut Vec<Char>) -> Result<Flow> {
        match kind {
            Kind::Text(text) => self.print(text, out)?,
            Kind::Print(value) => {
                let text = python::str(&self.eval(value, scope)?, self)?;
                self.print(&text, out)?;
            }
            Kind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.run(body, scope, out);
                    }
                }
                return self.run(otherwise, scope, out);
            }
            Kind::For(block) => self.for_block(block, scope, out)?,
            Kind::Set(target, value) => assign(target, self.eval(value, scope)?, scope)?,
            Kind::SetBlock(target, filters, body) => {
                assign(target, self.captured(body, filters, scope)?, scope)?;
            }
            Kind::With(assignments, body) => {
                let inner = scope.inner();
                for (target, value) in assignments {
                    assign(target, self.eval(value, scope)?, &inner)?;
                }
                return self.run(body, &inner, out);
            }
            Kind::Macro(decl) => scope.set(&decl.name, closure(decl, scope)),
            Kind::CallBlock(call, caller) => {
                let Expr::Call(callee, arguments) = call else { return Ok(Flow::Next) };
                let callee = self.eval(callee, scope)?;
                let mut args = self.arguments(arguments, scope)?;
                args.named.push(("caller".to_owned(), closure(caller, scope)));
                let text = python::str(&self.call(&callee, args)?, self)?;
                self.print(&text, out)?;
            }
            Kind::FilterBlock(filters, body) => {
                let text = python::str(&self.captured(body, filters, scope)?, self)?;
                self.print(&text, out)?;
            }
            Kind::Generation(body) => {
                let start = out.len();
                self.run(body, &scope.inner(), out)?;
                for c in &mut out[start..] {
                    c.origin |= GENERATION;
                }
            }
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn print(&self, text: &Text, out: &mut Vec<Char>) -> Result<()> {
        self.charge(text.chars().len())?;
        out.extend_from_slice(text.chars());
        Ok(())
    }

    /// The text of a block after these filters.
    fn captured(&self, body: &[Statement], filters: &[FilterCall], scope: &Rc<Scope>) -> Result<Value> {
        let mut text = Vec::new();
        self.run(body, &scope.inner(), &mut text)?;
        let text = Value::Text(text.into());
        filters.iter().try_fold(text, |value, filter| self.filter(value, filter, scope))
    }

    fn for_block(&self, block: &For, scope: &Rc<Scope>, out: &mut Vec<Char>) -> Result<()> {
        let mut items = self.eval(&block.items, scope)?.iterate()?;
        self.charge(items.len())?;
        if let Some(condition) = &block.condition {
            let mut kept = Vec::new();
            for item in items {
                let inner = scope.inner();
                assign(&block.target, item.clone(), &inner)?;
                if self.eval(condition, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.run(&block.otherwise, &scope.inner(), out)?;
            return Ok(());
        }
        let depth = match scope.get("loop") {
            Some(Value::Loop(outer)) => outer.depth + 1,
            _ => 0,
        };
        let Value::List(items) = Value::list(items)? else { return Ok(()) };
        let changed = Rc::new(RefCell::new(None));
        for index in 0..items.items.len() {
            let inner = scope.inner();
            let state = Loop { items: Rc::clone(&items), index, depth, changed: Rc::clone(&changed) };
            inner.set("loop", Value::Loop(Rc::new(state)));
            assign(&block.target, items.items[index].clone(), &inner)?;
            if self.run(&block.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }
}

fn closure(decl: &Arc<Macro>, scope: &Rc<Scope>) -> Value {
    Value::Macro(Rc::new(Closure { decl: Arc::clone(decl), scope: Rc::downgrade(scope) }))
}

fn assign(target: &Target, value: Value, scope: &Scope) -> Result<()> {
    match target {
        Target::Name(name) => scope.set(name, value),
        Target::Tuple(targets) => {
            let values = value.iterate()?;
            if values.len() != targets.len() {
                return Err(Problem::new(format!("{} values for {} names", values.len(), targets.len())));
            }
            for (target, value) in targets.iter().zip(values) {
                assign(target, value, scope)?;
            }
        }
        Target::Attribute(namespace, name) => match scope.get(namespace) {
            Some(Value::Namespace(namespace)) => namespace.set(name, value)?,
            _ => return Err(Problem::new(format!("\"{namespace}\" is not a namespace, so it cannot be changed"))),
        },
    }
    Ok(())
}
