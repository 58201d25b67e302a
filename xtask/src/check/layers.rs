//! The data path runs in one direction: a module of the agent imports only from those before it (ARCHITECTURE.md).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{bail, Result};

use super::sources;
use crate::workspace;

/// The agent's modules, in order. Those of one row do not know each other.
const ROWS: [&[&str]; 17] = [
    &["span"],
    &["counters"],
    &["config"],
    &["sys"],
    &["rewrite"],
    &["discover", "doctor"],
    &["decode"],
    &["assemble"],
    &["enrich"],
    &["sample"],
    &["budget"],
    &["route"],
    // The store keeps spans in the bytes that are exported (`export::wire`).
    &["export"],
    &["store"],
    &["web"],
    &["pipeline"],
    &["run"],
];
/// Composes everything; anything may be imported there.
const TOP: [&str; 2] = ["cli", "main"];

pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let source = Path::new("agent/src");
    let mut faults = Vec::new();
    for file in sources::rust_files(&root)? {
        let Ok(inside) = file.strip_prefix(source) else {
            continue;
        };
        if is_test(inside) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else {
            continue;
        };
        faults.extend(
            faults_of(inside, &text)
                .into_iter()
                .map(|fault| format!("{}: {fault}", file.display())),
        );
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", faults.join("\n  "))
}

/// What the file at `path` (below agent/src) imports against the order.
fn faults_of(path: &Path, text: &str) -> Vec<String> {
    let module = module_path(path);
    let Some(stage) = module.first() else { return Vec::new() };
    if stage == "lib" || TOP.contains(&stage.as_str()) {
        return Vec::new();
    }
    let Some(own) = rank(stage) else {
        return vec![format!(
            "module {stage} has no place in the order; give it one in xtask/src/check/layers.rs"
        )];
    };
    let imported = imports(&without_comments(without_tests(text)), module.len());
    let reverse =
        |name: &&String| *name != stage && (TOP.contains(&name.as_str()) || rank(name).is_some_and(|rank| rank >= own));
    imported
        .iter()
        .filter(reverse)
        .map(|name| format!("{stage} imports {name}, which comes after it"))
        .collect()
}

fn rank(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// `export`, `otlp` of `export/otlp.rs`; `export` of `export/mod.rs`.
fn module_path(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = PathBuf::from(path)
        .with_extension("")
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// A file of tests: `tests.rs`, `ring_tests.rs`, or anything in a folder `tests`.
fn is_test(path: &Path) -> bool {
    path.iter().any(|name| {
        let name = name.to_string_lossy();
        let stem = name.strip_suffix(".rs").unwrap_or(&name);
        stem == "tests" || stem.ends_with("_tests")
    })
}

/// Tests may use what they like; those in the file of the code they test come last.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |start| &text[..start])
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names of the crate's modules that the text reaches by `crate::` or by enough `super::`.
fn imports(text: &str, depth: usize) -> BTreeSet<String> {
    let to_root = "super::".repeat(depth);
    let mut names = BTreeSet::new();
    for prefix in ["crate::", to_root.as_str()] {
        for (start, _) in text.match_indices(prefix) {
            let before = text[..start].chars().next_back();
            if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
                continue;
            }
            names.extend(heads(&text[start + prefix.len()..]));
        }
    }
    names
}

/// The first names of a path: `a` of `a::b`, `a` and `c` of `{a::b, c::{d, e}}`.
fn heads(path: &str) -> Vec<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let Some(group) = path.strip_prefix('{') else {
        return vec![word(path)];
    };
    let mut names = vec![word(group.trim_start())];
    let mut depth = 0;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(word(group[at + 1..].trim_start())),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        faults_of(Path::new(path), text)
    }

    #[test]
    fn forward_imports_pass() {
        assert!(faults(
            "enrich/process.rs",
            "use crate::assemble::Trace;\nuse crate::{span::Span, config};"
        )
        .is_empty());
        assert!(faults("cli/run.rs", "use crate::pipeline;").is_empty());
        assert!(faults("store/mod.rs", "use crate::store::schema;\nuse super::span;").is_empty());
    }

    #[test]
    fn reverse_imports_are_found_however_they_are_written() {
        let fault = ["decode imports store, which comes after it"];
        assert_eq!(faults("decode.rs", "use crate::store::Store;"), fault);
        assert_eq!(
            faults("decode.rs", "use crate::{span::{Span, Kind}, store::Store};"),
            fault
        );
        assert_eq!(
            faults("decode.rs", "use crate::{\n    span,\n    store::Store,\n};"),
            fault
        );
        assert_eq!(faults("decode.rs", "let store = crate::store::open();"), fault);
        assert_eq!(faults("decode.rs", "use super::store;"), fault);
        assert_eq!(
            faults("export/otlp.rs", "use super::super::web;"),
            ["export imports web, which comes after it"]
        );
    }

    #[test]
    fn neighbours_do_not_know_each_other() {
        assert_eq!(
            faults("export/mod.rs", "use crate::store;"),
            ["export imports store, which comes after it"]
        );
    }

    #[test]
    fn comments_and_tests_do_not_count() {
        assert!(faults("decode.rs", "// crate::store keeps it\n").is_empty());
        assert!(faults(
            "decode.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::store;\n}"
        )
        .is_empty());
    }

    #[test]
    fn files_of_tests_are_known_by_their_names() {
        for path in ["decode_tests.rs", "assemble/tests.rs", "assemble/tests/union.rs"] {
            assert!(is_test(Path::new(path)), "{path}");
        }
        assert!(!is_test(Path::new("assemble/latest.rs")));
    }

    #[test]
    fn a_module_without_a_place_is_named() {
        assert!(faults("misc.rs", "")[0].contains("module misc has no place"));
    }
}
