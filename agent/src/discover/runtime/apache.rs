//! Apache httpd: by its multi-processing module.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::maps::{Library, Pattern};
use crate::discover::process::ProcessInfo;

pub(super) struct Apache;

impl Runtime for Apache {
    fn libraries(&self) -> &'static [Library] {
        const LIBRARIES: &[Library] = &[
            Library {
                name: "mpm_prefork",
                pattern: Pattern::File("mod_mpm_prefork.so"),
            },
            Library {
                name: "mod_http2",
                pattern: Pattern::File("mod_http2.so"),
            },
        ];
        LIBRARIES
    }

    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        if !matches!(
            process.exe_name(),
            "apache2" | "httpd" | "httpd.prefork" | "httpd-prefork"
        ) {
            return None;
        }
        Some(if !process.mapped.has("mpm_prefork") {
            Verdict::settled(ProcessClass::Proxy, None, "Apache without the prefork module")
        } else if process.mapped.has("mod_http2") {
            // Its worker threads serve streams of one connection side by side.
            Verdict::settled(ProcessClass::Proxy, None, "Apache prefork with mod_http2's threads")
        } else {
            Verdict::settled(
                ProcessClass::ProcessPerRequest,
                None,
                "Apache prefork: one request per process",
            )
        })
    }
}
