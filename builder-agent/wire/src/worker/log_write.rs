//! Writes log events and errors. (Nix: `TunnelLogger` in src/libstore/daemon.cc.)

use super::log::{Failure, Field, LogEvent, ResultKind, Verbosity};
use super::version::Protocol;
use crate::limits::MAX_ERROR_BYTES;
use crate::output::Encode;

/// End of the log; the answer follows.
pub(crate) const STDERR_LAST: u64 = 0x616c_7473;
/// End of the log; the request failed.
pub(crate) const STDERR_ERROR: u64 = 0x6378_7470;
/// A message to print.
pub(crate) const STDERR_NEXT: u64 = 0x6f6c_6d67;
/// Asks the client for this many bytes of the body.
pub(crate) const STDERR_READ: u64 = 0x6461_7461;
pub(crate) const STDERR_START_ACTIVITY: u64 = 0x5354_5254;
pub(crate) const STDERR_STOP_ACTIVITY: u64 = 0x5354_4f50;
pub(crate) const STDERR_RESULT: u64 = 0x5253_4c54;

pub(super) fn last(out: &mut Vec<u8>) {
    out.u64(STDERR_LAST);
}

pub(super) fn error(out: &mut Vec<u8>, protocol: Protocol, failure: &Failure) {
    let message = bounded(&failure.message);
    out.u64(STDERR_ERROR);
    if protocol.at_least(26) {
        out.str("Error");
        out.u64(failure.level as u64);
        out.str("Error");
        out.str(message);
        out.u64(0); // no position
        out.u64(failure.traces.len() as u64);
        for trace in &failure.traces {
            out.u64(0);
            out.str(bounded(trace));
        }
    } else {
        out.str(message);
        out.u64(1); // exit status
    }
}

pub(super) fn event(out: &mut Vec<u8>, protocol: Protocol, event: &LogEvent) {
    if !protocol.at_least(20) {
        return match event {
            LogEvent::Message(text) => message(out, text),
            LogEvent::StartActivity { text, .. } if !text.is_empty() => {
                message(out, format!("{text}...").as_bytes())
            }
            LogEvent::Result { kind: ResultKind::BuildLogLine, fields, .. } => {
                if let [Field::Text(line)] = &fields[..] {
                    message(out, line);
                }
            }
            _ => {}
        };
    }
    match event {
        LogEvent::Message(text) => message(out, text),
        LogEvent::StartActivity { id, level, kind, text, fields, parent } => {
            out.u64(STDERR_START_ACTIVITY);
            out.u64(*id);
            out.u64(*level as u64);
            out.u64(*kind as u64);
            out.str(text);
            all_fields(out, fields);
            out.u64(*parent);
        }
        LogEvent::StopActivity { id } => {
            out.u64(STDERR_STOP_ACTIVITY);
            out.u64(*id);
        }
        LogEvent::Result { id, kind, fields } => {
            out.u64(STDERR_RESULT);
            out.u64(*id);
            out.u64(*kind as u64);
            all_fields(out, fields);
        }
    }
}

fn message(out: &mut Vec<u8>, text: &[u8]) {
    out.u64(STDERR_NEXT);
    out.bytes(&[text, b"\n"].concat());
}

fn all_fields(out: &mut Vec<u8>, fields: &[Field]) {
    out.u64(fields.len() as u64);
    for field in fields {
        match field {
            Field::Int(value) => {
                out.u64(0);
                out.u64(*value);
            }
            Field::Text(value) => {
                out.u64(1);
                out.bytes(value);
            }
        }
    }
}

/// Limits an error's text: a failed build can put its whole log into it, and the client shows it in one
/// piece.
fn bounded(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Verbosity {
    /// The level with this number; larger numbers are the most verbose level.
    pub fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Error,
            1 => Self::Warn,
            2 => Self::Notice,
            3 => Self::Info,
            4 => Self::Talkative,
            5 => Self::Chatty,
            6 => Self::Debug,
            _ => Self::Vomit,
        }
    }
}
