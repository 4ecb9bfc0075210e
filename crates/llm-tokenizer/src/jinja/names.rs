//! The variables that a template reads and does not set itself.

use std::collections::BTreeSet;

use super::Template;
use super::ast::{Arguments, Expr, FilterCall, Kind, Macro, Statement, Target};
use super::value::Function;

impl Template {
    /// The names of the variables that must be given. A name that the template sets anywhere is not one of them.
    pub(crate) fn free_names(&self) -> BTreeSet<String> {
        let mut names = Names::default();
        names.statements(&self.body);
        let given = |name: &&String| !names.set.contains(*name) && Function::named(name).is_none();
        names.read.iter().filter(given).cloned().collect()
    }
}

#[derive(Default)]
struct Names {
    read: BTreeSet<String>,
    set: BTreeSet<String>,
}

impl Names {
    fn statements(&mut self, statements: &[Statement]) {
        for statement in statements {
            match &statement.kind {
                Kind::Text(_) | Kind::Break | Kind::Continue => {}
                Kind::Print(expr) => self.expr(expr),
                Kind::If(branches, otherwise) => {
                    for (condition, body) in branches {
                        self.expr(condition);
                        self.statements(body);
                    }
                    self.statements(otherwise);
                }
                Kind::For(each) => {
                    self.set.insert("loop".to_owned());
                    self.target(&each.target);
                    self.exprs([&each.items].into_iter().chain(&each.condition));
                    self.statements(&each.body);
                    self.statements(&each.otherwise);
                }
                Kind::Set(target, expr) => {
                    self.target(target);
                    self.expr(expr);
                }
                Kind::SetBlock(target, filters, body) => {
                    self.target(target);
                    self.filters(filters);
                    self.statements(body);
                }
                Kind::With(targets, body) => {
                    for (target, expr) in targets {
                        self.target(target);
                        self.expr(expr);
                    }
                    self.statements(body);
                }
                Kind::Macro(definition) => self.definition(definition),
                Kind::CallBlock(call, caller) => {
                    self.expr(call);
                    self.definition(caller);
                }
                Kind::FilterBlock(filters, body) => {
                    self.filters(filters);
                    self.statements(body);
                }
                Kind::Generation(body) => self.statements(body),
            }
        }
    }

    fn definition(&mut self, definition: &Macro) {
        self.set.extend(["caller".to_owned(), definition.name.clone()]);
        for (name, default) in &definition.parameters {
            self.set.insert(name.clone());
            self.exprs(default);
        }
        self.statements(&definition.body);
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => {
                self.set.insert(name.clone());
            }
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
            Target::Attribute(name, _) => {
                self.read.insert(name.clone());
            }
        }
    }

    fn filters(&mut self, filters: &[FilterCall]) {
        filters.iter().for_each(|filter| self.arguments(&filter.arguments));
    }

    fn arguments(&mut self, arguments: &Arguments) {
        self.exprs(&arguments.positional);
        self.exprs(arguments.named.iter().map(|(_, value)| value));
        self.exprs(arguments.list.iter().chain(&arguments.map).map(AsRef::as_ref));
    }

    fn exprs<'a>(&mut self, exprs: impl IntoIterator<Item = &'a Expr>) {
        exprs.into_iter().for_each(|expr| self.expr(expr));
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::None | Expr::Bool(_) | Expr::Int(_) | Expr::Float(_) | Expr::Text(_) => {}
            Expr::Name(name) => {
                self.read.insert(name.clone());
            }
            Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items) => self.exprs(items),
            Expr::Dict(entries) => entries.iter().for_each(|(key, value)| self.exprs([key, value])),
            Expr::Attribute(value, _) | Expr::Negative(value) | Expr::Positive(value) | Expr::Not(value) => {
                self.expr(value);
            }
            Expr::Item(a, b) | Expr::And(a, b) | Expr::Or(a, b) | Expr::Binary(_, a, b) => self.exprs([&**a, &**b]),
            Expr::Slice(value, parts) => {
                self.expr(value);
                self.exprs(parts.iter().flatten().map(AsRef::as_ref));
            }
            Expr::Call(callee, arguments) => {
                self.expr(callee);
                self.arguments(arguments);
            }
            Expr::Filter(value, call) | Expr::Test(value, call, _) => {
                self.expr(value);
                self.arguments(&call.arguments);
            }
            Expr::Compare(left, comparisons) => {
                self.expr(left);
                self.exprs(comparisons.iter().map(|(_, right)| right));
            }
            Expr::Conditional { value, condition, other } => {
                self.exprs([&**value, &**condition]);
                self.exprs(other.iter().map(AsRef::as_ref));
            }
        }
    }
}
