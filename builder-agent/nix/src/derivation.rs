//! Derivations as they stand in `.drv` files: parsed into bytes, and written as Nix writes them.
//!
//! Nix's strings are bytes. A builder's path, its arguments and its variables may hold any, so nothing here is text but
//! what becomes part of a store path. The file is a client's: every length in it is a length of the file, which
//! has a limit, and nothing nests. Source: Nix, `parseDerivation` and `Derivation::unparse` (src/libstore/
//! derivations.cc, 2.8 to 2.34). Not here: what a derivation's hash is made of (`modulo`).

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, Output, StorePath};

/// Outputs of one derivation. Each costs an object, a place in the sandbox and a check of its own; real derivations have
/// a dozen at most.
pub const MAX_OUTPUTS: usize = 1024;

/// A derivation without its input derivations: what `--builders` sends (Nix: `BasicDerivation`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicDerivation {
    pub outputs: BTreeMap<String, Output>,
    /// Every store path the build may see, closures not included.
    pub input_sources: BTreeSet<StorePath>,
    /// For example `x86_64-linux`. This and the following are strings of Nix, which may hold any bytes.
    pub system: Vec<u8>,
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// Structured attributes travel as the value of `__json`.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A derivation with its input derivations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    pub name: String,
    /// All but the input derivations. `__json` is among the variables.
    pub basic: BasicDerivation,
    /// Input derivations, and the outputs wanted of each.
    pub inputs: BTreeMap<StorePath, BTreeSet<String>>,
}

/// The reasons why a file is not a derivation that can be built here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DerivationError {
    #[error("it is not a derivation: {what} at byte {at}")]
    Malformed { at: usize, what: String },
    #[error("it depends on a dynamic derivation, which this box does not support")]
    Dynamic,
    #[error("it has more than {MAX_OUTPUTS} outputs")]
    TooManyOutputs,
}

impl Derivation {
    /// Parses the contents of a `.drv` whose name is `name` without that ending.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, DerivationError> {
        let mut parser = Parser { bytes, at: 0 };
        if parser.took(b"DrvWithVersion(") {
            if parser.string()? != b"xp-dyn-drv" {
                return Err(parser.malformed("an unknown version"));
            }
            parser.expect(b",")?;
        } else {
            parser.expect(b"Derive(")?;
        }
        let mut outputs = BTreeMap::new();
        parser.list(|parser| {
            let (output, spec) = parser.output(name)?;
            // As in Nix the first of equal names counts.
            outputs.entry(output).or_insert(spec);
            if outputs.len() > MAX_OUTPUTS { Err(DerivationError::TooManyOutputs) } else { Ok(()) }
        })?;
        parser.expect(b",")?;
        let mut inputs = BTreeMap::new();
        parser.list(|parser| {
            parser.expect(b"(")?;
            let path = parser.path()?;
            parser.expect(b",")?;
            if parser.bytes.get(parser.at) == Some(&b'(') {
                return Err(DerivationError::Dynamic);
            }
            let mut wanted = BTreeSet::new();
            parser.list(|parser| {
                wanted.insert(parser.output_name()?);
                Ok(())
            })?;
            inputs.insert(path, wanted);
            parser.expect(b")")
        })?;
        parser.expect(b",")?;
        let mut input_sources = BTreeSet::new();
        parser.list(|parser| {
            input_sources.insert(parser.path()?);
            Ok(())
        })?;
        parser.expect(b",")?;
        let system = parser.string()?;
        parser.expect(b",")?;
        let builder = parser.string()?;
        parser.expect(b",")?;
        let mut args = Vec::new();
        parser.list(|parser| {
            args.push(parser.string()?);
            Ok(())
        })?;
        parser.expect(b",")?;
        let mut env = BTreeMap::new();
        parser.list(|parser| {
            parser.expect(b"(")?;
            let variable = parser.string()?;
            parser.expect(b",")?;
            // And here the last.
            env.insert(variable, parser.string()?);
            parser.expect(b")")
        })?;
        parser.expect(b")")?;
        if parser.at != bytes.len() {
            return Err(parser.malformed("something after the end"));
        }
        let basic = BasicDerivation { outputs, input_sources, system, builder, args, env };
        Ok(Self { name: name.to_owned(), basic, inputs })
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn malformed(&self, what: impl Into<String>) -> DerivationError {
        DerivationError::Malformed { at: self.at, what: what.into() }
    }

