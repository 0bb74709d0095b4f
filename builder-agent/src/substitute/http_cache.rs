//! Binary caches behind http and https (Nix: `src/libstore/http-binary-cache-store.cc`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_derivation::{StorePath, nixbase32};
use store::PathInfo;
use tokio::sync::Mutex;
use url::Url;

use super::cache_info::{self, CacheInfo};
use super::narinfo::{self, NarInfo};
use super::offer::{Offer, Place};
use super::source::SourceError;
use crate::net::{Body, HttpClient, HttpError, Want};

/// How long a cache's word about itself holds.
const INFO_HOLDS: Duration = Duration::from_secs(3600);

pub struct HttpCache {
    name: String,
    base: Url,
    http: Arc<HttpClient>,
    /// What it says about itself, and since when. Held while it is asked, so that it is asked once.
    info: Mutex<Option<(Instant, Result<CacheInfo, String>)>>,
}

impl HttpCache {
    pub fn new(name: String, base: Url, http: Arc<HttpClient>) -> Self {
        Self { name, base, http, info: Mutex::new(None) }
    }

    /// What it says about itself; an error if it cannot be used.
    pub async fn about(&self) -> Result<CacheInfo, SourceError> {
        let mut known = self.info.lock().await;
        if let Some((since, info)) = &*known
            && since.elapsed() < INFO_HOLDS
        {
            return info.clone().map_err(SourceError::Useless);
        }
        let url = self.url("nix-cache-info")?;
        let want = Want { max_bytes: cache_info::MAX_BYTES as u64 };
        let info = match self.http.get_all(&url, want).await {
            Ok(bytes) => CacheInfo::parse(&bytes)
                .map_err(|error| format!("{} cannot be used: its nix-cache-info {error}", self.name)),
            Err(error) if error.is_missing() => Err(format!(
                "{} cannot be used: it has no nix-cache-info, so it is no binary cache",
                self.name
            )),
            Err(error) => return Err(error.into()),
        };
        *known = Some((Instant::now(), info.clone()));
        info.map_err(SourceError::Useless)
    }

    /// What it has for `path`.
    pub async fn offer(&self, path: &StorePath, source: usize) -> Result<Option<Offer>, SourceError> {
        self.about().await?;
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
        // Relative to the cache, as Nix takes it; an absolute one may be anywhere that is public.
        let file =
            self.base.join(&info.url).map_err(|error| bad(format!("its narinfo has a bad URL: {error}")))?;
        Ok(Some(Offer {
            source,
            place: Place::Http {
                url: file,
                compression: info.compression,
                hash: info.file_hash,
                size: info.file_size,
            },
            info: PathInfo {
                path: info.path,
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                references: info.references,
                deriver: info.deriver,
                registration_time: 0,
                ultimate: false,
                signatures: info.signatures,
                ca: info.ca.map(|ca| ca.to_nix_string()),
            },
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
