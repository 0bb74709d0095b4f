//! Tables for people: aligned columns that fit the terminal.
//!
//! Cells can hold text of strangers, so they are made printable here. A character counts as one column: names and paths are
//! ASCII. Not here: JSON and CSV, which are for programs.

use crate::terminal::{Colour, Screen};

/// A column that has to be narrower keeps at least so many characters.
const NARROWEST: usize = 8;
/// The space between two columns.
const GAP: &str = "  ";

pub(super) enum Kind {
    /// Aligned to the left.
    Text,
    /// Aligned to the left, and cut at the end where the terminal is too narrow.
    Prose,
    /// Aligned to the left, and cut at the start, since a path differs from others at its end.
    Path,
    /// Aligned to the right.
    Number,
    /// One word, which has a colour on terminals.
    State,
    /// As `Number`; on terminals it has a colour if it is not zero.
    Busy,
}

impl Kind {
    fn colour(&self, cell: &str) -> Option<Colour> {
        match (self, cell) {
            (Kind::State, "running" | "live") => Some(Colour::Green),
            (Kind::State, "waiting" | "suspended") => Some(Colour::Yellow),
            (Kind::Busy, count) if count != "0" => Some(Colour::Green),
            _ => None,
        }
    }
}

pub(super) struct Table {
    columns: Vec<(&'static str, Kind)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: Vec<(&'static str, Kind)>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// One cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells.iter().map(|cell| printable::line(cell)).collect());
    }

    /// A line with the names of the columns, and one for each row.
    pub fn text(&self, screen: Screen) -> String {
        let widths = self.widths(screen.columns);
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let head = self.line(&head, &widths, Screen::default());
        let head = if screen.has_colors() { format!("\u{1b}[1m{head}\u{1b}[0m") } else { head };
        let rows = self.rows.iter().map(|row| self.line(row, &widths, screen));
        std::iter::once(head).chain(rows).map(|line| line + "\n").collect()
    }

    fn widths(&self, most: Option<usize>) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default().max(self.columns[column].0.chars().count())
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let Some(most) = most else { return widths };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(most);
        // The last ones first: they say the least.
        for (column, (name, kind)) in self.columns.iter().enumerate().rev() {
            if matches!(kind, Kind::Prose | Kind::Path) {
                let least = NARROWEST.max(name.len()).min(widths[column]);
                let less = over.min(widths[column] - least);
                widths[column] -= less;
                over -= less;
            }
        }
        widths
    }

    fn line(&self, cells: &[String], widths: &[usize], screen: Screen) -> String {
        let cell = |(column, cell): (usize, &String)| {
            let width = widths[column];
            let kind = &self.columns[column].1;
            let aligned = match kind {
                Kind::Number | Kind::Busy => format!("{cell:>width$}"),
                Kind::Path => format!("{:<width$}", cut_start(cell, width)),
                Kind::Text | Kind::State | Kind::Prose => format!("{:<width$}", cut_end(cell, width)),
            };
            // After the alignment, which counts characters.
            kind.colour(cell).map_or(aligned.clone(), |colour| screen.paint(colour, &aligned))
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    }
}

fn cut_end(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

fn cut_start(text: &str, width: usize) -> String {
    let count = text.chars().count();
    match count > width {
        true => ['…'].into_iter().chain(text.chars().skip(count + 1 - width.max(1))).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![("id", Kind::Number), ("what", Kind::Path), ("why", Kind::Prose)]);
        table.row(vec!["7".into(), "/nix/store/hash-hello.drv".into(), "a reason \u{1b}[2J".into()]);
        table.row(vec!["123".into(), "x".into(), String::new()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_text_of_strangers_is_printable() {
        let text = table().text(Screen::default());
        assert_eq!(
            text,
            " id  what                       why\n  \
             7  /nix/store/hash-hello.drv  a reason \u{fffd}[2J\n\
             123  x\n"
        );
    }

    #[test]
    fn a_table_fits_the_terminal_if_it_can() {
        let mut screen = Screen::default();
        screen.open("xterm", 30);
        let text = table().text(screen);
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(rows[0], "  7  …hash-hello.drv  a reaso…");
        assert!(rows.iter().all(|row| row.chars().count() <= 30), "{text}");
        screen.resize(1);
        assert!(table().text(screen).contains("o.drv"), "nothing is cut away wholly");
    }

    #[test]
    fn only_terminals_that_want_them_get_colors() {
        let mut screen = Screen::default();
        assert!(!table().text(screen).contains('\u{1b}'));
        screen.open("xterm", 80);
        assert!(table().text(screen).starts_with("\u{1b}[1m"));
        let mut states = Table::new(vec![("builds", Kind::Busy), ("state", Kind::State), ("x", Kind::Text)]);
        for state in ["running", "waiting", "other"] {
            states.row(vec![u8::from(state == "running").to_string(), state.into(), "running".into()]);
        }
        let text = states.text(screen);
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(rows[0], "\u{1b}[32m     1\u{1b}[0m  \u{1b}[32mrunning\u{1b}[0m  running");
        assert_eq!(rows[1], "     0  \u{1b}[33mwaiting\u{1b}[0m  running");
        assert_eq!(rows[2], "     0  other    running");
        assert!(screen.set("NO_COLOR", "1") && !states.text(screen).contains('\u{1b}'));
        assert!(screen.set("NO_COLOR", "1") && !table().text(screen).contains('\u{1b}'));
    }
}
