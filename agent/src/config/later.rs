//! Keys of capabilities that are not built yet: accepted where they switch nothing on, refused by name where they
//! would.

use super::reader::{Field, Reader, Section};

/// A capability of contract.md that is not there yet.
#[derive(Clone, Copy)]
pub(super) enum Later {
    Control,
    Kubernetes,
}

impl Later {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// `{what} is not built yet`, and when it comes.
    pub(super) fn refuses(self, what: &str) -> String {
        format!(
            "{what} is not built yet: it comes with the {} capability",
            self.as_str()
        )
    }
}

pub(super) fn sampling(reader: &mut Reader, mut section: Section<'_>) {
    if let Some(mut head) = section.section(reader, "head") {
        if let Some(field) = head.take(reader, "ratio") {
            let ratio = field.value(reader, "a ratio from 0.0 to 1.0", |text| match text.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
                _ => Err("expected a ratio from 0.0 to 1.0".to_owned()),
            });
            if ratio.is_some_and(|ratio| ratio < 1.0) {
                let message = format!("{}; expected 1.0", Later::Control.refuses("sampling"));
                field.refuse(reader, message);
            }
        }
        head.finish(reader);
    }
    for (key, what) in [("tail", "tail sampling"), ("adaptive", "adaptive sampling")] {
        if let Some(field) = section.take(reader, key) {
            refuse_unless_empty(reader, &field, Later::Control, what);
        }
    }
    section.finish(reader);
}

/// Empty lists and mappings ask for nothing; anything in them does.
pub(super) fn refuse_unless_empty(reader: &mut Reader, field: &Field<'_>, later: Later, what: &str) {
    if !field.is_empty() {
        field.refuse(reader, later.refuses(what));
    }
}
