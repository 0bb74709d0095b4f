//! The keys between the agent and the sshd of one home: made for it, and gone with it.
//!
//! Nobody else can reach that sshd: its connections begin in the agent. The keys are there because ssh wants some.

use std::sync::Arc;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

pub(crate) struct Keys {
    /// The agent's.
    client: Arc<PrivateKey>,
    host: PrivateKey,
}

impl Keys {
    pub fn make() -> Result<Self, russh::keys::ssh_key::Error> {
        let key = || PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519);
        Ok(Self { client: Arc::new(key()?), host: key()? })
    }

    pub fn client(&self) -> &Arc<PrivateKey> {
        &self.client
    }

    pub fn host(&self) -> &PublicKey {
        self.host.public_key()
    }

    /// For the sshd: its private key, as a file of OpenSSH.
    pub fn host_file(&self) -> Result<String, russh::keys::ssh_key::Error> {
        Ok(self.host.to_openssh(LineEnding::LF)?.to_string())
    }

    /// For the sshd: who may log in, as a line of `authorized_keys`.
    pub fn authorized(&self) -> Result<String, russh::keys::ssh_key::Error> {
        self.client.public_key().to_openssh()
    }
}
