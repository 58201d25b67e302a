//! Debian's cloud kernels, unpacked into the cache: no part of the system's own package state is touched.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};

use crate::{packages, process, setup, toolchain};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where a version is looked for, in this order; the last one has the newest kernel that is packaged.
const SUITES: [&str; 5] = [
    "bookworm-security",
    "bullseye-security",
    "trixie-security",
    "bookworm-backports",
    "sid",
];
/// A package of these brings files of the kernel itself.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// A kernel and its modules.
pub(super) struct Kernel {
    /// As `uname -r` prints it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// `lib/modules/RELEASE`, with modules.dep.
    pub(super) modules: PathBuf,
}

/// The kernel that `wanted` names: the start of a version such as 6.1, or `newest`. From the cache where it is there.
pub(super) fn obtain(wanted: &str) -> Result<Kernel> {
    if wanted != "newest" && !is_version(wanted) {
        bail!("{wanted:?} is not a kernel version: name one such as 5.10, 6.1, 6.12, or `newest`");
    }
    let cache = toolchain::cache_dir().map_err(|problem| anyhow!(problem))?;
    let directory = cache.join("kernels").join(wanted);
    if !directory.is_dir() {
        install(wanted, &cache, &directory)?;
    }
    open(&directory)
}

fn is_version(text: &str) -> bool {
    text.split('.')
        .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn install(wanted: &str, cache: &Path, directory: &Path) -> Result<()> {
    if process::find("apt-get").is_none() {
        bail!("the kernels are Debian's, and this system has no apt-get");
    }
    packages::ensure(&["debian-archive-keyring", "kmod", "xz-utils"])?;
    setup::need_space(cache, 1_000, "a kernel")?;
    let (suite, image) = find(wanted, cache)?;
    eprintln!(
        "x: installing {image} into {} (delete it to get a newer one)",
        directory.display()
    );

    // Built aside and moved into place whole, so that an interrupted run leaves nothing that looks complete.
    let unfinished = directory.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot create {}", unfinished.display()))?;
    let files = suite.download(&image, &unfinished)?;
    for file in &files {
        process::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unfinished))?;
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    let release = image.strip_prefix("linux-image-").unwrap_or(&image);
    if !unfinished.join("lib").exists() {
        // Packages of a merged /usr; depmod looks below lib.
        std::os::unix::fs::symlink("usr/lib", unfinished.join("lib")).context("cannot link lib to usr/lib")?;
    }
    let depmod = if Path::new("/sbin/depmod").exists() {
        "/sbin/depmod"
    } else {
        "depmod"
    };
    process::run(Command::new(depmod).arg("-b").arg(&unfinished).arg(release))?;
    open(&unfinished).context("Debian packages this kernel in a way that xtask does not know")?;
    fs::rename(&unfinished, directory).with_context(|| format!("cannot create {}", directory.display()))
}

/// The first suite that has such a kernel, and the name of its newest image package.
fn find(wanted: &str, cache: &Path) -> Result<(Suite, String)> {
    let mirrors = Mirrors::of_this_system()?;
    let suites: &[&str] = if wanted == "newest" {
        &SUITES[SUITES.len() - 1..]
    } else {
        &SUITES
    };
    for name in suites {
        let suite = Suite::fetch(name, &mirrors, cache)?;
        if let Some(image) = newest_image(&suite.image_names()?, wanted) {
            return Ok((suite, image));
        }
    }
    bail!("no Debian suite known to xtask has a cloud kernel {wanted}")
}

fn newest_image(names: &str, wanted: &str) -> Option<String> {
    let version = |name: &str| -> Option<String> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        // Meta-packages carry no full version: `linux-image-6.12-cloud-amd64`.
        (version.split('.').count() >= 3).then(|| version.to_owned())
    };
    let is_wanted = |version: &str| {
        let rest = if wanted == "newest" {
            Some("")
        } else {
            version.strip_prefix(wanted)
        };
        rest.is_some_and(|rest| rest.bytes().next().is_none_or(|byte| !byte.is_ascii_digit()))
    };
    names
        .lines()
        .filter(|name| version(name).is_some_and(|version| is_wanted(&version)))
        .max_by(|a, b| compare(a, b))
        .map(str::to_owned)
}

/// Compares the numbers in two names, in order.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

