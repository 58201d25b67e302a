//! `spanwire status`: what the agent says of itself, as tables. The agent decides what it says; here is only the form.

use serde_json::{Map, Value};

use super::client::{QueryError, Source};
use super::text::{escape, Cell, Colour, Output};

/// Depth beyond which JSON stays JSON.
const DEPTH_MAX: usize = 4;

/// Runs the command.
pub fn run(source: &Source, output: &mut Output<'_>) -> Result<(), QueryError> {
    let status = source.status()?;
    if output.is_json {
        return output.json(&status);
    }
    Ok(print(&status, output)?)
}

/// Plain values first, then a section for each table and object.
pub(super) fn print(status: &Value, output: &mut Output<'_>) -> std::io::Result<()> {
    let Value::Object(entries) = status else {
        return writeln!(output.out, "{}", text(status));
    };
    section(entries, 0, output)
}

fn section(entries: &Map<String, Value>, depth: usize, output: &mut Output<'_>) -> std::io::Result<()> {
    let (plain, nested): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, value)| is_plain(value, depth));
    let width = plain
        .iter()
        .map(|(key, _)| escape(key).chars().count())
        .max()
        .unwrap_or(0);
    for (key, value) in plain {
        writeln!(output.out, "{:width$}  {}", escape(key), text(value))?;
    }
    for (key, value) in nested {
        let title = output.paint(Colour::Bold, &escape(key));
        writeln!(output.out, "\n{title}")?;
        match value {
            Value::Object(inner) => section(inner, depth + 1, output)?,
            Value::Array(items) => table(items, output)?,
            _ => {}
        }
    }
    Ok(())
}

/// True for what fits on one line.
fn is_plain(value: &Value, depth: usize) -> bool {
    match value {
        Value::Object(entries) => entries.is_empty() || depth >= DEPTH_MAX,
        Value::Array(items) => !items.iter().any(Value::is_object),
        _ => true,
    }
}

/// Objects as rows, their keys as columns in the order in which they first appear.
fn table(items: &[Value], output: &mut Output<'_>) -> std::io::Result<()> {
    let mut keys: Vec<&str> = Vec::new();
    for key in items.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let titles: Vec<String> = keys.iter().map(|key| escape(key).to_uppercase()).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let rows: Vec<Vec<Cell>> = items
        .iter()
        .map(|item| {
            keys.iter()
                .map(|key| Cell::plain(item.get(key).map(text).unwrap_or_default()))
                .collect()
        })
        .collect();
    output.table(&titles, &rows)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text),
        Value::Null => "-".to_owned(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(entries) if entries.is_empty() => "none".to_owned(),
        other => escape(&other.to_string()),
    }
}
