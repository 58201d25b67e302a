//! Where a process is: cgroup path, cgroup v2 id, container id.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::procfs::{read_at_most, ProcRoot};

/// The cgroup v2 hierarchy of this machine: alone at /sys/fs/cgroup, or beside v1 (/sys/fs/cgroup/unified).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which of its folders is mounted there (`/` unless a container sees a part only).
    pub root: Box<str>,
}

/// A process's place among the cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupPlace {
    /// Path in the v2 hierarchy; where that is the root of a hybrid system, the path in v1's.
    pub path: Box<str>,
    /// Inode of the v2 folder: what the kernel calls the cgroup's id.
    pub id: Option<u64>,
    /// Container id, 64 hex digits (on Fargate, its task form).
    pub container_id: Option<Box<str>>,
}

const CGROUP_BYTES: usize = 64 * 1024;
const MOUNTINFO_BYTES: usize = 4 << 20;

impl CgroupMount {
    /// Finds the hierarchy in /proc/self/mountinfo; `None` on a machine without cgroup v2.
    pub fn find(root: &ProcRoot) -> Option<Self> {
        let bytes = read_at_most(&root.own("mountinfo"), MOUNTINFO_BYTES).ok()?;
        let text = std::str::from_utf8(&bytes).ok()?;
        text.lines().find_map(parse_mount)
    }

    /// Inode of the folder that a /proc/PID/cgroup path names.
    fn id_of(&self, path: &str) -> Option<u64> {
        // Both are relative to the reader's cgroup namespace; the mount may show a part of it.
        let below = path.strip_prefix(&*self.root).unwrap_or(path).trim_start_matches('/');
        if Path::new(below)
            .components()
            .any(|part| part == std::path::Component::ParentDir)
        {
            return None;
        }
        std::fs::metadata(self.point.join(below))
            .ok()
            .map(|folder| folder.ino())
    }
}

/// `36 35 98:0 /part /point options fields - cgroup2 source superoptions` (proc(5)).
fn parse_mount(line: &str) -> Option<CgroupMount> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let root = fields.next()?;
    let point = fields.next()?;
    // The kernel writes a space in a path as \040.
    Some(CgroupMount {
        point: point.replace("\\040", " ").into(),
        root: root.trim_end_matches('/').into(),
    })
}

impl CgroupPlace {
    pub(super) fn read(root: &ProcRoot, mount: Option<&CgroupMount>, pid: u32) -> Self {
        let Ok(bytes) = read_at_most(&root.of(pid, "cgroup"), CGROUP_BYTES) else {
            return Self::default();
        };
        Self::parse(&String::from_utf8_lossy(&bytes), mount)
    }

    /// Takes the kernel side's id where the folder could not be looked at.
    pub(super) fn or_id(self, id: Option<u64>) -> Self {
        Self {
            id: self.id.or(id),
            ..self
        }
    }

    fn parse(text: &str, mount: Option<&CgroupMount>) -> Self {
        // `hierarchy:controllers:path`; v2 is `0::path`.
        let lines: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                Some((fields.next()?, fields.next()?))
            })
            .collect();
        let v2 = lines
            .iter()
            .find(|(controllers, _)| controllers.is_empty())
            .map(|(_, path)| *path);
        let by_use = ["", "name=systemd", "memory", "cpu", "cpu,cpuacct", "pids"];
        let path = by_use
            .iter()
            .filter_map(|name| lines.iter().find(|(controllers, _)| controllers == name))
            .map(|(_, path)| *path)
            .find(|path| *path != "/")
            .or(v2)
            .unwrap_or("");
        Self {
            path: path.into(),
            id: mount.zip(v2).and_then(|(mount, path)| mount.id_of(path)),
            container_id: v2
                .into_iter()
                .chain(lines.iter().map(|(_, path)| *path))
                .find_map(container_id),
        }
    }
}

/// The innermost container id on a cgroup path, whoever made it: Docker, containerd, CRI-O, podman, under the
/// systemd or the cgroupfs driver; `None` for everything else, monitors of containers included.
///
/// ```
/// # use spanwire::discover::container_id;
/// let id = "1f".repeat(32);
/// assert_eq!(container_id(&format!("/system.slice/docker-{id}.scope")).as_deref(), Some(&*id));
/// assert_eq!(container_id("/user.slice/user-1000.slice"), None);
/// ```
pub fn container_id(path: &str) -> Option<Box<str>> {
    path.rsplit('/').find_map(id_of_folder).map(Box::from)
}

