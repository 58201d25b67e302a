//! What `deploy/` holds: accepted by the schema, the agent and systemd; and enough to run with, no more.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use k8s_openapi::api::core::v1::Volume;
use rustix::process::Signal;
use serde_json::Value;
use spanwire_tests::agent::{command, STOP_LIMIT};
use spanwire_tests::cases::Cases;
use spanwire_tests::http;
use spanwire_tests::kernel::Inventory;
use spanwire_tests::manifests::{repository, Manifests};
use spanwire_tests::place::{agent_binary, free_port, program, Place};
use spanwire_tests::pod;
use spanwire_tests::service::{Launch, Service, Target};

/// From start to ready; a busy machine loads programs slowly.
const READY_LIMIT: Duration = Duration::from_secs(30);
const UNIT: &str = "deploy/systemd/spanwire.service";

#[test]
fn manifests_are_objects_of_kubernetes_that_belong_together() {
    let manifests = Manifests::read().unwrap();
    let (pod, container) = (manifests.pod().unwrap(), manifests.container().unwrap());
    assert_eq!(
        manifests.order[0].1, "Namespace",
        "kubectl makes it first: {:?}",
        manifests.order
    );
    let namespace = manifests.namespace.metadata.name.as_deref().unwrap();
    for metadata in [
        &manifests.service_account.metadata,
        &manifests.config_map.metadata,
        &manifests.daemon_set.metadata,
    ] {
        assert_eq!(metadata.namespace.as_deref(), Some(namespace));
    }
    assert_eq!(pod.service_account_name, manifests.service_account.metadata.name);
    let spec = manifests.daemon_set.spec.as_ref().unwrap();
    let labels = spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
    let selected = spec.selector.match_labels.as_ref().unwrap();
    assert!(!selected.is_empty() && selected.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let update = spec.update_strategy.as_ref().unwrap().rolling_update.as_ref().unwrap();
    assert_eq!(serde_json::to_value(&update.max_unavailable).unwrap(), 1);
    let image = container.image.as_deref().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image, format!("spanwire:{version}"), "the image is this version's");

    let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|volume| &volume.name).collect();
    let mounted: BTreeSet<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| &mount.name)
        .collect();
    assert_eq!(volumes, mounted);
    assert!(container.resources.as_ref().unwrap().limits.is_some());
    assert!(container.resources.as_ref().unwrap().requests.is_some());
}

#[test]
fn the_daemon_set_asks_for_no_more_than_it_says() {
    let manifests = Manifests::read().unwrap();
    let (pod, container) = (manifests.pod().unwrap(), manifests.container().unwrap());
    assert_eq!(pod.host_pid, Some(true));
    assert_eq!((pod.host_network, pod.host_ipc), (None, None));
    assert_eq!(pod.automount_service_account_token, Some(false));
    let capabilities = manifests.capabilities().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(["ALL".to_owned()].as_slice()));
    assert_eq!(
        manifests.granted().unwrap(),
        ["cap_bpf", "cap_perfmon", "cap_net_admin", "cap_sys_ptrace"]
    );
    let context = container.security_context.as_ref().unwrap();
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    let of_host = |volume: &Volume| Some(volume.host_path.as_ref()?.path.clone());
    for volume in pod.volumes.iter().flatten() {
        let mounts = container.volume_mounts.iter().flatten();
        let mount = mounts.into_iter().find(|mount| mount.name == volume.name).unwrap();
        match of_host(volume).as_deref() {
            Some("/sys" | "/sys/fs/cgroup") => assert_eq!(mount.read_only, Some(true), "{}", volume.name),
            // The lock: nothing else of the node is writable.
            Some("/run/spanwire") | None => {}
            Some(path) => assert!(path.is_empty(), "{path} of the node is mounted"),
        }
    }
}

