//! The agent's self-metrics, as Prometheus would scrape them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads the text exposition format. A line that is none is an error: a scraper would refuse the whole page.
    pub fn parse(text: &str) -> Result<Self> {
        let mut samples = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let sample = parse_sample(line).with_context(|| format!("not a sample: {line:?}"))?;
            samples.push(sample);
        }
        Ok(Self { samples })
    }

    /// Sum of all samples of a metric that carry the given labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let fits = |sample: &BTreeMap<String, String>| {
            labels
                .iter()
                .all(|(key, value)| sample.get(*key).is_some_and(|found| found == value))
        };
        self.samples
            .iter()
            .filter(|(found, sample, _)| found == name && fits(sample))
            .map(|(_, _, value)| *value as u64)
            .sum()
    }

    /// True when the metric has a sample at all.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(found, _, _)| found == name)
    }

    /// The samples of these metrics that are not zero, for a message.
    pub fn nonzero(&self, names: &[&str]) -> Vec<String> {
        self.samples
            .iter()
            .filter(|(name, _, value)| names.contains(&name.as_str()) && *value != 0.0)
            .map(|(name, labels, value)| format!("{name}{labels:?} {value}"))
            .collect()
    }

    /// Names of all metrics.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.samples.iter().map(|(name, _, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Exchanges and what became of them (contract.md, Self-metrics).
    pub fn balance(&self) -> Balance {
        let dropped = self.sum("spanwire_dropped_total", &[]);
        let kernel = self.sum("spanwire_dropped_total", &[("stage", "kernel")]);
        Balance {
            exchanges: self.sum("spanwire_exchanges_total", &[]),
            spans: self.sum("spanwire_spans_total", &[]),
            dropped_kernel: kernel,
            dropped_user: dropped - kernel,
        }
    }
}

/// `messages completed = exchanges + dropped at the kernel; exchanges = spans + dropped in userspace`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub exchanges: u64,
    pub spans: u64,
    pub dropped_kernel: u64,
    pub dropped_user: u64,
}

impl Balance {
    /// What happened since an earlier scrape of the same agent.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            exchanges: self.exchanges - earlier.exchanges,
            spans: self.spans - earlier.spans,
            dropped_kernel: self.dropped_kernel - earlier.dropped_kernel,
            dropped_user: self.dropped_user - earlier.dropped_user,
        }
    }

    /// Messages that were completed on captured sockets.
    pub fn messages(self) -> u64 {
        self.exchanges + self.dropped_kernel
    }

    /// True when every exchange is a span or a counted drop.
    pub fn closes(self) -> bool {
        self.exchanges == self.spans + self.dropped_user
    }
}

fn parse_sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let mut labels = BTreeMap::new();
    let (name, rest) = match line.split_once('{') {
        None => line.split_once(' ')?,
        Some((name, mut rest)) => loop {
            if let Some(value) = rest.strip_prefix('}') {
                break (name, value);
            }
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        },
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), labels, value))
}

/// The label value up to its closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::{Balance, Metrics};

    const PAGE: &str = "# HELP spanwire_exchanges_total x\n# TYPE spanwire_exchanges_total counter\n\
        spanwire_exchanges_total{side=\"server\"} 7\nspanwire_exchanges_total{side=\"client\"} 5\n\
        spanwire_spans_total{kind=\"server\",parent_source=\"a\\\"b}\"} 9\n\
        spanwire_dropped_total{stage=\"kernel\",reason=\"ring_full\"} 2\n\
        spanwire_dropped_total{stage=\"decode\",reason=\"malformed\"} 3\nspanwire_up 1 1712\n";

    #[test]
    fn a_page_is_summed_by_labels() {
        let page = Metrics::parse(PAGE).unwrap();
        assert_eq!(page.sum("spanwire_exchanges_total", &[]), 12);
        assert_eq!(page.sum("spanwire_exchanges_total", &[("side", "client")]), 5);
        assert_eq!(page.sum("spanwire_spans_total", &[("parent_source", "a\"b}")]), 9);
        assert_eq!(page.sum("spanwire_absent", &[]), 0);
        assert_eq!(page.sum("spanwire_up", &[]), 1);
        let balance = page.balance();
        assert_eq!(
            balance,
            Balance {
                exchanges: 12,
                spans: 9,
                dropped_kernel: 2,
                dropped_user: 3
            }
        );
        assert!(balance.closes());
        assert_eq!(balance.messages(), 14);
    }

    #[test]
    fn a_line_that_is_no_sample_is_an_error() {
        assert!(Metrics::parse("spanwire_up one\n").is_err());
        assert!(Metrics::parse("spanwire_up{side=\"open} 1\n").is_err());
    }
}
