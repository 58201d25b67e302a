//! A container runtime in small: starts the agent's image as the DaemonSet asks for it, in namespaces of its own, on a
//! read-only root file system, with the volumes and exactly the capabilities the manifest names.
//!
//! What it does not do, a real runtime does: seccomp, AppArmor or SELinux, cgroup limits. A manifest that asks for
//! something else that is not here is refused, so that a test cannot pass by not having looked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, Probe, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::manifests::{repository, Manifests};
use crate::place::{agent_binary, need_root, program, Place};
use crate::service::{Launch, Service};

/// The image's root file system, made by the script that the Containerfile runs.
pub fn image_root(place: &Place) -> Result<PathBuf> {
    let root = place.join("image");
    let output = Command::new(repository("deploy/image-root"))
        .arg(agent_binary()?)
        .arg(&root)
        .output()
        .context("could not run deploy/image-root")?;
    ensure!(
        output.status.success(),
        "deploy/image-root: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(root)
}

/// Starts the image in `root`, with the manifest's arguments or others.
pub fn start(manifests: &Manifests, root: &Path, args: Option<&[&str]>, place: &Place) -> Result<Service> {
    need_root()?;
    let (pod, container) = (manifests.pod()?, manifests.container()?);
    refuse_unknown(pod, container)?;
    let mut script = Script::new(root);
    script.file_systems();
    let mut mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
    // As runtimes do: what lies deeper is mounted later.
    mounts.sort_by_key(|mount| Path::new(&mount.mount_path).components().count());
    for mount in mounts {
        let volumes = pod.volumes.iter().flatten();
        let volume = volumes.into_iter().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
        script.volume(mount, &source(volume, manifests, place)?);
    }
    script.line(format!("mount -o remount,bind,ro {}", quoted(root)));
    let own: Vec<&str> = container.args.iter().flatten().map(String::as_str).collect();
    script.line(format!("hostname {POD}"));
    let environment = environment(container)?;
    script.execute(&manifests.granted()?, &environment, args.unwrap_or(&own))?;
    let file = place.write("pod.sh", &script.text)?;
    Launch::new("pod", program("unshare")?, place)
        .args(["--mount", "--net", "--uts", "--ipc", "--cgroup", "--", "sh"])
        .arg(file)
        .spawn()
}

/// Asks as the kubelet would, from inside the pod's network: status and body.
pub fn probe(service: &Service, container: &Container, probe: &Probe) -> Result<(u16, String)> {
    let get = probe.http_get.as_ref().context("a probe without httpGet")?;
    let named = |name: &str| {
        let ports = container.ports.iter().flatten();
        let port = ports.into_iter().find(|port| port.name.as_deref() == Some(name));
        port.map(|port| port.container_port)
    };
    let port = match &get.port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => named(name).with_context(|| format!("no port {name}"))?,
    };
    fetch(
        service,
        &format!("http://127.0.0.1:{port}{}", get.path.as_deref().unwrap_or("/")),
    )
}

/// One GET from inside the service's network namespace: status and body.
pub fn fetch(service: &Service, url: &str) -> Result<(u16, String)> {
    let output = Command::new(program("nsenter")?)
        .args(["--target", &service.pid().to_string(), "--net", "--"])
        .arg(program("curl")?)
        .args(["--silent", "--max-time", "5", "--write-out", "\n%{http_code}", url])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').with_context(|| format!("{url}: no answer"))?;
    Ok((status.parse()?, body.to_owned()))
}

/// Names of the capabilities in a mask of /proc/PID/status, sorted, as libcap spells them.
pub fn decode(mask: &str) -> Result<Vec<String>> {
    let output = Command::new(program("capsh")?)
        .arg(format!("--decode={mask}"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, names) = text
        .trim()
        .split_once('=')
        .with_context(|| format!("capsh --decode={mask}: {text}"))?;
    let mut names: Vec<_> = names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}

/// Every capability this kernel knows but these.
pub fn all_but(kept: &[String]) -> Result<Vec<String>> {
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?;
    let all = decode(&format!("{:x}", (1u64 << (last + 1)) - 1))?;
    let unknown: Vec<_> = kept.iter().filter(|name| !all.contains(name)).collect();
    ensure!(unknown.is_empty(), "no such capability: {unknown:?}");
    Ok(all.into_iter().filter(|name| !kept.contains(name)).collect())
}

/// What would be left out here must not be in the manifest.
fn refuse_unknown(pod: &PodSpec, container: &Container) -> Result<()> {
    let context = container.security_context.as_ref().context("no securityContext")?;
    ensure!(pod.host_pid == Some(true), "expected hostPID");
    ensure!(
        pod.host_network.is_none() && pod.host_ipc.is_none(),
        "no hostNetwork and no hostIPC here"
    );
    ensure!(
        pod.security_context.is_none() && pod.init_containers.is_none(),
        "no securityContext of the pod and no init containers here"
    );
    ensure!(
        context.read_only_root_filesystem == Some(true),
        "expected a read-only root file system"
    );
    ensure!(
        context.allow_privilege_escalation == Some(false) && context.privileged != Some(true),
        "expected no way to more privileges"
    );
    ensure!(
        context.run_as_user == Some(0) && context.run_as_group == Some(0),
        "expected user and group 0"
    );
    ensure!(
        container.command.is_none() && container.env_from.is_none(),
        "no command and no environment from elsewhere here"
    );
    Ok(())
}

/// The node that the pod is told it runs on.
pub const NODE: &str = "node-of-the-test";
/// The pod's own host name.
const POD: &str = "spanwire-x7k2p";

/// The container's environment, the downward API's node name included.
fn environment(container: &Container) -> Result<Vec<String>> {
    let value = |variable: &EnvVar| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match field {
            None => variable.value.clone(),
            Some(field) => (field.field_path == "spec.nodeName").then(|| NODE.to_owned()),
        };
        let value = value.with_context(|| format!("{}: where it comes from is not here", variable.name))?;
        Ok(format!("{}={value}", variable.name))
    };
    container.env.iter().flatten().map(value).collect()
}