/// The configurations are accepted, and speak of the paths and ports that are around them.
#[test]
fn the_agent_accepts_the_configurations() {
    let manifests = Manifests::read().unwrap();
    let place = Place::new("deploy").unwrap();
    let text = manifests.configuration().unwrap();
    let of_map = place.write("spanwire.yaml", text).unwrap();
    for file in [of_map, repository("deploy/systemd/spanwire.yaml")] {
        check_configuration(&file).unwrap();
    }
    // What stands there as an example would be accepted, too.
    let uncommented = text.lines().map(example).collect::<Vec<_>>().join("\n");
    assert!(uncommented.contains("\nexport:\n") && uncommented.contains("\ncapture:\n"));
    check_configuration(&place.write("examples.yaml", &uncommented).unwrap()).unwrap();

    let config: Value = serde_yaml_ng::from_str(text).unwrap();
    let container = manifests.container().unwrap();
    let port = container.ports.as_ref().unwrap()[0].container_port;
    assert!(config["health"].as_str().unwrap().ends_with(&format!(":{port}")));
    let store = config["store"]["path"].as_str().unwrap();
    let mounts = container.volume_mounts.as_ref().unwrap();
    assert!(mounts
        .iter()
        .any(|mount| mount.mount_path == store && mount.read_only.is_none()));
    let args = container.args.as_ref().unwrap();
    let named = Path::new(args.last().unwrap());
    assert_eq!(named.file_name().unwrap(), "spanwire.yaml");
    assert!(mounts
        .iter()
        .any(|mount| Path::new(&mount.mount_path) == named.parent().unwrap()));
}

fn check_configuration(file: &Path) -> Result<()> {
    let output = command(&["config", "check", &file.display().to_string()])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {text}", output.status);
    Ok(())
}

/// A line of an example without its `# `; other lines, and comments that are sentences, as they are.
fn example(line: &str) -> &str {
    match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with("  ") || rest.ends_with(':') => rest,
        _ => line,
    }
}

