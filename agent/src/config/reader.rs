//! Walks a tree of nodes by expected keys: collects every problem, and whatever nobody asked for is one.

use std::collections::BTreeSet;

use super::problem::{Origin, Position, Problem};
use super::yaml::{Entry, Kind, Node};

/// Longest text of a bad value that is repeated in a message, in characters.
const ECHO_CHARS: usize = 40;

/// Collects what went wrong, and which keys were asked for.
pub(super) struct Reader {
    file: String,
    pub(super) problems: Vec<Problem>,
    /// Every key some reader asked for, list places as `[]`: what the reference page must describe.
    pub(super) asked: BTreeSet<String>,
}

impl Reader {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            problems: Vec::new(),
            asked: BTreeSet::new(),
        }
    }

    pub(super) fn refuse(&mut self, at: Position, key: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            origin: Origin::File {
                file: self.file.clone(),
                at,
            },
            key: key.to_owned(),
            message: message.into(),
        });
    }
}

/// A value together with the path that leads to it.
pub(super) struct Field<'n> {
    pub(super) path: String,
    pub(super) node: &'n Node,
    /// Where the key stands; the value's own place for a list's item.
    pub(super) key_at: Position,
}

impl<'n> Field<'n> {
    pub(super) fn refuse(&self, reader: &mut Reader, message: impl Into<String>) {
        reader.refuse(self.node.at, &self.path, message);
    }

    /// The scalar's text; refused as `expected {what}` for anything else.
    pub(super) fn text(&self, reader: &mut Reader, what: &str) -> Option<&'n str> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => Some(text),
            Kind::Scalar { .. } => {
                self.refuse(reader, format!("expected {what}, found nothing"));
                None
            }
            Kind::List(_) => {
                self.refuse(reader, format!("expected {what}, found a list"));
                None
            }
            Kind::Map(_) => {
                self.refuse(reader, format!("expected {what}, found a mapping"));
                None
            }
        }
    }

    /// Parses the scalar; the message repeats the value.
    pub(super) fn value<T>(
        &self,
        reader: &mut Reader,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(reader, what)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(reader, format!("{message}, found {}", echo(text)));
                None
            }
        }
    }

    /// As `value`, for what may hold a secret: the message does not repeat it.
    pub(super) fn private_value<T>(
        &self,
        reader: &mut Reader,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(reader, what)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(reader, message);
                None
            }
        }
    }

    /// The mapping below, to be asked key by key.
    pub(super) fn section(&self, reader: &mut Reader) -> Option<Section<'n>> {
        match &self.node.kind {
            Kind::Map(entries) => Some(Section::new(reader, self.path.clone(), entries)),
            Kind::Scalar { .. } | Kind::List(_) => {
                self.refuse(reader, "expected a mapping of keys to values");
                None
            }
        }
    }

    /// The list's items, each with its place in the path.
    pub(super) fn items(&self, reader: &mut Reader) -> Option<Vec<Field<'n>>> {
        let Kind::List(items) = &self.node.kind else {
            self.refuse(reader, "expected a list");
            return None;
        };
        let field = |(index, node): (usize, &'n Node)| Field {
            path: format!("{}[{index}]", self.path),
            node,
            key_at: node.at,
        };
        Some(items.iter().enumerate().map(field).collect())
    }

    /// True for an empty list or mapping: it asks for nothing.
    pub(super) fn is_empty(&self) -> bool {
        match &self.node.kind {
            Kind::List(items) => items.is_empty(),
            Kind::Map(entries) => entries.is_empty(),
            Kind::Scalar { .. } => false,
        }
    }
}

/// A mapping that is being read. `finish` refuses the keys nobody asked for.
pub(super) struct Section<'n> {
    path: String,
    left: Vec<&'n Entry>,
    known: Vec<&'static str>,
}

impl<'n> Section<'n> {
    /// Duplicate keys are refused; the first one counts.
    pub(super) fn new(reader: &mut Reader, path: String, entries: &'n [Entry]) -> Self {
        let mut left: Vec<&Entry> = Vec::with_capacity(entries.len());
        let mut seen = BTreeSet::new();
        for entry in entries {
            if seen.insert(entry.key.as_str()) {
                left.push(entry);
            } else {
                reader.refuse(entry.key_at, &join(&path, &entry.key), "the key stands here twice");
            }
        }
        Self {
            path,
            left,
            known: Vec::new(),
        }
    }

    /// The key's value; `None` when it is absent or has none.
    pub(super) fn take(&mut self, reader: &mut Reader, key: &'static str) -> Option<Field<'n>> {
        self.known.push(key);
        reader.asked.insert(without_places(&join(&self.path, key)));
        let place = self.left.iter().position(|entry| entry.key == key)?;
        let entry = self.left.remove(place);
        (!entry.value.is_null()).then(|| Field {
            path: join(&self.path, key),
            node: &entry.value,
            key_at: entry.key_at,
        })
    }

    /// As `take`, for a key that does not belong here but deserves a better message than "unknown".
    pub(super) fn take_unlisted(&mut self, key: &str) -> Option<Field<'n>> {
        let place = self.left.iter().position(|entry| entry.key == key)?;
        let entry = self.left.remove(place);
        Some(Field {
            path: join(&self.path, key),
            node: &entry.value,
            key_at: entry.key_at,
        })
    }

    /// Parses the key's value into `slot`, which keeps its default when the key is absent or refused.
    pub(super) fn set<T>(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        slot: &mut T,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) {
        let field = self.take(reader, key);
        if let Some(value) = field.and_then(|field| field.value(reader, what, parse)) {
            *slot = value;
        }
    }

    /// The section below the key.
    pub(super) fn section(&mut self, reader: &mut Reader, key: &'static str) -> Option<Section<'n>> {
        self.take(reader, key)?.section(reader)
    }

    /// Every key of a mapping whose keys are free (header names).
    pub(super) fn rest(&mut self) -> Vec<Field<'n>> {
        let path = self.path.clone();
        let field = |entry: &'n Entry| Field {
            path: join(&path, &entry.key),
            node: &entry.value,
            key_at: entry.key_at,
        };
        self.left.drain(..).map(field).collect()
    }

    /// Refuses what is left over.
    pub(super) fn finish(self, reader: &mut Reader) {
        for entry in &self.left {
            let key = join(&self.path, &entry.key);
            reader.refuse(
                entry.key_at,
                &key,
                format!("unknown key, expected {}", one_of(&self.known)),
            );
        }
    }
}

/// `capture` and `include` to `capture.include`.
fn join(path: &str, key: &str) -> String {
    let key: String = key.chars().flat_map(char::escape_debug).take(ECHO_CHARS).collect();
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// `export[3].name` to `export[].name`.
fn without_places(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// `a, b or c`.
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn echo(text: &str) -> String {
    let short: String = text.chars().flat_map(char::escape_debug).take(ECHO_CHARS).collect();
    if text.chars().count() > ECHO_CHARS {
        format!("\"{short}...\"")
    } else {
        format!("\"{short}\"")
    }
}
