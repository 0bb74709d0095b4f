//! Finds kernel modules in a Debian kernel package, with their dependencies and the order to load them.
//!
//! The package has no `modules.dep` (depmod writes that on the target), so the dependencies are read from
//! each module's own `.modinfo`. Not here: loading, and the aliases that udev uses.

use crate::tool::{self, ToolError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    #[error("cannot read the kernel's modules in {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the kernel in {tree} has no module `{name}`, neither built in nor as a file\nhint:  choose another kernel flavour"
    )]
    NoSuchModule { name: String, tree: PathBuf },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// An unpacked module.
pub struct Module {
    /// File name ending in `.ko`, e.g. `virtio-rng.ko`.
    pub file: String,
    pub contents: Vec<u8>,
}

/// The modules in `wanted` with all their dependencies, each after those it needs. Built-in ones are left
/// out.
///
/// `tree` is `/usr/lib/modules/<version>` of an unpacked package.
pub fn load_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModulesError> {
    let [order] = load_orders(tree, [wanted])?;
    Ok(order)
}

/// The same for several lists, to be loaded one after the other: a module that two of them need is in the first.
pub fn load_orders<const N: usize>(
    tree: &Path,
    lists: [&[&str]; N],
) -> Result<[Vec<Module>; N], ModulesError> {
    let mut search = Search {
        tree,
        files: BTreeMap::new(),
        builtin: BTreeSet::new(),
        done: BTreeSet::new(),
        order: Vec::new(),
    };
    index(&tree.join("kernel"), &mut search.files)?;
    let path = tree.join("modules.builtin");
    let builtin = std::fs::read_to_string(&path).map_err(|source| ModulesError::Read { path, source })?;
    search.builtin = builtin.lines().map(module_name).collect();
    let mut orders = [const { Vec::new() }; N];
    for (wanted, order) in lists.into_iter().zip(&mut orders) {
        for name in wanted {
            search.visit(name, Need::Hard)?;
        }
        *order = std::mem::take(&mut search.order);
    }
    Ok(orders)
}

#[derive(Clone, Copy, PartialEq)]
enum Need {
    Hard,
    /// `softdep=pre:`: should be loaded before, but the module works without it.
    Soft,
}

struct Search<'a> {
    tree: &'a Path,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Search<'_> {
    /// The number of modules limits the depth: each name is entered once.
    fn visit(&mut self, name: &str, need: Need) -> Result<(), ModulesError> {
        let name = module_name(name);
        if self.builtin.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name).cloned() else {
            return match need {
                // Ciphers and checksums are requested by algorithm, which is an alias; the portable module
                // has this name. Without it libcrc32c, and so erofs, cannot start on a kernel that has none
                // built in.
                Need::Soft if self.files.contains_key(&format!("{name}_generic")) => {
                    self.visit(&format!("{name}_generic"), Need::Soft)
                }
                Need::Soft => Ok(()),
                Need::Hard => Err(ModulesError::NoSuchModule { name, tree: self.tree.into() }),
            };
        };
        let contents = read_module(&path)?;
        for (key, value) in modinfo(&contents) {
            match key {
                "softdep" => {
                    let pre = value.split("post:").next().unwrap_or_default();
                    for soft in pre.split_whitespace().filter(|word| *word != "pre:") {
                        self.visit(soft, Need::Soft)?;
                    }
                }
                "depends" => {
                    for hard in value.split(',').filter(|name| !name.is_empty()) {
                        self.visit(hard, Need::Hard)?;
                    }
                }
                _ => {}
            }
        }
        self.order.push(Module { file: plain_file_name(&path), contents });
        Ok(())
    }
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModulesError> {
    let failed = |source| ModulesError::Read { path: dir.into(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            index(&path, files)?;
        } else if plain_file_name(&path).ends_with(".ko") {
            files.insert(module_name(&path.to_string_lossy()), path);
        }
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let packed = std::fs::read(path).map_err(|source| ModulesError::Read { path: path.into(), source })?;
    Ok(match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => tool::output_with_input(Command::new("xz").arg("-dc"), &packed, "unpack a module")?,
        Some("zst") => tool::output_with_input(Command::new("zstd").arg("-dcq"), &packed, "unpack a module")?,
        _ => packed,
    })
}

/// `kernel/fs/erofs/erofs.ko.xz` -> `erofs.ko`
fn plain_file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".xz").trim_end_matches(".zst").to_string()
}

/// The kernel treats `-` and `_` in module names as equal.
fn module_name(path: &str) -> String {
    plain_file_name(Path::new(path)).trim_end_matches(".ko").replace('-', "_")
}

/// The `key=value` strings of a module's `.modinfo`, found by searching for the keys.
///
/// Reading the ELF section table would be stricter; but modinfo strings are the only NUL-separated text in a
/// module that starts with these keys, and a wrong match could only add a module that does not exist, which
/// is an error.
fn modinfo(module: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    module.split(|byte| *byte == 0).filter_map(|text| {
        let (key, value) = std::str::from_utf8(text).ok()?.split_once('=')?;
        matches!(key, "depends" | "softdep").then_some((key, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("kernel/drivers")).unwrap();
        std::fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        for (name, info) in modules {
            std::fs::write(
                dir.path().join(format!("kernel/drivers/{name}.ko")),
                format!("\x7fELF\0{info}\0x=y\0"),
            )
            .unwrap();
        }
        dir
    }

    fn order(tree: &Path, wanted: &[&str]) -> Vec<String> {
        load_order(tree, wanted).unwrap().into_iter().map(|module| module.file).collect()
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let tree = tree(
            &[("a", "depends=c,b"), ("b", "depends=c"), ("c", "depends="), ("d-e", "depends=a,f")],
            "kernel/f.ko\n",
        );
        assert_eq!(order(tree.path(), &["a", "d_e"]), ["c.ko", "b.ko", "a.ko", "d-e.ko"]);
    }

    #[test]
    fn what_two_lists_need_is_in_the_first() {
        let tree =
            tree(&[("a", "depends=b"), ("b", "depends="), ("c", "depends=d,b"), ("d", "depends=")], "");
        let lists = load_orders(tree.path(), [&["a"], &["c", "a"]]).unwrap();
        let files = lists.map(|list| list.into_iter().map(|module| module.file).collect::<Vec<_>>());
        assert_eq!(files, [vec!["b.ko", "a.ko"], vec!["d.ko", "c.ko"]]);
    }

    #[test]
    fn soft_needs_come_first_when_there_and_are_skipped_when_not() {
        let tree = tree(&[("a", "softdep=pre: b gone post: z"), ("b", "depends="), ("z", "depends=")], "");
        assert_eq!(order(tree.path(), &["a"]), ["b.ko", "a.ko"]);
    }

    #[test]
    fn an_algorithm_asked_for_by_its_alias_brings_the_portable_module() {
        let tree = tree(&[("libsum", "softdep=pre: sum32"), ("sum32_generic", "depends=")], "");
        assert_eq!(order(tree.path(), &["libsum"]), ["sum32_generic.ko", "libsum.ko"]);
    }

    #[test]
    fn a_module_the_kernel_lacks_is_an_error_that_names_it() {
        let tree = tree(&[("a", "depends=nowhere")], "");
        let error = load_order(tree.path(), &["a"]).err().unwrap();
        assert!(error.to_string().contains("`nowhere`"), "{error}");
    }

    #[test]
    fn modules_that_need_each_other_do_not_loop() {
        let tree = tree(&[("a", "depends=b"), ("b", "depends=a")], "");
        assert_eq!(order(tree.path(), &["a"]), ["b.ko", "a.ko"]);
    }
}
