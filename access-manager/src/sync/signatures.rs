//! Signatures of commits, for repositories whose transport or whose host is not trusted.
//!
//! **Which commits.** Each new commit on the first-parent path, from the tip back to what was accepted before, needs a
//! valid signature. The tip alone would not do: whoever signs the next honest commit on top would vouch, unasked, for what
//! somebody without a key pushed before. Commits on side branches need none: the merge that brought them in is signed, and
//! names them by hash. The first commit that a box ever accepts vouches for its history in the same way.
//!
//! A merge commit may also be signed by a key that may sign nothing else (`merge_…`), such as that of a forge. That such a
//! merge is on the first-parent path is essential: forges also sign merges of the main branch *into* a contributor's.
//!
//! SSH signatures are verified here (`ssh-key`), OpenPGP signatures by the program `gpgv`.
//! Not here: whether the commit descends from the accepted one, and what is in it.

use std::path::{Path, PathBuf};

use git2::{Commit, Oid, Repository, Sort};
use ssh_key::{Algorithm, PublicKey, SshSig};

use crate::bounded;
use allowed::Signer;

pub mod allowed;
mod openpgp;

/// In every signature of a commit by git, so that a signature for another purpose is none here.
const NAMESPACE: &str = "git";
/// Largest signature: OpenPGP ones with a certificate inside have some KiB.
const MAX_SIGNATURE: usize = 64 << 10;
/// Largest commit object. The kernel's largest merges have some hundred KiB of message.
const MAX_COMMIT: usize = 4 << 20;
/// Most new commits between two synchronisations; each may cost a process.
const MAX_NEW: usize = 10_000;
/// Largest file of signers: thousands of keys.
const MAX_FILE: u64 = 4 << 20;

/// Whose signatures count.
#[derive(Clone, Debug, Default)]
pub struct Signing {
    /// In the format ALLOWED SIGNERS of ssh-keygen(1).
    pub allowed_signers: Option<PathBuf>,
    /// As `gpg --export` writes it.
    pub gpg_keyring: Option<PathBuf>,
    /// The same two, for keys that may sign merge commits only.
    pub merge_signers: Option<PathBuf>,
    pub merge_gpg_keyring: Option<PathBuf>,
}

/// Why a commit does not count.
#[derive(Debug)]
pub struct Unsigned {
    pub commit: Oid,
    pub reason: String,
}

/// Why no signature could be checked.
#[derive(Debug)]
pub struct Unchecked {
    pub action: &'static str,
    pub path: PathBuf,
    pub cause: String,
    pub hint: &'static str,
}

#[derive(Debug)]
pub enum Failure {
    Unsigned(Unsigned),
    Unchecked(Unchecked),
}

impl Signing {
    /// Whether commits must be signed.
    pub fn required(&self) -> bool {
        let files = [&self.allowed_signers, &self.gpg_keyring, &self.merge_signers, &self.merge_gpg_keyring];
        files.into_iter().any(Option::is_some)
    }

    /// Checks the commits that are new since `accepted`. `scratch` is a folder for files.
    pub fn check(
        &self,
        repository: &Repository,
        accepted: Option<Oid>,
        found: Oid,
        scratch: &Path,
    ) -> Result<(), Failure> {
        if !self.required() {
            return Ok(());
        }
        let keys = Keys::load(self)?;
        let new = new_commits(repository, accepted, found)
            .map_err(|reason| Failure::Unsigned(Unsigned { commit: found, reason }))?;
        for id in new {
            self.check_one(&keys, repository, id, scratch)?;
        }
        Ok(())
    }

    fn check_one(
        &self,
        keys: &Keys,
        repository: &Repository,
        id: Oid,
        scratch: &Path,
    ) -> Result<(), Failure> {
        let no = |reason: String| Failure::Unsigned(Unsigned { commit: id, reason });
        let signed = Signed::read(repository, id).map_err(no)?;
        match &signed.signature {
            Signature::Ssh(signature) => keys.verify(signature, &signed).map_err(no),
            Signature::OpenPgp(signature) => {
                let merge = self.merge_gpg_keyring.as_deref().filter(|_| signed.is_merge);
                let rings: Vec<&Path> = self.gpg_keyring.as_deref().into_iter().chain(merge).collect();
                openpgp::verify(&rings, signature, &signed.text, scratch)?.map_err(no)
            }
        }
    }
}

/// The first-parent path from `found` to what `accepted` has already, newest first; `found` alone if there is nothing
/// accepted.
fn new_commits(repository: &Repository, accepted: Option<Oid>, found: Oid) -> Result<Vec<Oid>, String> {
    let Some(accepted) = accepted else { return Ok(vec![found]) };
    let walk = || -> Result<Vec<Oid>, git2::Error> {
        let mut walk = repository.revwalk()?;
        walk.set_sorting(Sort::TOPOLOGICAL)?;
        walk.push(found)?;
        walk.hide(accepted)?;
        walk.simplify_first_parent()?;
        walk.take(MAX_NEW + 1).collect()
    };
    let new = walk().map_err(|e| format!("its history cannot be read: {}", e.message()))?;
    if new.len() > MAX_NEW {
        return Err(format!("more than {MAX_NEW} commits are new"));
    }
    Ok(new)
}

