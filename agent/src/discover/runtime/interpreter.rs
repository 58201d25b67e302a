//! Interpreters without a rule of their own: known so that their script can name the service.

use spanwire_common::abi::ProcessClass;

use super::{is_versioned, Runtime, Verdict};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Interpreter;

impl Runtime for Interpreter {
    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        let shell = matches!(exe_name, "sh" | "dash" | "bash" | "zsh" | "ksh" | "ash");
        let perl = is_versioned(exe_name, "perl");
        let lua = is_versioned(exe_name, "lua") || is_versioned(exe_name, "luajit");
        if shell {
            return Some(Arguments {
                takes_value: &["-o", "-O", "--rcfile", "--init-file"],
                program_text: &["-c", "-s"],
                extensions: &[".sh", ".bash", ".cgi"],
                ..PLAIN
            });
        }
        if perl {
            return Some(Arguments {
                takes_value: &["-I"],
                glued: &["-x", "-C", "-D", "-F", "-i", "-l", "-0", "-M", "-m"],
                program_text: &["-e", "-E"],
                extensions: &[".pl", ".cgi", ".psgi"],
                ..PLAIN
            });
        }
        lua.then_some(Arguments {
            takes_value: &["-l"],
            program_text: &["-e"],
            extensions: &[".lua"],
            ..PLAIN
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let exe = process.exe_name();
        self.arguments(exe)?;
        let name = is_versioned(exe, "perl").then_some("perl");
        Some(Verdict::settled(
            ProcessClass::Other,
            name,
            "an interpreter without a rule of its own",
        ))
    }
}

const PLAIN: Arguments = Arguments {
    takes_value: &[],
    glued: &[],
    program_text: &[],
    module: &[],
    script: &[],
    clusters: true,
    name_is_enough: false,
    extensions: &[],
};
