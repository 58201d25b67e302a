//! Answers as text: columns, colours, times, and names that may hold anything.

use std::io::{self, IsTerminal, Write};

use time::format_description::well_known::iso8601::{Config, EncodedConfig, Iso8601, TimePrecision};
use time::OffsetDateTime;

/// Columns of a terminal that does not say.
const WIDTH: usize = 120;
const WIDTH_MIN: usize = 60;

/// Where an answer goes, and how it is written.
pub struct Output<'a> {
    pub(super) out: &'a mut dyn Write,
    /// One JSON document instead of text.
    pub is_json: bool,
    /// With colours.
    pub is_coloured: bool,
    /// Columns to fit in.
    pub width: usize,
}

/// Colours by meaning.
#[derive(Clone, Copy)]
pub(super) enum Colour {
    Bold,
    Faint,
    Red,
    Cyan,
}

impl<'a> Output<'a> {
    /// Plain text, or JSON; nothing of the terminal.
    pub fn plain(out: &'a mut dyn Write, is_json: bool) -> Self {
        Self {
            out,
            is_json,
            is_coloured: false,
            width: WIDTH,
        }
    }

    /// As standard output wants it: colours only on a terminal and never with `NO_COLOR`.
    pub fn for_stdout(out: &'a mut dyn Write, is_json: bool) -> Self {
        let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        Self {
            out,
            is_json,
            is_coloured: io::stdout().is_terminal() && !is_refused,
            width: columns.unwrap_or(WIDTH).max(WIDTH_MIN),
        }
    }

    /// `text` in a colour, if there are any.
    pub(super) fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Bold => "1",
            Colour::Faint => "2",
            Colour::Red => "31",
            Colour::Cyan => "36",
        };
        if self.is_coloured && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// One JSON document and a line end.
    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> Result<(), super::client::QueryError> {
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(writeln!(self.out)?)
    }

    /// Rows under titles, in columns as wide as their widest cell. A column whose title begins with `>` is aligned right.
    pub(super) fn table(&mut self, titles: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
        let title = |text: &str| text.trim_start_matches('>').to_owned();
        let widths: Vec<usize> = (0..titles.len())
            .map(|column| {
                let cells = rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.text.chars().count());
                cells.chain([title(titles[column]).chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let head: Vec<Cell> = titles
            .iter()
            .map(|text| Cell::painted(Colour::Faint, title(text)))
            .collect();
        for row in std::iter::once(&head).chain(rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column].saturating_sub(cell.text.chars().count()));
                let text = cell
                    .colour
                    .map_or_else(|| cell.text.clone(), |colour| self.paint(colour, &cell.text));
                let is_right = titles[column].starts_with('>');
                let (before, after) = if is_right {
                    (padding.as_str(), "")
                } else {
                    ("", padding.as_str())
                };
                line.extend([before, &text, after, "  "]);
            }
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A table's cell; its text is escaped already.
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }

    pub(super) fn painted(colour: Colour, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            colour: Some(colour),
        }
    }
}

/// Text from a span with everything made visible that a terminal would obey: control characters, and the marks that turn
/// the direction of writing.
pub(super) fn escape(text: &str) -> String {
    let is_mark = |letter: char| {
        matches!(letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
    };
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || is_mark(letter) {
            escaped.extend(letter.escape_unicode());
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

/// The first `most` characters, with a mark if something is missing.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Nanoseconds for people: three digits or so.
pub(super) fn duration(length_ns: u64) -> String {
    let (scale, unit) = match length_ns {
        0..1_000 => return format!("{length_ns} ns"),
        1_000..1_000_000 => (1e3, "µs"),
        1_000_000..1_000_000_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let value = length_ns as f64 / scale;
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// A point in time: UTC, to the millisecond.
pub(super) fn instant(unix_ns: u64) -> String {
    const MILLISECONDS: EncodedConfig = Config::DEFAULT
        .set_time_precision(TimePrecision::Second {
            decimal_digits: std::num::NonZero::new(3),
        })
        .set_year_is_six_digits(false)
        .encode();
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns));
    let text = at.ok().and_then(|at| at.format(&Iso8601::<MILLISECONDS>).ok());
    text.unwrap_or_else(|| format!("{unix_ns} ns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_becomes_visible() {
        assert_eq!(escape("GET /ä/{id}"), "GET /ä/{id}");
        assert_eq!(
            escape("a\u{1b}[31m\r\nb\u{7}\u{9b}"),
            "a\\u{1b}[31m\\u{d}\\u{a}b\\u{7}\\u{9b}"
        );
        assert_eq!(escape("a\u{202e}b\u{2066}\u{200b}"), "a\\u{202e}b\\u{2066}\\u{200b}");
    }

    #[test]
    fn durations_read_well() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (12_345_678, "12.3 ms"),
            (123_400_000, "123 ms"),
        ];
        for (length_ns, text) in cases {
            assert_eq!(duration(length_ns), text);
        }
        assert_eq!(duration(90_000_000_000), "90.0 s");
    }

    #[test]
    fn instants_are_utc_with_milliseconds() {
        assert_eq!(instant(1_767_225_600_123_456_789), "2026-01-01T00:00:00.123Z");
        assert_eq!(instant(1_767_225_600_000_000_000), "2026-01-01T00:00:00.000Z");
        assert_eq!(instant(0), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn cutting_counts_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
