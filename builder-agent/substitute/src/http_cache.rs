//! Binary caches behind http and https (Nix: `src/libstore/http-binary-cache-store.cc`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_derivation::{StorePath, nixbase32};
use tokio::sync::Mutex;
use url::Url;

use super::cache_info::{self, CacheInfo};
use super::narinfo::{self, NarInfo};
use super::offer::{Offer, Place};
use super::source::SourceError;
use net::{Body, HttpClient, HttpError, Want};

/// How long a cache's description of itself is remembered.
const INFO_HOLDS: Duration = Duration::from_secs(3600);
/// How long a cache's failure to answer is remembered: long enough for requests that waited meanwhile, and no longer
/// than the shortest pause that follows.
const TROUBLE_HOLDS: Duration = Duration::from_secs(1);

pub struct HttpCache {
    name: String,
    base: Url,
    http: Arc<HttpClient>,
    /// The cache's description of itself and when it was received. The lock is held during the request, so that there
    /// is only one request.
    info: Mutex<Option<(Instant, Result<CacheInfo, SourceError>)>>,
}

impl HttpCache {
    pub fn new(name: String, base: Url, http: Arc<HttpClient>) -> Self {
        Self { name, base, http, info: Mutex::new(None) }
    }

    /// The cache's description of itself; an error if the cache cannot be used.
    pub async fn about(&self) -> Result<CacheInfo, SourceError> {
        let mut known = self.info.lock().await;
        if let Some((since, info)) = &*known {
            let holds = match info {
                Ok(_) | Err(SourceError::Useless(_)) => INFO_HOLDS,
                Err(_) => TROUBLE_HOLDS,
            };
            if since.elapsed() < holds {
                return info.clone();
            }
        }
        let info = self.ask_about().await;
        *known = Some((Instant::now(), info.clone()));
        info
    }

    async fn ask_about(&self) -> Result<CacheInfo, SourceError> {
        let useless = |why: String| SourceError::Useless(format!("{} cannot be used: {why}", self.name));
        let url = self.url("nix-cache-info")?;
        let want = Want { max_bytes: cache_info::MAX_BYTES as u64 };
        match self.http.get_all(&url, want).await {
            Ok(bytes) => {
                CacheInfo::parse(&bytes).map_err(|error| useless(format!("its nix-cache-info {error}")))
            }
            Err(error) if error.is_missing() => {
                Err(useless("it has no nix-cache-info, so it is no binary cache".into()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The cache's offer for `path`. The caller has checked with [`HttpCache::about`] that the cache can be used.
    pub async fn offer(&self, path: &StorePath, source: usize) -> Result<Option<Offer>, SourceError> {
        let url = self.url(&format!("{}.narinfo", nixbase32::encode(path.digest())))?;
        let bytes = match self.http.get_all(&url, Want { max_bytes: narinfo::MAX_BYTES as u64 }).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bad = |why: String| {
            SourceError::Refused(format!(
                "{} is of no use for '{}': {why}",
                self.name,
                path.to_absolute_path()
            ))
        };
        let info = NarInfo::parse(&bytes).map_err(|error| bad(format!("its narinfo {error}")))?;
        if info.path != *path {
            return Err(bad(format!("its narinfo is about '{}'", info.path.to_absolute_path())));
        }
        // As in Nix, the URL is relative to the cache; an absolute one may name any public server.
        let file =
            self.base.join(&info.url).map_err(|error| bad(format!("its narinfo has a bad URL: {error}")))?;
        let (compression, hash, size) = (info.compression, info.file_hash.clone(), info.file_size);
        Ok(Some(Offer {
            source,
            place: Place::Http { url: file, compression, hash, size },
            info: info.into_path_info(),
        }))
    }

    /// The file behind an offer.
    pub async fn open(&self, url: &Url, max_bytes: u64) -> Result<Body, HttpError> {
        self.http.get(url, Want { max_bytes }).await
    }

    fn url(&self, file: &str) -> Result<Url, SourceError> {
        self.base
            .join(file)
            .map_err(|error| SourceError::Useless(format!("{} cannot be used: {error}", self.name)))
    }
}
