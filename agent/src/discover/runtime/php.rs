//! PHP: one process per request under FPM and as CGI; anything may run on the command line's interpreter.

use spanwire_common::abi::ProcessClass;

use super::{is_versioned, Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Php;

const NAME: Option<&str> = Some("php");
const LOOPS: &[&str] = &["swoole", "openswoole", "php event", "php ev", "php uv"];

impl Runtime for Php {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "swoole",
                pattern: Pattern::File("swoole.so"),
            },
            Library {
                name: "openswoole",
                pattern: Pattern::File("openswoole.so"),
            },
            Library {
                name: "php event",
                pattern: Pattern::File("event.so"),
            },
            Library {
                name: "php ev",
                pattern: Pattern::File("ev.so"),
            },
            Library {
                name: "php uv",
                pattern: Pattern::File("uv.so"),
            },
        ];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        is_versioned(exe_name, "php").then_some(Arguments {
            takes_value: &[
                "-S",
                "-t",
                "-d",
                "-c",
                "-z",
                "-g",
                "--define",
                "--php-ini",
                "--docroot",
                "--server",
            ],
            glued: &[],
            program_text: &[
                "-r",
                "-R",
                "-B",
                "-E",
                "--run",
                "--process-code",
                "--process-begin",
                "--process-end",
            ],
            module: &[],
            script: &["-f", "-F", "--file", "--process-file"],
            clusters: true,
            name_is_enough: false,
            extensions: &[".php", ".phar"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let exe = process.exe_name();
        let per_request = is_versioned(exe, "php-fpm") || is_versioned(exe, "php-cgi");
        if !per_request && !is_versioned(exe, "php") {
            return None;
        }
        Some(if process.mapped.first_of(LOOPS).is_some() {
            Verdict::settled(ProcessClass::EventLoop, NAME, "PHP with an event loop extension")
        } else if per_request {
            Verdict::settled(
                ProcessClass::ProcessPerRequest,
                NAME,
                "PHP under FPM or CGI: one request per process",
            )
        } else {
            // ReactPHP, Amp and Workerman need no extension: the absence of one proves nothing.
            Verdict::settled(
                ProcessClass::Other,
                NAME,
                "PHP on the command line may serve many requests at once",
            )
        })
    }
}
