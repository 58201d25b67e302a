//! The files of `deploy/manifests`, read as the API server would read them.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Capabilities, ConfigMap, Container, Namespace, PodSpec, ServiceAccount};
use serde_json::Value;

/// A file of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Every object of the folder.
pub struct Manifests {
    pub namespace: Namespace,
    pub service_account: ServiceAccount,
    pub config_map: ConfigMap,
    pub daemon_set: DaemonSet,
    /// File names in the order in which `kubectl apply -f FOLDER` takes them, each with its object's kind.
    pub order: Vec<(String, String)>,
}

impl Manifests {
    /// Reads the folder; a file with anything the published schema does not know is refused.
    pub fn read() -> Result<Self> {
        let folder = repository("deploy/manifests");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let (mut namespace, mut service_account, mut config_map, mut daemon_set) = (None, None, None, None);
        let mut order = Vec::new();
        for name in names {
            let text = std::fs::read_to_string(folder.join(&name))?;
            let value: Value = serde_yaml_ng::from_str(&text).with_context(|| name.clone())?;
            let kind = value["kind"].as_str().unwrap_or_default().to_owned();
            let twice = match kind.as_str() {
                "Namespace" => namespace
                    .replace(typed(&value).with_context(|| name.clone())?)
                    .is_some(),
                "ServiceAccount" => service_account
                    .replace(typed(&value).with_context(|| name.clone())?)
                    .is_some(),
                "ConfigMap" => config_map
                    .replace(typed(&value).with_context(|| name.clone())?)
                    .is_some(),
                "DaemonSet" => daemon_set
                    .replace(typed(&value).with_context(|| name.clone())?)
                    .is_some(),
                _ => bail!("{name}: an object of kind {kind:?}, which these tests do not know"),
            };
            ensure!(!twice, "{name}: a second {kind}");
            order.push((name, kind));
        }
        Ok(Self {
            namespace: namespace.context("no Namespace")?,
            service_account: service_account.context("no ServiceAccount")?,
            config_map: config_map.context("no ConfigMap")?,
            daemon_set: daemon_set.context("no DaemonSet")?,
            order,
        })
    }

    /// What the DaemonSet's pods are.
    pub fn pod(&self) -> Result<&PodSpec> {
        let spec = self.daemon_set.spec.as_ref().context("the DaemonSet has no spec")?;
        spec.template.spec.as_ref().context("the template has no spec")
    }

    /// Their only container.
    pub fn container(&self) -> Result<&Container> {
        match self.pod()?.containers.as_slice() {
            [container] => Ok(container),
            containers => bail!("{} containers, expected one", containers.len()),
        }
    }

    /// What the container is given and what is taken from it.
    pub fn capabilities(&self) -> Result<&Capabilities> {
        let context = self.container()?.security_context.as_ref();
        context
            .and_then(|context| context.capabilities.as_ref())
            .context("the container names no capabilities")
    }

    /// The capabilities the container is given, as libcap spells them: `cap_bpf`.
    pub fn granted(&self) -> Result<Vec<String>> {
        let add = self.capabilities()?.add.as_deref().unwrap_or_default();
        ensure!(!add.is_empty(), "the container is given no capability");
        Ok(add.iter().map(|name| format!("cap_{}", name.to_lowercase())).collect())
    }

    /// The agent's configuration file.
    pub fn configuration(&self) -> Result<&str> {
        let data = self.config_map.data.as_ref().context("the ConfigMap has no data")?;
        ensure!(
            data.len() == 1,
            "the ConfigMap holds {:?}, expected one file",
            data.keys()
        );
        Ok(data
            .get("spanwire.yaml")
            .context("the ConfigMap has no spanwire.yaml")?)
    }
}

/// Kubernetes' own types drop a key they do not know and a default that was written out says nothing; either way what
/// comes back is not what was written.
fn typed<T: serde::de::DeserializeOwned + serde::Serialize>(written: &Value) -> Result<T> {
    let object: T = serde_json::from_value(written.clone())?;
    let understood = serde_json::to_value(&object)?;
    let mut lost = Vec::new();
    differences("", written, &understood, &mut lost);
    ensure!(lost.is_empty(), "not in the schema: {}", lost.join(", "));
    Ok(object)
}

fn differences(path: &str, written: &Value, understood: &Value, lost: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(understood) => differences(&path, value, understood, lost),
                    None => lost.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) if written.len() == understood.len() => {
            for (index, (written, understood)) in written.iter().zip(understood).enumerate() {
                differences(&format!("{path}[{index}]"), written, understood, lost);
            }
        }
        (written, understood) if written == understood => {}
        _ => lost.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn refusal(yaml: &str) -> String {
        let value: Value = serde_yaml_ng::from_str(yaml).unwrap();
        format!("{:#}", typed::<DaemonSet>(&value).err().unwrap())
    }

    #[test]
    fn what_the_schema_does_not_know_is_named() {
        let head = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: x}\n";
        let spec = |pod: &str| {
            format!("{head}spec:\n  selector: {{}}\n  template: {{spec: {{containers: [{{name: x}}], {pod}}}}}\n")
        };
        let whole: Value = serde_yaml_ng::from_str(&spec("hostPID: true")).unwrap();
        assert!(typed::<DaemonSet>(&whole).is_ok());
        assert_eq!(
            refusal(&spec("hostPid: true")),
            "not in the schema: .spec.template.spec.hostPid"
        );
        assert!(refusal(&spec("hostPID: often")).contains("often"));
        assert!(refusal(&head.replace("apps/v1", "apps/v2")).contains("apps/v2"));
    }
}
