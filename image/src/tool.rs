//! Runs system tools (apt-get, mmdebstrap, zstd, ...), with errors that a person can act on.
//!
//! Assumes that the tool is honest but may be absent or fail; its last lines of stderr become part of the error.
//! Not here: the purpose of a tool.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// Number of lines that an error quotes from a failed tool's stderr. The cause is nearly always in the last
/// lines.
const STDERR_LINES: usize = 15;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("cannot {action}: the program `{tool}` is not installed\nhint:  apt-get install {package}")]
    Missing { action: String, tool: String, package: &'static str },
    #[error("cannot {action}: cannot start `{tool}`: {source}")]
    Start { action: String, tool: String, source: std::io::Error },
    #[error("cannot {action}: `{tool}` ended with {status}\n{stderr}")]
    Failed { action: String, tool: String, status: std::process::ExitStatus, stderr: String },
}

/// Runs `command` to its end and returns its stdout. `action` completes "cannot ..." in an error.
pub fn output(command: &mut Command, action: &str) -> Result<Vec<u8>, ToolError> {
    output_with_input(command, &[], action)
}

/// As [`output`], with `input` as the tool's stdin.
pub fn output_with_input(command: &mut Command, input: &[u8], action: &str) -> Result<Vec<u8>, ToolError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command, action)?;
    let mut stdin = child.stdin.take().expect("stdin was piped above");
    // The tool may write output before it has read everything, so both directions run at the same time.
    let finished = std::thread::scope(|scope| {
        // A tool that stops reading early gives the reason on stderr; the broken pipe needs no error of its
        // own.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    })
    .map_err(|source| ToolError::Start { action: action.into(), tool: tool.clone(), source })?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    Err(ToolError::Failed {
        action: action.into(),
        tool,
        status: finished.status,
        stderr: tail(&String::from_utf8_lossy(&finished.stderr)),
    })
}

/// Runs `command` to its end and passes each line of its stdout and stderr to `on_line` as it comes.
pub fn watch(command: &mut Command, action: &str, on_line: &mut dyn FnMut(&str)) -> Result<(), ToolError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ToolError::Start { action: action.into(), tool: tool.clone(), source };
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let mut child = spawn(command, action)?;
    // The command holds copies of the writing end: without this the reader would never reach the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        on_line(&line);
        last.push_back(line);
        if last.len() > STDERR_LINES {
            last.pop_front();
        }
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(ToolError::Failed { action: action.into(), tool, status, stderr: Vec::from(last).join("\n") })
}

fn spawn(command: &mut Command, action: &str) -> Result<Child, ToolError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            ToolError::Missing { action: action.into(), package: package_of(&tool), tool }
        }
        _ => ToolError::Start { action: action.into(), tool, source },
    })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(STDERR_LINES)..].join("\n")
}

/// The Debian package that brings a tool, for the hint.
fn package_of(tool: &str) -> &'static str {
    match tool {
        "zstd" => "zstd",
        "xz" => "xz-utils",
        "mmdebstrap" => "mmdebstrap",
        "mkfs.erofs" => "erofs-utils",
        "dpkg-deb" => "dpkg",
        "/usr/lib/apt/apt-helper" => "apt",
        "tar" => "tar",
        "git" => "git",
        "qemu-system-x86_64" => "qemu-system-x86 ipxe-qemu",
        _ => "(the package that brings it: try `apt-file search`)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_package_to_install() {
        let error = output(&mut Command::new("/nonexistent/zstd"), "look").unwrap_err();
        assert!(matches!(error, ToolError::Missing { .. }), "{error}");
    }

    #[test]
    fn a_failing_tool_passes_its_last_words_on() {
        let error = output(Command::new("sh").args(["-c", "echo no space >&2; exit 3"]), "try").unwrap_err();
        assert!(error.to_string().contains("no space"), "{error}");
    }

    #[test]
    fn a_watched_tool_shows_all_its_lines_and_passes_its_last_words_on() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = watch(&mut command, "try", &mut |line| lines.push(line.to_owned())).unwrap_err();
        assert_eq!(lines, ["one", "two"]);
        assert!(error.to_string().ends_with("one\ntwo"), "{error}");
    }

    #[test]
    fn input_larger_than_a_pipe_comes_through_whole() {
        let input = vec![7u8; 1 << 20];
        assert_eq!(output_with_input(&mut Command::new("cat"), &input, "copy").unwrap(), input);
    }
}
