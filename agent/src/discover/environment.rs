//! The two OpenTelemetry variables of a traced process's environment.
//!
//! The environment block is streamed through one buffer: a variable of any other name is skipped where it lies and
//! never copied. Of OTEL_RESOURCE_ATTRIBUTES only the attributes in [`KEPT`] are kept, because the rest may be
//! anything.

use std::borrow::Cow;
use std::io;
use std::ops::ControlFlow;

use zeroize::Zeroizing;

use super::procfs::{read_chunks, read_environment_chunks, ProcRoot};

/// What a process says about itself by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredResource {
    /// OTEL_SERVICE_NAME, else `service.name`.
    pub service_name: Option<Box<str>>,
    /// `service.namespace`.
    pub service_namespace: Option<Box<str>>,
    /// `service.version`.
    pub service_version: Option<Box<str>>,
    /// `service.instance.id`.
    pub service_instance_id: Option<Box<str>>,
    /// `deployment.environment.name`, else the older `deployment.environment`.
    pub deployment_environment: Option<Box<str>>,
}

/// Attributes that are kept, everything else is forgotten.
const KEPT: [&str; 6] = [
    "service.name",
    "service.namespace",
    "service.version",
    "service.instance.id",
    "deployment.environment.name",
    "deployment.environment",
];

const SERVICE_NAME: &[u8] = b"OTEL_SERVICE_NAME=";
const RESOURCE_ATTRIBUTES: &[u8] = b"OTEL_RESOURCE_ATTRIBUTES=";
/// More environment than this is not looked at.
const ENVIRON_BYTES: usize = 2 << 20;
/// A longer value is taken for a mistake and ignored as a whole.
const VALUE_BYTES: usize = 4 * 1024;
/// A longer attribute value is ignored.
const ATTRIBUTE_BYTES: usize = 255;

impl DeclaredResource {
    pub(super) fn read(root: &ProcRoot, pid: u32) -> Self {
        let mut scan = Scan::default();
        // A process that ends meanwhile, or may not be read, declares nothing.
        let read = read_chunks(&root.of(pid, "environ"), ENVIRON_BYTES, |chunk| {
            scan.feed(chunk);
            ControlFlow::Continue(())
        });
        let is_refused = read.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        if is_refused && root.is_of_system() {
            scan = Scan::default();
            let _ = read_environment_chunks(root, pid, ENVIRON_BYTES, |chunk| scan.feed(chunk));
        }
        scan.end_of_variable();
        scan.declared()
    }

    fn from_values(service_name: &[u8], attributes: &[u8]) -> Self {
        let mut declared = parse_attributes(attributes).unwrap_or_default();
        if let Some(name) = clean(service_name) {
            declared.service_name = Some(name);
        }
        declared
    }

    fn slot(&mut self, key: &str) -> Option<&mut Option<Box<str>>> {
        match key {
            "service.name" => Some(&mut self.service_name),
            "service.namespace" => Some(&mut self.service_namespace),
            "service.version" => Some(&mut self.service_version),
            "service.instance.id" => Some(&mut self.service_instance_id),
            "deployment.environment.name" | "deployment.environment" => Some(&mut self.deployment_environment),
            _ => None,
        }
    }
}

/// Where in the environment block the scan is.
#[derive(Default)]
struct Scan {
    /// Bytes of the current variable so far, and whether they still spell one of the two names.
    position: usize,
    name_matches: [bool; 2],
    started: bool,
    /// Which of the two values is being read.
    reading: Option<usize>,
    values: [Zeroizing<Vec<u8>>; 2],
    overlong: [bool; 2],
}