    fn took(&mut self, what: &[u8]) -> bool {
        let there = self.bytes[self.at..].starts_with(what);
        if there {
            self.at += what.len();
        }
        there
    }

    fn expect(&mut self, what: &[u8]) -> Result<(), DerivationError> {
        match self.took(what) {
            true => Ok(()),
            false => Err(self.malformed(format!("no {:?}", String::from_utf8_lossy(what)))),
        }
    }

    /// `[` ... `]` with commas between.
    fn list(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<(), DerivationError>,
    ) -> Result<(), DerivationError> {
        self.expect(b"[")?;
        if self.took(b"]") {
            return Ok(());
        }
        loop {
            one(self)?;
            if self.took(b"]") {
                return Ok(());
            }
            self.expect(b",")?;
        }
    }

    /// In quotes; after a backslash `n`, `r` and `t` mean control characters, and anything else itself.
    fn string(&mut self) -> Result<Vec<u8>, DerivationError> {
        self.expect(b"\"")?;
        let mut string = Vec::new();
        loop {
            let rest = &self.bytes[self.at..];
            let Some(plain) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                return Err(self.malformed("a string without an end"));
            };
            string.extend_from_slice(&rest[..plain]);
            self.at += plain + 1;
            if rest[plain] == b'"' {
                return Ok(string);
            }
            let Some(escaped) = rest.get(plain + 1) else {
                return Err(self.malformed("a string without an end"));
            };
            self.at += 1;
            string.push(match escaped {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => *other,
            });
        }
    }

    fn path(&mut self) -> Result<StorePath, DerivationError> {
        let text = self.string()?;
        self.store_path(&text)
    }

    fn store_path(&self, text: &[u8]) -> Result<StorePath, DerivationError> {
        StorePath::from_absolute_path(text).map_err(|error| self.malformed(error.to_string()))
    }

    /// Becomes part of a store path, and so has only characters of those.
    fn output_name(&mut self) -> Result<String, DerivationError> {
        let name = String::from_utf8(self.string()?).ok();
        name.filter(|name| StorePath::from_parts([0; 20], name).is_ok())
            .ok_or_else(|| self.malformed("something that cannot be the name of an output"))
    }

    fn output(&mut self, drv_name: &str) -> Result<(String, Output), DerivationError> {
        self.expect(b"(")?;
        let name = self.output_name()?;
        self.expect(b",")?;
        let path = self.string()?;
        self.expect(b",")?;
        let how = self.string()?;
        self.expect(b",")?;
        let hash = self.string()?;
        self.expect(b")")?;
        if how.is_empty() {
            return Ok((
                name,
                match path.is_empty() {
                    true => Output::Deferred,
                    false => Output::InputAddressed { path: self.store_path(&path)? },
                },
            ));
        }
        let bad = |e: &dyn std::fmt::Display| self.malformed(e.to_string());
        let (method, algorithm) = match how.as_slice() {
            [b'r', b':', rest @ ..] => (ContentAddressMethod::Nar, rest),
            [b't', b'e', b'x', b't', b':', rest @ ..] => (ContentAddressMethod::Text, rest),
            [b'g', b'i', b't', b':', rest @ ..] => (ContentAddressMethod::Git, rest),
            rest => (ContentAddressMethod::Flat, rest),
        };
        let algorithm = String::from_utf8_lossy(algorithm);
        let hash_algorithm: HashAlgorithm = algorithm.parse().map_err(|e| bad(&e))?;
        let spec = match hash.as_slice() {
            b"" if path.is_empty() => Output::Floating { method, hash_algorithm },
            b"impure" if path.is_empty() => Output::Impure { method, hash_algorithm },
            b"" | b"impure" => {
                return Err(self.malformed("a path for an output whose contents decide about it"));
            }
            digits => {
                // Where it says it is counts for nothing: that follows from its hash.
                self.store_path(&path)?;
                let digest = hex::decode(digits).map_err(|_| self.malformed("a hash that is not base 16"))?;
                let ca = CAHash::from_parts(method, hash_algorithm, &digest).map_err(|e| bad(&e))?;
                let spec = Output::Fixed { ca };
                spec.path(drv_name, &name).map_err(|e| bad(&e))?;
                spec
            }
        };
        Ok((name, spec))
    }
}

