//! The script an interpreter runs: the one thing that is kept of a process's arguments, as a file name.

use std::path::{Path, PathBuf};

use super::procfs::{read_at_most, ProcRoot};

/// How a runtime reads its own command line. A short option is listed with its dash, a long one with two (or, where
/// `clusters` is off, as it is written).
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    /// Options that take the next argument as their value.
    pub takes_value: &'static [&'static str],
    /// Options whose value, if there is one, is written together with them.
    pub glued: &'static [&'static str],
    /// Options that carry program text: there is no script.
    pub program_text: &'static [&'static str],
    /// Options followed by a module's dotted name.
    pub module: &'static [&'static str],
    /// Options followed by the script; or a word before it, which may have options of its own (`dotnet exec`).
    pub script: &'static [&'static str],
    /// Short options may be written together (`-uc`), and a value may be glued to its option (`-Wignore`).
    pub clusters: bool,
    /// The first argument may be a class or another name that is no file.
    pub name_is_enough: bool,
    /// Extensions of scripts, cut from the name that is kept.
    pub extensions: &'static [&'static str],
}

/// More arguments than this are not looked at.
const CMDLINE_BYTES: usize = 16 * 1024;
const ARGUMENTS: usize = 256;
const NAME_BYTES: usize = 64;

/// The name of the script that process `pid` runs, without folder and extension. The arguments are overwritten.
pub(super) fn name(root: &ProcRoot, pid: u32, rules: &Arguments) -> Option<Box<str>> {
    let bytes = read_at_most(&root.of(pid, "cmdline"), CMDLINE_BYTES).ok()?;
    let arguments: Vec<&str> = bytes
        .split(|byte| *byte == 0)
        .take(ARGUMENTS)
        .map(|argument| std::str::from_utf8(argument).unwrap_or(""))
        .collect();
    let (first, rest) = arguments.split_first()?;
    if let Some(title) = title(first) {
        return clean(title);
    }
    let found = find(rest, rules)?;
    let known = rules
        .extensions
        .iter()
        .find_map(|extension| found.text.strip_suffix(extension));
    let plausible = found.sure || known.is_some() || is_file(root, pid, found.text);
    let name = known.unwrap_or(found.text);
    plausible
        .then(|| clean(name.rsplit('/').next().unwrap_or(name)))
        .flatten()
}

/// Servers rewrite their title: `gunicorn: worker [shop]`, `puma 6.4 (tcp://..) [shop]`, `[celeryd: ..]`, `npm start`.
/// Its first word is the program's name; the rest is not kept.
fn title(first: &str) -> Option<&str> {
    let text = first.strip_prefix('[').unwrap_or(first);
    let end = text.find([' ', ':'])?;
    let word = text.get(..end)?;
    let plain = !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    plain.then_some(word)
}

struct Found<'a> {
    text: &'a str,
    /// Named by an option: taken as it is.
    sure: bool,
}

/// Walks the arguments to the first that is no option and no option's value.
fn find<'a>(arguments: &[&'a str], rules: &Arguments) -> Option<Found<'a>> {
    let mut rest = arguments.iter().copied();
    while let Some(argument) = rest.next() {
        let step = match argument {
            "" | "-" => return None,
            "--" => Step::ScriptNext,
            _ if argument.starts_with("--") || (argument.starts_with('-') && !rules.clusters) => word(argument, rules),
            _ if argument.starts_with('-') => cluster(argument, rules),
            _ if rules.script.contains(&argument) => Step::Skip,
            _ => {
                return Some(Found {
                    text: argument,
                    sure: rules.name_is_enough && is_dotted_name(argument),
                })
            }
        };
        match step {
            Step::Skip => {}
            Step::SkipValue => {
                rest.next()?;
            }
            Step::ProgramText => return None,
            Step::ScriptNext => return rest.next().map(|text| Found { text, sure: false }),
            Step::ModuleNext => return rest.next().and_then(module),
            Step::Module(at) => return argument.get(at..).and_then(module),
        }
    }
    None
}

enum Step {
    Skip,
    SkipValue,
    ProgramText,
    ScriptNext,
    ModuleNext,
    /// The name begins at this byte of the option itself.
    Module(usize),
}