/// The folder on this machine that a volume is.
fn source(volume: &Volume, manifests: &Manifests, place: &Place) -> Result<PathBuf> {
    if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        match host.type_.as_deref() {
            Some("Directory") => ensure!(path.is_dir(), "{} is no directory", path.display()),
            Some("DirectoryOrCreate") => std::fs::create_dir_all(&path)?,
            other => bail!("volume {}: hostPath of type {other:?}", volume.name),
        }
        return Ok(path);
    }
    let folder = place.join("volumes").join(&volume.name);
    std::fs::create_dir_all(&folder)?;
    if let Some(config) = &volume.config_map {
        ensure!(
            Some(&config.name) == manifests.config_map.metadata.name.as_ref(),
            "volume {}: no ConfigMap {}",
            volume.name,
            config.name
        );
        for (name, text) in manifests.config_map.data.iter().flatten() {
            std::fs::write(folder.join(name), text)?;
        }
    } else if volume.empty_dir.is_none() {
        bail!("volume {}: neither hostPath, configMap nor emptyDir", volume.name);
    }
    Ok(folder)
}

/// What the namespaces' first process does before it becomes the agent.
struct Script {
    root: PathBuf,
    text: String,
}

impl Script {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            text: "set -eu\n".to_owned(),
        }
    }

    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// The root, the node's processes, a few devices.
    fn file_systems(&mut self) {
        let root = quoted(&self.root);
        self.line("ip link set lo up");
        self.line(format!("mount --bind {root} {root}"));
        self.line(format!("mount -t proc -o nosuid,nodev,noexec proc {root}/proc"));
        self.line(format!("mount -t tmpfs -o mode=755 tmpfs {root}/dev"));
        self.line(format!(
            "for device in null zero random urandom; do \
             : >{root}/dev/$device; mount --bind /dev/$device {root}/dev/$device; done"
        ));
    }

    fn volume(&mut self, mount: &VolumeMount, source: &Path) {
        let target = quoted(&self.root.join(mount.mount_path.trim_start_matches('/')));
        self.line(format!("mkdir -p {target}"));
        self.line(format!("mount --rbind {} {target}", quoted(source)));
        if mount.read_only != Some(true) {
            return;
        }
        self.line(format!("mount -o remount,bind,ro {target}"));
        if mount.recursive_read_only.as_deref() == Some("IfPossible") {
            self.line(format!(
                "findmnt -Rrno TARGET {target} | while read -r below; do mount -o remount,bind,ro \"$below\"; done"
            ));
        }
    }

    /// Root with nothing but these: what a runtime leaves in the bounding set, root has.
    fn execute(&mut self, granted: &[String], environment: &[String], args: &[&str]) -> Result<()> {
        let capsh = program("capsh")?;
        let environment: Vec<_> = environment.iter().map(|pair| quoted(Path::new(pair))).collect();
        let args: Vec<_> = args.iter().map(|arg| quoted(Path::new(arg))).collect();
        self.line("cd /");
        self.line(format!(
            "exec env -i PATH=/usr/bin {} {} --drop={} --inh= --no-new-privs --chroot={} --shell=/usr/bin/spanwire -- {}",
            environment.join(" "),
            quoted(&capsh),
            all_but(granted)?.join(","),
            quoted(&self.root),
            args.join(" ")
        ));
        Ok(())
    }
}

/// As one word of a shell's line.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
    }

    #[test]
    fn masks_are_decoded() {
        assert_eq!(
            decode("000000c000081000").unwrap(),
            ["cap_bpf", "cap_net_admin", "cap_perfmon", "cap_sys_ptrace"]
        );
        assert!(decode("0000000000000000").unwrap().is_empty());
        assert!(all_but(&["cap_nothing".to_owned()]).is_err());
    }
}
