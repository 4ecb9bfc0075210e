//! The variables of a template.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::Value;

/// The variables of a block, and the scope around it. Inner blocks see the variables of outer ones and do not change them.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    variables: RefCell<HashMap<String, Value>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// The outermost scope.
    pub(crate) fn root(variables: impl IntoIterator<Item = (String, Value)>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::new(variables.into_iter().collect()), parent: None })
    }

    /// A scope inside this one.
    pub(crate) fn inner(self: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(Rc::clone(self)) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    pub(crate) fn set(&self, name: &str, value: Value) {
        self.variables.borrow_mut().insert(name.to_owned(), value);
    }
}
