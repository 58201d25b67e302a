//! Python: thread per request, unless something that multiplexes requests on a thread is mapped.
//!
//! asyncio is no mapping of its own: there, that the socket was not blocking when the request was read keeps the
//! thread rule from being used (`CAUSE_BLOCKING`, judged per exchange). The same holds for what is below, so that a
//! late verdict is late and not wrong.

use spanwire_common::abi::ProcessClass;

use super::{is_versioned, Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;
use crate::discover::script::Arguments;

pub(super) struct Python;

const NAME: Option<&str> = Some("cpython");
/// Switch between requests on one thread. eventlet has no library of its own and is known by greenlet's, which
/// SQLAlchemy maps too: that costs coverage there, and is never wrong.
const MULTIPLEXERS: &[&str] = &[
    "uvloop",
    "gevent",
    "greenlet",
    "_greenlet",
    "meinheld",
    "bjoern",
    "granian",
    "robyn",
    "socketify",
    "japronto",
];

impl Runtime for Python {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "libpython",
                pattern: Pattern::File("libpython"),
            },
            Library {
                name: "uvloop",
                pattern: Pattern::Folder("uvloop"),
            },
            Library {
                name: "gevent",
                pattern: Pattern::Folder("gevent"),
            },
            Library {
                name: "greenlet",
                pattern: Pattern::Folder("greenlet"),
            },
            Library {
                name: "_greenlet",
                pattern: Pattern::File("_greenlet."),
            },
            Library {
                name: "meinheld",
                pattern: Pattern::Folder("meinheld"),
            },
            Library {
                name: "bjoern",
                pattern: Pattern::File("_bjoern."),
            },
            Library {
                name: "granian",
                pattern: Pattern::Folder("granian"),
            },
            Library {
                name: "robyn",
                pattern: Pattern::Folder("robyn"),
            },
            Library {
                name: "socketify",
                pattern: Pattern::Folder("socketify"),
            },
            Library {
                name: "japronto",
                pattern: Pattern::Folder("japronto"),
            },
        ];
        LIBRARIES
    }

    fn arguments(&self, exe_name: &str) -> Option<Arguments> {
        (is_interpreter(exe_name) || is_pypy(exe_name)).then_some(Arguments {
            takes_value: &["-W", "-X", "-Q", "--check-hash-based-pycs"],
            glued: &[],
            program_text: &["-c"],
            module: &["-m"],
            script: &[],
            clusters: true,
            name_is_enough: false,
            extensions: &[".py", ".pyc", ".pyz"],
        })
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let exe = process.exe_name();
        if is_pypy(exe) {
            // Its coroutine switch is built in: whether gevent or eventlet runs cannot be seen.
            return Some(Verdict::settled(
                ProcessClass::Other,
                Some("pypy"),
                "PyPy: stackless switches cannot be seen",
            ));
        }
        if !is_interpreter(exe) && !process.mapped.has("libpython") {
            return None;
        }
        Some(if process.mapped.first_of(MULTIPLEXERS).is_some() {
            Verdict::settled(
                ProcessClass::EventLoop,
                NAME,
                "Python with gevent, greenlet, uvloop or the like mapped",
            )
        } else if !is_interpreter(exe) {
            Verdict::settled(
                ProcessClass::Other,
                NAME,
                "Python inside another program, which may serve as it pleases",
            )
        } else if process.mapped.complete {
            Verdict::provisional(
                ProcessClass::ThreadPerRequest,
                NAME,
                "Python without gevent, greenlet or uvloop mapped",
            )
        } else {
            Verdict::settled(ProcessClass::Other, NAME, "Python whose mappings could not be read")
        })
    }
}

/// `python`, `python3`, `python3.13`, and the free-threaded and debug builds (`python3.13t`, `python3.11d`).
fn is_interpreter(exe_name: &str) -> bool {
    let plain = exe_name.strip_suffix(['t', 'd', 'm']).unwrap_or(exe_name);
    is_versioned(exe_name, "python") || is_versioned(plain, "python")
}

fn is_pypy(exe_name: &str) -> bool {
    is_versioned(exe_name, "pypy")
}
