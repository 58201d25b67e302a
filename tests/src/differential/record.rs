//! What one side of an exchange saw, as a line of text, and two runs compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// What a side saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The results of its calls, in order.
    pub tokens: String,
    /// The first byte received that was not the expected one.
    pub difference: Option<String>,
    /// Heads received with an added line.
    pub inserted: u32,
    /// Parent ids received corrected.
    pub corrected: u32,
    /// Time without pauses.
    pub micros: u64,
}

/// A side of an exchange: the number, and `client` or `server` with the process's mode.
pub type Key = (u32, String);

/// One line of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Key,
    pub kind: String,
    pub seen: Seen,
}

impl fmt::Display for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen {
            tokens,
            difference,
            inserted,
            corrected,
            micros,
        } = &self.seen;
        let (number, side) = &self.key;
        let difference = difference.as_deref().unwrap_or_default();
        let kind = &self.kind;
        write!(
            out,
            "{number}\t{side}\t{kind}\t{inserted}\t{corrected}\t{micros}\t{}\t{difference}",
            tokens.trim()
        )
    }
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(8, '\t');
        let key = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
        let kind = fields.next()?.to_owned();
        let inserted = fields.next()?.parse().ok()?;
        let corrected = fields.next()?.parse().ok()?;
        let micros = fields.next()?.parse().ok()?;
        let tokens = fields.next()?.to_owned();
        let difference = fields.next().filter(|text| !text.is_empty()).map(str::to_owned);
        let seen = Seen {
            tokens,
            difference,
            inserted,
            corrected,
            micros,
        };
        Some(Self { key, kind, seen })
    }
}

/// Everything a run wrote, by side of exchange.
#[derive(Debug, Default)]
pub struct Run {
    pub records: BTreeMap<Key, Record>,
}

impl Run {
    /// Adds a process's file. Lines that are no record say what went wrong in that process.
    pub fn read(&mut self, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
        for line in text.lines() {
            let record = Record::parse(line).with_context(|| format!("{}: {line}", file.display()))?;
            if let Some(twice) = self.records.insert(record.key.clone(), record) {
                anyhow::bail!("{}: played twice: {twice}", file.display());
            }
        }
        Ok(())
    }

    /// What is wrong in this run by itself.
    pub fn faults(&self) -> Vec<String> {
        let faulty = self.records.values().filter(|record| record.seen.difference.is_some());
        faulty.map(Record::to_string).collect()
    }

    /// What `with` saw otherwise than this run, exchange by exchange.
    pub fn differences(&self, with: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (key, record) in &self.records {
            match with.records.get(key) {
                None => found.push(format!("off: {record}\n    on: nothing")),
                Some(other) if other.seen.tokens != record.seen.tokens || other.seen.difference.is_some() => {
                    found.push(format!("off: {record}\n    on: {other}"));
                }
                Some(_) => {}
            }
        }
        let extra = with.records.iter().filter(|(key, _)| !self.records.contains_key(key));
        found.extend(extra.map(|(_, record)| format!("off: nothing\n    on: {record}")));
        found
    }

    /// By what `group` makes of a record: how many sides, added lines, corrected ids.
    pub fn coverage(&self, group: impl Fn(&Record) -> String) -> BTreeMap<String, Coverage> {
        let mut table: BTreeMap<String, Coverage> = BTreeMap::new();
        for record in self.records.values() {
            let row = table.entry(group(record)).or_default();
            row.sides += 1;
            row.inserted += u64::from(record.seen.inserted);
            row.corrected += u64::from(record.seen.corrected);
            row.with += u64::from(record.seen.inserted > 0);
        }
        table
    }

    /// How many sides took at least this long.
    pub fn slower_than(&self, micros: u64) -> usize {
        self.records
            .values()
            .filter(|record| record.seen.micros >= micros)
            .count()
    }
}

/// How much the agent added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Sides of exchanges.
    pub sides: u64,
    /// Sides that received at least one added line.
    pub with: u64,
    /// Heads with an added line.
    pub inserted: u64,
    pub corrected: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn run(tokens: &str, difference: Option<&str>) -> Run {
        let record = Record {
            key: (7, "client blocking".to_owned()),
            kind: "get".to_owned(),
            seen: Seen {
                tokens: tokens.to_owned(),
                difference: difference.map(str::to_owned),
                inserted: 1,
                corrected: 0,
                micros: 120,
            },
        };
        let record = Record::parse(&record.to_string()).unwrap();
        Run {
            records: [(record.key.clone(), record)].into(),
        }
    }

    #[test]
    fn a_line_holds_everything() {
        let read = run("s7 r40 end0", Some("at 3: expected \"a\", received \"b\""));
        let record = &read.records[&(7, "client blocking".to_owned())];
        assert_eq!(record.seen.tokens, "s7 r40 end0");
        assert_eq!((record.seen.inserted, record.seen.micros), (1, 120));
        assert_eq!(read.faults().len(), 1);
    }

    #[test]
    fn runs_differ_in_tokens_bytes_and_what_is_missing() {
        assert!(run("s7 r40", None).differences(&run("s7 r40", None)).is_empty());
        assert_eq!(run("s7 r40", None).differences(&run("s7 r39", None)).len(), 1);
        assert_eq!(run("s7 r40", None).differences(&run("s7 r40", Some("at 1"))).len(), 1);
        assert_eq!(run("s7 r40", None).differences(&Run::default()).len(), 1);
        assert_eq!(Run::default().differences(&run("s7 r40", None)).len(), 1);
    }
}
