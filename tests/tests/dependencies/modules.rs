//! The modules of a crate, read from its source text, and which file uses names of which other file.
//!
//! A name counts for the file that defines it: a `pub use` in between is followed, and is no use by itself.
//! Unit tests do not count. Assumed: the crate compiles. Not seen: methods, because no file has to name the type
//! of a value, and names that macros make.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::tokens::{Token, block, program};

/// The files of a crate, each with the files that it uses, and one name that it takes from each.
pub type Uses = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// The uses between the files of the crate with this root file.
pub fn uses(root: &Path) -> Uses {
    let mut all = Modules(Vec::new());
    all.read_file(root, 0, root.parent().expect("a folder"));
    let mut found = Uses::new();
    for (id, module) in all.0.iter().enumerate() {
        let of_file = found.entry(module.file.clone()).or_default();
        for path in &module.paths {
            let target = match all.resolve(id, path, &mut Seen::new()) {
                Some(Target::Item(module)) => module,
                Some(Target::Module(module)) if path.last().is_some_and(|name| name == "*") => module,
                _ => continue,
            };
            let target = &all.0[target].file;
            if *target != module.file {
                of_file.entry(target.clone()).or_insert_with(|| path.join("::"));
            }
        }
    }
    found
}

/// A path in a source text, like `super::desk::Desk`; the last name is `*` if all names of a module are imported.
type Names = Vec<String>;

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: usize,
    children: BTreeMap<String, usize>,
    /// Names that the module defines.
    items: BTreeSet<String>,
    /// Names that the module has from elsewhere, for itself or for others.
    imports: BTreeMap<String, Names>,
    /// Modules all of whose names it has.
    globs: Vec<Names>,
    /// The paths that the module uses.
    paths: Vec<Names>,
}

/// The meaning of a path: a module, or the module that defines the item.
#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    Item(usize),
}

/// The modules of one crate. The first is the root.
struct Modules(Vec<Module>);

/// The names that a search has looked for, each with the module: imports of whole modules can form a circle.
type Seen = BTreeSet<(usize, String)>;

impl Modules {
    /// Reads a file, and the files of the modules below it, which are in the folder `parts`.
    fn read_file(&mut self, file: &Path, parent: usize, parts: &Path) -> usize {
        let source = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.read(&program(&source), file, parent, parts)
    }

