//! How things are shown to people: columns, lines that fit, units, and colours where they help.

use std::{env, fmt::Write, io::IsTerminal};

use rustix::termios::tcgetwinsize;

/// As wide as a table gets where there is no terminal, in columns.
const WIDTH: usize = 100;

/// No name is shown longer, in characters.
const MAX_NAME: usize = 18;

/// Where a table is shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// In columns; a word that is longer goes beyond.
    pub width: usize,
    /// Whether colours are shown.
    pub colours: bool,
    /// Whether what was shown before can be cleared.
    pub is_terminal: bool,
}

impl Screen {
    /// Standard output.
    pub fn of_output() -> Self {
        let out = std::io::stdout();
        let is_terminal = out.is_terminal();
        let columns = tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
        let width = columns.filter(|_| is_terminal).filter(|columns| *columns > 0);
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            width: width.map_or(WIDTH, |columns| columns.clamp(40, 160)),
            colours: is_terminal && !no_colour,
            is_terminal,
        }
    }

    fn paint(self, text: &str, colour: Colour) -> String {
        let code = match colour {
            Colour::Plain => return text.to_owned(),
            _ if !self.colours => return text.to_owned(),
            Colour::Good => 32,
            Colour::Doubt => 33,
            Colour::Bad => 31,
            Colour::Head => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Plain,
    Good,
    Doubt,
    Bad,
    Head,
}

/// One cell of a table.
#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    colour: Colour,
    right: bool,
}

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: Colour::Plain, right: false }
    }

    /// A name; of a very long one the beginning and the end.
    pub(super) fn name(name: &str) -> Self {
        let length = name.chars().count();
        Self::text(if length <= MAX_NAME {
            name.to_owned()
        } else {
            let half = MAX_NAME / 2;
            let (start, end) = (name.chars().take(half - 1), name.chars().skip(length - half));
            start.chain(['…']).chain(end).collect()
        })
    }

    /// Text that ends at the column's right side, as numbers do.
    pub(super) fn right(text: impl Into<String>) -> Self {
        Self { right: true, ..Self::text(text) }
    }

    pub(super) fn colour(self, colour: Colour) -> Self {
        Self { colour, ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Text that grows by lines which fit the screen.
#[derive(Debug)]
pub(super) struct Page {
    screen: Screen,
    text: String,
}

impl Page {
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, text: String::new() }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn gap(&mut self) {
        self.text.push('\n');
    }

    /// Words, from this column on, in as many lines as they take.
    pub(super) fn words(&mut self, indent: usize, words: &str, colour: Colour) {
        let mut line = String::new();
        for word in words.split(' ') {
            let needs = indent + line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && needs > self.screen.width {
                self.line(indent, &line, colour);
                line.clear();
                // What goes on is set off.
                line.push_str("  ");
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(indent, &line, colour);
    }

    /// Rows under a head, in columns. The last cell of a row goes below it where it does not fit;
    /// the notes of a row follow it.
    pub(super) fn rows(&mut self, indent: usize, head: &[&str], rows: &[(Vec<Cell>, Vec<String>)]) {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|(cells, _)| cells.get(column).map(Cell::width));
            cells.chain([head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let whole = indent + widths.iter().map(|width| width + 2).sum::<usize>() - 2;
        let last = head.len() - 1;
        let below = whole > self.screen.width;
        let right = |column| {
            rows.iter().any(|(cells, _)| cells.get(column).is_some_and(|c: &Cell| c.right))
        };
        let titles = head.iter().enumerate().map(|(column, title)| {
            let cell = if right(column) { Cell::right(*title) } else { Cell::text(*title) };
            cell.colour(Colour::Head)
        });
        let titles = (titles.collect(), Vec::new());
        for (cells, notes) in [&titles].into_iter().chain(rows) {
            let mut line = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                if column == last && below {
                    break;
                }
                let pad = " ".repeat(width - cell.width());
                let (before, after) = if cell.right { (&*pad, "") } else { ("", &*pad) };
                let shown = self.screen.paint(&cell.text, cell.colour);
                // Writing to a string does not fail.
                let _ = write!(line, "{before}{shown}{after}  ");
            }
            self.line(indent, line.trim_end(), Colour::Plain);
            if let Some(cell) = cells.get(last).filter(|_| below) {
                self.words(indent + 4, &cell.text, cell.colour);
            }
            for note in notes {
                self.words(indent + 4, note, Colour::Bad);
            }
        }
    }

    fn line(&mut self, indent: usize, line: &str, colour: Colour) {
        let line = self.screen.paint(line, colour);
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }
}

/// Text that does nothing to a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// So many seconds as people say it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut on purpose")]
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..2 => format!("{} ms", (seconds * 1000.0) as u64),
        2..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}

/// So many bytes.
pub(super) fn bytes(count: f64) -> String {
    scaled(count, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

/// So many of anything.
pub(super) fn count(count: f64) -> String {
    scaled(count, 1000.0, ["", " k", " M", " G", " T", " P"])
}

/// Three digits or so, and the unit.
fn scaled(mut value: f64, step: f64, units: [&str; 6]) -> String {
    let mut place = 0;
    while value >= step && place + 1 < units.len() {
        value /= step;
        place += 1;
    }
    let digits = usize::from(value < 9.95 && value.fract() != 0.0);
    format!("{value:.digits$}{}", units[place])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCREEN: Screen = Screen { width: 40, colours: false, is_terminal: false };

    #[test]
    fn columns_line_up_and_a_wide_last_one_goes_below() {
        let row = |name: &str, number: &str, last: &str| {
            (vec![Cell::name(name), Cell::right(number), Cell::text(last)], Vec::new())
        };
        let mut page = Page::new(SCREEN);
        page.rows(2, &["NAME", "N", "AT"], &[row("a", "1", "x:1"), row("bcdef", "200", "y:22")]);
        assert_eq!(page.into_text(), "  NAME     N  AT\n  a        1  x:1\n  bcdef  200  y:22\n");
        let mut page = Page::new(SCREEN);
        page.rows(2, &["NAME", "N", "AT"], &[row("a", "1", &"x".repeat(30))]);
        let expected = format!("  NAME  N\n      AT\n  a     1\n      {}\n", "x".repeat(30));
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 7.0, 1.5, 1023.0, 1536.0, 5e6, 1e18].map(bytes);
        assert_eq!(shown, ["0 B", "7 B", "1.5 B", "1023 B", "1.5 KiB", "4.8 MiB", "888 PiB"]);
        assert_eq!([999.0, 1000.0, 123_456.0].map(count), ["999", "1 k", "123 k"]);
        let times = [0.25, 5.0, 600.0, 9000.0, 1e6].map(duration);
        assert_eq!(times, ["250 ms", "5 s", "10 min", "2 h", "11 d"]);
    }

    #[test]
    fn only_a_screen_with_colours_gets_them() {
        let shown = |colours| {
            let mut page = Page::new(Screen { colours, ..SCREEN });
            page.words(0, "x", Colour::Bad);
            page.into_text()
        };
        assert_eq!(shown(false), "x\n");
        assert_eq!(shown(true), "\x1b[31mx\x1b[0m\n");
        assert_eq!(clean("a\x1b[2Jb\r\nc"), "a [2Jb \nc");
    }

    proptest! {
        #[test]
        fn lines_fit(words in prop::collection::vec("[a-z]{1,12}", 0..30), indent in 0usize..8) {
            let mut page = Page::new(SCREEN);
            page.words(indent, &words.join(" "), Colour::Plain);
            let text = page.into_text();
            prop_assert!(text.lines().all(|line| line.len() <= SCREEN.width), "{}", text);
            prop_assert_eq!(text.split_whitespace().collect::<Vec<_>>(), words);
        }

        #[test]
        fn any_number_has_words(number in any::<f64>()) {
            let _ = (bytes(number), count(number), duration(number));
        }
    }
}
