//! YAML text to a tree that knows where each node stands.
//!
//! The subset a configuration needs: mappings with plain keys, lists, scalars. Aliases are refused rather than
//! expanded (a few lines of them can stand for gigabytes), tags are refused, a second document is refused. Depth,
//! nodes and bytes are bounded.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::problem::Position;

/// Largest file read, in bytes.
pub(super) const FILE_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting; the deepest key in use is at 5.
const DEPTH_MAX: usize = 16;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// `plain`: not quoted, so `null` and `~` mean nothing at all.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) value: Node,
}

impl Node {
    /// True for a key written without a value.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }
}

/// Why a text is no tree, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) at: Position,
    pub(super) message: String,
}

fn position(mark: Marker) -> Position {
    Position {
        line: mark.line(),
        column: mark.col() + 1,
    }
}

fn refuse<T>(at: Position, message: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError {
        at,
        message: message.into(),
    })
}

/// A collection that is still open.
struct Open {
    at: Position,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        key: Option<(String, Position)>,
    },
}

impl Open {
    /// Takes a finished node: as an item, as a key, or as the value of the key before it.
    fn push(&mut self, node: Node) -> Result<(), SyntaxError> {
        match &mut self.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { entries, key } => match key.take() {
                Some((key, key_at)) => entries.push(Entry {
                    key,
                    key_at,
                    value: node,
                }),
                None => match node.kind {
                    Kind::Scalar { text, .. } => *key = Some((text, node.at)),
                    Kind::List(_) | Kind::Map(_) => return refuse(node.at, "expected a plain name as key"),
                },
            },
        }
        Ok(())
    }

    fn finish(self) -> Node {
        let kind = match self.kind {
            OpenKind::List(items) => Kind::List(items),
            OpenKind::Map { entries, .. } => Kind::Map(entries),
        };
        Node { at: self.at, kind }
    }
}

/// Reads one document; `None` when the text holds none (empty, or comments only).
pub(super) fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| SyntaxError {
            at: position(*error.marker()),
            message: format!("not YAML: {}", error.info()),
        })?;
        let at = position(span.start);
        let finished = match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) if root.is_some() => return refuse(at, "expected a single document"),
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => None,
            Event::Alias(_) => return refuse(at, "aliases are not read here: write the value out"),
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return refuse(at, "tags are not read here: write the value without")
            }
            Event::Scalar(text, style, _, None) => Some(Node {
                at,
                kind: Kind::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                },
            }),
            Event::SequenceStart(_, None) | Event::MappingStart(_, None) if open.len() == DEPTH_MAX => {
                return refuse(at, format!("nested deeper than {DEPTH_MAX} levels"))
            }
            Event::SequenceStart(_, None) => {
                open.push(Open {
                    at,
                    kind: OpenKind::List(Vec::new()),
                });
                None
            }
            Event::MappingStart(_, None) => {
                open.push(Open {
                    at,
                    kind: OpenKind::Map {
                        entries: Vec::new(),
                        key: None,
                    },
                });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(Open::finish),
        };
        if let Some(node) = finished {
            match open.last_mut() {
                Some(collection) => collection.push(node)?,
                None => root = Some(node),
            }
        }
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
    use super::*;

    fn error(text: &str) -> (usize, usize, String) {
        let error = parse(text).unwrap_err();
        (error.at.line, error.at.column, error.message)
    }

    #[test]
    fn nodes_know_their_places() {
        let root = parse("a: 1\nb:\n  - {c: x}\n").unwrap().unwrap();
        let Kind::Map(entries) = root.kind else {
            panic!("a mapping")
        };
        assert_eq!(entries[1].key, "b");
        assert_eq!(entries[1].key_at, Position { line: 2, column: 1 });
        let Kind::List(items) = &entries[1].value.kind else {
            panic!("a list")
        };
        assert_eq!(items[0].at, Position { line: 3, column: 5 });
    }

    #[test]
    fn columns_count_characters() {
        let root = parse("{é: x, b: y}").unwrap().unwrap();
        let Kind::Map(entries) = root.kind else {
            panic!("a mapping")
        };
        assert_eq!(entries[1].key_at, Position { line: 1, column: 8 });
    }

    #[test]
    fn nothing_is_no_document() {
        assert!(parse("").unwrap().is_none());
        assert!(parse("# a comment\n").unwrap().is_none());
    }

    #[test]
    fn what_is_not_read_is_refused_with_its_place() {
        assert_eq!(
            error("a: &x [1]\nb: *x\n"),
            (2, 4, "aliases are not read here: write the value out".into())
        );
        assert_eq!(
            error("a: !!str 5"),
            (1, 4, "tags are not read here: write the value without".into())
        );
        assert_eq!(error("a: 1\n---\nb: 2\n"), (2, 1, "expected a single document".into()));
        assert_eq!(error("? [a]\n: b\n"), (1, 3, "expected a plain name as key".into()));
        assert_eq!(error("a: [1, 2\nb: 3").0, 2);
    }

    #[test]
    fn nesting_is_bounded() {
        assert_eq!(error(&"[".repeat(100)), (1, 17, "nested deeper than 16 levels".into()));
        assert!(parse(&"[".repeat(FILE_BYTES_MAX)).is_err());
        assert!(parse(&"- ".repeat(FILE_BYTES_MAX / 2)).is_err());
        let lines: Vec<String> = (0..40).map(|depth| " ".repeat(depth) + "a:").collect();
        assert_eq!(error(&lines.join("\n")).2, "nested deeper than 16 levels");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ -~\\n\\té]{0,200}") {
            let _ = parse(&text);
        }
    }
}
