//! An ssh connection from the agent to the sshd in a home.
//!
//! The sshd, and everything that it sends, is the member's: it can ask for what any ssh server can ask of its client. Only
//! channels for what the client outside has asked for get through ([`Outside`]). Not here: which channels those are.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, ChannelOpenHandle, Msg, Session};
use russh::keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelStream, Preferred, cipher, compression, kex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::keys::Keys;

/// For a login, and for each answer: the sshd of a home has nothing else to do. An emulated machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that the home may send ahead on one channel.
const WINDOW: u32 = 2 << 20;
/// Packets that wait for the reader of a channel.
const CHANNEL_BUFFER: usize = 16;
/// A home that answers none of these hangs.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVES_LOST: usize = 5;

/// What the home opens.
#[derive(Debug, Clone)]
pub enum Opened {
    /// To the ssh agent of the client (`auth-agent@openssh.com`).
    Agent,
    /// Somebody has connected to a port on which the home listens for the client.
    Forwarded { address: String, port: u32, originator: (String, u32) },
    /// The same for a socket.
    Socket { path: String },
}

/// Takes or refuses a channel.
pub type Reply = ChannelOpenHandle;
/// A channel as a stream of bytes.
pub type Stream = ChannelStream<Msg>;

/// Gets what is opened from inside. It must not wait: the whole connection does.
pub trait Outside: Send + Sync {
    fn opened(&self, what: Opened, channel: Channel<Msg>, reply: Reply);
}

/// Who answers the sshd.
pub struct Answers {
    host: PublicKey,
    outside: Arc<dyn Outside>,
}

impl client::Handler for Answers {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(
            matches!(key, PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.host.key_data()),
        )
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.outside.opened(Opened::Agent, channel, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let what = Opened::Forwarded {
            address: connected_address.to_owned(),
            port: connected_port,
            originator: (originator_address.to_owned(), originator_port),
        };
        self.outside.opened(what, channel, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.outside.opened(Opened::Socket { path: socket_path.to_owned() }, channel, reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Dropping the reply refuses.
        Ok(())
    }
}

/// A connection that is logged in. Dropping it ends it with its channels.
pub struct Inside {
    ssh: client::Handle<Answers>,
    /// Kept until the connection ends.
    _keep: Box<dyn Send + Sync>,
}

impl Inside {
    /// The sshd's answer, for which it has [`PATIENCE`]; or why there is none, as the end of a sentence.
    pub async fn answers<T>(
        &self,
        asked: impl Future<Output = Result<T, russh::Error>>,
    ) -> Result<T, String> {
        match timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("its sshd did not answer for {} s", PATIENCE.as_secs())),
        }
    }
}

impl std::ops::Deref for Inside {
    type Target = client::Handle<Answers>;

    fn deref(&self) -> &Self::Target {
        &self.ssh
    }
}

/// Logs in as `user`. `keep` belongs to the stream.
pub(crate) async fn connect(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    keep: Box<dyn Send + Sync>,
    keys: &Keys,
    user: &str,
    outside: Arc<dyn Outside>,
) -> Result<Inside, String> {
    let login = async {
        let answers = Answers { host: keys.host().clone(), outside };
        let mut ssh = client::connect_stream(Arc::new(settings()), stream, answers).await?;
        let key = PrivateKeyWithHashAlg::new(keys.client().clone(), None);
        let login = ssh.authenticate_publickey(user, key).await?;
        Ok::<_, russh::Error>((ssh, login))
    };
    match timeout(PATIENCE, login).await {
        Ok(Ok((ssh, login))) if login.success() => Ok(Inside { ssh, _keep: keep }),
        Ok(Ok(_)) => Err("its sshd does not let the agent in".into()),
        Ok(Err(error)) => Err(format!("its sshd: {error}")),
        Err(_) => Err(format!("its sshd said nothing for {} s", PATIENCE.as_secs())),
    }
}

/// Only what OpenSSH prefers and what is fast: both ends are ours.
fn settings() -> client::Config {
    client::Config {
        client_id: russh::SshId::Standard("SSH-2.0-barnraiser".into()),
        window_size: WINDOW,
        maximum_packet_size: 32_768,
        channel_buffer_size: CHANNEL_BUFFER,
        preferred: Preferred {
            kex: [
                kex::CURVE25519,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]
            .as_slice()
            .to_vec()
            .into(),
            cipher: [cipher::AES_128_GCM].as_slice().to_vec().into(),
            compression: [compression::NONE].as_slice().to_vec().into(),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES_LOST,
        ..client::Config::default()
    }
}
