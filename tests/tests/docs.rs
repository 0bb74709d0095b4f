//! The pages are right about files, sections, settings, `make` targets and log lines. The tests resolve links
//! between pages and names of source files, and compare `docs/reference/logs.md` with the messages in the
//! code.
//!
//! Not here: the table of settings (`config_test.rs`), the tables of the protocols (`protocols_doc.rs`), the
//! tests that pages name (`trust_page.rs`).

use std::path::{Path, PathBuf};

use e2e::place;

/// All files with this extension below a folder, without build outputs and hidden folders.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let skipped = name.starts_with('.') || name == "target" || path.is_symlink();
        if path.is_dir() && !skipped {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page without its code blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The anchor that git forges generate for a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Targets of a page's links to files of this project.
fn links(page: &str) -> Vec<String> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.contains(' ')).map(str::to_owned).collect()
}

#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_section() {
    let mut pages = Vec::new();
    files(place::project(), "md", &mut pages);
    assert!(pages.len() > 10, "{pages:?}");
    let mut broken = Vec::new();
    for page in &pages {
        let text = prose(&read(page));
        for link in links(&text) {
            let (file, section) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().expect("a folder").join(file),
            };
            let sound = target.exists()
                && (section.is_empty()
                    || prose(&read(&target))
                        .lines()
                        .any(|line| line.starts_with('#') && anchor(line) == section));
            if !sound {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// Words in backticks, each with its page.
fn quoted() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    files(place::project(), "md", &mut pages);
    let words = |page: PathBuf| {
        let text = prose(&read(&page));
        let words: Vec<String> = text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        words.into_iter().map(move |word| (page.clone(), word))
    };
    pages.into_iter().flat_map(words).collect()
}

#[test]
fn every_setting_and_make_target_that_a_page_names_exists() {
    let settings = read(&place::project().join("docs/reference/settings.md"));
    let makefile = read(&place::project().join("Makefile"));
    let (mut known, mut unknown) = (0, Vec::new());
    for (page, word) in quoted() {
        let name = word.split(" = ").next().unwrap_or(&word);
        let exists = match (name.split_once('.'), name.strip_prefix("make ")) {
            (Some(("limits" | "sandbox" | "fetch" | "store", key)), _)
                if !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') =>
            {
                // The name of a page, such as `store.md`, is no setting.
                key == "md" || settings.contains(&format!("| `{name}` |"))
            }
            (_, Some(target)) => makefile.lines().any(|line| line.split(':').next() == Some(target)),
            _ => continue,
        };
        known += 1;
        if !exists {
            unknown.push(format!("{}: {word}", page.display()));
        }
    }
    assert!(known > 100, "{known}");
    assert!(unknown.is_empty(), "names of settings or targets that do not exist: {unknown:#?}");
}

#[test]
fn every_source_file_that_a_page_names_exists() {
    let mut sources = Vec::new();
    files(place::project(), "rs", &mut sources);
    let of_a_path = |word: &str| {
        word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
    };
    let named = quoted().into_iter().filter(|(_, word)| word.ends_with(".rs") && of_a_path(word));
    let named: Vec<_> = named.collect();
    assert!(named.len() > 50, "{named:?}");
    let missing: Vec<_> =
        named.iter().filter(|(_, word)| !sources.iter().any(|path| path.ends_with(word))).collect();
    assert!(missing.is_empty(), "source files that do not exist: {missing:#?}");
}

/// `crate::module::function`, one a line, names an existing function in that file.
#[test]
fn every_function_on_the_way_of_a_build_and_of_a_roster_exists() {
    let page = read(&place::project().join("docs/design/architecture.md"));
    for what in ["build", "roster"] {
        let mark = |end: &str| format!("<!-- way of a {what}: {end} -->");
        let (_, rest) = page.split_once(&mark("start")).expect("a start mark");
        let (way, _) = rest.split_once(&mark("end")).expect("an end mark");
        let named: Vec<&str> = way.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
        assert!(named.len() > 10, "{named:?}");
        let missing: Vec<&&str> = named.iter().filter(|name| !function_exists(name)).collect();
        assert!(missing.is_empty(), "functions that do not exist: {missing:#?}");
    }
}

fn function_exists(name: &str) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let [krate, modules @ .., function] = &parts[..] else { return false };
    let sources = match *krate {
        "access-manager" => "access-manager/src".to_owned(),
        "roster" => "access-manager/roster/src".to_owned(),
        "departed" => "builder-agent/src/departed".to_owned(),
        krate => format!("builder-agent/{krate}/src"),
    };
    let within = |file: String| {
        let code = std::fs::read_to_string(place::project().join(file)).unwrap_or_default();
        ["(", "<"].iter().any(|after| code.contains(&format!("fn {function}{after}")))
    };
    match modules {
        [] => within(format!("{sources}/lib.rs")) || within(format!("{sources}.rs")),
        modules => within(format!("{sources}/{}.rs", modules.join("/"))),
    }
}

/// Messages in the first column of the page's tables.
fn messages(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_log_message_of_the_page_is_in_the_code() {
    let mut sources = Vec::new();
    for part in ["builder-agent", "image"] {
        files(&place::project().join(part), "rs", &mut sources);
    }
    let text: String = sources.iter().map(|path| read(path)).collect();
    // A string over several lines, and names in backticks, are one line without backticks on the page.
    let mut code = String::new();
    for (number, part) in text.split("\\\n").enumerate() {
        code.push_str(if number == 0 { part } else { part.trim_start() });
    }
    let code = code.replace('`', "");
    let page = read(&place::project().join("docs/reference/logs.md"));
    let messages = messages(&page);
    assert!(messages.len() > 80, "{messages:?}");
    let missing: Vec<_> = messages.iter().filter(|message| !code.contains(*message)).collect();
    assert!(missing.is_empty(), "docs/reference/logs.md has messages that no code writes: {missing:#?}");
}
