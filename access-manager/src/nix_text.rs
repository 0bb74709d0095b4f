//! Text that Nix reads as what was meant: strings, names of attributes, paths. Values come from strangers.

pub use ::roster::nix_text::string;

/// Words that are no names.
const KEYWORDS: &[&str] = &["assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with"];

/// The name of an attribute, in quotes where it needs them.
pub fn attribute(name: &str) -> String {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-'".contains(c));
    match first && rest && !KEYWORDS.contains(&name) {
        true => name.to_owned(),
        false => string(name),
    }
}

/// `path` as a file in the folder `dir` names it; both from the top of the repository.
pub fn path(dir: &str, path: &str) -> String {
    let names = |path: &'_ str| {
        path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let (dir, path) = (names(dir), names(path));
    let common = dir.iter().zip(&path).take_while(|(one, other)| one == other).count();
    let up = match dir.len() - common {
        0 => "./".to_owned(),
        more => "../".repeat(more),
    };
    let rest = path[common..].join("/");
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+/".contains(c);
    match !rest.is_empty() && rest.chars().all(plain) {
        true => format!("{up}{rest}"),
        false => format!("({up}. + {})", string(&format!("/{rest}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{Limits, to_json};
    use crate::source::Memory;

    fn read(file: &str) -> serde_json::Value {
        to_json(Memory::with(&[("x.nix", file)]), "x.nix", Limits::default())
            .unwrap_or_else(|error| panic!("{file}\n{error}"))
    }

    #[test]
    fn a_string_is_read_as_it_was() {
        for text in
            ["", "a\"b\\c", "${x}", "$${x}", "$$${x}", "\\${x}", "$", "{", "a\nb\tc\rd", "''${x}''", "ä€"]
        {
            assert_eq!(read(&string(text)), serde_json::Value::from(text), "{}", string(text));
        }
    }

    #[test]
    fn a_name_is_read_as_it_was() {
        for name in [
            "a",
            "_a",
            "a-b'",
            "0x4A6F",
            "a.b",
            "if",
            "or",
            "let",
            "null",
            "true",
            "a b",
            "${a}",
            "",
            "__functor",
        ] {
            let file = format!("{{ {} = 1; }}", attribute(name));
            assert_eq!(read(&file), serde_json::json!({ name: 1 }), "{file}");
        }
    }

    #[test]
    fn a_path_leads_to_the_file_from_every_folder() {
        for (file, target) in [
            ("users.nix", "keys/a.pub"),
            ("users.nix", "a"),
            ("infra/users.nix", "infra/keys/a.pub"),
            ("infra/users.nix", "keys/a.pub"),
            ("a/b/users.nix", "a/c/d"),
            ("users.nix", "the keys/${x}\"\\"),
            ("a/b/users.nix", "a b"),
            ("users.nix", "keys/a~1"),
        ] {
            let text = format!("builtins.readFile {}", path(crate::source::parent(file), target));
            let read = to_json(Memory::with(&[(file, &text), (target, "found")]), file, Limits::default());
            assert_eq!(read.unwrap_or_else(|error| panic!("{text}\n{error}")), "found", "{text}");
        }
    }
}
