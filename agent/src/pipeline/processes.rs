//! Processes: what one is, is found out here and told to the kernel side and to assemble.

use std::sync::{Arc, PoisonError};

use spanwire_common::abi::{process_flag, ProcessValue};

use super::ingress::Change;
use super::{ProcessLine, Worker};
use crate::config::ProcessFacts;
use crate::discover::listeners::{listeners, Listener};
use crate::discover::{Hint, ProcRoot, Process};
use crate::enrich::service_name;
use crate::rewrite::Habits;
use crate::sys::kernel;

/// Beginnings of the names of executables worth a look before anything is attached. Any other process is looked at when
/// it shows traffic.
const SERVERS: [&str; 14] = [
    "nginx", "apache2", "httpd", "python", "pypy", "ruby", "node", "php", "java", "haproxy", "envoy", "dotnet",
    "beam.smp", "caddy",
];

impl Worker {
    /// Tells the kernel side what the servers are that run already, so that their first request finds its rule in force.
    /// Only programs that may serve are read whole.
    pub(super) fn classify_running(&mut self, now_ns: u64) {
        for pid in ProcRoot::default().pids_of(&SERVERS) {
            self.classify(&Hint::pid(pid), now_ns);
        }
    }

    /// Finds out what a process is and tells the kernel side and assemble.
    pub(super) fn classify(&mut self, hint: &Hint, now_ns: u64) {
        let process = self.path.discoverer.lookup_with(hint, now_ns, now_ns);
        // Of one that had ended when it was looked at, the kernel side's own record may still come.
        if !process.info.is_blank() {
            self.publish(hint.pid, &process);
        }
    }

    pub(super) fn publish(&mut self, pid: u32, process: &Arc<Process>) {
        if self.path.addresses.meet(pid) {
            self.path.assembler.set_addresses(self.path.addresses.all());
        }
        // Whoever sends on a connection may be captured from now on.
        self.unmet.meet_everybody();
        let facts = facts(process);
        let masks = self.path.rules.process_masks(&facts);
        let propagate = self.path.rewrite.masks(&facts);
        let captured = self.path.rules.may_capture(masks);
        let verdict = process.verdict();
        let habits = Habits {
            class: verdict.class,
            runtime: verdict.runtime_name,
            reads_blocking: self.known.reads_blocking(pid),
        };
        let permit = self.path.rewrite.permit(habits, &service_name(&process.info));
        let may_return = captured && permit.responses.is_ok();
        if !may_return {
            let changes = self.ingress.forget(pid);
            self.tell_ingress(&changes);
        } else if self.ingress.is_new(pid) {
            let changes = self.ingress.holds(pid, &listeners(&ProcRoot::default(), pid));
            self.tell_ingress(&changes);
        }
        let may_stay = captured && permit.flags & process_flag::REWRITES_ALL != 0;
        let value = ProcessValue {
            include: masks.include,
            exclude: masks.exclude,
            propagate_include: propagate.include,
            propagate_exclude: propagate.exclude,
            class: verdict.class as u8,
            flags: permit.flags,
            ..ProcessValue::default()
        };
        if let Err(error) = self.tell_kernel(pid, value) {
            tracing::warn!(%error, pid, "cannot tell the kernel side about a process");
        }
        self.older.permit(pid, may_stay);
        self.path.assembler.set_class(pid, verdict.class, !captured);
        if let Some(parent) = process.info.ancestors.first() {
            self.path.assembler.set_parent(pid, *parent);
        }
        self.path
            .masks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, masks);
        let line = ProcessLine {
            pid,
            name: process.info.exe.clone().unwrap_or_else(|| process.info.comm.clone()),
            runtime: verdict.runtime_name,
            class: format!("{:?}", verdict.class),
            why: verdict.why,
            captured,
            propagate: permit.requests.into(),
            ingress: match permit.responses {
                Ok(()) => "yes".into(),
                Err(reason) => format!("no: {reason}").into(),
            },
            // Filled in when it is shown: sockets still to come may tell.
            rule: Box::default(),
        };
        self.known.classified(line, masks);
    }

    /// Connections to these listening sockets are enrolled for their responses, or no longer.
    pub(super) fn tell_ingress(&mut self, changes: &[Change]) {
        for change in changes {
            let Listener { netns, port } = change.listener;
            if let Err(error) = self.path.kernel.set_ingress(netns, port, change.is_one) {
                tracing::warn!(%error, port, "cannot tell the kernel side about a listening socket");
            }
        }
    }

    /// The kernel side forgets a process when it ends: what it is told of one that has ended already would stay, and be
    /// the next bearer's of the same id.
    fn tell_kernel(&mut self, pid: u32, value: ProcessValue) -> Result<(), kernel::KernelError> {
        self.path.kernel.set_process(pid, value)?;
        if ProcRoot::default().is_alive(pid) {
            return Ok(());
        }
        self.path.kernel.forget_process(pid)
    }
}

/// What selectors look at.
fn facts(process: &Process) -> ProcessFacts {
    let info = &process.info;
    ProcessFacts {
        pid: info.pid,
        ancestors: info.ancestors.clone(),
        exe: info.exe.as_deref().unwrap_or_default().to_owned(),
        comm: info.comm.to_string(),
        cgroup: info.place.path.to_string(),
        container: info.place.container_id.as_deref().map(ToOwned::to_owned),
        uid: info.uid.unwrap_or(u32::MAX),
    }
}
