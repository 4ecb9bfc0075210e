//! Parses calls, filters and tests.

use super::Problem;
use super::ast::{Arguments, Expr, FilterCall};
use super::lexer::Token;
use super::parser::Parser;

impl Parser {
    /// `(a, b=c, *d, **e)`
    pub(super) fn arguments(&mut self) -> Result<Arguments, Problem> {
        self.expect("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.skip(")") {
            if !first {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            first = false;
            let named = matches!(self.tokens.get(self.at + 1), Some((Token::Operator("="), _)));
            if self.skip("**") {
                arguments.map = Some(Box::new(self.expression()?));
            } else if self.skip("*") {
                arguments.list = Some(Box::new(self.expression()?));
            } else if named {
                let name = self.name()?;
                self.expect("=")?;
                arguments.named.push((name, self.expression()?));
            } else {
                arguments.positional.push(self.expression()?);
            }
        }
        Ok(arguments)
    }

    /// The name of a filter or test, which may contain dots.
    fn dotted(&mut self) -> Result<String, Problem> {
        let mut name = self.name()?;
        while self.skip(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    /// A filter without its `|`.
    pub(super) fn filter(&mut self) -> Result<FilterCall, Problem> {
        let name = self.dotted()?;
        let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(FilterCall { name, arguments })
    }

    /// Filters, tests and calls after a value.
    pub(super) fn filters(&mut self, mut value: Expr) -> Result<Expr, Problem> {
        let mut count = 0;
        loop {
            self.limit(&mut count)?;
            value = if self.skip("|") {
                Expr::Filter(Box::new(value), self.filter()?)
            } else if self.skip_name("is") {
                let negated = self.skip_name("not");
                let name = self.dotted()?;
                let arguments = self.test_arguments()?;
                Expr::Test(Box::new(value), FilterCall { name, arguments }, negated)
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    /// The arguments of a test: in parentheses, or one value without them.
    fn test_arguments(&mut self) -> Result<Arguments, Problem> {
        if self.is_operator("(") {
            return self.arguments();
        }
        let value = match self.peek() {
            Token::Name(name) => !["else", "or", "and", "is", "if", "in", "not"].contains(&name.as_str()),
            Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") => true,
            _ => false,
        };
        let mut arguments = Arguments::default();
        if value {
            let value = self.primary()?;
            arguments.positional.push(self.postfix(value)?);
        }
        Ok(arguments)
    }
}
