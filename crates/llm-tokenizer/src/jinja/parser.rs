//! Parses the tokens of a template: [`parse`] and the expressions. `arguments.rs` has calls, filters and tests, `statements.rs` the
//! statements.

use super::Problem;
use super::ast::{Comparison, Expr, Operator, Statement};
use super::lexer::{Token, tokenize};
use super::text::Text;

/// Limit on nested expressions and statements, so that a template cannot exhaust the stack.
const MAX_DEPTH: usize = 64;
/// Limit on the operators of one chain such as `a + b + c`, for the same reason.
const MAX_CHAIN: usize = 200;

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Vec<Statement>, Problem> {
    let mut parser = Parser { tokens: tokenize(source)?, at: 0, depth: 0 };
    let body = parser.body(&[])?;
    match parser.peek() {
        Token::End => Ok(body),
        _ => Err(parser.unexpected("the end of the template")),
    }
}

pub(super) struct Parser {
    pub(super) tokens: Vec<(Token, u32)>,
    pub(super) at: usize,
    depth: usize,
}

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub(super) fn problem(&self, message: &str) -> Problem {
        Problem::new(format!("syntax error: {message}")).at_line(self.line())
    }

    pub(super) fn unexpected(&self, expected: &str) -> Problem {
        let found = match self.peek() {
            Token::Data(_) => "text".to_owned(),
            Token::BlockBegin => match self.tokens.get(self.at + 1) {
                Some((Token::Name(name), _)) => format!("{{% {name} %}}"),
                _ => "a block".to_owned(),
            },
            Token::BlockEnd => "the end of the block".to_owned(),
            Token::VariableBegin | Token::VariableEnd => "the end of the expression".to_owned(),
            Token::Name(name) => format!("\"{name}\""),
            Token::Int(number) => number.to_string(),
            Token::Float(number) => number.to_string(),
            Token::Text(text) => format!("{text:?}"),
            Token::Operator(operator) => format!("\"{operator}\""),
            Token::End => "the end of the template".to_owned(),
        };
        self.problem(&format!("{found} instead of {expected}"))
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    /// Reads an operator if it is the next token.
    pub(super) fn skip(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, operator: &str) -> Result<(), Problem> {
        if self.skip(operator) { Ok(()) } else { Err(self.unexpected(&format!("\"{operator}\""))) }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    /// Reads a name if it is the next token.
    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self) -> Result<String, Problem> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    /// Runs `parse` one level deeper.
    pub(super) fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Problem>) -> Result<T, Problem> {
        if self.depth == MAX_DEPTH {
            return Err(self.problem(&format!("more than {MAX_DEPTH} levels inside each other")));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// A list of expressions without brackets: one expression, or a tuple. `conditional` allows `a if b else c`.
    pub(super) fn tuple(&mut self, conditional: bool) -> Result<Expr, Problem> {
        let mut items = Vec::new();
        let mut comma = false;
        loop {
            let ends =
                matches!(self.peek(), Token::VariableEnd | Token::BlockEnd | Token::End) || self.is_operator(")");
            if ends {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.deeper(Self::or)? });
            if !self.skip(",") {
                break;
            }
            comma = true;
        }
        match (comma, items.pop()) {
            (false, Some(only)) => Ok(only),
            (_, last) => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    /// An expression.
    pub(super) fn expression(&mut self) -> Result<Expr, Problem> {
        self.deeper(|parser| {
            let mut value = parser.or()?;
            let mut count = 0;
            while parser.skip_name("if") {
                parser.limit(&mut count)?;
                let condition = Box::new(parser.or()?);
                let other = match parser.skip_name("else") {
                    true => Some(Box::new(parser.expression()?)),
                    false => None,
                };
                value = Expr::Conditional { value: Box::new(value), condition, other };
            }
            Ok(value)
        })
    }

    /// Counts an operator of a chain.
    pub(super) fn limit(&self, count: &mut usize) -> Result<(), Problem> {
        *count += 1;
        if *count > MAX_CHAIN {
            return Err(self.problem(&format!("more than {MAX_CHAIN} operators in a row")));
        }
        Ok(())
    }

    fn or(&mut self) -> Result<Expr, Problem> {
        let (mut left, mut count) = (self.and()?, 0);
        while self.skip_name("or") {
            self.limit(&mut count)?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, Problem> {
        let (mut left, mut count) = (self.not()?, 0);
        while self.skip_name("and") {
            self.limit(&mut count)?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, Problem> {
        match self.skip_name("not") {
            true => Ok(Expr::Not(Box::new(self.deeper(Self::not)?))),
            false => self.compare(),
        }
    }

    fn compare(&mut self) -> Result<Expr, Problem> {
        let left = self.sum()?;
        let mut comparisons = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Operator("==") => Comparison::Equal,
                Token::Operator("!=") => Comparison::NotEqual,
                Token::Operator("<") => Comparison::Less,
                Token::Operator("<=") => Comparison::LessEqual,
                Token::Operator(">") => Comparison::Greater,
                Token::Operator(">=") => Comparison::GreaterEqual,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" => match self.tokens.get(self.at + 1) {
                    Some((Token::Name(name), _)) if name == "in" => Comparison::NotIn,
                    _ => break,
                },
                _ => break,
            };
            self.at += 1 + usize::from(comparison == Comparison::NotIn);
            comparisons.push((comparison, self.sum()?));
        }
        Ok(if comparisons.is_empty() { left } else { Expr::Compare(Box::new(left), comparisons) })
    }

    /// A chain of binary operators of the same precedence.
    fn chain(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Expr, Problem>,
    ) -> Result<Expr, Problem> {
        let (mut left, mut count) = (operand(self)?, 0);
        while let Some((_, operator)) = operators.iter().find(|(text, _)| self.is_operator(text)) {
            self.at += 1;
            self.limit(&mut count)?;
            left = Expr::Binary(*operator, Box::new(left), Box::new(operand(self)?));
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr, Problem> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr, Problem> {
        let mut parts = vec![self.product()?];
        while self.skip("~") {
            parts.push(self.product()?);
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Ok(Expr::Concat(parts)),
        }
    }

    fn product(&mut self) -> Result<Expr, Problem> {
        let operators = [("*", Operator::Mul), ("/", Operator::Div), ("//", Operator::FloorDiv), ("%", Operator::Mod)];
        self.chain(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expr, Problem> {
        self.chain(&[("**", Operator::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Result<Expr, Problem> {
        let value = if self.skip("-") {
            Expr::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip("+") {
            Expr::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filters { self.filters(value) } else { Ok(value) }
    }

    pub(super) fn primary(&mut self) -> Result<Expr, Problem> {
        let expr = match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => Expr::Name(name),
            },
            Token::Int(number) => Expr::Int(number),
            Token::Float(number) => Expr::Float(number),
            Token::Text(mut text) => {
                while let Token::Text(more) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Expr::Text(Text::template(&text))
            }
            Token::Operator("(") => {
                let inner = self.deeper(|parser| parser.tuple(true))?;
                self.expect(")")?;
                inner
            }
            Token::Operator("[") => Expr::List(self.items("]", Self::expression)?),
            Token::Operator("{") => Expr::Dict(self.items("}", |parser| {
                let key = parser.expression()?;
                parser.expect(":")?;
                Ok((key, parser.expression()?))
            })?),
            _ => {
                self.at -= 1;
                return Err(self.unexpected("an expression"));
            }
        };
        Ok(expr)
    }

    /// Items with commas between them, up to `end`.
    fn items<T>(&mut self, end: &str, item: fn(&mut Self) -> Result<T, Problem>) -> Result<Vec<T>, Problem> {
        let mut items = Vec::new();
        while !self.skip(end) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.skip(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(super) fn postfix(&mut self, mut value: Expr) -> Result<Expr, Problem> {
        let mut count = 0;
        loop {
            self.limit(&mut count)?;
            value = if self.skip(".") {
                match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(value), name),
                    Token::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected("a name"));
                    }
                }
            } else if self.skip("[") {
                self.subscript(value)?
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr, Problem> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        while !self.skip("]") {
            if self.skip(":") {
                colons += 1;
            } else if colons < 3 && parts[colons].is_none() {
                parts[colons] = Some(Box::new(self.expression()?));
            } else {
                return Err(self.unexpected("\"]\""));
            }
        }
        match (colons, parts) {
            (0, [Some(key), ..]) => Ok(Expr::Item(Box::new(value), key)),
            (1 | 2, parts) => Ok(Expr::Slice(Box::new(value), parts)),
            _ => Err(self.problem("a subscript must be [key] or [start:stop:step]")),
        }
    }
}
