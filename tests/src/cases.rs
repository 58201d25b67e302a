//! Several cases against one set of services: each is run, whatever became of the others, and each prints a line.

use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use anyhow::Result;

/// Prints a line of evidence, whether the test passes or not: libtest keeps what `println!` writes to itself.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// The cases of one test. [`Cases::finish`] fails the test when any case failed.
pub struct Cases {
    suite: &'static str,
    passed: usize,
    failed: Vec<String>,
}

impl Cases {
    pub fn new(suite: &'static str) -> Self {
        Self {
            suite,
            passed: 0,
            failed: Vec::new(),
        }
    }

    /// Runs one case; what it returns is its evidence and is printed.
    pub fn run(&mut self, name: &str, case: impl FnOnce() -> Result<String>) {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(case));
        let took = start.elapsed().as_secs_f32();
        let suite = self.suite;
        match result {
            Ok(Ok(evidence)) => {
                self.passed += 1;
                say(&format!("{suite}: {name}: ok ({took:.1} s): {evidence}"));
            }
            Ok(Err(error)) => {
                say(&format!("{suite}: {name}: FAILED ({took:.1} s): {error:#}"));
                self.failed.push(format!("{name}: {error:#}"));
            }
            Err(_) => {
                say(&format!("{suite}: {name}: FAILED ({took:.1} s): panicked, see above"));
                self.failed.push(format!("{name}: panicked"));
            }
        }
    }

    /// Closes the suite.
    ///
    /// # Panics
    /// When a case failed, or none was run.
    pub fn finish(self) {
        let Self { suite, passed, failed } = self;
        say(&format!("{suite}: {passed} cases passed, {} failed", failed.len()));
        assert!(
            failed.is_empty() && passed > 0,
            "{suite}: {} of {} cases failed:\n{}",
            failed.len(),
            passed + failed.len(),
            failed.join("\n")
        );
    }
}
