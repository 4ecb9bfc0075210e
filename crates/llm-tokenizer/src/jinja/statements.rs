//! Parses the statements of a template.

use std::sync::Arc;

use super::Problem;
use super::ast::{Expr, FilterCall, For, Kind, Macro, Statement, Target};
use super::lexer::Token;
use super::parser::Parser;
use super::text::Text;

type Result<T> = std::result::Result<T, Problem>;

impl Parser {
    /// The statements up to a block with one of these names, which stays the next token.
    pub(super) fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>> {
        self.deeper(|parser| {
            let mut body = Vec::new();
            loop {
                let line = parser.line();
                let kind = match parser.peek() {
                    Token::Data(text) => {
                        let text = Kind::Text(Text::template(text));
                        parser.next();
                        text
                    }
                    Token::VariableBegin => {
                        parser.next();
                        let value = parser.tuple(true)?;
                        if parser.next() != Token::VariableEnd {
                            return Err(parser.problem("an expression must end with \"}}\""));
                        }
                        Kind::Print(value)
                    }
                    Token::BlockBegin => {
                        parser.next();
                        if let Token::Name(name) = parser.peek()
                            && ends.contains(&name.as_str())
                        {
                            return Ok(body);
                        }
                        parser.statement()?
                    }
                    _ => return Ok(body),
                };
                body.push(Statement { line, kind });
            }
        })
    }

    fn block_end(&mut self) -> Result<()> {
        match self.peek() {
            Token::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => Err(self.unexpected("\"%}\"")),
        }
    }

    /// The body of a block up to `{% end %}`.
    fn block(&mut self, end: &str) -> Result<Vec<Statement>> {
        self.block_end()?;
        let body = self.body(&[end])?;
        self.end_of(end)?;
        Ok(body)
    }

    fn end_of(&mut self, end: &str) -> Result<()> {
        if !self.skip_name(end) {
            return Err(self.unexpected(&format!("{{% {end} %}}")));
        }
        self.block_end()
    }

    /// A statement after `{%`.
    fn statement(&mut self) -> Result<Kind> {
        let name = self.name()?;
        match name.as_str() {
            "if" => self.if_block(),
            "for" => self.for_block(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.name()?;
                Ok(Kind::Macro(self.macro_body(name, "endmacro")?))
            }
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filter_chain()?;
                Ok(Kind::FilterBlock(filters, self.block("endfilter")?))
            }
            "generation" => Ok(Kind::Generation(self.block("endgeneration")?)),
            "break" => self.block_end().map(|()| Kind::Break),
            "continue" => self.block_end().map(|()| Kind::Continue),
            "block" | "extends" | "include" | "import" | "from" | "autoescape" | "do" | "trans" => {
                Err(self.problem(&format!("{{% {name} %}} is not available in chat templates")))
            }
            _ => Err(self.problem(&format!("{{% {name} %}} is not a known block"))),
        }
    }

    fn if_block(&mut self) -> Result<Kind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(true)?;
            self.block_end()?;
            branches.push((condition, self.body(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = match self.skip_name("else") {
                true => {
                    self.block_end()?;
                    self.body(&["endif"])?
                }
                false => Vec::new(),
            };
            self.end_of("endif")?;
            return Ok(Kind::If(branches, otherwise));
        }
    }

    fn for_block(&mut self) -> Result<Kind> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return Err(self.unexpected("\"in\""));
        }
        let items = self.tuple(false)?;
        let condition = match self.skip_name("if") {
            true => Some(self.expression()?),
            false => None,
        };
        if self.is_name("recursive") {
            return Err(self.problem("recursive loops are not supported; use a macro"));
        }
        self.block_end()?;
        let body = self.body(&["else", "endfor"])?;
        let otherwise = match self.skip_name("else") {
            true => {
                self.block_end()?;
                self.body(&["endfor"])?
            }
            false => Vec::new(),
        };
        self.end_of("endfor")?;
        Ok(Kind::For(Box::new(For { target, items, condition, body, otherwise })))
    }

    /// What is assigned to; `attributes` allows those of a namespace.
    fn target(&mut self, attributes: bool) -> Result<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            let target = if self.skip("(") {
                let inner = self.deeper(|parser| parser.target(attributes))?;
                self.expect(")")?;
                inner
            } else {
                let name = self.name()?;
                match attributes && self.skip(".") {
                    true => Target::Attribute(name, self.name()?),
                    false => Target::Name(name),
                }
            };
            targets.push(target);
            if !self.skip(",") {
                break;
            }
            tuple = true;
            if self.is_operator("=") || self.is_name("in") {
                break;
            }
        }
        match (tuple, targets.pop()) {
            (false, Some(only)) => Ok(only),
            (_, last) => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn set(&mut self) -> Result<Kind> {
        let target = self.target(true)?;
        if self.skip("=") {
            let value = self.tuple(true)?;
            self.block_end()?;
            return Ok(Kind::Set(target, value));
        }
        let mut filters = Vec::new();
        while self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(Kind::SetBlock(target, filters, self.block("endset")?))
    }

    fn with(&mut self) -> Result<Kind> {
        let mut assignments = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !assignments.is_empty() {
                self.expect(",")?;
            }
            let target = Target::Name(self.name()?);
            self.expect("=")?;
            assignments.push((target, self.expression()?));
        }
        Ok(Kind::With(assignments, self.block("endwith")?))
    }

    fn filter_chain(&mut self) -> Result<Vec<FilterCall>> {
        let mut filters = vec![self.filter()?];
        while self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    /// The parameters in parentheses, if any, and the body up to `{% end %}`.
    fn macro_body(&mut self, name: String, end: &str) -> Result<Arc<Macro>> {
        let parameters = self.parameters()?;
        let body = self.block(end)?;
        Ok(Arc::new(Macro { name, parameters, body }))
    }

    fn parameters(&mut self) -> Result<Vec<(String, Option<Expr>)>> {
        let mut parameters = Vec::new();
        if !self.skip("(") {
            return Ok(parameters);
        }
        while !self.skip(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = match self.skip("=") {
                true => Some(self.expression()?),
                false => None,
            };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn call_block(&mut self) -> Result<Kind> {
        let parameters = self.parameters()?;
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return Err(self.problem("{% call %} needs the call of a macro"));
        }
        let body = self.block("endcall")?;
        Ok(Kind::CallBlock(call, Arc::new(Macro { name: "caller".to_owned(), parameters, body })))
    }
}
