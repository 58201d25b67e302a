//! What is wrong with a configuration: every problem at once, each with its place.

use std::fmt;
use std::path::Path;

/// A place in a file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, at this position.
    File { file: String, at: Position },
    /// The configuration file as a whole: it cannot be read.
    WholeFile { file: String },
    /// A flag or an environment variable; the problem's key is its name.
    Name,
}

/// One setting that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// `capture.include[0].exe`, `--include`, `OTEL_EXPORTER_OTLP_ENDPOINT`; empty for the file as a whole.
    pub key: String,
    /// What was expected, and what to do.
    pub message: String,
}

impl Problem {
    pub(super) fn named(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            origin: Origin::Name,
            key: key.into(),
            message: message.into(),
        }
    }

    pub(super) fn whole_file(file: &Path, message: impl Into<String>) -> Self {
        Self {
            origin: Origin::WholeFile {
                file: file.display().to_string(),
            },
            key: String::new(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { file, at } => write!(f, "{file}:{}:{}: ", at.line, at.column)?,
            Origin::WholeFile { file } => write!(f, "{file}: ")?,
            Origin::Name => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// A configuration that is refused. Displays one problem a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one, in the order of their places.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
