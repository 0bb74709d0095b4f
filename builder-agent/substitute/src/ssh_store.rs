//! Stores of other machines, reached by ssh: the client's side of the worker protocol.
//!
//! The machine must have the host key of the configuration. Apart from that, it is a stranger like any cache: its
//! claims about a path count only with a signature that the box trusts, and every answer must come in time.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix_derivation::StorePath;
use russh::keys::PublicKeyOrCertificate;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{ChannelStream, client};
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wire::client::Client;
use wire::worker::Request;

use super::address::SshAddress;
use super::offer::{Offer, Place};
use super::source::SourceError;
use net::HttpClient;

/// Most connections to one machine at once; each serves one question or one NAR at a time.
const MAX_CONNECTIONS: usize = 4;
/// The protocol version of the box: the last one without features. Every Nix since 2.16 knows it, and an older one
/// answers with its own version.
const MINOR: u8 = 37;
/// Log frames of an answer that are kept: none, since none is shown.
const FRAMES: usize = 0;

type Stream = ChannelStream<client::Msg>;

/// One worker session, and the connection below it.
pub struct Session {
    client: Client<ReadHalf<Stream>, WriteHalf<Stream>>,
    /// Closes the connection when dropped.
    _connection: client::Handle<KnownHost>,
}

pub struct SshStore {
    name: String,
    address: SshAddress,
    /// The file of the key for the login.
    key: PathBuf,
    http: Arc<HttpClient>,
    stall: Duration,
    idle: Mutex<Vec<Session>>,
    slots: Arc<Semaphore>,
}

/// Accepts the one host key.
pub struct KnownHost(PublicKey);

impl client::Handler for KnownHost {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data() == self.0.key_data(),
            PublicKeyOrCertificate::Certificate(_) => false,
        })
    }
}

impl SshStore {
    /// `key`: the key for addresses that name none.
    pub fn new(
        name: String,
        address: SshAddress,
        key: PathBuf,
        http: Arc<HttpClient>,
        stall: Duration,
    ) -> Self {
        let key = address.key.clone().unwrap_or(key);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { name, address, key, http, stall, idle: Mutex::default(), slots }
    }

    /// The machine's offer for `path`.
    pub async fn offer(&self, path: &StorePath, source: usize) -> Result<Option<Offer>, SourceError> {
        let mut borrowed = self.borrow().await?;
        let asked = timeout(self.stall, async {
            let client = &mut borrowed.session.client;
            client.call(&Request::QueryPathInfo { path: path.clone() }).await?;
            match client.u64().await? {
                0 => Ok::<_, wire::WireError>(None),
                _ => client.path_info(Some(path.clone())).await.map(Some),
            }
        });
        let info = asked.await.map_err(|_| self.stalled())?.map_err(|error| self.broken(&error))?;
        self.give_back(borrowed);
        Ok(info.map(|info| Offer { source, place: Place::Ssh, info }))
    }

    /// Opens a session in which the NAR of `path` comes next.
    pub async fn open(&self, path: &StorePath) -> Result<Borrowed, SourceError> {
        let mut borrowed = self.borrow().await?;
        let request = Request::NarFromPath { path: path.clone() };
        let asked = borrowed.session.client.call(&request);
        timeout(self.stall, asked).await.map_err(|_| self.stalled())?.map_err(|error| self.broken(&error))?;
        Ok(borrowed)
    }

    /// Longest silence of the machine.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Keeps the session for the next request. Every answer on it must have been read.
    pub fn give_back(&self, borrowed: Borrowed) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(borrowed.session);
    }

    async fn borrow(&self) -> Result<Borrowed, SourceError> {
        let slot = self.slots.clone().acquire_owned().await;
        let slot = slot.map_err(|_| SourceError::Useless(format!("{} is closed", self.name)))?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = match idle {
            Some(session) if !session._connection.is_closed() => session,
            _ => timeout(self.stall, self.connect()).await.map_err(|_| self.stalled())??,
        };
        Ok(Borrowed { session, _slot: slot })
    }

    async fn connect(&self) -> Result<Session, SourceError> {
        let SshAddress { user, host, port, host_key, .. } = &self.address;
        let failed = |error: &dyn std::fmt::Display| {
            SourceError::Trouble(format!("cannot fetch from {}: {error}", self.name))
        };
        let tcp = self.http.dialer().tcp(host, *port).await.map_err(|error| failed(&error))?;
        let config = Arc::new(client::Config {
            nodelay: true,
            keepalive_interval: Some(Duration::from_secs(30)),
            window_size: 8 << 20,
            maximum_packet_size: 65_535,
            ..client::Config::default()
        });
        let mut connection = match client::connect_stream(config, tcp, KnownHost(host_key.clone())).await {
            Err(russh::Error::UnknownKey) => {
                return Err(SourceError::Useless(format!(
                    "{} is not the machine it should be: its host key is another one than `base64-ssh-public-host-key` in `substituters`",
                    self.name
                )));
            }
            other => other.map_err(|error| failed(&error))?,
        };
        let key = self.login_key()?;
        let public = key.public_key().to_openssh().unwrap_or_default();
        let hash = connection.best_supported_rsa_hash().await.ok().flatten().flatten();
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let login =
            connection.authenticate_publickey(user.clone(), key).await.map_err(|error| failed(&error))?;
        if !login.success() {
            return Err(SourceError::Trouble(format!(
                "{} does not let this box in as '{user}'; allow the key '{public}' there",
                self.name
            )));
        }
        let channel = connection.channel_open_session().await.map_err(|error| failed(&error))?;
        channel.exec(true, "nix-daemon --stdio").await.map_err(|error| failed(&error))?;
        let (reader, writer) = tokio::io::split(channel.into_stream());
        let mut client = Client::connect(reader, writer, MINOR, &[]).await.map_err(|error| failed(&error))?;
        client.max_frames = FRAMES;
        Ok(Session { client, _connection: connection })
    }

    fn login_key(&self) -> Result<PrivateKey, SourceError> {
        let useless = |why: String| {
            SourceError::Useless(format!(
                "cannot read the ssh key {} for {}: {why}; set `ssh-key` in `substituters`",
                self.key.display(),
                self.name
            ))
        };
        let text = std::fs::read(&self.key).map_err(|error| useless(error.to_string()))?;
        PrivateKey::from_openssh(text).map_err(|error| useless(error.to_string()))
    }

    fn stalled(&self) -> SourceError {
        SourceError::Trouble(format!(
            "cannot fetch from {}: nothing came for {} seconds (`fetch.stall-seconds`)",
            self.name,
            self.stall.as_secs()
        ))
    }

    fn broken(&self, error: &wire::WireError) -> SourceError {
        let text = printable::start(&error.to_string(), 300);
        SourceError::Trouble(format!("cannot fetch from {}: {text}", self.name))
    }
}

/// A session in use. Dropping it closes the session, since a part of an answer may still follow;
/// [`SshStore::give_back`] keeps it.
pub struct Borrowed {
    session: Session,
    _slot: OwnedSemaphorePermit,
}

/// The bytes of a session, for a blocking thread that knows how many bytes to read.
pub struct Piped {
    pub borrowed: Borrowed,
    pub runtime: Handle,
    pub cancel: CancellationToken,
    pub stall: Duration,
}

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { borrowed, runtime, cancel, stall } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(io::Error::other("cancelled")),
                read = timeout(*stall, borrowed.session.client.reader.read(buf)) => {
                    read.map_err(|_| io::Error::other("nothing came for too long (`fetch.stall-seconds`)"))?
                }
            }
        })
    }
}