#[test]
fn the_unit_is_accepted_by_systemd_and_agrees_with_the_manifest() {
    let text = std::fs::read_to_string(repository(UNIT)).unwrap();
    let mut granted = Manifests::read().unwrap().granted().unwrap();
    granted.sort();
    for key in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        assert_eq!(capabilities_of(&text, key), granted, "{key}");
    }
    // The machine's processes must stay visible.
    assert_eq!(setting(&text, "ProtectProc"), "default");
    assert_eq!(setting(&text, "ProcSubset"), "all");
    assert_eq!(setting(&text, "PrivateUsers"), "no");
    assert_eq!(setting(&text, "StateDirectory"), "spanwire");

    // Verified with a program and a configuration that are there.
    let place = Place::new("unit").unwrap();
    let installed = "/usr/bin/spanwire";
    assert!(setting(&text, "ExecStart").starts_with(&format!("{installed} run ")));
    let here = agent_binary().unwrap().display().to_string();
    let unit = place
        .write("spanwire.service", &text.replace(installed, &here))
        .unwrap();
    let verify = |unit: &Path| {
        let output = Command::new(program("systemd-analyze").unwrap())
            .args(["verify", "--man=no"])
            .arg(unit)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let about = |said: &str| -> Vec<String> {
        let lines = said.lines().filter(|line| line.contains("spanwire"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(about(&verify(&unit)), Vec::<String>::new());
    // That it can say no, too.
    let misspelt = text.replace("ProtectSystem=strict", "ProtectSystem=stritc\nProtectSistem=strict");
    let wrong = place.write("spanwire-wrong.service", &misspelt).unwrap();
    let complaints = about(&verify(&wrong)).join("\n");
    assert!(
        complaints.contains("stritc") && complaints.contains("ProtectSistem"),
        "{complaints}"
    );
}

/// The value of a key that stands once.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_default();
    assert!(values.next().is_none(), "{key} stands twice");
    value
}

/// Sorted, in lower case.
fn capabilities_of(unit: &str, key: &str) -> Vec<String> {
    let mut names: Vec<_> = setting(unit, key).split(' ').map(str::to_lowercase).collect();
    names.sort();
    names
}

/// Every path the container file takes from the checkout is there, and is what it is taken for.
#[test]
fn the_container_file_uses_what_is_there() {
    let text = std::fs::read_to_string(repository("deploy/Containerfile")).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let commands: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("RUN ")).collect();
    assert!(commands.contains(&"./x build --release"));
    let help = Command::new(repository("x"))
        .args(["build", "--help"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("--release"), "{help:?}");
    let (script, rest) = commands
        .iter()
        .find_map(|command| {
            command
                .split_once(' ')
                .filter(|(program, _)| program.starts_with("deploy/"))
        })
        .unwrap();
    assert!(repository(script).is_file(), "{script}");
    // The image is what the script made, from what the build made, and starts what the script put there.
    assert_eq!(rest, "target/release/spanwire /image");
    assert!(lines.contains(&"COPY --from=build /image/ /"));
    assert!(lines.contains(&"ENTRYPOINT [\"/usr/bin/spanwire\"]"));
    assert!(lines.contains(&"USER 0:0"));
    let stages: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(stages, ["debian:bookworm AS build", "scratch"]);
}

/// The page says of every capability what it is for.
#[test]
fn the_page_has_a_row_for_each_capability() {
    let page = std::fs::read_to_string(repository("docs/deploy.md")).unwrap();
    let rows: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split_once('`'))
        .map(|(name, _)| format!("cap_{}", name.to_lowercase()))
        .collect();
    for name in Manifests::read().unwrap().granted().unwrap() {
        assert!(rows.contains(&name), "{name} has no row in docs/deploy.md: {rows:?}");
    }
}

/// The image, started as the manifests say.
#[test]
fn the_image_runs_with_exactly_the_manifests_capabilities() {
    let manifests = Manifests::read().unwrap();
    let place = Place::new("pod").unwrap();
    let root = pod::image_root(&place).unwrap();
    let mut cases = Cases::new("deploy");
    cases.run("doctor", || doctor(&manifests, &root, &place));
    cases.run("run", || traces_as_a_pod(&manifests, &root, &place));
    cases.run("addresses", || knows_addresses_of_containers(&manifests, &root, &place));
    cases.run("unit", || traces_as_a_unit(&place));
    cases.finish();
}

/// Nothing that matters is missing in there.
fn doctor(manifests: &Manifests, root: &Path, place: &Place) -> Result<String> {
    let mut service = pod::start(manifests, root, Some(&["doctor", "--json"]), place)?;
    let status = service.wait_end(READY_LIMIT)?;
    ensure!(status.success(), "{status}: {}", service.log());
    let rows: Vec<Value> = serde_json::from_str(&service.log()).with_context(|| service.log())?;
    let state = |feature: &str| {
        let row = rows.iter().find(|row| row["feature"] == feature);
        row.and_then(|row| row["state"].as_str()).unwrap_or_default().to_owned()
    };
    for name in manifests.granted()? {
        ensure!(state(&name.to_uppercase()) == "yes", "{name}: {}", service.log());
    }
    ensure!(
        state("CAP_SYS_ADMIN") == "no",
        "more than was granted: {}",
        service.log()
    );
    for feature in [
        "kernel BTF",
        "cgroup v2",
        "host pid namespace",
        "locked memory",
        "the agent's programs",
    ] {
        ensure!(state(feature) == "yes", "{feature}: {}", service.log());
    }
    let no = rows.iter().filter(|row| row["state"] == "no");
    let no: Vec<_> = no.filter_map(|row| row["feature"].as_str()).collect();
    Ok(format!("tracing is possible; without: {}", no.join(", ")))
}

/// Becomes ready by its own probes, traces another user's service by the name that declares, and leaves nothing.
fn traces_as_a_pod(manifests: &Manifests, root: &Path, place: &Place) -> Result<String> {
    let container = manifests.container()?;
    let before = Inventory::now()?;
    let mut agent = pod::start(manifests, root, None, place)?;
    let started = Instant::now();
    let pid = agent.pid();
    let ready = container.readiness_probe.as_ref().context("no readinessProbe")?;
    wait_ready(&mut agent, |agent| pod::probe(agent, container, ready))?;
    let took = started.elapsed();
    for (probe, name) in [
        (&container.startup_probe, "startupProbe"),
        (&container.liveness_probe, "livenessProbe"),
        (&container.readiness_probe, "readinessProbe"),
    ] {
        let probe = probe.as_ref().with_context(|| format!("no {name}"))?;
        let (status, body) = pod::probe(&agent, container, probe)?;
        ensure!(status == 200, "{name}: {status}: {body}");
    }
    let held = exactly(pid, &manifests.granted()?)?;
    let spans = traces_another_user(&agent, place)?;
    let node = knows_its_node(&agent)?;
    agent.signal(Signal::TERM)?;
    let status = agent.wait_end(STOP_LIMIT)?;
    ensure!(status.success(), "ended with {status}:\n{}", agent.log());
    Inventory::wait_gone_since(&before, Duration::from_secs(5))?;
    Ok(format!(
        "ready in {took:?} with {held}; {spans}; {node}; gone without a trace"
    ))
}

/// The unit's own sandbox is systemd's; what can be tried without it is its user, capabilities and configuration.
fn traces_as_a_unit(place: &Place) -> Result<String> {
    let unit = std::fs::read_to_string(repository(UNIT))?;
    let granted = capabilities_of(&unit, "AmbientCapabilities");
    // As setpriv wants them: `-all,+bpf,+perfmon`.
    let names: Vec<_> = granted.iter().map(|name| name.replace("cap_", "+")).collect();
    let set = format!("-all,{}", names.join(","));
    let store = place.join("unit-store");
    std::fs::create_dir(&store)?;
    // Where another user can read it: a checkout may lie in root's own directory.
    let config = place.write(
        "unit.yaml",
        &std::fs::read_to_string(repository("deploy/systemd/spanwire.yaml"))?,
    )?;
    let agent = place.join("unit-spanwire");
    std::fs::copy(agent_binary()?, &agent)?;
    let (agent, store) = (agent.display().to_string(), store.display().to_string());
    // What StateDirectory and RuntimeDirectory would have made.
    let text = format!(
        "set -eu\nip link set lo up\nmkdir -p /run/spanwire\nmount -t tmpfs -o mode=755,uid=65534 tmpfs /run/spanwire\n\
         chown 65534 '{store}'\nexec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
         --bounding-set='{set}' --inh-caps='{set}' --ambient-caps='{set}' '{agent}' run --config '{}' --store '{store}'\n",
        config.display()
    );
    let script = place.write("unit.sh", &text)?;
    let mut agent = Launch::new("unit", program("unshare")?, place)
        .args(["--mount", "--net", "--", "sh"])
        .arg(script)
        .spawn()?;
    let started = Instant::now();
    wait_ready(&mut agent, |agent| pod::fetch(agent, "http://127.0.0.1:4319/readyz"))?;
    let took = started.elapsed();
    let held = exactly(agent.pid(), &granted)?;
    let spans = traces_another_user(&agent, place)?;
    agent.signal(Signal::TERM)?;
    let status = agent.wait_end(STOP_LIMIT)?;
    ensure!(status.success(), "ended with {status}:\n{}", agent.log());
    Ok(format!("ready in {took:?} as user 65534 with {held}; {spans}"))
}

/// The span of the service that [`traces_another_user`] asked bears the node's name, not the pod's.
fn knows_its_node(agent: &Service) -> Result<String> {
    let named = attribute("host.name", pod::NODE);
    let traces = traces_of(agent, "of-another-user")?;
    ensure!(
        !traces.is_empty() && traces.iter().all(|trace| trace.contains(&named)),
        "no {named} in {traces:?}"
    );
    Ok(format!("host.name is {}", pod::NODE))
}

/// A service in a network namespace that is neither the agent's nor the node's, asked from another address there by
/// someone who is not captured: the peer is on this node, so the span is a root.
fn knows_addresses_of_containers(manifests: &Manifests, root: &Path, place: &Place) -> Result<String> {
    const NAME: &str = "in-a-container";
    let args = [
        "run",
        "--config",
        "/etc/spanwire/spanwire.yaml",
        "--exclude",
        "comm=curl",
    ];
    let mut agent = pod::start(manifests, root, Some(&args), place)?;
    wait_ready(&mut agent, |agent| pod::fetch(agent, "http://127.0.0.1:4319/readyz"))?;
    let service = Launch::new(NAME, program("unshare")?, place)
        .args(["--net", "--", "sh", "-c"])
        .arg(
            "ip link set lo up && ip addr add 10.98.0.1/32 dev lo && ip addr add 10.98.0.2/32 dev lo && \
             exec /usr/bin/python3 -m http.server --bind 10.98.0.1 --directory /usr/share/doc 8000",
        )
        .spawn()?;
    let start = Instant::now();
    loop {
        // A new process is observed until it is classified, and tells its address: the second request comes after that,
        // from an address of which nothing else tells.
        let asked = Command::new(program("nsenter")?)
            .args(["--target", &service.pid().to_string(), "--net", "--"])
            .arg(program("curl")?)
            .args(["--silent", "--rate", "1/s", "--output", "/dev/null"])
            .args(["--interface", "10.98.0.1", "http://10.98.0.1:8000/"])
            .args(["--next", "--silent", "--output", "/dev/null"])
            .args(["--interface", "10.98.0.2", "http://10.98.0.1:8000/"])
            .status()?;
        std::thread::sleep(Duration::from_millis(1_900));
        for trace in traces_of(&agent, NAME)? {
            if trace.contains(&attribute("network.peer.address", "10.98.0.2")) {
                let root = attribute("spanwire.parent.source", "root");
                ensure!(trace.contains(&root), "no {root} in {trace}");
                return Ok("a peer at another address of a container is on this node: root".to_owned());
            }
        }
        ensure!(
            start.elapsed() < READY_LIMIT,
            "no trace of it; curl: {asked}; its log:\n{}\nthe agent's:\n{}",
            service.log(),
            agent.log()
        );
    }
}

/// The newest traces of a service, as OTLP/JSON.
fn traces_of(agent: &Service, service: &str) -> Result<Vec<String>> {
    let url = format!("http://127.0.0.1:4319/api/traces?service={service}&since=5m");
    let (_, body) = pod::fetch(agent, &url)?;
    let list: Value = serde_json::from_str(&body).context(body)?;
    let ids = list["traces"].as_array().into_iter().flatten();
    ids.filter_map(|trace| trace["traceId"].as_str())
        .map(|id| Ok(pod::fetch(agent, &format!("http://127.0.0.1:4319/api/traces/{id}"))?.1))
        .collect()
}

/// An attribute as OTLP/JSON has it.
fn attribute(key: &str, value: &str) -> String {
    format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#)
}

fn wait_ready(agent: &mut Service, ask: impl Fn(&Service) -> Result<(u16, String)>) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = agent.ended()? {
            bail!("ended before it was ready ({status}):\n{}", agent.log());
        }
        let answer = ask(agent);
        if matches!(answer, Ok((200, _))) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < READY_LIMIT,
            "not ready: {answer:?}; its log:\n{}",
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Fails unless the process has these capabilities and can never have others.
fn exactly(pid: u32, granted: &[String]) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim).with_context(|| format!("no {name}"))
    };
    let mut expected = granted.to_vec();
    expected.sort();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let held = pod::decode(field(set)?)?;
        ensure!(held == expected, "{set}: {held:?}, expected {expected:?}");
    }
    ensure!(field("NoNewPrivs")? == "1", "new privileges are possible");
    Ok(expected.join(" "))
}

