//! Requests of holders of tickets that are for reading only.
//!
//! The serve protocol has sessions that only read, so such a holder gets one of those. In the worker protocol each request
//! is judged here. A request that is missing from the list counts as one that writes.
//!
//! Clients that copy a path first ask the box to build it or to make it valid, which does nothing for a path that is valid.
//! So these requests are possible; the build is refused where it would start (`builds::schedule`), and nothing is fetched.

use wire::worker::Request;

use super::Session;

impl Session {
    /// Whether this member may make the request, or the message against it.
    pub(super) fn in_scope(&self, request: &Request) -> Result<(), String> {
        match reads(request) {
            true => Ok(()),
            false => self.read_only("this request").map_or(Ok(()), Err),
        }
    }

    /// The refusal of something that writes, if this member may only read.
    pub(super) fn read_only(&self, what: &str) -> Option<String> {
        if self.member.may_write() {
            return None;
        }
        let name = self.member.ticket.as_ref().map_or("", |bearer| &bearer.ticket.name);
        Some(format!(
            "{what} is not possible with the ticket `{name}`, which is for reading only (`--scope read`); ask its maker for \
             one with `--scope build`"
        ))
    }
}

/// Whether a request only reads, keeps paths for no longer than its session, or is refused where it would do more.
fn reads(request: &Request) -> bool {
    matches!(
        request,
        Request::IsValidPath { .. }
            | Request::QueryValidPaths { .. }
            | Request::QueryPathInfo { .. }
            | Request::QueryPathFromHashPart { .. }
            | Request::QueryReferences { .. }
            | Request::QueryReferrers { .. }
            | Request::QueryDeriver { .. }
            | Request::QueryValidDerivers { .. }
            | Request::QueryAllValidPaths
            | Request::QueryDerivationOutputs { .. }
            | Request::QueryDerivationOutputNames { .. }
            | Request::QueryDerivationOutputMap { .. }
            | Request::QueryMissing { .. }
            | Request::QuerySubstitutablePaths { .. }
            | Request::QuerySubstitutablePathInfo { .. }
            | Request::QuerySubstitutablePathInfos { .. }
            | Request::QueryRealisation { .. }
            | Request::NarFromPath { .. }
            | Request::EnsurePath { .. }
            | Request::BuildPaths { .. }
            | Request::BuildPathsWithResults { .. }
            | Request::SetOptions(_)
            | Request::AddTempRoot { .. }
            | Request::AddIndirectRoot { .. }
            | Request::SyncWithGc
            | Request::FindRoots
    )
}
