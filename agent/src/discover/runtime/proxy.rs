//! Proxies on an event loop, for which only an equal header on both sides names the request.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::process::ProcessInfo;

pub(super) struct Proxy;

impl Runtime for Proxy {
    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        let why = match process.exe_name() {
            "haproxy" => "executable haproxy",
            "envoy" | "envoy-server" | "pilot-agent" => "executable envoy",
            "nghttpx" | "h2o" | "lighttpd" | "squid" | "varnishd" | "traffic_server" | "pound" => {
                "a proxy by its executable's name"
            }
            _ => return None,
        };
        Some(Verdict::settled(ProcessClass::Proxy, None, why))
    }
}