impl Scan {
    fn feed(&mut self, chunk: &[u8]) {
        for byte in chunk {
            if *byte == 0 {
                self.end_of_variable();
            } else {
                self.byte(*byte);
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        if !self.started {
            self.started = true;
            self.name_matches = [true; 2];
            self.position = 0;
        }
        if let Some(which) = self.reading {
            if let (Some(value), Some(overlong)) = (self.values.get_mut(which), self.overlong.get_mut(which)) {
                if value.len() < value.capacity() {
                    value.push(byte);
                } else {
                    *overlong = true;
                }
            }
            return;
        }
        for (which, name) in [SERVICE_NAME, RESOURCE_ATTRIBUTES].into_iter().enumerate() {
            let Some(matches) = self.name_matches.get_mut(which) else {
                continue;
            };
            *matches &= name.get(self.position) == Some(&byte);
            if *matches && self.position + 1 == name.len() {
                self.reading = Some(which);
                if let Some(value) = self.values.get_mut(which) {
                    // The last one wins, as it does for getenv's callers after a shell's export.
                    *value = Zeroizing::new(Vec::with_capacity(VALUE_BYTES));
                }
            }
        }
        self.position += 1;
    }

    fn end_of_variable(&mut self) {
        self.reading = None;
        self.started = false;
    }

    fn declared(&self) -> DeclaredResource {
        let value = |which: usize| match (self.overlong.get(which), self.values.get(which)) {
            (Some(false), Some(value)) => value.as_slice(),
            _ => &[],
        };
        DeclaredResource::from_values(value(0), value(1))
    }
}

/// `key=value,key=value`, percent-encoded. Any error discards the whole variable (OpenTelemetry specification,
/// resource SDK, "Specifying resource information via an environment variable").
fn parse_attributes(text: &[u8]) -> Option<DeclaredResource> {
    let text = std::str::from_utf8(text).ok()?;
    let mut declared = DeclaredResource::default();
    let mut old_environment = None;
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let key = percent_decode(key.trim())?;
        if key.is_empty() {
            return None;
        }
        let Some(known) = KEPT.into_iter().find(|kept| **kept == *key) else {
            // Checked, but not decoded: what is not kept is not copied.
            escapes_are_valid(value).then_some(())?;
            continue;
        };
        let value = clean(percent_decode(value.trim())?.as_bytes());
        if known == "deployment.environment" {
            old_environment = value;
        } else if let Some(slot) = declared.slot(known) {
            *slot = value;
        }
    }
    declared.deployment_environment = declared.deployment_environment.or(old_environment);
    Some(declared)
}

fn escapes_are_valid(text: &str) -> bool {
    let mut pieces = text.split('%');
    pieces.next();
    pieces.all(|piece| piece.len() >= 2 && piece.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

/// `None` for an escape that is not two hex digits, or bytes that are not UTF-8.
fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A value that can be shown: not empty, not over-long, without control characters.
fn clean(value: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let fit = !text.is_empty() && text.len() <= ATTRIBUTE_BYTES && !text.chars().any(char::is_control);
    fit.then(|| text.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn read(environ: &[u8]) -> DeclaredResource {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("5")).unwrap();
        std::fs::write(folder.path().join("5/environ"), environ).unwrap();
        DeclaredResource::read(&ProcRoot::at(folder.path()), 5)
    }

    fn name(environ: &[u8]) -> Option<String> {
        read(environ).service_name.map(String::from)
    }

    #[test]
    fn the_service_name_wins_over_the_attributes() {
        let both = b"A=1\0OTEL_RESOURCE_ATTRIBUTES=service.name=b,service.version=1%2E2\0OTEL_SERVICE_NAME=a\0Z=9\0";
        let declared = read(both);
        assert_eq!(declared.service_name.as_deref(), Some("a"));
        assert_eq!(declared.service_version.as_deref(), Some("1.2"));
        assert_eq!(name(b"OTEL_RESOURCE_ATTRIBUTES=service.name=b\0"), Some("b".into()));
        assert_eq!(
            name(b"OTEL_SERVICE_NAME=last and unterminated"),
            Some("last and unterminated".into())
        );
    }

    #[test]
    fn other_variables_and_lookalikes_are_skipped() {
        assert_eq!(
            name(b"XOTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAMES=b\0otel_service_name=c\0"),
            None
        );
        assert_eq!(name(b"X=OTEL_SERVICE_NAME=a\0"), None);
        assert_eq!(name(b"OTEL_SERVICE_NAME=\0"), None);
        assert_eq!(name(b""), None);
    }

    #[test]
    fn unlisted_attributes_are_forgotten() {
        let declared = read(b"OTEL_RESOURCE_ATTRIBUTES=password=hunter2,service.namespace=shop\0");
        assert_eq!(declared.service_namespace.as_deref(), Some("shop"));
        assert!(!format!("{declared:?}").contains("hunter2"));
    }

    #[test]
    fn any_error_discards_the_whole_variable() {
        for broken in [
            "service.name=a,oops",
            "service.name=a%2",
            "service.name=%zz",
            "=x,service.name=a",
            "service.name=%ff",
            "service.name=a,other=%4",
        ] {
            let environ = format!("OTEL_RESOURCE_ATTRIBUTES={broken}\0");
            assert_eq!(read(environ.as_bytes()), DeclaredResource::default(), "{broken}");
        }
    }

    #[test]
    fn spaces_and_empty_members_are_tolerated_and_values_decoded() {
        let declared =
            read(b"OTEL_RESOURCE_ATTRIBUTES= service.name = my%20shop%2Cnorth , ,deployment.environment=prod,\0");
        assert_eq!(declared.service_name.as_deref(), Some("my shop,north"));
        assert_eq!(declared.deployment_environment.as_deref(), Some("prod"));
        let newer = read(b"OTEL_RESOURCE_ATTRIBUTES=deployment.environment=a,deployment.environment.name=b\0");
        assert_eq!(newer.deployment_environment.as_deref(), Some("b"));
    }

    #[test]
    fn over_long_values_and_control_characters_are_ignored() {
        let long = format!("OTEL_SERVICE_NAME={}\0", "x".repeat(VALUE_BYTES + 1));
        assert_eq!(name(long.as_bytes()), None);
        assert_eq!(name(b"OTEL_SERVICE_NAME=a\x1b[2J\0"), None);
        let one = format!("OTEL_SERVICE_NAME={}\0", "x".repeat(ATTRIBUTE_BYTES + 1));
        assert_eq!(name(one.as_bytes()), None);
    }

    #[test]
    fn a_name_across_chunks_is_found() {
        for pad in 8170..8200 {
            let mut environ = format!("P={}\0", "p".repeat(pad)).into_bytes();
            environ.extend_from_slice(b"OTEL_SERVICE_NAME=edge\0");
            assert_eq!(name(&environ), Some("edge".into()), "padding {pad}");
        }
    }
}
