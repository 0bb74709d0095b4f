//! A binary cache made by hand, and an agent without ssh (`scripted`) that fetches from it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use nix_derivation::{StorePath, nixbase32};
use store::signing::{SecretKey, Signer, fingerprint};
use wire::client::encode_file_nar;

use super::http::{ok, server, status};
use super::scripted::{Scripted, info_of, path};

/// A cache made by hand: its answers by path, and the requests that it got.
#[derive(Clone, Default)]
pub struct Cache {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cache {
    pub async fn open() -> (Self, SocketAddr) {
        let cache = Self::default();
        cache.put("nix-cache-info", ok("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"));
        let serving = cache.clone();
        let (address, _) = server(move |path| {
            serving.asked.lock().expect("asked").push(path[1..].to_owned());
            serving.files.lock().expect("files").get(&path[1..]).cloned().unwrap_or_else(|| status(404))
        })
        .await;
        (cache, address)
    }

    pub fn put(&self, path: &str, answer: Vec<u8>) {
        self.files.lock().expect("files").insert(path.to_owned(), answer);
    }

    pub fn asked(&self, path: &str) -> usize {
        self.asked.lock().expect("asked").iter().filter(|asked| *asked == path).count()
    }

    /// The number of requests.
    pub fn all_asked(&self) -> usize {
        self.asked.lock().expect("asked").len()
    }

    /// Publishes `path` as a file with this text, as an honest cache would; then `change` may change the
    /// narinfo.
    pub fn publish(
        &self,
        name: &str,
        text: &str,
        references: &[StorePath],
        key: Option<&SecretKey>,
        change: impl FnOnce(String) -> String,
    ) -> StorePath {
        let path = path(name);
        let nar = encode_file_nar(text.as_bytes(), false);
        let info = info_of(path.clone(), &nar, references);
        let hash = nixbase32::encode(&info.nar_hash);
        let names: Vec<String> = info.references.iter().map(StorePath::to_basename).collect();
        let signature = key.map(|key| format!("Sig: {}\n", key.sign(fingerprint(&info).as_bytes())));
        let narinfo = format!(
            "StorePath: {}\nURL: nar/{name}.nar\nCompression: none\nFileHash: sha256:{hash}\nFileSize: {size}\n\
             NarHash: sha256:{hash}\nNarSize: {size}\nReferences: {}\n{}",
            path.to_absolute_path(),
            names.join(" "),
            signature.unwrap_or_default(),
            size = nar.len(),
        );
        self.put(&narinfo_of(&path), ok(change(narinfo)));
        self.put(&format!("nar/{name}.nar"), ok(nar));
        path
    }
}

pub fn narinfo_of(path: &StorePath) -> String {
    format!("{}.narinfo", nixbase32::encode(path.digest()))
}

pub fn as_it_is(narinfo: String) -> String {
    narinfo
}

pub fn key() -> SecretKey {
    SecretKey::generate("cache.example.org-1").expect("a key")
}

/// An agent that fetches from this cache and trusts this key.
pub fn fetching_agent(address: SocketAddr, key: &SecretKey, more: &str) -> Scripted {
    Scripted::open(&format!(
        "substituters = [\"http://{address}\"]\ntrusted-public-keys = [\"{}\"]\nfetch.allow-private = true\n\
         fetch.stall-seconds = 1\n{more}",
        key.public()
    ))
}