fn word(argument: &str, rules: &Arguments) -> Step {
    // `--eval=..`: the option's name ends at the equals sign, and so does what follows.
    let (option, glued) = argument
        .split_once('=')
        .map_or((argument, false), |(option, _)| (option, true));
    if rules.program_text.contains(&option) {
        Step::ProgramText
    } else if glued {
        Step::Skip
    } else if rules.module.contains(&option) {
        Step::ModuleNext
    } else if rules.script.contains(&option) {
        Step::ScriptNext
    } else if rules.takes_value.contains(&option) {
        Step::SkipValue
    } else {
        Step::Skip
    }
}

fn cluster(argument: &str, rules: &Arguments) -> Step {
    let listed = |options: &[&str], letter: char| {
        options
            .iter()
            .any(|option| option.strip_prefix('-').is_some_and(|rest| rest.chars().eq([letter])))
    };
    for (at, letter) in argument.char_indices().skip(1) {
        let after = at + letter.len_utf8();
        let last = after == argument.len();
        if listed(rules.program_text, letter) {
            return Step::ProgramText;
        }
        if listed(rules.module, letter) {
            return if last { Step::ModuleNext } else { Step::Module(after) };
        }
        if listed(rules.script, letter) {
            return if last { Step::ScriptNext } else { Step::Skip };
        }
        if listed(rules.glued, letter) {
            return Step::Skip;
        }
        if listed(rules.takes_value, letter) {
            return if last { Step::SkipValue } else { Step::Skip };
        }
    }
    Step::Skip
}

fn module(text: &str) -> Option<Found<'_>> {
    is_dotted_name(text).then_some(Found { text, sure: true })
}

fn is_dotted_name(text: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '$')
            && part.chars().all(|c| c.is_alphanumeric() || "_$-".contains(c))
    };
    !text.is_empty() && text.split(['.', '/']).all(word)
}

/// Does the argument name a file as the process sees it? The last doubt whether it is a script, and not a value.
fn is_file(root: &ProcRoot, pid: u32, argument: &str) -> bool {
    let path: PathBuf = match argument.strip_prefix('/') {
        Some(below) => root.of(pid, "root").join(below),
        None => root.of(pid, "cwd").join(Path::new(argument)),
    };
    std::fs::metadata(path).is_ok_and(|file| file.is_file())
}

