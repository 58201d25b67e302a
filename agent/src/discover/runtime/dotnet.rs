//! .NET: a thread pool under asynchronous methods; recognised, and not guessed.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Dotnet;

impl Runtime for Dotnet {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[Library {
            name: "libcoreclr",
            pattern: Pattern::File("libcoreclr.so"),
        }];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        (exe_name == "dotnet").then_some(Arguments {
            takes_value: &[
                "--additionalprobingpath",
                "--additional-deps",
                "--fx-version",
                "--roll-forward",
                "--depsfile",
                "--runtimeconfig",
            ],
            glued: &[],
            program_text: &[],
            module: &[],
            script: &["exec"],
            clusters: false,
            name_is_enough: false,
            extensions: &[".dll"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        (process.exe_name() == "dotnet" || process.mapped.has("libcoreclr")).then_some(Verdict::settled(
            ProcessClass::EventLoop,
            Some(".NET"),
            "the .NET runtime by name or library",
        ))
    }
}