/// Neither root nor the user of [`traces_as_a_unit`]: what is told by its files alone is not told to the agent.
const ANOTHER_USER: &str = "65533";

/// A service of another user, in another network namespace than the agent: its span, under the name it declares.
fn traces_another_user(agent: &Service, place: &Place) -> Result<String> {
    let target = Target::loopback(free_port()?);
    let mut service = Launch::new("of-another-user", program("setpriv")?, place)
        .args(["--reuid", ANOTHER_USER, "--regid", ANOTHER_USER, "--clear-groups", "--"])
        .arg(program("python3")?)
        .args([
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            "--directory",
            "/usr/share/doc",
        ])
        .arg(target.port()?.to_string())
        .start(std::slice::from_ref(&target))?;
    let start = Instant::now();
    let url = "http://127.0.0.1:4319/api/traces?service=of-another-user&since=5m";
    loop {
        let response = http::get(&target, "/")?;
        ensure!(response.status == 200, "the service answered {}", response.status);
        std::thread::sleep(Duration::from_millis(500));
        let (status, body) = pod::fetch(agent, url)?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{status}: {body}"))?;
        let traces = answer["traces"].as_array().with_context(|| body.clone())?;
        if !traces.is_empty() {
            ensure!(service.ended()?.is_none(), "the service ended");
            return Ok(format!(
                "another user's service traced by name after {:?}",
                start.elapsed()
            ));
        }
        if start.elapsed() > READY_LIMIT {
            let (_, services) = pod::fetch(agent, "http://127.0.0.1:4319/api/services")?;
            bail!("no trace of it; services: {services}\n{}", agent.log());
        }
    }
}
