//! Modules of a crate import each other in one direction: there is no circle, apart from a module with its descendants.
//!
//! Two kinds of circles are found: modules that import each other, where an import between a module and its descendant does not
//! count; and circles through a parent, where all imports count, which are not within one module and its descendants. The crate
//! root, which names all modules, does not count. An import is a path with `crate`, `super`, `self` or a child module in a `use`
//! or in code, outside of tests; a re-export is followed to the module of the item.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The names from the crate root to a module; empty: the crate root.
type Module = Vec<String>;

/// The code of a crate by module.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Module, Code>,
}

#[derive(Default)]
struct Code {
    /// Paths in code and of imports, with the inline module in which they are.
    paths: Vec<(Module, Vec<String>)>,
    /// Names that a `use` brings into the module.
    names: BTreeMap<String, Vec<String>>,
}

impl Crate {
    /// Adds the source of a module.
    fn add(&mut self, module: Module, source: &str) {
        let code = self.modules.entry(module.clone()).or_default();
        code.read(&module, source.parse::<TokenStream>().unwrap().into_iter().collect());
    }

    /// The modules of the sources in a folder.
    fn add_folder(&mut self, folder: &Path, module: &Module) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let child = [module.as_slice(), std::slice::from_ref(&name)].concat();
            if path.is_dir() {
                self.add_folder(&path, &child);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let is_parent = name == "mod" || (module.is_empty() && ["lib", "main"].contains(&name.as_str()));
                let module = if is_parent { module.clone() } else { child };
                self.add(module, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// The module that has the item of a path used in `scope`; `None` for a path of another crate.
    fn module_of(&self, scope: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (mut module, mut rest) = (scope.clone(), path);
        match path.first()?.as_str() {
            "crate" => (module, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    module.pop();
                    rest = &rest[1..];
                }
            }
            name => {
                let child = [scope.as_slice(), &[name.to_owned()]].concat();
                self.modules.get(&child)?;
            }
        }
        while let Some((name, after)) = rest.split_first() {
            let child = [module.as_slice(), std::slice::from_ref(name)].concat();
            if !self.modules.contains_key(&child) {
                break;
            }
            (module, rest) = (child, after);
        }
        // An inline module is part of the module of its file.
        while !self.modules.contains_key(&module) {
            module.pop()?;
        }
        let imported = rest.first().filter(|_| depth < 8).and_then(|name| self.modules[&module].names.get(name));
        let original = imported.and_then(|path| self.module_of(&module, path, depth + 1));
        Some(original.unwrap_or(module))
    }

    /// The modules that each module imports, without the crate root.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |(module, code): (&Module, &Code)| {
            let found = code.paths.iter().filter_map(|(scope, path)| self.module_of(scope, path, 0));
            found.filter(|other| !other.is_empty() && other != module).collect()
        };
        let modules = self.modules.iter().filter(|(module, _)| !module.is_empty());
        modules.map(|(module, code)| (module, of((module, code)))).collect()
    }

    /// A line for each import that is part of a circle.
    fn circles(&self) -> Vec<String> {
        let all = self.imports();
        let related = |a: &Module, b: &Module| a.starts_with(b) || b.starts_with(a);
        let mut siblings = all.clone();
        siblings.iter_mut().for_each(|(module, others)| others.retain(|other| !related(module, other)));
        let mut found = BTreeSet::new();
        for (imports, within_a_parent) in [(&siblings, false), (&all, true)] {
            for group in groups(imports) {
                let root = group.iter().min_by_key(|module| module.len()).unwrap();
                if within_a_parent && group.iter().all(|module| module.starts_with(root)) {
                    continue;
                }
                for module in &group {
                    let others = imports[module].iter().filter(|other| group.contains(other));
                    found.extend(others.map(|other| format!("{} imports {}", module.join("::"), other.join("::"))));
                }
            }
        }
        found.into_iter().collect()
    }
}

/// The sets of at least two modules that import each other, directly or not.
fn groups<'a>(imports: &BTreeMap<&'a Module, BTreeSet<Module>>) -> BTreeSet<BTreeSet<&'a Module>> {
    let reach = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            next.extend(imports[module].iter().filter(|other| seen.insert((*other).clone())));
        }
        seen
    };
    let reached: BTreeMap<&'a Module, BTreeSet<Module>> =
        imports.keys().map(|module| (*module, reach(module))).collect();
    let group = |module: &&'a Module| -> BTreeSet<&'a Module> {
        let mutual = |other: &&&Module| reached[module].contains(**other) && reached[**other].contains(*module);
        imports.keys().filter(mutual).copied().collect()
    };
    imports.keys().map(group).filter(|group| group.len() > 1).collect()
}