enum Signature {
    Ssh(Box<SshSig>),
    OpenPgp(String),
}

/// A commit, as it was signed.
struct Signed {
    signature: Signature,
    /// The commit object without its signature.
    text: Vec<u8>,
    is_merge: bool,
    /// By the committer: the time by which `valid-after` and `valid-before` are decided, as git does.
    committed: u64,
}

impl Signed {
    fn read(repository: &Repository, id: Oid) -> Result<Signed, String> {
        let unreadable = |e: git2::Error| format!("it cannot be read: {}", e.message());
        let (size, _) = repository.odb().and_then(|odb| odb.read_header(id)).map_err(unreadable)?;
        if size > MAX_COMMIT {
            return Err(format!("it has {size} bytes, at most {MAX_COMMIT} are accepted"));
        }
        let commit: Commit = repository.find_commit(id).map_err(unreadable)?;
        let (signature, text) = match repository.extract_signature(&id, None) {
            Ok(found) => found,
            Err(e) if e.code() == git2::ErrorCode::NotFound => return Err("it is not signed".into()),
            Err(e) => return Err(unreadable(e)),
        };
        Ok(Signed {
            signature: Signature::parse(&signature)?,
            text: text.to_vec(),
            is_merge: commit.parent_count() > 1,
            committed: u64::try_from(commit.time().seconds()).unwrap_or(0),
        })
    }
}

impl Signature {
    fn parse(bytes: &[u8]) -> Result<Signature, String> {
        if bytes.len() > MAX_SIGNATURE {
            return Err(format!(
                "its signature has {} bytes, at most {MAX_SIGNATURE} are accepted",
                bytes.len()
            ));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "its signature is not text".to_owned())?.trim();
        if text.starts_with("-----BEGIN PGP SIGNATURE-----") {
            return Ok(Signature::OpenPgp(format!("{text}\n")));
        }
        if !text.starts_with("-----BEGIN SSH SIGNATURE-----") {
            return Err("its signature is neither an SSH nor an OpenPGP signature".into());
        }
        let signature = SshSig::from_pem(format!("{text}\n"));
        signature
            .map(|s| Signature::Ssh(Box::new(s)))
            .map_err(|e| format!("its signature cannot be read: {e}"))
    }
}

/// The ssh keys of the two files.
struct Keys {
    any: Vec<Signer>,
    merges: Vec<Signer>,
}

impl Keys {
    fn load(signing: &Signing) -> Result<Keys, Failure> {
        let load = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), load);
        Ok(Keys { any: load(&signing.allowed_signers)?, merges: load(&signing.merge_signers)? })
    }

    fn verify(&self, signature: &SshSig, signed: &Signed) -> Result<(), String> {
        let key = signature.public_key();
        let shown = key.fingerprint(ssh_key::HashAlg::Sha256);
        // As ssh-keygen: SHA-1 signatures can be forged at a known cost.
        if matches!(signature.signature().algorithm(), Algorithm::Rsa { hash: None }) {
            return Err(format!("its signature by {shown} uses SHA-1"));
        }
        let merges = self.merges.iter().filter(|_| signed.is_merge);
        let mut why = None;
        let mut listed = false;
        for signer in self.any.iter().chain(merges).filter(|signer| signer.key == *key) {
            listed = true;
            match signer.may_sign(NAMESPACE, signed.committed) {
                Ok(()) => {
                    let verified = PublicKey::from(key.clone()).verify(NAMESPACE, &signed.text, signature);
                    return verified.map_err(|e| format!("its signature by {shown} is wrong: {e}"));
                }
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        Err(match why {
            Some(reason) => format!("it is signed by {shown}, whose {reason}"),
            None if !listed && self.merges.iter().any(|signer| signer.key == *key) => {
                format!("it is signed by {shown}, which may sign merge commits only")
            }
            None => format!("it is signed by {shown}, which is no allowed signer"),
        })
    }
}

fn load(path: &Path) -> Result<Vec<Signer>, Failure> {
    let hint = "one signer in a line: NAME [options] KEY-TYPE KEY, as in ssh-keygen(1), ALLOWED SIGNERS";
    let wrong =
        |action, cause: String| Failure::Unchecked(Unchecked { action, path: path.to_owned(), cause, hint });
    let text = bounded::text(path, MAX_FILE).map_err(|e| wrong("read the signers in", e.to_string()))?;
    allowed::parse(&text).map_err(|e| wrong("understand the signers in", e.to_string()))
}