/// The text of a derivation as Nix writes it. `inputs` are hashes (or paths) with the outputs wanted; `mask` leaves the
/// paths of its own outputs out.
#[must_use]
pub fn aterm(
    name: &str,
    drv: &BasicDerivation,
    inputs: &BTreeMap<String, BTreeSet<String>>,
    mask: bool,
) -> Vec<u8> {
    let mut text = b"Derive(".to_vec();
    list(&mut text, &drv.outputs, |text, (output, spec)| {
        let path = match spec.path(name, output) {
            Ok(Some(path)) if !mask => path.to_absolute_path(),
            _ => String::new(),
        };
        let (how, hash) = match spec {
            Output::InputAddressed { .. } | Output::Deferred => (String::new(), String::new()),
            Output::Fixed { ca } => {
                (prefixed(ca.method(), ca.hash().algorithm()), hex::encode(ca.hash().digest_as_bytes()))
            }
            Output::Floating { method, hash_algorithm } => {
                (prefixed(*method, *hash_algorithm), String::new())
            }
            Output::Impure { method, hash_algorithm } => {
                (prefixed(*method, *hash_algorithm), "impure".to_owned())
            }
        };
        text.push(b'(');
        for (i, part) in [output, &path, &how, &hash].into_iter().enumerate() {
            if i > 0 {
                text.push(b',');
            }
            quoted(text, part.as_bytes());
        }
        text.push(b')');
    });
    text.push(b',');
    list(&mut text, inputs, |text, (input, outputs)| {
        text.push(b'(');
        quoted(text, input.as_bytes());
        text.push(b',');
        list(text, outputs, |text, output| quoted(text, output.as_bytes()));
        text.push(b')');
    });
    text.push(b',');
    list(&mut text, &drv.input_sources, |text, path| quoted(text, path.to_absolute_path().as_bytes()));
    text.push(b',');
    quoted(&mut text, &drv.system);
    text.push(b',');
    quoted(&mut text, &drv.builder);
    text.push(b',');
    list(&mut text, &drv.args, |text, arg| quoted(text, arg));
    text.push(b',');
    list(&mut text, &drv.env, |text, (name, value)| {
        let own = std::str::from_utf8(name).is_ok_and(|name| drv.outputs.contains_key(name));
        text.push(b'(');
        quoted(text, name);
        text.push(b',');
        quoted(text, if mask && own { b"" } else { value });
        text.push(b')');
    });
    text.push(b')');
    text
}

fn list<T>(text: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    text.push(b'[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        write(text, item);
    }
    text.push(b']');
}

fn quoted(text: &mut Vec<u8>, bytes: &[u8]) {
    text.push(b'"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', *byte]),
            b'\n' => text.extend(b"\\n"),
            b'\r' => text.extend(b"\\r"),
            b'\t' => text.extend(b"\\t"),
            _ => text.push(*byte),
        }
    }
    text.push(b'"');
}

/// `r:sha256` and its relatives (Nix: `printMethodAlgo`).
#[must_use]
pub fn prefixed(method: ContentAddressMethod, algorithm: HashAlgorithm) -> String {
    let prefix = match method {
        ContentAddressMethod::Flat => "",
        ContentAddressMethod::Nar => "r:",
        ContentAddressMethod::Text => "text:",
        ContentAddressMethod::Git => "git:",
    };
    format!("{prefix}{algorithm}")
}

#[cfg(test)]
#[path = "derivation_test.rs"]
mod derivation_test;