impl Code {
    /// Adds the paths of `tokens`, which are in `scope`.
    fn read(&mut self, scope: &Module, tokens: Vec<TokenTree>) {
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                // The item ends with a semicolon or with the braces of its body.
                at += 2;
                let ends = |token: &TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    other => is_punct(other, ';'),
                };
                at += tokens[at..].iter().position(ends).unwrap_or(tokens.len() - at) + 1;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word)
                    if *word == "use" && !tokens.get(at + 1).is_some_and(|next| is_punct(next, '<')) =>
                {
                    let end =
                        at + tokens[at..].iter().position(|token| is_punct(token, ';')).unwrap_or(tokens.len() - at);
                    self.read_use(scope, &tokens[at + 1..end], &[]);
                    at = end;
                }
                TokenTree::Ident(word) if *word == "mod" && matches!(tokens.get(at + 2), Some(TokenTree::Group(_))) => {
                    let TokenTree::Group(body) = &tokens[at + 2] else { unreachable!() };
                    let inner = [scope.as_slice(), &[tokens[at + 1].to_string()]].concat();
                    self.read(&inner, body.stream().into_iter().collect());
                    at += 2;
                }
                TokenTree::Ident(word) => {
                    let mut path = vec![word.to_string()];
                    while let [a, b, TokenTree::Ident(next), ..] = &tokens[at + 1..]
                        && is_punct(a, ':')
                        && is_punct(b, ':')
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.paths.push((scope.clone(), path));
                    }
                }
                TokenTree::Group(group) => self.read(scope, group.stream().into_iter().collect()),
                _ => {}
            }
            at += 1;
        }
    }

    /// Adds the imports of a use tree after `prefix`.
    fn read_use(&mut self, scope: &Module, tree: &[TokenTree], prefix: &[String]) {
        for branch in tree.split(|token| is_punct(token, ',')) {
            let (mut path, mut name) = (prefix.to_vec(), None);
            for (i, token) in branch.iter().enumerate() {
                match token {
                    TokenTree::Ident(word) if *word == "as" => {
                        name = Some(branch[i + 1].to_string());
                        break;
                    }
                    TokenTree::Ident(word) => path.push(word.to_string()),
                    TokenTree::Group(group) => {
                        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.read_use(scope, &inner, &path);
                        path.clear();
                    }
                    _ => {}
                }
            }
            if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                path.pop();
            }
            if let Some(last) = path.last() {
                self.names.insert(name.unwrap_or_else(|| last.clone()), path.clone());
                self.paths.push((scope.clone(), path));
            }
        }
    }
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

/// Whether the tokens begin with `#[cfg(test)]`.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [hash, TokenTree::Group(group), ..] = tokens else { return false };
    is_punct(hash, '#') && group.to_string().replace(' ', "") == "[cfg(test)]"
}

/// A crate with these modules: names separated by `::`, and source.
fn crate_of(modules: &[(&str, &str)]) -> Crate {
    let mut all = Crate::default();
    for (module, source) in modules {
        all.add(module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect(), source);
    }
    all
}

#[test]
fn modules_of_each_crate_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> =
        std::fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.push(root.join("xtask"));
    for folder in folders {
        let mut all = Crate::default();
        all.add_folder(&folder.join("src"), &Vec::new());
        assert_eq!(
            all.circles(),
            Vec::<String>::new(),
            "{}: circle of imports; move what both need to a module of its own",
            folder.display()
        );
    }
}

#[test]
fn the_imports_of_a_real_crate_are_found() {
    let mut all = Crate::default();
    all.add_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/llm-model/src"), &Vec::new());
    let imports = all.imports();
    let module = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
    for (from, to) in [("model", "params"), ("params", "lora::adapter"), ("lora::modules", "formats::families")] {
        assert!(imports[&module(from)].contains(&module(to)), "{from} imports {to}");
    }
}

#[test]
fn circles_are_found() {
    let cases: [(&str, &[(&str, &str)]); 5] = [
        ("imports", &[("", "mod a; mod b;"), ("a", "use crate::b::B;"), ("b", "use super::a::{self, A};")]),
        (
            "paths in code",
            &[("", ""), ("a", "fn f() { crate::b::g(); }"), ("b", "#[with(x = crate::a::f())] fn g() {}")],
        ),
        ("a re-export", &[("", "pub use b::B;"), ("a", "use crate::B;"), ("b", "use crate::a::A;")]),
        (
            "three modules",
            &[
                ("", ""),
                ("a", "use super::b::B;"),
                ("b", "use super::c::C as D;"),
                ("c", "mod x { use super::super::a; }"),
            ],
        ),
        (
            "a parent",
            &[
                ("", ""),
                ("a", "use p::x::X; use crate::p::P;"),
                ("p", "mod x; use x::X;"),
                ("p::x", "use crate::a::A;"),
            ],
        ),
    ];
    for (what, modules) in cases {
        assert_ne!(crate_of(modules).circles(), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn parents_children_and_tests_are_no_circle() {
    let cases: [(&str, &[(&str, &str)]); 3] = [
        ("a parent and its child", &[("", "mod p;"), ("p", "mod x; use x::X; struct P;"), ("p::x", "use super::P;")]),
        ("tests", &[("", ""), ("a", "use crate::b::B;"), ("b", "#[cfg(test)] mod tests { use crate::a::A; }")]),
        (
            "comments and texts",
            &[("", ""), ("a", "use crate::b::B;"), ("b", "/* use crate::a::A; */ const C: &str = \"crate::a::A\";")],
        ),
    ];
    for (what, modules) in cases {
        assert_eq!(crate_of(modules).circles(), Vec::<String>::new(), "{what}");
    }
}
