//! The mistakes that a configuration file can have, with messages that an operator can act on.

use std::path::PathBuf;

/// Shown when there is no file: the smallest working configuration.
pub const EXAMPLE: &str = r#"roster = "/run/barnraiser/roster.json"
state-dir = "/var/lib/barnraiser"
[sandbox]
backend = "kvm"
"#;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "there is no configuration file at {}\nhint: write one; the smallest valid file is:\n\n{EXAMPLE}",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{} is not TOML: {message}", path.display())]
    NotToml { path: PathBuf, message: String },
    /// Ignoring an unknown key would let an operator believe in a setting that does nothing.
    #[error("{}:{line}: unknown key `{key}` (its value is {value})\nhint: {accepted}", path.display())]
    UnknownKey { path: PathBuf, line: usize, key: String, value: String, accepted: String },
    #[error("{}:{line}: `{key}` is {value}, but {wanted}", path.display())]
    BadValue { path: PathBuf, line: usize, key: String, value: String, wanted: String },
    #[error("{}: `{key}` is not set, and it has no default\nhint: {help}", path.display())]
    NotSet { path: PathBuf, key: String, help: String },
}
