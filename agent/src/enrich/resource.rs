//! Who made a span: the resource of a process. docs/service-names.md has the rules.

use std::borrow::Cow;
use std::sync::Arc;

use crate::discover::{Process, ProcessInfo};
use crate::span::{Attribute, Resource, Value};

/// What is the same for every process of a node.
#[derive(Clone, Debug)]
pub struct Node {
    /// `host.name`.
    pub host_name: Arc<str>,
    /// `telemetry.distro.version`.
    pub distro_version: &'static str,
}

const CONTAINER_ID_SHORT: usize = 12;

/// Builds a process's resource.
pub fn resource(process: &Process, node: &Node) -> Resource {
    let info = &process.info;
    let declared = &info.declared;
    let service_name: Arc<str> = service_name(info).into();
    let mut attributes: Vec<Attribute> = Vec::with_capacity(12);
    let mut put = |name: &'static str, value: Value| attributes.push((Cow::Borrowed(name), value));
    let text = |text: &str| Value::Str(text.into());

    put("service.name", Value::Str(Arc::clone(&service_name)));
    if let Some(namespace) = &declared.service_namespace {
        put("service.namespace", text(namespace));
    }
    if let Some(version) = &declared.service_version {
        put("service.version", text(version));
    }
    put("service.instance.id", text(&instance_id(info, node)));
    if let Some(environment) = &declared.deployment_environment {
        put("deployment.environment.name", text(environment));
    }
    put("host.name", Value::Str(Arc::clone(&node.host_name)));
    put("process.pid", Value::Int(info.pid.into()));
    if !info.exe_name().is_empty() {
        put("process.executable.name", text(info.exe_name()));
    }
    if let Some(runtime) = process.verdict().runtime_name {
        put("process.runtime.name", Value::Static(runtime));
    }
    if let Some(container) = &info.place.container_id {
        put("container.id", text(container));
    }
    put("telemetry.distro.name", Value::Static("spanwire"));
    put("telemetry.distro.version", Value::Static(node.distro_version));
    Resource {
        service_name,
        attributes,
    }
}

/// The declared name, else the container, else executable and script.
pub fn service_name(info: &ProcessInfo) -> Cow<'_, str> {
    if let Some(name) = &info.declared.service_name {
        return Cow::Borrowed(name);
    }
    if let Some(id) = &info.place.container_id {
        return Cow::Borrowed(id.get(..CONTAINER_ID_SHORT).unwrap_or(id));
    }
    let program = without_minor_version(if info.exe_name().is_empty() {
        &info.comm
    } else {
        info.exe_name()
    });
    match &info.script {
        _ if program.is_empty() => Cow::Borrowed("unknown_service"),
        Some(script) => Cow::Owned(format!("{program}:{script}")),
        None => Cow::Borrowed(program),
    }
}

/// `python3.11` is `python3`: a name outlives a patch.
fn without_minor_version(program: &str) -> &str {
    let minor = program.trim_end_matches(|c: char| c.is_ascii_digit());
    match minor.strip_suffix('.') {
        Some(major) if minor.len() < program.len() && major.ends_with(|c: char| c.is_ascii_digit()) => major,
        _ => program,
    }
}

/// The declared one, else what makes a process unique on this node and stays the same when the agent restarts.
fn instance_id(info: &ProcessInfo, node: &Node) -> String {
    match &info.declared.service_instance_id {
        Some(declared) => declared.to_string(),
        None => format!("{}:{}:{}", node.host_name, info.pid, info.start_ticks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::DeclaredResource;

    fn info(exe: &str, script: Option<&str>) -> ProcessInfo {
        ProcessInfo {
            pid: 7,
            start_ticks: 99,
            exe: Some(exe.into()),
            script: script.map(Into::into),
            ..ProcessInfo::default()
        }
    }

    #[test]
    fn names_in_their_order() {
        let mut info = info("/usr/bin/python3.11", Some("app"));
        assert_eq!(service_name(&info), "python3:app");
        info.place.container_id = Some("0123456789abcdef".repeat(4).into());
        assert_eq!(service_name(&info), "0123456789ab");
        info.declared.service_name = Some("shop".into());
        assert_eq!(service_name(&info), "shop");
    }

    #[test]
    fn names_of_programs() {
        for (exe, script, expected) in [
            ("/usr/sbin/nginx", None, "nginx"),
            ("/usr/bin/node", Some("server"), "node:server"),
            ("/usr/bin/ruby3.1", Some("puma"), "ruby3:puma"),
            ("/usr/sbin/php-fpm8.2", None, "php-fpm8"),
            ("/opt/java/bin/java", Some("shop"), "java:shop"),
            ("/usr/bin/app-1.2", None, "app-1"),
            ("/usr/bin/foo.1", None, "foo.1"),
            ("/usr/bin/python3", None, "python3"),
        ] {
            assert_eq!(service_name(&info(exe, script)), expected, "{exe}");
        }
        let nameless = ProcessInfo {
            comm: "worker".into(),
            ..ProcessInfo::default()
        };
        assert_eq!(service_name(&nameless), "worker");
        assert_eq!(service_name(&ProcessInfo::default()), "unknown_service");
    }

    #[test]
    fn all_attributes() {
        let node = Node {
            host_name: "node-a".into(),
            distro_version: "1.2.3",
        };
        let mut info = info("/usr/bin/node", Some("server"));
        info.place.container_id = Some("c".repeat(64).into());
        info.declared = DeclaredResource {
            service_name: Some("shop".into()),
            service_namespace: Some("eu".into()),
            service_version: Some("7".into()),
            service_instance_id: None,
            deployment_environment: Some("prod".into()),
        };
        let resource = resource(&Process::new(info), &node);
        let shown: Vec<String> = resource
            .attributes
            .iter()
            .map(|(name, value)| match value {
                Value::Str(text) => format!("{name}={text}"),
                Value::Static(text) => format!("{name}={text}"),
                other => format!("{name}={other:?}"),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "service.name=shop",
                "service.namespace=eu",
                "service.version=7",
                "service.instance.id=node-a:7:99",
                "deployment.environment.name=prod",
                "host.name=node-a",
                "process.pid=Int(7)",
                "process.executable.name=node",
                "process.runtime.name=nodejs",
                &format!("container.id={}", "c".repeat(64)),
                "telemetry.distro.name=spanwire",
                "telemetry.distro.version=1.2.3",
            ]
        );
        assert_eq!(&*resource.service_name, "shop");
    }
}