/// A name fit to be shown: short, and of plain characters.
fn clean(name: &str) -> Option<Box<str>> {
    let text: String = name
        .chars()
        .take(NAME_BYTES)
        .map(|c| {
            if c.is_alphanumeric() || "._-+@$".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::super::runtime::arguments_of;
    use super::*;

    /// What is kept of a command line, with `files` present in the process's root and working folder.
    fn kept(exe: &str, arguments: &[&str], files: &[&str]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join("5").join(
                file.strip_prefix('/')
                    .map_or(format!("cwd/{file}"), |file| format!("root/{file}")),
            );
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::fs::create_dir_all(folder.path().join("5")).unwrap();
        let line: Vec<u8> = arguments
            .iter()
            .flat_map(|argument| argument.bytes().chain([0]))
            .collect();
        std::fs::write(folder.path().join("5/cmdline"), line).unwrap();
        name(&ProcRoot::at(folder.path()), 5, &arguments_of(exe)?).map(String::from)
    }

    #[test]
    fn command_lines_of_every_interpreter() {
        let table: &[(&str, &[&str], Option<&str>)] = &[
            ("python3.11", &["python3", "app.py", "--token", "s3cret"], Some("app")),
            (
                "python3.11",
                &["python3", "-u", "-X", "dev", "-Wignore", "/srv/shop/app.py"],
                Some("app"),
            ),
            (
                "python3.11",
                &["python3", "-m", "http.server", "8000"],
                Some("http.server"),
            ),
            ("python3.11", &["python3", "-um", "flask", "run"], Some("flask")),
            ("python3.11", &["python3", "-mflask", "run"], Some("flask")),
            ("python3.11", &["python3", "-c", "import os # s3cret.py"], None),
            ("python3.11", &["python3", "-uc", "import os", "x.py"], None),
            ("python3.11", &["python3", "-", "x.py"], None),
            ("python3.11", &["python3"], None),
            ("python3.11", &["python3", "--", "run.py"], Some("run")),
            (
                "python3.11",
                &["python3", "--check-hash-based-pycs", "always", "run.py"],
                Some("run"),
            ),
            ("python3.11", &["gunicorn: worker [shop]"], Some("gunicorn")),
            ("python3.11", &["[celeryd: w1@host:MainProcess]"], Some("celeryd")),
            ("node", &["node", "server.js"], Some("server")),
            (
                "node",
                &[
                    "node",
                    "--require",
                    "./trace.js",
                    "--max-old-space-size=512",
                    "dist/main.mjs",
                ],
                Some("main"),
            ),
            ("node", &["node", "-e", "serve('s3cret')", "x.js"], None),
            ("node", &["node", "--eval=1", "x.js"], None),
            ("node", &["npm start"], Some("npm")),
            ("ruby3.1", &["ruby", "-rwebrick", "-I", "lib", "web.rb"], Some("web")),
            (
                "ruby3.1",
                &["ruby", "-W:no-deprecated", "-W", "web.rb", "x.rb"],
                Some("web"),
            ),
            (
                "dotnet",
                &["dotnet", "exec", "--depsfile", "a.json", "/app/Shop.dll", "s3cret"],
                Some("Shop"),
            ),
            ("ruby3.1", &["ruby", "-run", "-e", "httpd"], None),
            ("ruby3.1", &["puma 5.6.5 (tcp://0.0.0.0:9292) [shop]"], Some("puma")),
            ("php8.2", &["php", "-S", "127.0.0.1:80", "router.php"], Some("router")),
            ("php8.2", &["php", "-r", "echo 1;"], None),
            ("php8.2", &["php", "-f", "job.php"], Some("job")),
            (
                "java",
                &[
                    "java",
                    "-Xmx1g",
                    "-Dpassword=s3cret",
                    "-cp",
                    "a.jar:b.jar",
                    "com.example.Main",
                    "x",
                ],
                Some("com.example.Main"),
            ),
            ("java", &["java", "-jar", "/opt/shop.jar", "--key=s3cret"], Some("shop")),
            (
                "java",
                &["java", "--module", "shop/com.example.Main"],
                Some("com.example.Main"),
            ),
            ("java", &["java", "@args"], None),
            ("sh", &["sh", "-c", "curl -H 'Authorization: s3cret'"], None),
            ("dash", &["sh", "-ec", "x.sh"], None),
            ("bash", &["bash", "run.sh", "s3cret"], Some("run")),
            ("perl", &["perl", "-w", "-Ilib", "cgi.pl"], Some("cgi")),
        ];
        for (exe, arguments, expected) in table {
            assert_eq!(kept(exe, arguments, &[]).as_deref(), *expected, "{exe} {arguments:?}");
        }
    }

    #[test]
    fn a_name_without_extension_counts_if_it_is_a_file() {
        let line = ["python3", "/usr/bin/gunicorn", "-w", "4", "shop:app"];
        assert_eq!(
            kept("python3", &line, &["/usr/bin/gunicorn"]).as_deref(),
            Some("gunicorn")
        );
        assert_eq!(
            kept("python3", &line, &[]),
            None,
            "an argument that is no file is no script"
        );
        assert_eq!(
            kept("php8.2", &["php", "artisan", "serve"], &["artisan"]).as_deref(),
            Some("artisan")
        );
    }

    #[test]
    fn odd_names_are_made_plain() {
        assert_eq!(
            kept("python3", &["python3", "my app\x1b[2J.py"], &[]).as_deref(),
            Some("my_app__2J")
        );
        let long = format!("{}.py", "x".repeat(200));
        assert_eq!(kept("python3", &["python3", &long], &[]).unwrap().len(), NAME_BYTES);
    }

    #[test]
    fn programs_that_are_no_interpreters_have_no_script() {
        assert!(arguments_of("curl").is_none());
        assert!(arguments_of("nginx").is_none());
    }
}
