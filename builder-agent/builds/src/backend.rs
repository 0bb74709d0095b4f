//! Opens the sandbox backend that the configuration names. There is no fallback from one backend to the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox::kvm::jail::{Missing, Step};
use sandbox::kvm::{KvmBackend, KvmConfig, Likely};
use sandbox::namespace::{NamespaceBackend, NamespaceConfig};
use sandbox::{Backend, JobRunner};

use sandbox::kvm::network::NetworkConfig;
use settings::{BackendKind, Config, Homes, Network, Sandbox};

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{what} {} cannot be read: {cause}\nhint: `netboot-image guest` makes it; `sandbox.{key}` says where it is", path.display())]
    Missing { what: &'static str, key: &'static str, path: PathBuf, cause: std::io::Error },
    #[error("passt, the network of builders of fixed outputs, cannot be read at {}: {cause}\nhint: install the package passt; `network.passt` says where it is; with `network.builds = false` these builders have no network", path.display())]
    Passt { path: PathBuf, cause: std::io::Error },
    #[error("cannot open the namespace sandbox: {0}")]
    Namespace(sandbox::SandboxError),
    #[error("cannot run builds: {0}")]
    Jail(sandbox::SandboxError),
}

/// Whether there are machines with a network on this box.
pub fn has_network(config: &Config) -> bool {
    config.network.builds && config.sandbox.backend == BackendKind::Kvm
}

/// The certificates for builders of fixed outputs, if these have a network on this box.
pub fn network_certificates(config: &Config) -> Option<PathBuf> {
    has_network(config).then(|| config.fetch.certificates.clone())
}

/// The configured backend.
pub struct Opened {
    pub builds: Arc<dyn JobRunner>,
    /// The same one, if its machines can be homes.
    pub machines: Option<Arc<dyn Backend>>,
}

/// Opens the configured backend; for `kvm`, only if its jail is complete here or the configuration accepts an
/// incomplete one. Then templates are made meanwhile, of builds and, if members can have them, of homes; whether a guest boots is
/// said by `builder-agent sandbox probe`.
pub fn open(config: &Sandbox, network: &Network, homes: Option<&Homes>) -> Result<Opened, BackendError> {
    match config.backend {
        BackendKind::Kvm => {
            readable("the guest kernel", "kernel", &config.kernel)?;
            readable("the guest initrd", "initrd", &config.initrd)?;
            let mut kvm = KvmConfig::new(&config.kernel, &config.initrd);
            kvm.cgroup = config.cgroup.clone();
            kvm.allow_missing = config.allow_missing.clone();
            kvm.templates = config.templates;
            if network.builds {
                let passt = network.passt.clone();
                if let Err(cause) = std::fs::File::open(&passt) {
                    return Err(BackendError::Passt { path: passt, cause });
                }
                let (policy, resolver) = (network.policy.clone(), network.resolver);
                kvm.network = Some(NetworkConfig { passt, policy, resolver });
            }
            let backend = KvmBackend::new(kvm);
            let report = backend.check_jail().map_err(BackendError::Jail)?;
            for Missing { step, why } in &report.missing {
                let step = step.name();
                tracing::warn!(
                    step,
                    why,
                    "VMs run without a step of their jail, as `sandbox.allow-missing` says"
                );
            }
            let backend = Arc::new(backend);
            let (vcpus, memory_mib) = (config.vcpus, config.memory_mib);
            let build = Likely { vcpus, memory_mib, network: false, home: false };
            let home = homes.map(|homes| Likely {
                vcpus: homes.vcpus,
                memory_mib: homes.memory_mib,
                network: network.builds,
                home: true,
            });
            backend.prepare([build].into_iter().chain(home).collect());
            Ok(Opened { builds: backend.clone(), machines: Some(backend) })
        }
        BackendKind::Namespace => {
            readable("the guest binary", "guest", &config.guest)?;
            readable("the shell", "shell", &config.shell)?;
            let config = NamespaceConfig::new(config.guest.clone(), config.shell.clone());
            let backend = NamespaceBackend::new(config).map_err(BackendError::Namespace)?;
            Ok(Opened { builds: Arc::new(backend), machines: None })
        }
    }
}

/// The ways in which the configuration makes this box weaker than it could be. Members must know them before they trust
/// it.
pub fn weaker(config: &Sandbox) -> Option<String> {
    match config.backend {
        BackendKind::Namespace => {
            Some("builds run in the namespace sandbox, which is weaker than this project's micro-VMs".into())
        }
        BackendKind::Kvm if config.allow_missing.is_empty() => None,
        BackendKind::Kvm => {
            let steps: Vec<_> = config.allow_missing.iter().map(|step| step.name()).collect();
            Some(format!("the jail around micro-VMs may be incomplete on this box: {}", steps.join(", ")))
        }
    }
}

/// Checks a file at the start of the agent, so that the first build of a member is not the first to miss it.
fn readable(what: &'static str, key: &'static str, path: &Path) -> Result<(), BackendError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(cause) => Err(BackendError::Missing { what, key, path: path.to_owned(), cause }),
    }
}

/// Boots a guest. Returns a report on it, also if the jail is one in which no agent would run builds.
pub fn probe(kernel: &Path, initrd: &Path, cgroup: Option<&Path>) -> Result<String, ProbeError> {
    readable("the guest kernel", "kernel", kernel)?;
    readable("the guest initrd", "initrd", initrd)?;
    let mut config = KvmConfig::new(kernel, initrd);
    config.cgroup = cgroup.map(Path::to_owned);
    config.allow_missing = Step::ALL.to_vec();
    let backend = KvmBackend::new(config);
    let probed = sandbox::probe::probe(&backend, sandbox::probe::PATIENCE)?;
    let mut text = probed.to_string();
    for (name, duration) in probed.phases.named() {
        text.push_str(&format!("\n  {name}: {:.1} ms", duration.as_secs_f64() * 1e3));
    }
    text.push_str(&format!("\n  jail: {}", probed.jail_active.join(", ")));
    for Missing { step, why } in &probed.jail_missing {
        let step = step.name();
        text.push_str(&format!(
            "\n  jail, not possible on this host: {step} ({why}); see `sandbox.allow-missing`"
        ));
    }
    Ok(text)
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Images(#[from] BackendError),
    #[error(
        "KVM cannot run a guest here: {0}\nhint: members' builds need it; or choose the weaker `backend = \"namespace\"` in [sandbox]"
    )]
    Guest(#[from] sandbox::SandboxError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(settings: &str) -> Sandbox {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("roster = \"/r\"\n{settings}")).expect("written");
        Config::load(file.path()).expect("a good file").sandbox
    }

    #[test]
    fn whatever_makes_a_box_weaker_is_in_its_banner() {
        assert_eq!(weaker(&sandbox("")), None);
        let namespace = weaker(&sandbox("sandbox.backend = \"namespace\""));
        assert!(namespace.is_some_and(|text| text.contains("weaker than this project's micro-VMs")));
        let incomplete = weaker(&sandbox("sandbox.allow-missing = [\"cgroup\", \"landlock\"]"));
        assert!(incomplete.is_some_and(|text| text.ends_with("incomplete on this box: cgroup, landlock")));
    }
}
