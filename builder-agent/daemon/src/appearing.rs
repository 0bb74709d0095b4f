//! For the Nix in a home: what it learns to be valid, it can read in the home's store.
//!
//! Stock Nix takes the store of its daemon to be on its own machine: after "valid" it opens the files. So before such an answer
//! is sent, the home shows the paths that it is about. Everything else about a session is as for any client.

use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};
use wire::worker::{Request, Response};

use super::Session;
use super::ask;
use super::request_error::RequestError;

/// The paths that a request names, as far as its answer says that they are valid.
pub(super) struct Named {
    paths: Vec<StorePath>,
    /// Their outputs are to be valid, too.
    targets: Vec<StorePath>,
    /// The paths of the answer are.
    lists_valid: bool,
}

impl Named {
    pub fn by(request: &Request) -> Self {
        let mut named = Self { paths: Vec::new(), targets: Vec::new(), lists_valid: false };
        match request {
            Request::IsValidPath { path }
            | Request::EnsurePath { path }
            | Request::QueryPathInfo { path }
            | Request::QueryDerivationOutputs { path }
            | Request::QueryDerivationOutputNames { path }
            | Request::QueryDerivationOutputMap { path } => named.paths.push(path.clone()),
            Request::AddToStoreNar { info, .. } => named.paths.push(info.path.clone()),
            Request::BuildDerivation { drv_path, .. } => named.paths.push(drv_path.clone()),
            Request::BuildPaths { paths, .. } => {
                paths.iter().for_each(|target| named.target(target));
                named.targets.clone_from(&named.paths);
                named.targets.retain(StorePath::is_derivation);
            }
            Request::BuildPathsWithResults { paths, .. } => {
                paths.iter().for_each(|target| named.target(target));
            }
            Request::QueryValidPaths { .. } | Request::QueryPathFromHashPart { .. } => {
                named.lists_valid = true;
            }
            // The answers to all others tell nothing about what is valid, or not to somebody who then reads it.
            _ => {}
        }
        named
    }

    fn target(&mut self, target: &DerivedPath) {
        match target {
            DerivedPath::Opaque(path)
            | DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(path), .. } => {
                self.paths.push(path.clone());
            }
            // A derivation that another one makes has no path yet.
            DerivedPath::Built { .. } => {}
        }
    }

    fn answered(&mut self, response: &Response) {
        match response {
            Response::Added(info) | Response::PathInfo(Some(info)) => self.paths.push(info.path.clone()),
            Response::Paths(paths) if self.lists_valid => self.paths.extend_from_slice(paths),
            Response::MaybePath(Some(path)) if self.lists_valid => self.paths.push(path.clone()),
            Response::OutputMap(outputs) => self.paths.extend(outputs.values().flatten().cloned()),
            Response::BuildResult(result) => {
                self.paths.extend(result.built_outputs.values().map(|output| output.path.clone()));
            }
            Response::BuildResults(results) => {
                let outputs = results.iter().flat_map(|(_, result)| result.built_outputs.values());
                self.paths.extend(outputs.map(|output| output.path.clone()));
            }
            _ => {}
        }
    }
}

impl Session {
    /// Shows in the home what this answer says to be valid.
    pub(super) async fn appear(&self, mut named: Named, response: &Response) -> Result<(), RequestError> {
        let Some(home) = &self.home else { return Ok(()) };
        named.answered(response);
        for drv in std::mem::take(&mut named.targets) {
            let outputs = ask::outputs(&self.desk, &self.agent, &self.view(), drv).await?;
            named.paths.extend(outputs.into_values().flatten());
        }
        if named.paths.is_empty() {
            return Ok(());
        }
        home.show(self.view(), named.paths).await.map_err(RequestError::Refused)
    }
}
