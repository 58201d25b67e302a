//! Ruby: a thread serves one request; its sockets are non-blocking by habit, so that only requests the thread read
//! whole count (puma's reactor may have read the others).

use spanwire_common::abi::ProcessClass;

use super::{is_versioned, Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Ruby;

const NAME: Option<&str> = Some("ruby");
/// Switch between requests on one thread: falcon (io-event), thin (eventmachine), iodine, polyphony, cool.io, agoo.
const MULTIPLEXERS: &[&str] = &["io-event", "eventmachine", "iodine", "polyphony", "cool.io", "agoo"];

impl Runtime for Ruby {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "libruby",
                pattern: Pattern::File("libruby"),
            },
            Library {
                name: "io-event",
                pattern: Pattern::File("IO_Event.so"),
            },
            Library {
                name: "eventmachine",
                pattern: Pattern::File("rubyeventmachine.so"),
            },
            Library {
                name: "iodine",
                pattern: Pattern::File("iodine"),
            },
            Library {
                name: "polyphony",
                pattern: Pattern::File("polyphony_ext.so"),
            },
            Library {
                name: "cool.io",
                pattern: Pattern::File("cool.io_ext.so"),
            },
            Library {
                name: "agoo",
                pattern: Pattern::File("agoo.so"),
            },
        ];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        is_versioned(exe_name, "ruby").then_some(Arguments {
            takes_value: &[
                "-r",
                "-I",
                "-C",
                "-E",
                "--encoding",
                "--external-encoding",
                "--internal-encoding",
            ],
            glued: &["-F", "-W", "-K", "-T", "-0"],
            program_text: &["-e"],
            module: &[],
            script: &[],
            clusters: true,
            name_is_enough: false,
            extensions: &[".rb", ".ru"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let named = is_versioned(process.exe_name(), "ruby");
        if !named && !process.mapped.has("libruby") {
            return None;
        }
        Some(if process.mapped.first_of(MULTIPLEXERS).is_some() {
            Verdict::settled(
                ProcessClass::EventLoop,
                NAME,
                "Ruby with an event loop or fiber scheduler mapped",
            )
        } else if !named {
            Verdict::settled(
                ProcessClass::Other,
                NAME,
                "Ruby inside another program, which may serve as it pleases",
            )
        } else if process.mapped.complete {
            Verdict::provisional(
                ProcessClass::ThreadReadsWhole,
                NAME,
                "Ruby without an event loop mapped",
            )
        } else {
            Verdict::settled(ProcessClass::Other, NAME, "Ruby whose mappings could not be read")
        })
    }
}