fn id_of_folder(folder: &str) -> Option<&str> {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    // `cri-containerd-ID`, `kubepods-burstable-podUID.slice:cri-containerd:ID`, `docker-ID`, `libpod-ID`, `crio-ID`, `ID`.
    let (maker, id) = match name.rfind(['-', ':']) {
        Some(at) => (name.get(..at)?, name.get(at + 1..)?),
        None => ("", name),
    };
    let hex = |text: &str, len| text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if hex(id, 64) {
        // conmon and its like watch a container from outside.
        return (!maker.ends_with("conmon")).then_some(id);
    }
    // Fargate: 32 hex digits of the task, then the container's number.
    (hex(maker, 32) && id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn layouts_of_container_runtimes() {
        let (id, outer) = (id(), "f".repeat(64));
        let pod = "pod8fb0e8c1_6f1c_4c4e_9a3e_0a2b1c3d4e5f";
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{outer}/docker/{id}"),
            format!("/docker/{id}/init.scope"),
            format!("/kubepods/burstable/{pod}/{id}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{pod}.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubepods.slice/kubepods-{pod}.slice/crio-{id}.scope"),
            format!("/kubepods.slice/kubepods-{pod}.slice/crio-{id}.scope/container"),
            format!("/system.slice/containerd.service/kubepods-besteffort-{pod}.slice:cri-containerd:{id}"),
            format!("/machine.slice/libpod-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope/container"),
            format!("/libpod_parent/libpod-{id}"),
            format!("/ecs/2f6ac1b0/{id}"),
            format!("/docker/{outer}/kubelet/kubepods/{pod}/{id}"),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(&*id), "{path}");
        }
        let fargate = "0123456789abcdef0123456789abcdef-2574823593";
        assert_eq!(container_id(&format!("/ecs/task/{fargate}")).as_deref(), Some(fargate));
    }

    #[test]
    fn what_is_no_container() {
        let id = id();
        for path in [
            String::new(),
            "/".into(),
            "/init.scope".into(),
            "/user.slice/user-1000.slice/session-3.scope".into(),
            "/process_api/4ba68ae17c59367bd0a4148ee0aaee3a".into(),
            format!("/machine.slice/libpod-conmon-{id}.scope"),
            format!("/kubepods.slice/crio-conmon-{id}.scope"),
            format!("/docker/{}", &id[1..]),
            format!("/docker/{id}0"),
            format!("/docker/{}", id.to_uppercase()),
        ] {
            assert_eq!(container_id(&path), None, "{path}");
        }
    }

    #[test]
    fn hybrid_lines_name_the_container_the_v2_line_does_not() {
        let text = format!("9:name=systemd:/docker/{0}\n4:memory:/docker/{0}\n0::/\n", id());
        let place = CgroupPlace::parse(&text, None);
        assert_eq!(place.container_id.as_deref(), Some(&*id()));
        assert_eq!(&*place.path, format!("/docker/{}", id()));
        assert_eq!(CgroupPlace::parse("0::/\n", None).path.as_ref(), "/");
        assert_eq!(CgroupPlace::parse("garbage\n::\n", None), CgroupPlace::default());
    }

    #[test]
    fn a_path_with_colons_is_whole() {
        let path = format!("/system.slice/kubepods-x.slice:cri-containerd:{}", id());
        let place = CgroupPlace::parse(&format!("0::{path}\n"), None);
        assert_eq!(&*place.path, path);
        assert!(place.container_id.is_some());
    }

    #[test]
    fn mounts_of_both_layouts() {
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(parse_mount(hybrid).unwrap().point, Path::new("/sys/fs/cgroup/unified"));
        let part = "29 23 0:26 /docker/abc /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw";
        assert_eq!(&*parse_mount(part).unwrap().root, "/docker/abc");
        assert_eq!(
            parse_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"),
            None
        );
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn ids_are_inodes_below_the_mount() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("docker/x")).unwrap();
        let inode = std::fs::metadata(folder.path().join("docker/x")).unwrap().ino();
        let mount = CgroupMount {
            point: folder.path().into(),
            root: "".into(),
        };
        assert_eq!(CgroupPlace::parse("0::/docker/x\n", Some(&mount)).id, Some(inode));
        assert_eq!(CgroupPlace::parse("0::/docker/gone\n", Some(&mount)).id, None);
        assert_eq!(CgroupPlace::parse("0::/../../etc\n", Some(&mount)).id, None);
        let part = CgroupMount {
            point: folder.path().join("docker"),
            root: "/docker".into(),
        };
        assert_eq!(CgroupPlace::parse("0::/docker/x\n", Some(&part)).id, Some(inode));
    }
}
