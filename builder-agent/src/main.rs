//! `builder-agent`: command line, exit codes.
//!
//! 0: success. 1: a failure while running. 2: the command line or the configuration is wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use builder_agent::takeover::Earlier;
use builder_agent::{logging, mirror, reload, serve};
use builds::backend;
use clap::{Parser, Subcommand};
use settings::{Config, keys};

/// Wrong command line or configuration; clap uses the same for its own errors.
const USAGE: u8 = 2;
const DEFAULT_CONFIG: &str = "/etc/builder-agent.toml";

#[derive(Parser)]
#[command(
    version,
    about = "Builds Nix derivations for the members of a community, each in a sandbox of its own"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer ssh and build, until SIGTERM
    Serve {
        /// The configuration file
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// What an agent before this one has left
        #[arg(long, hide = true)]
        taken_over: Option<i32>,
    },
    /// Take the place of the agent that runs; its builds go on
    Reload {
        /// The configuration file
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Seconds for builds that are being started or send their outputs
        #[arg(long, default_value_t = 60)]
        patience: u64,
        /// Throw homes of members away; without it, an agent that has some stays
        #[arg(long)]
        end_homes: bool,
    },
    /// Keep the mirrors of git repositories up to date, until SIGTERM; SIGUSR1: look at all of them now
    Mirror {
        /// The configuration file
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Look at each of them once, and end; 1 if one could not be brought up to date
        #[arg(long)]
        once: bool,
    },
    /// Look at the sandbox
    Sandbox {
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum SandboxCommand {
    /// Boot a guest to see whether KVM really works here
    Probe {
        /// Take kernel and initrd from this configuration file
        #[arg(long, conflicts_with_all = ["kernel", "initrd"])]
        config: Option<PathBuf>,
        /// The guest kernel (ELF)
        #[arg(long, requires = "initrd")]
        kernel: Option<PathBuf>,
        /// The guest initrd
        #[arg(long, requires = "kernel")]
        initrd: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a configuration file is good
    Check {
        /// The configuration file
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print all keys with their defaults
    Keys,
    /// Print rules for nft(8): what the network of builds may reach
    Firewall {
        /// The configuration file
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    // The agent starts itself again as the process around each micro-VM. This check must come first, before the process
    // has threads, open files or memory that a guest could misuse.
    sandbox::child_main_if_requested();

    match Cli::parse().command {
        Command::Serve { config, taken_over } => {
            // Before this program opens anything.
            let earlier = taken_over.map(Earlier::read).transpose();
            let log = logging::start();
            // The main thread is the parent of all sandboxes: it stays the same when another agent takes over.
            sandbox::parent::run(move || match (load(&config), earlier) {
                (Err(code), _) => code,
                (_, Err(error)) => {
                    drop(log);
                    done(Err(error))
                }
                (Ok(config), Ok(earlier)) => {
                    let served = serve::run(config, earlier, &log);
                    // Writes the lines that still wait, so that the error comes after them.
                    drop(log);
                    done(served)
                }
            })
        }
        Command::Reload { config: file, patience, end_homes } => match load(&file) {
            Err(code) => code,
            Ok(config) => {
                let reloaded = reload::run(&config, &file, Duration::from_secs(patience), end_homes);
                done(reloaded.map(|builds| println!("this agent serves now; builds that go on: {builds}")))
            }
        },
        Command::Mirror { config, once } => match load(&config) {
            Err(code) => code,
            Ok(config) => {
                let log = logging::start();
                let mirrored = mirror::run(&config.mirrors, once);
                // Writes the lines that still wait, so that the error comes after them.
                drop(log);
                done(mirrored)
            }
        },
        Command::Sandbox { command: SandboxCommand::Probe { config, kernel, initrd } } => {
            let images = match (kernel, initrd) {
                (Some(kernel), Some(initrd)) => Ok((kernel, initrd, None)),
                _ => load(config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG)))
                    .map(|config| (config.sandbox.kernel, config.sandbox.initrd, config.sandbox.cgroup)),
            };
            match images {
                Err(code) => code,
                Ok((kernel, initrd, cgroup)) => {
                    let probed = backend::probe(&kernel, &initrd, cgroup.as_deref());
                    done(probed.map(|line| println!("{line}")))
                }
            }
        }
        Command::Config { command: ConfigCommand::Check { config: path } } => match load(&path) {
            Err(code) => code,
            Ok(_) => {
                println!("{} is good", path.display());
                ExitCode::SUCCESS
            }
        },
        Command::Config { command: ConfigCommand::Keys } => {
            print!("{}", keys::markdown());
            ExitCode::SUCCESS
        }
        Command::Config { command: ConfigCommand::Firewall { config: path } } => match load(&path) {
            Err(code) => code,
            Ok(config) => {
                // Without machines that have a network there is nobody to keep out.
                if backend::has_network(&config) {
                    print!(
                        "{}",
                        egress::firewall::rules(&config.network.policy, &sandbox::kvm::network::USERS)
                    );
                }
                ExitCode::SUCCESS
            }
        },
    }
}

fn load(path: &Path) -> Result<Config, ExitCode> {
    Config::load(path).map_err(|error| {
        eprintln!("error: {error}");
        ExitCode::from(USAGE)
    })
}

fn done(result: Result<(), impl std::error::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("cause: {inner}");
                cause = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}
