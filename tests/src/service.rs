//! A process that a test started: its log is kept, its end is the test's.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::process::{kill_process, kill_process_group, Pid, Signal};

use crate::pace::patient;
use crate::place::{program, Place};

/// How long a service may take until it accepts connections.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a service may take to end after SIGTERM, before its process group is killed.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Where a service can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// A port on 127.0.0.1.
    pub fn loopback(port: u16) -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The TCP port.
    pub fn port(&self) -> Result<u16> {
        match self {
            Self::Tcp(addr) => Ok(addr.port()),
            Self::Unix(path) => bail!("{} has no port", path.display()),
        }
    }

    /// `http://host:port`, for a client of a service on TCP.
    pub fn url(&self) -> Result<String> {
        match self {
            Self::Tcp(addr) => Ok(format!("http://{addr}")),
            Self::Unix(path) => bail!("{} has no URL", path.display()),
        }
    }

    fn accepts(&self) -> bool {
        match self {
            Self::Tcp(addr) => TcpStream::connect_timeout(addr, Duration::from_secs(1)).is_ok(),
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
        }
    }
}

/// How a service is started.
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    dir: PathBuf,
    stop: Signal,
}

impl Launch {
    /// `name` is also the service's `OTEL_SERVICE_NAME` and names its log.
    pub fn new(name: &str, program: PathBuf, place: &Place) -> Self {
        Self {
            name: name.to_owned(),
            program,
            args: Vec::new(),
            env: vec![("OTEL_SERVICE_NAME".to_owned(), name.into())],
            dir: place.path().to_path_buf(),
            stop: Signal::TERM,
        }
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    /// The signal that asks for an end; SIGTERM unless told.
    pub fn stop_with(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(self) -> Result<Service> {
        let log = self.dir.join(format!("{}.log", self.name));
        let out = File::create(&log)?;
        // setpriv makes the service end should the test die without unwinding; it becomes the program, so that the
        // pid is the service's own.
        let mut command = Command::new(program("setpriv")?);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(&self.args);
        command
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(&self.dir);
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("could not start {}", self.name))?;
        Ok(Service {
            name: self.name,
            child,
            log,
            stop: self.stop,
            ended: None,
        })
    }

    /// Starts the process and waits until every target accepts a connection.
    pub fn start(self, targets: &[Target]) -> Result<Service> {
        let mut service = self.spawn()?;
        for target in targets {
            service.wait_for(&format!("{target:?} to accept"), START_LIMIT, || target.accepts())?;
        }
        Ok(service)
    }
}

/// A running process; it and its process group end when the value is dropped.
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
    ended: Option<ExitStatus>,
}

impl Service {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stdout and stderr so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Polls until `ready`, and fails when the process ends first or the time is over.
    pub fn wait_for(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let (start, limit) = (Instant::now(), patient(limit));
        while !ready() {
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended ({status}) while waiting for {what}; its log:\n{}",
                    self.name,
                    self.log()
                );
            }
            if start.elapsed() > limit {
                bail!("{}: waited {limit:?} for {what}; its log:\n{}", self.name, self.log());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits for the process to end by itself.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let (start, limit) = (Instant::now(), patient(limit));
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} did not end within {limit:?}; its log:\n{}", self.name, self.log());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to the process alone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            bail!("{} has ended already; its log:\n{}", self.name, self.log());
        }
        kill_process(self.pid_of_group()?, signal).with_context(|| format!("could not signal {}", self.name))
    }

    fn pid_of_group(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id() as i32).context("a child has a pid")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(None)) && self.signal(self.stop).is_ok() {
            let _ = self.wait_end(STOP_LIMIT);
        }
        // The group has the pid of its first process, which is not reaped, or was reaped by us and may have left
        // workers behind; an empty group is an error that means there is nothing to do.
        if let Ok(group) = self.pid_of_group() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
