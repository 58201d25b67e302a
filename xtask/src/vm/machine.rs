//! QEMU, and virtiofsd beside it, which serves this machine's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use super::kernel::Kernel;
use crate::process;

const MEMORY: &str = "3G";
/// A C program of QEMU 7 first, the Rust one that Debian 13 packages second.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// What the guest's console is connected to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    /// Our standard output.
    Output,
    /// Our terminal, both ways; Ctrl-A X ends the machine.
    Interactive,
}

pub(super) fn virtiofsd() -> Option<PathBuf> {
    VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Boots, waits for the end, returns the exit status that `init` wrote.
pub(super) fn run(kernel: &Kernel, initramfs: &[u8], console: Console) -> Result<u8> {
    let place = Place::new()?;
    let archive = place.0.join("initramfs");
    fs::write(&archive, initramfs).with_context(|| format!("cannot write {}", archive.display()))?;
    let (socket, status) = (place.0.join("files"), place.0.join("status"));
    let _files = serve_files(&socket)?;
    let mut qemu = ends_with_us("qemu-system-x86_64");
    qemu.args(machine_arguments(&kernel.release))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&archive)
        .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"])
        .args(["-chardev", &format!("socket,id=files,path={}", socket.display())])
        .args(["-device", "vhost-user-fs-pci,chardev=files,tag=root"])
        .args([
            "-serial",
            if console == Console::Interactive {
                "mon:stdio"
            } else {
                "stdio"
            },
        ])
        .args(["-serial", &format!("file:{}", status.display())]);
    if console == Console::Output {
        qemu.stdin(Stdio::null());
    }
    process::run(&mut qemu)?;
    let status = fs::read_to_string(&status).unwrap_or_default();
    status
        .trim()
        .parse()
        .context("the virtual machine ended before the command did; its last words are above")
}

/// Emulated unless asked otherwise: a /dev/kvm that is there often does not work (in containers, nested).
pub(super) fn runs_natively() -> bool {
    std::env::var("SPANWIRE_VM_ACCEL").is_ok_and(|accelerator| accelerator == "kvm")
}

fn machine_arguments(release: &str) -> Vec<String> {
    let (accelerator, cpu) = if runs_natively() {
        ("kvm", "host")
    } else {
        ("tcg,thread=multi", emulated_cpu(release))
    };
    let memory = format!("memory-backend-memfd,id=memory,size={MEMORY},share=on");
    [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-smp",
        "2",
        "-m",
        MEMORY,
        "-object",
        &memory,
        "-machine",
        "q35,memory-backend=memory",
        "-accel",
        accelerator,
        "-cpu",
        cpu,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// QEMU 7.2's emulation of cmpxchg16b makes 6.12 panic. 7.2 works with it, and needs it: without the instruction there
/// is no kmalloc_nolock(), and then no socket storage.
fn emulated_cpu(release: &str) -> &'static str {
    let major = release.split('.').next().and_then(|number| number.parse().ok());
    if major.is_some_and(|major: u32| major >= 7) {
        "max"
    } else {
        "max,-cx16"
    }
}

/// Starts virtiofsd on the root directory and waits for its socket. It ends when QEMU disconnects.
fn serve_files(socket: &Path) -> Result<Server> {
    let program = virtiofsd().context("no virtiofsd: install the package virtiofsd")?;
    let of_qemu = program.starts_with("/usr/lib/qemu");
    let mut command = ends_with_us(&program.to_string_lossy());
    command.arg(format!("--socket-path={}", socket.display()));
    if of_qemu {
        command.args(["-o", "source=/", "-o", "cache=auto", "-o", "sandbox=chroot"]);
    } else {
        command.args(["--shared-dir=/", "--cache=auto", "--sandbox=chroot"]);
    }
    let log = socket.with_extension("log");
    let output = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    let mut server = Server(
        command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?,
    );
    let start = Instant::now();
    while !socket.exists() {
        let ended = server.0.try_wait().context("cannot wait for virtiofsd")?.is_some();
        if ended || start.elapsed() > Duration::from_secs(10) {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "virtiofsd does not serve: {}",
                log.lines().last().unwrap_or("it gave no reason")
            );
        }
        sleep(Duration::from_millis(20));
    }
    Ok(server)
}

/// A program that the kernel ends when we are gone, however we went.
fn ends_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone in the ordinary case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that goes with the value.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("spanwire-vm-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::emulated_cpu;

    #[test]
    fn only_kernels_that_need_cmpxchg16b_get_it() {
        assert_eq!(emulated_cpu("7.2.13+deb14-cloud-amd64"), "max");
        assert_eq!(emulated_cpu("6.12.117+deb12-cloud-amd64"), "max,-cx16");
        assert_eq!(emulated_cpu("5.10.0-46-cloud-amd64"), "max,-cx16");
    }
}