fn open(directory: &Path) -> Result<Kernel> {
    let broken = || format!("{} is not whole: delete it and try again", directory.display());
    let only = |folder: &Path, prefix: &str| -> Option<PathBuf> {
        let entries = fs::read_dir(folder).ok()?.flatten();
        entries.map(|entry| entry.path()).find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
    };
    let modules = only(&directory.join("lib/modules"), "").with_context(broken)?;
    let release = modules.file_name().with_context(broken)?.to_string_lossy().into_owned();
    // Newer packages keep the image beside the modules.
    let image = only(&directory.join("boot"), "vmlinuz").or_else(|| only(&modules, "vmlinuz"));
    if !modules.join("modules.dep").is_file() || !modules.join("modules.builtin").is_file() {
        bail!(broken());
    }
    Ok(Kernel {
        release,
        image: image.with_context(broken)?,
        modules,
    })
}

/// Where this system gets its packages from; other suites are asked for at the same place.
struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    fn of_this_system() -> Result<Self> {
        let targets =
            process::output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)"]))?;
        let (security, main): (Vec<_>, Vec<_>) = targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .partition(|(_, suite)| suite.ends_with("-security"));
        let uri = |of: &[(&str, &str)]| of.first().map(|(uri, _)| (*uri).to_owned());
        Ok(Self {
            main: uri(&main).context("apt knows no Debian archive: see /etc/apt/sources.list")?,
            security: uri(&security).context("apt knows no Debian security archive: see /etc/apt/sources.list")?,
        })
    }
}

/// One suite's package lists, in a directory of our own.
struct Suite {
    directory: PathBuf,
}

impl Suite {
    fn fetch(name: &str, mirrors: &Mirrors, cache: &Path) -> Result<Self> {
        let directory = cache.join("apt").join(name);
        for folder in ["lists/partial", "archives/partial"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let uri = if name.ends_with("-security") {
            &mirrors.security
        } else {
            &mirrors.main
        };
        fs::write(
            directory.join("sources.list"),
            format!("deb [signed-by={KEYRING}] {uri} {name} main\n"),
        )?;
        fs::write(directory.join("status"), "")?;
        let suite = Self { directory };
        process::output(suite.apt("apt-get").args(["-qq", "update"]))?;
        Ok(suite)
    }

    fn image_names(&self) -> Result<String> {
        process::output(self.apt("apt-cache").args(["pkgnames", "linux-image-"]))
    }

    /// Downloads the image package and those parts of the kernel it depends on.
    fn download(&self, image: &str, into: &Path) -> Result<Vec<PathBuf>> {
        let depends = process::output(self.apt("apt-cache").args(["depends", "--important", image]))?;
        let parts = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
        process::output(
            self.apt("apt-get")
                .args(["-qq", "download", image])
                .args(parts)
                .current_dir(into),
        )?;
        let files: Vec<PathBuf> = fs::read_dir(into)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        Ok(files)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let own = |key: &str, name: &str| format!("{key}={}", self.directory.join(name).display());
        for option in [
            own("Dir::Etc::SourceList", "sources.list"),
            own("Dir::State::Lists", "lists"),
            own("Dir::State::status", "status"),
            own("Dir::Cache", ""),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // The user that apt would drop to cannot write here.
            "APT::Sandbox::User=root".to_owned(),
            // An old suite's lists are no longer renewed; they are signed all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str =
        "linux-image-cloud-amd64\nlinux-image-6.12-cloud-amd64\nlinux-image-6.12.99+deb12-cloud-amd64\n\
        linux-image-6.12.117+deb12-cloud-amd64\nlinux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
        linux-image-6.12.120+deb12-rt-amd64\nlinux-image-6.12.117+deb12-cloud-amd64-dbg\n";

    #[test]
    fn the_newest_of_the_wanted_series_is_taken() {
        let image = |wanted| newest_image(NAMES, wanted);
        assert_eq!(image("6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(image("6.12").as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(
            image("6.12.99").as_deref(),
            Some("linux-image-6.12.99+deb12-cloud-amd64")
        );
        assert_eq!(
            image("newest").as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(image("5.10"), None);
    }

    #[test]
    fn only_versions_are_versions() {
        assert!(is_version("6.1") && is_version("6.12.117"));
        assert!(!is_version("../6") && !is_version("6.") && !is_version(""));
    }
}
