//! The trial's program and its map of sockets (`agent-ebpf/src/hook/trial.rs`).

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapData, SockHash};
use aya::programs::SkMsg;
use aya::{Ebpf, EbpfLoader};

use super::super::bpf::one_line;
use super::super::kernel::chain;
use super::super::object::{Loader, Object};
use super::super::types::KernelTypes;

const PROGRAM: &str = "try_out_message";
const SOCKETS: &str = "TRIAL_SOCKETS";

/// The program, attached to its map. Sockets leave it by [`Enrolment`]'s end, at the latest when this is dropped.
pub(super) struct Trial {
    sockets: Mutex<SockHash<MapData, u64>>,
    next_key: AtomicU64,
    /// Holds the program.
    _ebpf: Ebpf,
}

/// A socket in the map, until this is dropped.
pub(super) struct Enrolment<'a> {
    trial: &'a Trial,
    key: u64,
}

impl Trial {
    /// Loads the program out of the first object that the kernel takes, with every other map as small as can be.
    pub(super) fn load(types: &KernelTypes) -> Result<Self, String> {
        let mut refusals = Vec::new();
        // The program is the same in all of them; what the kernel may refuse is a map beside it.
        for object in Object::ALL {
            match Self::load_from(object, types) {
                Ok(trial) => return Ok(trial),
                Err(refusal) if refusals.contains(&refusal) => {}
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(refusals.join("; "))
    }

    fn load_from(object: Object, types: &KernelTypes) -> Result<Self, String> {
        let offsets = Loader::offsets(types, object).map_err(|error| error.to_string())?;
        let tables = tables(object.bytes())?;
        let mut loader = EbpfLoader::new();
        for (global, offset) in &offsets {
            loader.override_global(global, offset, true);
        }
        for name in &tables {
            loader.map_max_entries(name, 1);
        }
        let mut ebpf = loader.load(object.bytes()).map_err(|error| one_line(&chain(&error)))?;
        let sockets = ebpf.take_map(SOCKETS).ok_or("the object has no map for the trial")?;
        let sockets = SockHash::<_, u64>::try_from(sockets).map_err(|error| chain(&error))?;
        let program: &mut SkMsg = ebpf
            .program_mut(PROGRAM)
            .ok_or("the object has no program for the trial")?
            .try_into()
            .map_err(|error| chain(&error))?;
        program.load().map_err(|error| one_line(&chain(&error)))?;
        program.attach(sockets.fd()).map_err(|error| one_line(&chain(&error)))?;
        Ok(Self {
            sockets: Mutex::new(sockets),
            next_key: AtomicU64::new(0),
            _ebpf: ebpf,
        })
    }

    /// Puts a connected socket into the map.
    pub(super) fn enrol(&self, socket: &TcpStream) -> io::Result<Enrolment<'_>> {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, socket.as_raw_fd(), 0)
            .map_err(|error| io::Error::other(format!("a socket cannot be enrolled: {}", chain(&error))))?;
        Ok(Enrolment { trial: self, key })
    }
}

impl Drop for Enrolment<'_> {
    fn drop(&mut self) {
        let mut sockets = self.trial.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        // A socket that has been reset has left by itself.
        let _ = sockets.remove(&self.key);
    }
}

/// Maps of an object whose size is a number of entries, but for the trial's own.
fn tables(object: &[u8]) -> Result<Vec<String>, String> {
    let object = aya_obj::Object::parse(object).map_err(|error| chain(&error))?;
    let tables = object
        .maps
        .into_iter()
        .filter(|(name, map)| name != SOCKETS && map.max_entries() > 1);
    Ok(tables.map(|(name, _)| name).collect())
}
