//! OpenPGP signatures, verified by GnuPG's `gpgv`, which knows only the keys of the keyrings that it is given.
//!
//! `gpgv` parses bytes of strangers. It runs without the environment, with a time limit, and its answer is taken from the
//! lines that it writes for programs: a good signature, and none that is bad, expired or by an expired or revoked key.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Failure, Unchecked};
use crate::children;

/// A verification takes milliseconds.
const TIME: Duration = Duration::from_secs(20);
/// Interval between looks whether it has ended.
const GLANCE: Duration = Duration::from_millis(2);
/// Lines of `--status-fd` that say that a signature does not count.
const NOT_GOOD: [&str; 6] = ["BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "FAILURE"];

/// The inner error is the reason why the signature does not count.
pub(super) fn verify(
    keyrings: &[&Path],
    signature: &str,
    text: &[u8],
    scratch: &Path,
) -> Result<Result<(), String>, Failure> {
    if keyrings.is_empty() {
        let why = "its OpenPGP signature cannot count: no keyring is given for this kind of commit (--gpg-keyring, \
                   --merge-gpg-keyring)";
        return Ok(Err(why.into()));
    }
    let unchecked = |action, path: &Path, cause: &dyn std::fmt::Display, hint| {
        Failure::Unchecked(Unchecked { action, path: path.to_owned(), cause: cause.to_string(), hint })
    };
    let file = scratch.join("signature.asc");
    std::fs::write(&file, signature)
        .map_err(|e| unchecked("write", &file, &e, "the state directory must be writable"))?;
    let mut command = Command::new("gpgv");
    command.env_clear().env("LC_ALL", "C").env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.args(["--status-fd", "1", "--homedir"]).arg(scratch);
    for ring in keyrings {
        let hint = "make it with: gpg --export FINGERPRINT … > FILE";
        // gpgv looks up a relative name in its own folder.
        let ring = ring.canonicalize().map_err(|e| unchecked("find the keyring", ring, &e, hint))?;
        command.arg("--keyring").arg(ring);
    }
    command.arg(&file).arg("-");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let program = Path::new("gpgv");
    let mut child = command
        .spawn()
        .map_err(|e| unchecked("start", program, &e, "install GnuPG's gpgv (Debian: package gpgv)"))?;
    let mut input = child.stdin.take();
    let text = text.to_owned();
    // gpgv may end before it has read everything; its answer says why.
    let feed = std::thread::spawn(move || input.as_mut().map(|input| input.write_all(&text)));
    let ended = children::wait(&mut child, TIME, GLANCE);
    let _ = feed.join();
    let Some(status) = ended else { return Ok(Err("gpgv did not end in time".into())) };
    let mut answer = String::new();
    if let Some(out) = child.stdout.take() {
        use std::io::Read;
        // At most what fits into the pipe: nobody read it while gpgv ran.
        let _ = out.take(1 << 20).read_to_string(&mut answer);
    }
    Ok(judge(&answer, status.success()))
}

fn judge(answer: &str, success: bool) -> Result<(), String> {
    let lines: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")).collect();
    let word = |line: &&str| line.split(' ').next().unwrap_or("").to_owned();
    if let Some(bad) = lines.iter().find(|line| NOT_GOOD.contains(&word(line).as_str())) {
        let missing = lines.iter().any(|line| word(line) == "NO_PUBKEY");
        return Err(match missing {
            true => format!(
                "it is signed by an OpenPGP key that is not in the keyring: {}",
                printable::start(bad, 200)
            ),
            false => format!("gpgv refuses its signature: {}", printable::start(bad, 200)),
        });
    }
    let good = |wanted| lines.iter().filter(|line| word(line) == wanted).count();
    match success && good("GOODSIG") == 1 && good("VALIDSIG") == 1 {
        true => Ok(()),
        false => Err("gpgv finds no good signature".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn only_one_good_signature_and_no_other_counts() {
        let good = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG AA x\n[GNUPG:] VALIDSIG BB\n";
        assert!(judge(good, true).is_ok() && judge(good, false).is_err());
        assert!(judge(&good.repeat(2), true).is_err());
        for bad in ["EXPKEYSIG AA x", "REVKEYSIG AA x", "BADSIG AA x", "ERRSIG AA 1 8 00 1 9"] {
            assert!(judge(&format!("{good}[GNUPG:] {bad}\n"), true).is_err(), "{bad}");
        }
        // A name in a key cannot look like a line of the answer.
        assert!(judge("gpgv: [GNUPG:] GOODSIG AA x\n[GNUPG:] VALIDSIG BB\n", true).is_err());
        assert!(judge("", true).is_err());
    }
}