    /// Reads the code of one module.
    fn read(&mut self, code: &[Token], file: &Path, parent: usize, parts: &Path) -> usize {
        let id = self.0.len();
        self.0.push(Module { file: file.to_owned(), parent, ..Module::default() });
        let mut public = Vec::new();
        let mut mentioned = BTreeSet::new();
        let (mut at, mut depth) = (0, 0);
        while let Some(token) = code.get(at) {
            match token {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                // Not `mod $name`, which a macro makes.
                Token::Name(word) if word == "mod" && code[at + 1].name().is_some() => {
                    at += self.read_child(&code[at + 1..], id, file, parts);
                }
                // Not `use<…>`, which lists the parameters of a type.
                Token::Name(word) if word == "use" && !code[at + 1].is('<') => {
                    let length =
                        code[at..].iter().position(|token| token.is(';')).expect("`use` ends with `;`");
                    let found = imports(&code[at + 1..at + length]);
                    at += length;
                    match is_public(&code[..at - length]) {
                        true => public.extend(found),
                        false => found.into_iter().for_each(|import| self.0[id].import(import, true)),
                    }
                }
                Token::Name(word) => {
                    mentioned.insert(word.as_str());
                    if let Some(name) = code.get(at + 1).and_then(Token::name)
                        && depth == 0
                        && DEFINE.contains(&word.as_str())
                    {
                        self.0[id].items.insert(name.to_owned());
                    }
                    let names = path(&code[at..]);
                    at += 2 * (names.len() - 1);
                    if names.len() > 1 {
                        self.0[id].paths.push(names);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        for import in public {
            let is_used = mentioned.contains(import.0.as_str());
            self.0[id].import(import, is_used);
        }
        id
    }

    /// Reads `name;` or `name { … }` after `mod`, and returns its length.
    fn read_child(&mut self, code: &[Token], parent: usize, file: &Path, parts: &Path) -> usize {
        let name = code[0].name().expect("a name after `mod`").to_owned();
        let parts = parts.join(&name);
        let (child, length) = if code[1].is('{') {
            let length = block(&code[1..]);
            (self.read(&code[2..length], file, parent, &parts), 1 + length)
        } else {
            let files = [parts.with_extension("rs"), parts.join("mod.rs")];
            let found = files.iter().find(|file| file.exists());
            let found = found.unwrap_or_else(|| panic!("{}: no file for `mod {name}`", file.display()));
            (self.read_file(found, parent, &parts), 2)
        };
        self.0[parent].children.insert(name, child);
        length
    }

    /// The meaning of a path in a module; `None` if it is in another crate, or local to a function.
    fn resolve(&self, from: usize, path: &[String], seen: &mut Seen) -> Option<Target> {
        let mut target = Target::Module(from);
        for (i, name) in path.iter().enumerate() {
            let Target::Module(module) = target else { break };
            let has_more = path.get(i + 1).is_some_and(|next| next != "*");
            target = match name.as_str() {
                "crate" => Target::Module(0),
                "self" | "*" => target,
                "super" => Target::Module(self.0[module].parent),
                name => match self.named(module, name, has_more, seen) {
                    Some(target) => target,
                    None if i == 0 => return None,
                    // Another crate's name that this module has, or one that its macros make.
                    None if self.0[module].imports.contains_key(name) => return None,
                    None => Target::Item(module),
                },
            };
        }
        Some(target)
    }

    /// The meaning of a name in a module. A function can have the name of a module; before `::` it is the module.
    fn named(&self, of: usize, name: &str, has_more: bool, seen: &mut Seen) -> Option<Target> {
        if !seen.insert((of, name.to_owned())) {
            return None;
        }
        let module = &self.0[of];
        let child = module.children.get(name).map(|child| Target::Module(*child));
        if child.is_some() && has_more {
            return child;
        }
        if module.items.contains(name) {
            return Some(Target::Item(of));
        }
        if let Some(path) = module.imports.get(name) {
            return self.resolve(of, path, seen);
        }
        child.or_else(|| {
            module.globs.iter().find_map(|glob| match self.resolve(of, glob, seen)? {
                Target::Module(all) => self.named(all, name, has_more, seen),
                Target::Item(_) => None,
            })
        })
    }
}

impl Module {
    /// `pub use` gives the name to others too: the module itself uses it only if it mentions the name.
    fn import(&mut self, (alias, names): (String, Names), is_used: bool) {
        if is_used {
            self.paths.push(names.clone());
        }
        if alias == "*" {
            self.globs.push(names);
        } else {
            self.imports.insert(alias, names);
        }
    }
}

/// The words before a name that is defined.
const DEFINE: [&str; 8] = ["fn", "struct", "enum", "union", "trait", "const", "static", "type"];

/// The names of the path at the beginning.
fn path(code: &[Token]) -> Names {
    let mut names = Names::new();
    let mut rest = code;
    while let [Token::Name(name), after @ ..] = rest {
        names.push(name.clone());
        let [Token::Path, next @ ..] = after else { break };
        rest = next;
    }
    names
}

/// The imports of `use`, each with the name that it gets in the module.
fn imports(tree: &[Token]) -> Vec<(String, Names)> {
    let before = path(tree);
    let rest = &tree[(2 * before.len()).min(tree.len())..];
    let mut alias = before.last().cloned().unwrap_or_default();
    match rest.first() {
        Some(Token::Sign('*')) => {
            return vec![("*".to_owned(), [&before[..], &["*".to_owned()]].concat())];
        }
        Some(Token::Sign('{')) => {
            let inner = split(&rest[1..block(rest) - 1]);
            let found = inner.into_iter().flat_map(imports);
            return found
                .map(|(alias, names)| match names.as_slice() {
                    // `desk::{self}`
                    [name] if name == "self" => (before.last().cloned().unwrap_or(alias), before.clone()),
                    _ => (alias, [&before[..], &names[..]].concat()),
                })
                .collect();
        }
        _ => {}
    }
    if let [.., Token::Name(word), Token::Name(name)] = tree
        && word == "as"
    {
        alias = name.clone();
    }
    if before.is_empty() { Vec::new() } else { vec![(alias, before)] }
}

/// The parts of a list between its commas.
fn split(list: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(token) = list.get(at) {
        match token {
            Token::Sign('{') => at += block(&list[at..]),
            Token::Sign(',') => {
                parts.push(&list[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    parts.push(&list[start..]);
    parts
}

/// Whether the code ends with `pub` or `pub(…)`.
fn is_public(code: &[Token]) -> bool {
    let before = match code {
        [before @ .., last] if last.is(')') => {
            before.iter().rposition(|token| token.is('(')).map_or(before, |open| &before[..open])
        }
        code => code,
    };
    before.last().and_then(Token::name) == Some("pub")
}
