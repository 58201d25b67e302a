//! Java: thread pools and virtual threads; recognised, and not guessed.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Jvm;

impl Runtime for Jvm {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "libjvm",
                pattern: Pattern::File("libjvm.so"),
            },
            Library {
                name: "libj9vm",
                pattern: Pattern::File("libj9vm"),
            },
        ];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        (exe_name == "java").then_some(Arguments {
            takes_value: &[
                "-cp",
                "-classpath",
                "--class-path",
                "-p",
                "--module-path",
                "--upgrade-module-path",
                "--add-modules",
                "--enable-native-access",
                "--limit-modules",
                "--add-opens",
                "--add-exports",
                "--add-reads",
                "--patch-module",
                "-d",
                "--describe-module",
                "--source",
            ],
            glued: &[],
            program_text: &[],
            module: &["-m", "--module"],
            script: &["-jar"],
            clusters: false,
            name_is_enough: true,
            extensions: &[".jar", ".war", ".java"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        // The launcher is named java before it has mapped the machine.
        let machine = process.mapped.first_of(&["libjvm", "libj9vm"]).is_some();
        (machine || process.exe_name() == "java").then_some(Verdict::settled(
            ProcessClass::Jvm,
            Some("OpenJDK Runtime Environment"),
            "a Java virtual machine by name or library",
        ))
    }
}
