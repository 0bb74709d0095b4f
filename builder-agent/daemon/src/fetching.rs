//! Questions and requests that lead to substitution, as calls of `builds`.
//!
//! Not here: where paths come from, and what makes them trustworthy (`substitute`).

use std::sync::Arc;

use nix::{Missing, SubstitutablePathInfo};
use nix_derivation::{DerivedPath, StorePath};

use super::audience::Audience;
use super::request_error::RequestError;
use super::{Session, ask};
use builds::realise;

impl Session {
    /// Answers `EnsurePath`: the path is valid already, or it is fetched now.
    pub(super) async fn ensure<A: Audience>(
        &self,
        audience: &mut A,
        path: StorePath,
    ) -> Result<(), RequestError> {
        if self.view().is_valid(&path) {
            return Ok(());
        }
        if !self.may_fetch(&path) {
            return ask::info(&self.view(), &path).map(|_| ());
        }
        let paths = [path];
        let ends = self.with_progress(audience, |context| async move { context.fetch(&paths).await }).await?;
        match ends.into_values().next() {
            Some(Err(why)) => Err(RequestError::Refused(why.to_string())),
            _ => Ok(()),
        }
    }

    /// The valid ones of `paths`. If `substitute` is set, first fetches those of the others that can be fetched.
    pub(super) async fn valid_paths<A: Audience>(
        &self,
        audience: &mut A,
        paths: Vec<StorePath>,
        substitute: bool,
    ) -> Result<Vec<StorePath>, RequestError> {
        if substitute {
            let view = self.view();
            let missing = paths.iter().filter(|path| !view.is_valid(path) && self.may_fetch(path));
            let missing: Vec<StorePath> = missing.cloned().collect();
            if !missing.is_empty() {
                self.with_progress(audience, |context| async move { context.fetch(&missing).await }).await?;
            }
        }
        Ok(self.view().query_valid(&paths))
    }

    /// The paths that could be fetched. `mass`: the client asks about all paths it has; then only sources that accept
    /// such questions are asked.
    pub(super) async fn substitutable<A: Audience>(
        &self,
        audience: &mut A,
        paths: Vec<StorePath>,
        mass: bool,
    ) -> Result<Vec<SubstitutablePathInfo>, RequestError> {
        let paths: Vec<StorePath> = paths.into_iter().filter(|path| self.may_fetch(path)).collect();
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let asking = |context: realise::Context| async move { context.offers(&paths, mass).await };
        let (offers, _memory) = self.with_progress(audience, asking).await?;
        let info = |offer: &Arc<substitute::Offer>| SubstitutablePathInfo {
            path: offer.info.path.clone(),
            deriver: offer.info.deriver.clone(),
            references: offer.info.references.clone(),
            download_size: offer.download_size(),
            nar_size: offer.info.nar_size,
        };
        Ok(offers.values().map(info).collect())
    }

    /// The paths to fetch and the derivations to build for these targets.
    pub(super) async fn missing<A: Audience>(
        &self,
        audience: &mut A,
        targets: Vec<DerivedPath>,
    ) -> Result<Missing, RequestError> {
        let asking = |context| async move { realise::missing(&context, targets).await };
        self.with_progress(audience, asking).await
    }

    /// Whether the client may have this path fetched.
    fn may_fetch(&self, path: &StorePath) -> bool {
        self.agent.realiser.substituters.any_with(self.wishes.own_caches())
            && self.wishes.may_fetch(&self.member, path.name(), self.settings.use_substitutes)
    }
}
