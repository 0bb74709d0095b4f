//! Events as lines for a person, as `nix-store` prints them. (Nix: `SimpleLogger` in logging.cc.)

use builds::events::Event;

use super::Warnings;

/// Renders the events of one request.
pub(crate) struct Lines<'a> {
    /// The name of the box.
    machine: &'a str,
    /// Whether the start of a build has a line of its own. Not in a serve session: there `--builders` takes each line
    /// for a line of the log.
    headlines: bool,
    warnings: Warnings,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(machine: &'a str, headlines: bool) -> Self {
        Self { machine, headlines, warnings: Warnings::default() }
    }

    /// The line for this event, without its newline; `None` if a person is shown nothing for it.
    pub(crate) fn line(&mut self, event: Event) -> Option<Vec<u8>> {
        let text = match event {
            Event::Line { text, .. } => return Some(text),
            Event::Started { drv, kind, .. } if self.headlines => super::started(kind, &drv),
            Event::Waiting { drv, why } => super::waiting(&why, &drv),
            Event::LimitOfOthers { drv } => super::limit_of_others(&drv),
            Event::StartsAgain { drv, why } => super::starts_again(why, &drv),
            Event::KeepFailedRefused => super::keep_failed_refused(self.machine),
            Event::DependencyFailed { message } => super::dependency_failed(&message),
            Event::Fetch(substitute::Event::Warning(warning)) => self.warnings.show(warning)?,
            Event::BuildsStarted
            | Event::BuildsProgress(_)
            | Event::BuildsEnded
            | Event::Started { .. }
            | Event::Phase { .. }
            | Event::Stopped { .. }
            | Event::Reused { .. }
            | Event::Resolved { .. }
            | Event::Fetch(_) => return None,
        };
        Some(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use builds::events::{BuildKind, BuildNumber};
    use nix_derivation::StorePath;

    use super::*;

    #[test]
    fn headlines_are_for_commands_and_log_lines_for_both() {
        let (number, drv) = (BuildNumber(0), StorePath::from_parts([1; 20], "x.drv").expect("a path"));
        let shown = |headlines| {
            let mut lines = Lines::new("box", headlines);
            let events = [
                Event::BuildsStarted,
                Event::Started { number, drv: drv.clone(), kind: BuildKind::Checking },
                Event::Line { number, text: b"cc \xff".to_vec() },
                Event::Phase { number, name: "buildPhase".into() },
                Event::Stopped { number },
                Event::DependencyFailed { message: "no".into() },
            ];
            events.into_iter().filter_map(|event| lines.line(event)).collect::<Vec<_>>()
        };
        let headline = format!("checking outputs of '{}'", drv.to_absolute_path()).into_bytes();
        assert_eq!(shown(true), [headline, b"cc \xff".to_vec(), b"error: no".to_vec()]);
        assert_eq!(shown(false), [b"cc \xff".to_vec(), b"error: no".to_vec()]);
    }
}
