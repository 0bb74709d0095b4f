//! `client-config`: the member's own configuration for this box, ready to paste.
//!
//! Everything in it is already known to the member or public: the address of the box, its host key and its signing key,
//! the systems and features that it builds, and how many builds of this member it runs at the same time.

mod formats;

use daemon::Agent;
use members::Member;
use serde::Serialize;
use settings::Reached;

use crate::alias::alias;
use crate::places::Kind;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// The file to print; `json` prints the values
    #[arg(long, value_enum, default_value_t = Format::Ssh)]
    format: Format,
    /// The address under which you reach the box, if it is not the one that the maintainers have configured
    #[arg(long, value_name = "HOST[:PORT]")]
    host: Option<Reached>,
    /// The private key file on your computer
    #[arg(long, value_name = "FILE", value_parser = key_file)]
    key: Option<String>,
    /// The same as `--format json`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A NixOS module
    Nixos,
    /// A nix-darwin module
    NixDarwin,
    /// Lines of nix.conf
    #[value(name = "nix.conf")]
    NixConf,
    /// A line of /etc/nix/machines
    Machines,
    /// A block of ~/.ssh/config
    Ssh,
    /// The values
    Json,
}

/// The values that every format is made of.
#[derive(Debug, Serialize)]
struct Values {
    /// The name of the box in the member's ssh configuration.
    alias: String,
    host: String,
    port: u16,
    user: String,
    /// `type base64`.
    host_key: String,
    signing_key: String,
    systems: Vec<String>,
    features: Vec<String>,
    max_jobs: usize,
    /// The key file that the member named.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// A file name that no configuration gives another meaning.
fn key_file(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/~._-+@".contains(c);
    match !text.is_empty() && text.len() <= 255 && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("write a file name of letters, digits and `/~._-+@`"),
    }
}

/// The output of the command.
pub(super) fn text(arguments: &Arguments, agent: &Agent, member: &Member) -> String {
    let values = Values::of(arguments, agent, member);
    match if arguments.json { Format::Json } else { arguments.format } {
        Format::Json => super::json_line(&values),
        Format::Nixos => formats::nixos(&values),
        Format::NixDarwin => formats::nix_darwin(&values),
        Format::NixConf => formats::nix_conf(&values),
        Format::Machines => formats::machines(&values),
        Format::Ssh => formats::ssh(&values),
    }
}

impl Values {
    fn of(arguments: &Arguments, agent: &Agent, member: &Member) -> Self {
        let config = &agent.config;
        let Reached { host, port } = arguments.host.clone().unwrap_or_else(|| config.reached());
        let limits = &config.limits;
        let own =
            agent.roster.borrow().current(member).map(|member| member.limits.clone()).unwrap_or_default();
        let builds = limits.max_jobs.min(limits.max_jobs_per_member);
        let builds = own.max_jobs.map_or(builds, |own| builds.min(own as usize));
        // Stock Nix opens a connection with a session for each build that it sends, and a refused one fails the build.
        let most = |kind: Kind| kind.most(limits, &own).value;
        let max_jobs = builds.min(most(Kind::Connection)).min(most(Kind::Session));
        Self {
            alias: alias(&config.name),
            host,
            port,
            user: member.name.to_string(),
            host_key: agent.host_key.clone(),
            signing_key: agent.signing_key.to_string(),
            systems: config.systems.clone(),
            features: config.system_features.clone(),
            max_jobs,
            key: arguments.key.clone(),
        }
    }
}

#[cfg(test)]
#[path = "client_config/client_config_test.rs"]
mod client_config_test;
