//! The repository's files: reads and imports them, and resolves positions in them.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::{Evaluator, LIB_FILE, R};
use crate::diag::{Class, Diagnostic, Fault, Place, Span, quoted};
use crate::nix::lower;
use crate::nix::value::*;
use crate::source::{self, Node, ResolveError, Source, SourceError};

impl Evaluator<'_> {
    /// Finds `path` in the repository and follows links. `None` means that it does not exist.
    pub fn find(&mut self, path: &str) -> R<Option<(String, Node)>> {
        self.step(10)?;
        source::resolve(self.source, path).map_err(|e| path_fault(path, &e))
    }

    pub(in crate::nix) fn list(&mut self, path: &str) -> R<Vec<(String, Node)>> {
        let names = self.source.list(path).map_err(|e| path_fault(path, &e.into()))?;
        self.pay_values(names.len())?;
        Ok(names)
    }

    /// The real path and the text of a regular file. Links are followed.
    pub fn read(&mut self, path: &str, limit: u64) -> R<(String, Rc<str>)> {
        let missing = || {
            Fault::new(Class::File, format!("the file {} does not exist", quoted(path)))
                .hint("paths are relative to the file that names them; is it committed?")
        };
        let (real, node) = self.find(path)?.ok_or_else(missing)?;
        match node {
            Node::File => {}
            Node::Directory => {
                return Err(Fault::new(Class::File, format!("{} is a directory", quoted(path)))
                    .expected("a file")
                    .found("a directory"));
            }
            Node::Symlink(_) => return Err(missing()),
            Node::Other(what) => {
                return Err(Fault::new(Class::File, format!("{} cannot be read", quoted(path)))
                    .expected("a file")
                    .found(what));
            }
        }
        let bytes = self.source.read(&real, limit).map_err(|e| match e {
            SourceError::TooLarge { limit } => {
                Fault::new(Class::Limit, format!("the file {} is too large", quoted(path)))
                    .expected(format!("at most {limit} bytes"))
            }
            e => path_fault(path, &e.into()),
        })?;
        self.pay_text(bytes.len())?;
        self.read.insert(real.clone());
        match String::from_utf8(bytes) {
            Ok(text) => Ok((real, text.into())),
            Err(_) => Err(Fault::new(Class::File, format!("the file {} is not text", quoted(path)))
                .expected("UTF-8 text")
                .found("other bytes")
                .hint("UTF-16 from Windows looks like this; save it as UTF-8")),
        }
    }

    pub(in crate::nix) fn read_data(&mut self, path: &str) -> R<Rc<str>> {
        let limit = self.limits.data_file;
        Ok(self.read(path, limit)?.1)
    }

    /// The text of a key file, and the file's number for positions.
    pub fn read_for_positions(&mut self, path: &str) -> R<(u32, Rc<str>)> {
        let limit = self.limits.data_file;
        let (real, text) = self.read(path, limit)?;
        Ok((self.add_file(&real, text.clone()), text))
    }

    pub(super) fn add_file(&mut self, path: &str, text: Rc<str>) -> u32 {
        self.directories.push(source::parent(path).to_owned());
        self.files.add(path, text)
    }

    /// The value of the `.nix` file at `path`, evaluated once.
    pub fn import_file(&mut self, path: &str) -> R<Value> {
        let path = match self.find(path)? {
            Some((real, Node::Directory)) if real.is_empty() => "default.nix".to_owned(),
            Some((real, Node::Directory)) => format!("{real}/default.nix"),
            _ => path.to_owned(),
        };
        let limit = self.limits.source_file;
        if let Some(id) = self.imports.get(&path) {
            let id = *id;
            let at = self.span(id);
            return self.force(id, at);
        }
        let (real, text) = self.read(&path, limit)?;
        let file = self.add_file(&real, text.clone());
        let expr = lower::parse(file, &text)?;
        let env = self.base.clone();
        let span = expr.span;
        let id = self.alloc(span, State::Pending(expr, env));
        self.imports.insert(path, id);
        self.force(id, span)
    }

    /// The text of a file that was read.
    pub fn text_at(&self, file: u32) -> &str {
        self.files.text(file)
    }

    pub fn resolve(&self, fault: Fault) -> Diagnostic {
        fault.resolve(&self.files, LIB_FILE)
    }

    /// A resolved position, for warnings; `None` for a position inside `lib`.
    pub fn place(&self, span: Span) -> Option<Place> {
        self.files.place(span, false).filter(|_| span.file != LIB_FILE)
    }

    /// The files that were read so far, by their real paths.
    pub fn files_read(&self) -> &BTreeSet<String> {
        &self.read
    }

    /// The files that the expression may read, for callers that look for files that it did not read.
    pub fn source(&self) -> &dyn Source {
        self.source
    }
}

pub(in crate::nix) fn path_fault(path: &str, error: &ResolveError) -> Fault {
    match error {
        ResolveError::Escapes => {
            Fault::new(Class::Outside, format!("the path {} leaves the repository", quoted(path)))
                .expected("a path inside this repository")
                .hint("move the file into the repository and name it relative to this file")
        }
        ResolveError::LinkEscapes { link, target } => {
            Fault::new(Class::Outside, format!("the path {} leaves the repository", quoted(path)))
                .expected("a path inside this repository")
                .found(format!("the symbolic link {} to {}", quoted(link), quoted(target)))
                .hint("replace the link by the file it points to")
        }
        other => Fault::new(Class::File, format!("the file {} cannot be read", quoted(path)))
            .found(other.to_string()),
    }
}
