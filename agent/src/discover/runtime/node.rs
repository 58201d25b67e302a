//! JavaScript on an event loop: recognised, and not guessed.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Node;

impl Runtime for Node {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[Library {
            name: "libnode",
            pattern: Pattern::File("libnode.so"),
        }];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        matches!(exe_name, "node" | "nodejs").then_some(Arguments {
            takes_value: &[
                "-r",
                "--require",
                "--import",
                "--loader",
                "--experimental-loader",
                "-C",
                "--conditions",
                "--env-file",
                "--env-file-if-exists",
                "--input-type",
                "--title",
                "--icu-data-dir",
                "--openssl-config",
                "--watch-path",
                "--inspect-port",
                "--max-http-header-size",
                "--dns-result-order",
                "--unhandled-rejections",
            ],
            glued: &[],
            program_text: &["-e", "--eval", "-p", "--print", "-pe"],
            module: &[],
            script: &[],
            clusters: false,
            name_is_enough: false,
            extensions: &[".js", ".mjs", ".cjs", ".ts", ".mts", ".cts"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let (name, why) = match process.exe_name() {
            "node" | "nodejs" => ("nodejs", "executable node"),
            "bun" => ("bun", "executable bun"),
            "deno" => ("deno", "executable deno"),
            _ if process.mapped.has("libnode") => ("nodejs", "libnode.so mapped"),
            _ => return None,
        };
        Some(Verdict::settled(ProcessClass::EventLoop, Some(name), why))
    }
}
