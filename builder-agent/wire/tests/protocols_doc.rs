//! `docs/design/protocols.md` agrees with the tables of operations.

use wire::worker::{Answer, BodyShape, OPS, Version};

fn table() -> String {
    let mut text =
        String::from("| number | operation | sent by clients | body | answer |\n|---|---|---|---|---|\n");
    for info in OPS {
        let since = if info.since == Version::OLDEST {
            String::from("all")
        } else {
            format!("{} and newer", info.since)
        };
        let sent = match info.until {
            Some(until) if until < Version::OLDEST => String::from("older ones only"),
            Some(until) if info.since == Version::OLDEST => format!("up to {until}"),
            Some(until) => format!("{} to {until}", info.since),
            None => since,
        };
        let body = match info.body {
            BodyShape::None => "",
            BodyShape::Dump => "NAR or file",
            BodyShape::Nar => "NAR",
            BodyShape::Items => "path infos and NARs",
            BodyShape::Framed => "bytes",
        };
        let answer = match info.answer {
            Answer::Nothing => "",
            Answer::One => "1",
            Answer::Bool => "yes or no",
            Answer::Paths => "paths",
            Answer::MaybePath => "path or nothing",
            Answer::Names => "names",
            Answer::PathInfo => "path info, if valid",
            Answer::Added => "path info (path before 1.25)",
            Answer::OutputMap => "outputs and their paths",
            Answer::BuildResult => "build result",
            Answer::BuildResults => "build results, keyed",
            Answer::Missing => "what would be built and fetched",
            Answer::SubstitutableOne => "substitutable path info, if any",
            Answer::SubstitutableMany => "substitutable path infos",
            Answer::Roots => "roots",
            Answer::Garbage => "paths and bytes",
            Answer::Realisation => "realisation, if any",
            Answer::GcRoot => "link",
            Answer::Nar => "bare NAR",
        };
        text += &format!("| {} | {} | {sent} | {body} | {answer} |\n", info.number, info.name);
    }
    text
}

fn serve_table() -> String {
    use wire::serve::{Answer, BodyShape, OPS};
    let mut text = String::from(
        "| number | command | sent by clients | `--write` | body | answer |\n|---|---|---|---|---|---|\n",
    );
    for info in OPS {
        let body = match info.body {
            BodyShape::None => "",
            BodyShape::Nar => "bare NAR",
            BodyShape::Export => "export stream",
        };
        let answer = match info.answer {
            Answer::One => "1, or 0 if refused",
            Answer::Paths => "paths",
            Answer::PathInfos => "path infos of the valid ones",
            Answer::Nar => "bare NAR",
            Answer::Export => "export stream",
            Answer::Status => "build status, and a message unless it is good",
            Answer::BuildResult => "build result",
        };
        let writes = if info.writes { "needed" } else { "" };
        let (number, name, sent) = (info.number, info.name, info.sent);
        text += &format!("| {number} | {name} | {sent} | {writes} | {body} | {answer} |\n");
    }
    text
}

/// One test for both tables, because it may rewrite both.
#[test]
fn the_page_lists_exactly_the_operations_we_serve() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/design/protocols.md");
    for (mark, table) in [("operations", table()), ("commands", serve_table())] {
        let (start, end) = (format!("<!-- {mark}: start -->\n"), format!("<!-- {mark}: end -->\n"));
        let page = std::fs::read_to_string(file).unwrap();
        let (before, rest) = page.split_once(&start).expect("a start mark");
        let (listed, after) = rest.split_once(&end).expect("an end mark");
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(file, format!("{before}{start}{table}{end}{after}")).unwrap();
            continue;
        }
        assert_eq!(listed, table, "run this test again with WRITE_DOCS=1 to write the table");
    }
}

#[test]
fn the_table_is_sorted_and_each_operation_is_there_once() {
    assert!(OPS.windows(2).all(|pair| pair[0].number < pair[1].number));
    for info in OPS {
        assert_eq!(info.op.number(), info.number);
        assert_eq!(info.op.info(), info);
    }
    use wire::serve::OPS as COMMANDS;
    assert!(COMMANDS.windows(2).all(|pair| pair[0].number < pair[1].number));
    for info in COMMANDS {
        assert_eq!(info.op.number(), info.number);
        assert_eq!(info.op.info(), info);
    }
}
