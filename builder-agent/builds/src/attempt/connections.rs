//! What a builder's network did: a line in the agent's log for each connection, and one in the build's log for whatever was
//! refused.

use egress::Event;

/// Returns the line for the build's log, if there is one.
pub fn tell(event: &Event, build: u64, member: &str, drv: &str) -> Option<String> {
    match event {
        Event::Connection { protocol, name, address, port, up, down, millis, end } => {
            let name = name.as_deref().unwrap_or_default();
            let end = serde_json::to_string(end).unwrap_or_default();
            tracing::info!(build, member, %drv, %protocol, name, %address, port, up, down, millis, end, "a builder's connection has ended");
            None
        }
        Event::Refused { protocol, name, address, port, reason, times } => {
            let shown = name.as_deref().unwrap_or_default();
            tracing::info!(build, member, %drv, %protocol, name = shown, %address, port, times, %reason, "a builder's connection was refused");
            let of = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let times = if *times > 1 { format!(", {times} times") } else { String::new() };
            Some(format!(
                "barnraiser: no connection to {address}{of}, {protocol} port {port}{times}: {reason}\n"
            ))
        }
        Event::RefusedMore { times } => {
            tracing::info!(build, member, %drv, times, "more connections of a builder were refused");
            Some(format!("barnraiser: {times} more connections were refused\n"))
        }
        Event::Total { up, down, connections, refused, dropped, lost } => {
            let dropped: u64 = dropped.values().sum();
            tracing::info!(build, member, %drv, up, down, connections, refused, dropped, lost, "a builder's network has ended");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use egress::{Protocol, Reason};

    use super::*;

    #[test]
    fn a_builder_reads_what_was_refused_and_why() {
        let refused = |name: Option<&str>, times| Event::Refused {
            protocol: Protocol::Tcp,
            name: name.map(str::to_owned),
            address: [10, 0, 0, 1].into(),
            port: 80,
            reason: Reason::NotPublic,
            times,
        };
        let line = tell(&refused(Some("mirror.example"), 3), 1, "alice", "/nix/store/x.drv").expect("a line");
        assert!(
            line.starts_with(
                "barnraiser: no connection to 10.0.0.1 (mirror.example), tcp port 80, 3 times: "
            ),
            "{line}"
        );
        assert!(line.contains("`network.allow-networks`") && line.ends_with('\n'), "{line}");
        let line = tell(&refused(None, 1), 1, "alice", "/nix/store/x.drv").expect("a line");
        assert!(line.starts_with("barnraiser: no connection to 10.0.0.1, tcp port 80: "), "{line}");
        assert_eq!(
            tell(
                &Event::Total {
                    up: 1,
                    down: 2,
                    connections: 0,
                    refused: 0,
                    dropped: Default::default(),
                    lost: 0
                },
                1,
                "a",
                "d"
            ),
            None
        );
    }
}
