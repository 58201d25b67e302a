//! Prometheus' text exposition format, version 0.0.4.

/// A page being written: a family, then its samples.
pub(super) struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    pub(super) fn new() -> Self {
        Self {
            text: String::with_capacity(16 * 1024),
            family: "",
        }
    }

    /// Begins a family that only grows. `help` must be one line without backslashes.
    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) {
        self.family(name, help, "counter");
    }

    /// Begins a family that goes up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) {
        self.family(name, help, "gauge");
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: &str) {
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.text.push_str(part);
        }
        self.family = name;
    }

    /// One line of the family begun last.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.text.push_str(self.family);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            push_escaped(value, &mut self.text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.text.push(' ');
        self.text.push_str(&value.to_string());
        self.text.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// A label value comes from a configuration: backslash, quote and line feed are escaped as the format demands.
fn push_escaped(value: &str, text: &mut String) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}
