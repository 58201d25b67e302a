//! Configuration: a YAML file, the flags over it and the environment below it, parsed once into valid types.
//!
//! ```text
//! file -> yaml (tree with positions) -> reader, parse (keys) -> model      <- flags, environment
//!                                                               model -> rules (masks, abi::Settings)
//! ```
//!
//! Nothing here is accepted and then ignored: an unknown key, a bad value and a key of a capability that is not built
//! yet are refused, all at once, each as `FILE:LINE:COLUMN: key.path: what was expected`. docs/configuration.md
//! describes every key; a test keeps the two in step.

mod endpoint;
mod environment;
mod export;
mod flags;
mod glob;
mod ingress;
mod later;
mod model;
mod parse;
mod problem;
mod propagate;
mod reader;
mod rules;
mod selectors;
mod value;
mod yaml;

use std::io::Read;
use std::path::Path;

pub use self::endpoint::Endpoint;
pub use self::environment::Environment;
pub use self::flags::Flags;
pub use self::glob::Glob;
pub use self::model::{
    Api, Capture, ClientAddress, Compression, Config, ExportProtocol, Exporter, Ingress, Limits, LocalRanges, PathDetail,
    Propagate, Retention, Sdk, Store, Switch, Tenant,
};
pub use self::problem::{ConfigError, Origin, Position, Problem};
pub use self::rules::{ProcessMasks, RequestFacts, Rule, RunFacts, SelectorRules, SELECTORS_MAX};
pub use self::selectors::{ProcessFacts, Selector};
pub use self::value::{parse_duration, parse_listen, parse_size, AddressRange, HeaderName, Secret};

use self::parse::FromFile;
use self::reader::Reader;

impl Config {
    /// What the agent runs with: the file, the flags over it, and exporters from the environment if neither names one.
    pub fn load(file: Option<&Path>, flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let read = match file {
            Some(path) => read_file(path, &mut problems),
            None => FromFile {
                config: Self::default(),
                export_given: false,
            },
        };
        let mut config = read.config;
        flags::apply(flags, &mut config, &mut problems);
        if !read.export_given && flags.otlp.is_none() {
            config
                .exporters
                .extend(environment::exporter(environment, &mut problems));
        }
        settled(config, problems)
    }

    /// A file's text alone; `name` is what problems call it.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let config = read_text(name, text, &mut problems).config;
        settled(config, problems)
    }

    /// Checks a file without running anything: `spanwire config check`.
    pub fn check(file: &Path) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let config = read_file(file, &mut problems).config;
        settled(config, problems).map(|_| ())
    }
}

fn settled(config: Config, problems: Vec<Problem>) -> Result<Config, ConfigError> {
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError { problems })
    }
}

fn read_file(path: &Path, problems: &mut Vec<Problem>) -> FromFile {
    let mut text = String::new();
    let limit = yaml::FILE_BYTES_MAX as u64 + 1;
    let read = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
    let trouble = match read {
        Ok(bytes) if bytes > yaml::FILE_BYTES_MAX => {
            format!("larger than {} bytes", yaml::FILE_BYTES_MAX)
        }
        Ok(_) => return read_text(&path.display().to_string(), &text, problems),
        Err(error) => format!("cannot read the configuration: {error}"),
    };
    problems.push(Problem::whole_file(path, trouble));
    FromFile {
        config: Config::default(),
        export_given: true,
    }
}

fn read_text(name: &str, text: &str, problems: &mut Vec<Problem>) -> FromFile {
    let mut reader = Reader::new(name);
    let mut read = FromFile {
        config: Config::default(),
        export_given: false,
    };
    match yaml::parse(text) {
        Ok(None) => {}
        Ok(Some(root)) => read = parse::document(&mut reader, &root),
        Err(error) => reader.refuse(error.at, "", error.message),
    }
    reader.problems.sort_by_key(|problem| match problem.origin {
        Origin::File { at, .. } => at,
        Origin::WholeFile { .. } | Origin::Name => Position { line: 0, column: 0 },
    });
    problems.append(&mut reader.problems);
    read
}

#[cfg(test)]
mod tests;
