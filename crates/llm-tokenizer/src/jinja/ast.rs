//! The syntax tree of a template.

use std::sync::Arc;

use super::text::Text;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `value.name`
    Attribute(Box<Expr>, String),
    /// `value[key]`
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    Filter(Box<Expr>, FilterCall),
    /// `value is name`, and whether it is negated
    Test(Box<Expr>, FilterCall, bool),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    /// `a < b <= c`
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `value if condition else other`
    Conditional {
        value: Box<Expr>,
        condition: Box<Expr>,
        other: Option<Box<Expr>>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(String, Expr)>,
    /// `*list`
    pub(super) list: Option<Box<Expr>>,
    /// `**map`
    pub(super) map: Option<Box<Expr>>,
}

/// The name and the arguments of a filter or test.
#[derive(Debug)]
pub(super) struct FilterCall {
    pub(super) name: String,
    pub(super) arguments: Arguments,
}

/// What a `for` or `set` assigns to.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    Tuple(Vec<Target>),
    /// `namespace.attribute`
    Attribute(String, String),
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: String,
    pub(super) parameters: Vec<(String, Option<Expr>)>,
    pub(super) body: Vec<Statement>,
}

/// A statement with the line where it begins, from 1.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Text(Text),
    Print(Expr),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    For(Box<For>),
    Set(Target, Expr),
    SetBlock(Target, Vec<FilterCall>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    Macro(Arc<Macro>),
    /// The call, and its `caller`
    CallBlock(Expr, Arc<Macro>),
    FilterBlock(Vec<FilterCall>, Vec<Statement>),
    Generation(Vec<Statement>),
    Break,
    Continue,
}

/// `{% for target in items if condition %}`
#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) condition: Option<Expr>,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
}
