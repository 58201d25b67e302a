//! The node's name.

use super::ProcRoot;

/// Names the node where the agent cannot see it for itself: in a pod, from the downward API (`spec.nodeName`).
pub const NODE_NAME: &str = "SPANWIRE_NODE_NAME";

/// Longest name that is believed (RFC 1123: 253).
const NAME_BYTES: usize = 253;

/// `declared` (the value of [`NODE_NAME`]), else what the node's own file says where the agent is in a container with a
/// name of its own, else the kernel's.
pub fn host_name(root: &ProcRoot, declared: Option<&str>) -> String {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok();
    let usable = |name: &str| {
        let name = name.trim();
        let is_name = !name.is_empty() && name.len() <= NAME_BYTES && !name.contains(|c: char| c.is_control());
        is_name.then(|| name.to_owned())
    };
    let of_node = || read(root.of(1, "root/etc/hostname")).filter(|_| is_renamed(root));
    declared
        .and_then(usable)
        .or_else(|| usable(&of_node()?))
        .or_else(|| usable(&read(root.kernel("hostname"))?))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// True if the agent's host name is another than the node's first process has.
fn is_renamed(root: &ProcRoot) -> bool {
    let own = std::fs::read_link(root.own("ns/uts"));
    let first = std::fs::read_link(root.of(1, "ns/uts"));
    matches!((own, first), (Ok(own), Ok(first)) if own != first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_node_is_named_not_the_pod() {
        let proc = tempfile::tempdir().unwrap();
        let root = ProcRoot::at(proc.path());
        for folder in ["self/ns", "1/ns", "1/root/etc", "sys/kernel"] {
            std::fs::create_dir_all(proc.path().join(folder)).unwrap();
        }
        std::fs::write(proc.path().join("sys/kernel/hostname"), "spanwire-x7k2p\n").unwrap();
        std::fs::write(proc.path().join("1/root/etc/hostname"), "node-1\n").unwrap();
        symlink("uts:[2]", proc.path().join("self/ns/uts")).unwrap();
        symlink("uts:[1]", proc.path().join("1/ns/uts")).unwrap();
        assert_eq!(host_name(&root, Some("worker-3")), "worker-3");
        assert_eq!(host_name(&root, Some(" ")), "node-1");
        assert_eq!(host_name(&root, None), "node-1");
        // In the node's own namespace the file may be older than the name.
        std::fs::remove_file(proc.path().join("self/ns/uts")).unwrap();
        symlink("uts:[1]", proc.path().join("self/ns/uts")).unwrap();
        assert_eq!(host_name(&root, None), "spanwire-x7k2p");
        std::fs::remove_dir_all(proc.path().join("sys")).unwrap();
        assert_eq!(host_name(&root, None), "unknown");
    }
}
