//! nginx: the receive rule holds (a send belongs to the immediately preceding receive), as long as nothing but
//! nginx's own event handlers decides when to send.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;

pub(super) struct Nginx;

/// Modules that run scripts inside the event loop: their coroutines and timers send when they please.
const SCRIPTED: &[&str] = &["libluajit", "ngx_http_lua", "ngx_http_js", "ngx_http_perl"];

impl Runtime for Nginx {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "libluajit",
                pattern: Pattern::File("libluajit"),
            },
            Library {
                name: "ngx_http_lua",
                pattern: Pattern::File("ngx_http_lua_module.so"),
            },
            Library {
                name: "ngx_http_js",
                pattern: Pattern::File("ngx_http_js_module.so"),
            },
            Library {
                name: "ngx_http_perl",
                pattern: Pattern::File("ngx_http_perl_module.so"),
            },
        ];
        LIBRARIES
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let unproven = |why| Some(Verdict::settled(ProcessClass::Proxy, None, why));
        match process.exe_name() {
            "nginx" if process.exe.as_deref().is_some_and(|path| path.contains("openresty")) => {
                unproven("OpenResty: its coroutines send outside the receive rule")
            }
            "nginx" if process.mapped.first_of(SCRIPTED).is_some() => {
                unproven("nginx with a scripting module: it sends outside the receive rule")
            }
            "nginx" if !process.mapped.complete => unproven("nginx whose mappings could not be read"),
            // Modules are loaded before the workers are forked, so that this is settled with the first request.
            "nginx" => Some(Verdict::settled(
                ProcessClass::Nginx,
                None,
                "executable nginx without scripting modules",
            )),
            "openresty" | "angie" | "tengine" => {
                unproven("a relative of nginx for which the receive rule is not proven")
            }
            _ => None,
        }
    }
}
