//! docs/benchmarks.md: one section for each benchmark, replaced alone.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const HEAD: &str = "# Benchmarks\n\n\
Written by `./x bench`; `./x bench NAME` measures and replaces one section. Not edited by hand.\n\n\
Every comparison is interleaved: each round measures without the agent (off) and with it (on), one right after the other, and the\n\
ratio is taken inside the round. Figures are the median of the rounds, lowest and highest in brackets. Where the load average\n\
is above the number of processors the machine was shared, and spreads are wide; the medians of the ratios are what to read.\n";

/// Whether a mark is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    /// A count that must hold, whatever the machine, and does not: the command fails.
    Broken,
    /// There is no mark.
    Shown,
}

/// One line of a section's table.
pub(super) struct Row {
    pub(super) mark: String,
    pub(super) measured: String,
    pub(super) verdict: Verdict,
}

impl Row {
    pub(super) fn new(mark: impl Into<String>, measured: impl Into<String>, met: bool) -> Self {
        Self {
            mark: mark.into(),
            measured: measured.into(),
            verdict: if met { Verdict::Met } else { Verdict::Missed },
        }
    }

    pub(super) fn shown(mark: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            mark: mark.into(),
            measured: measured.into(),
            verdict: Verdict::Shown,
        }
    }
}

/// What a benchmark found.
pub(super) struct Section {
    /// How it was measured.
    pub(super) method: String,
    pub(super) rows: Vec<Row>,
    /// What the numbers say, the missed ones above all.
    pub(super) notes: Vec<String>,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n| mark | measured | |\n|---|---|---|", self.method)?;
        for row in &self.rows {
            let verdict = match row.verdict {
                Verdict::Met => "met",
                Verdict::Missed => "**missed**",
                Verdict::Broken => "**broken**",
                Verdict::Shown => "",
            };
            writeln!(f, "| {} | {} | {verdict} |", row.mark, row.measured)?;
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

/// Puts a section in the place of the one of its name, or behind the others.
pub(super) fn rewrite(page: &Path, name: &str, section: &Section, machine: &str) -> Result<()> {
    let old = fs::read_to_string(page).unwrap_or_default();
    let text = format!("`./x bench {name}`: {machine}.\n\n{section}");
    fs::write(page, replaced(&old, name, &text)).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(old: &str, name: &str, text: &str) -> String {
    let mut sections: Vec<(String, String)> = old
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(title, body)| (title.to_owned(), body.trim().to_owned()))
        .collect();
    match sections.iter_mut().find(|(title, _)| title == name) {
        Some((_, body)) => text.trim().clone_into(body),
        None => sections.push((name.to_owned(), text.trim().to_owned())),
    }
    let bodies = sections.iter().map(|(title, body)| format!("\n## {title}\n\n{body}\n"));
    HEAD.to_owned() + &bodies.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_section_is_replaced_alone() {
        let one = replaced("", "a", "first");
        let two = replaced(&one, "b", "second");
        let three = replaced(&two, "a", "third");
        assert!(three.starts_with("# Benchmarks\n"));
        assert!(three.ends_with("\n## a\n\nthird\n\n## b\n\nsecond\n"), "{three}");
    }
}
