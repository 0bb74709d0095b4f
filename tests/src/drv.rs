//! Small derivations as Nix expressions, whose builder is the sandbox's own `/bin/sh`.
//!
//! That shell is busybox and finds its own applets (`mkdir`, `sleep`, `cat`, ...) without a `PATH`, so
//! nothing has to be uploaded before the first build.

use std::fmt::Write;

/// A derivation as a Nix expression.
#[derive(Clone)]
pub struct Drv {
    name: String,
    system: String,
    script: String,
    attributes: String,
}

impl Drv {
    /// `script` runs under `/bin/sh -e -c` and must make `$out`.
    pub fn new(name: &str, script: &str) -> Self {
        Self {
            name: name.into(),
            system: "x86_64-linux".into(),
            script: script.into(),
            attributes: String::new(),
        }
    }

    pub fn system(mut self, system: &str) -> Self {
        self.system = system.into();
        self
    }

    /// Outputs in addition to `out`, which stays the first.
    pub fn outputs(self, more: &[&str]) -> Self {
        let names: String = more.iter().map(|name| format!(" {}", quoted(name))).collect();
        self.attribute("outputs", &format!("[ \"out\"{names} ]"))
    }

    /// Any attribute; `value` is an expression. The builder sees it in its environment.
    pub fn attribute(mut self, name: &str, value: &str) -> Self {
        write!(self.attributes, " {name} = {value};").expect("text");
        self
    }

    /// Adds another derivation; the builder finds its path in this variable.
    pub fn input(self, name: &str, input: &Drv) -> Self {
        let value = input.expr();
        self.attribute(name, &value)
    }

    /// The expression, in parentheses.
    pub fn expr(&self) -> String {
        format!(
            "(derivation {{ name = {}; system = {}; builder = \"/bin/sh\"; args = [ \"-e\" \"-c\" {} ];{} }})",
            quoted(&self.name),
            quoted(&self.system),
            quoted(&self.script),
            self.attributes
        )
    }
}

/// Text as a string literal.
pub fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_reach_the_builder_as_written() {
        assert_eq!(quoted("a \"b\" \\ ${c}\nd"), r#""a \"b\" \\ \${c}\nd""#);
    }
}
