//! The `spanwire` command.
#![allow(missing_docs)]
use spanwire::sys::kernel::*;
fn main() {
    match Kernel::load(Options { ring_bytes: 1<<20, port_selectors: false, count_costs: true }) {
        Ok((mut k, r)) => { println!("loaded"); for (name, p) in k.verified() { println!("{name} {p:?}"); } k.attach().unwrap(); println!("{:?} {}", k.attached(), r.len()); std::thread::sleep(std::time::Duration::from_secs(1)); }
        Err(e) => { println!("{e}"); std::process::exit(1) }
    }
}
