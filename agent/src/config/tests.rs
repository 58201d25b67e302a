#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
use std::time::Duration;

use super::*;

/// The sample of the reference page, with every key that may be set today.
const EVERY_KEY: &str = include_str!("every_key.yaml");

fn refused(text: &str) -> Vec<String> {
    let error = Config::from_yaml("c.yaml", text).unwrap_err();
    error.problems.iter().map(ToString::to_string).collect()
}

fn accepted(text: &str) -> Config {
    Config::from_yaml("c.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn nothing_is_the_default() {
    for text in [
        "",
        "# nothing\n",
        "---\n",
        "{}",
        "null",
        "capture:\nstore: ~\nexport: null\n",
    ] {
        assert_eq!(accepted(text), Config::default(), "{text:?}");
    }
    let config = Config::default();
    assert!(config.capture.enabled && config.capture.opaque && config.store.enabled);
    assert_eq!(config.api.listen.to_string(), "127.0.0.1:4319");
    assert_eq!(config.capture.exclude, [Selector::kube_probes()]);
    assert!(config.exporters.is_empty());
}

#[test]
fn every_key_is_accepted() {
    let config = accepted(EVERY_KEY);
    assert_eq!(config.capture.include.len(), 2);
    assert_eq!(config.capture.include[0].to_string(), "exe=*/nginx");
    assert_eq!(config.capture.exclude[0].to_string(), "exe=/usr/sbin/sshd,uid=0");
    assert_eq!(config.capture.headers[0].as_str(), "x-tenant-id");
    assert_eq!(
        config.tenant,
        Some(Tenant::Header(HeaderName::parse("x-tenant-id").unwrap()))
    );
    let main = &config.exporters[0];
    assert_eq!((main.name.as_str(), main.protocol), ("main", ExportProtocol::OtlpGrpc));
    assert_eq!(main.endpoint.to_string(), "http://127.0.0.1:4317/");
    let http = &config.exporters[1];
    assert_eq!(http.endpoint.to_string(), "https://otel.example:443/otlp/v1/traces");
    assert_eq!(
        (http.compression, http.timeout),
        (Compression::Gzip, Duration::from_secs(5))
    );
    assert_eq!(http.headers[0].0.as_str(), "authorization");
    assert_eq!(http.headers[0].1.expose(), "Bearer abc");
    assert_eq!(config.store.retention.errors, Duration::from_hours(14 * 24));
    assert_eq!(config.store.retention.size_bytes, 1 << 30);
    assert_eq!(config.health.unwrap().port(), 4320);
    assert_eq!(config.limits, Limits::default());
    assert!(config.local_ranges.contains("10.1.2.3".parse().unwrap()));
    assert!(!config.local_ranges.contains("192.168.1.1".parse().unwrap()));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let cases: &[(&str, &str)] = &[
        (
            "captur: {}\n",
            "c.yaml:1:1: captur: unknown key, expected capture, propagate, ingress, export, tenant, route, sampling, \
             store, api, health, limits or overrides",
        ),
        ("- a\n", "c.yaml:1:1: expected a mapping of keys to values"),
        ("capture: yes\n", "c.yaml:1:10: capture: expected a mapping of keys to values"),
        ("capture:\n  enabled: yes\n", "c.yaml:2:12: capture.enabled: expected true or false, found \"yes\""),
        ("capture: {enabled: [true]}", "c.yaml:1:20: capture.enabled: expected true or false, found a list"),
        (
            "capture:\n  paths: sometimes\n",
            "c.yaml:2:10: capture.paths: expected templated, raw or off, found \"sometimes\"",
        ),
        (
            "capture: {client_address: none}",
            "c.yaml:1:27: capture.client_address: expected full, prefix or off, found \"none\"",
        ),
        ("capture:\n  opaque: true\n  opaque: true\n", "c.yaml:3:3: capture.opaque: the key stands here twice"),
        (
            "capture:\n  include:\n    - exe: nginx\n",
            "c.yaml:3:12: capture.include[0].exe: expected a glob that begins with / or * (paths are matched whole), \
             found \"nginx\"",
        ),
        (
            "capture:\n  include: [{port: 80}, {port: 70000}]\n",
            "c.yaml:2:32: capture.include[1].port: expected a port from 1 to 65535, found \"70000\"",
        ),
        (
            "capture: {include: [{path: /x}]}",
            "c.yaml:1:22: capture.include[0].path: path can only exclude: a request is known too late to include it",
        ),
        (
            "capture: {include: [{name: x}]}",
            "c.yaml:1:22: capture.include[0].name: unknown key, expected exe, comm, port, pid, cgroup, container or uid",
        ),
        (
            "capture: {exclude: [{}]}",
            "c.yaml:1:21: capture.exclude[0]: expected at least one key: an empty item would match everything",
        ),
        ("capture: {include: {port: 80}}", "c.yaml:1:20: capture.include: expected a list"),
        (
            "capture:\n  headers: [x-tenant, Authorization]\n",
            "c.yaml:2:23: capture.headers[1]: a header that carries credentials is never kept, found \"Authorization\"",
        ),
        (
            "capture: {headers: [x-a, X-A]}",
            "c.yaml:1:26: capture.headers[1]: the name stands here twice",
        ),
        (
            "capture: {headers: [a, b, c, d, e, f, g, h, i]}",
            "c.yaml:1:20: capture.headers: expected at most 8 names, found 9",
        ),
        (
            "capture: {headers: [a, b, c, d, e, f, g, h]}\ntenant: {header: x-tenant}",
            "c.yaml:2:18: tenant.header: expected at most 8 names together with those of capture.headers",
        ),
        ("propagate: {enabled: on}", "c.yaml:1:22: propagate.enabled: expected auto, true or false, found \"on\""),
        (
            "propagate: {exclude: [{path: /x}]}",
            "c.yaml:1:24: propagate.exclude[0].path: path does not select here: whose requests may be changed is decided when a connection is made",
        ),
        (
            "capture: {sdk: maybe}",
            "c.yaml:1:16: capture.sdk: expected auto, keep or skip, found \"maybe\"",
        ),
        (
            "propagate: {destinations: [10.0.0.0/40]}",
            "c.yaml:1:28: propagate.destinations[0]: expected an address range such as 10.0.0.0/8 or fc00::/7, found \
             \"10.0.0.0/40\"",
        ),
        (
            "ingress: {enabled: sometimes}",
            "c.yaml:1:20: ingress.enabled: expected auto, true or false, found \"sometimes\"",
        ),
        (
            "ingress: {headers: [x-trace, Content-Length]}",
            "c.yaml:1:30: ingress.headers[1]: expected a header that says nothing else, server-timing for instance",
        ),
        (
            "ingress: {headers: [a, b, c, d, e]}",
            "c.yaml:1:20: ingress.headers: expected at most 4 headers with names of less than 512 bytes in all",
        ),
        (
            "ingress: {trust: [10.0.0.0/40]}",
            "c.yaml:1:19: ingress.trust[0]: expected an address range such as 10.0.0.0/8 or fc00::/7, found \"10.0.0.0/40\"",
        ),
        (
            "export:\n  - protocol: kafka\n",
            "c.yaml:2:15: export[0].protocol: exporting by kafka is not built yet: it comes with the control \
             capability; expected otlp_grpc or otlp_http, found \"kafka\"",
        ),
        (
            "export: [{protocol: grpc}]",
            "c.yaml:1:21: export[0].protocol: expected otlp_grpc or otlp_http, found \"grpc\"",
        ),
        (
            "export: [{endpoint: \"127.0.0.1:4317\"}]",
            "c.yaml:1:21: export[0].endpoint: expected a URL that begins with http:// or https://",
        ),
        (
            "export: [{endpoint: \"http://me:hunter2@h\"}]",
            "c.yaml:1:21: export[0].endpoint: expected a URL without user and password: credentials belong into headers",
        ),
        (
            "export: [{endpoint: \"http://h:4318/v1/traces\"}]",
            "c.yaml:1:21: export[0].endpoint: expected a URL without a path: otlp_grpc takes none, otlp_http does",
        ),
        ("export: [{}, {}]", "c.yaml:1:14: export[1]: expected a name of its own: \"main\" is taken"),
        (
            "export: [{name: store}]",
            "c.yaml:1:17: export[0].name: expected another name: \"store\" is the embedded store's in the metrics, \
             found \"store\"",
        ),
        ("export: [{compression: zstd}]", "c.yaml:1:24: export[0].compression: expected none or gzip, found \"zstd\""),
        (
            "export: [{timeout: 10}]",
            "c.yaml:1:20: export[0].timeout: expected a duration such as 10s, 5ms or 14d, found \"10\"",
        ),
        ("export: [{timeout: 0s}]", "c.yaml:1:20: export[0].timeout: expected at least 1ms, found \"0s\""),
        (
            "export: [{headers: {a b: x}}]",
            "c.yaml:1:21: export[0].headers.a b: expected a header name such as x-tenant-id",
        ),
        (
            "export: [{headers: {authorization: \"hunter2\\n\"}}]",
            "c.yaml:1:36: export[0].headers.authorization: expected a value of visible ASCII characters",
        ),
        (
            "export: [{headers: {authorization: }}]",
            "c.yaml:1:34: export[0].headers.authorization: expected the header's value, found nothing",
        ),
        (
            "tenant: {namespace: true}",
            "c.yaml:1:10: tenant.namespace: taking the tenant from the namespace is not built yet: it comes with the \
             control capability; expected header",
        ),
        (
            "tenant: {header: Cookie}",
            "c.yaml:1:18: tenant.header: a header that carries credentials is never kept, found \"Cookie\"",
        ),
        (
            "route: [{to: [main]}]",
            "c.yaml:1:8: route: routing is not built yet: it comes with the control capability",
        ),
        (
            "sampling: {head: {ratio: 0.5}}",
            "c.yaml:1:26: sampling.head.ratio: sampling is not built yet: it comes with the control capability; \
             expected 1.0",
        ),
        (
            "sampling: {head: {ratio: NaN}}",
            "c.yaml:1:26: sampling.head.ratio: expected a ratio from 0.0 to 1.0, found \"NaN\"",
        ),
        (
            "sampling: {tail: {policies: [x]}}",
            "c.yaml:1:18: sampling.tail: tail sampling is not built yet: it comes with the control capability",
        ),
        (
            "store: {retention: {size: 1 GB}}",
            "c.yaml:1:27: store.retention.size: expected a size such as 256MiB or 1GiB, found \"1 GB\"",
        ),
        (
            "store: {retention: {age: 2d, errors: 1d}}",
            "c.yaml:1:38: store.retention.errors: expected at least retention.age, found \"1d\"",
        ),
        (
            "api: {listen: \"0.0.0.0:4319\"}",
            "c.yaml:1:15: api.listen: expected a loopback address: off loopback a bearer token file is required \
             (api.token_file)",
        ),
        (
            "api: {listen: 4319}",
            "c.yaml:1:15: api.listen: expected an address and port such as 127.0.0.1:4319, found \"4319\"",
        ),
        (
            "health: [1]",
            "c.yaml:1:9: health: expected an address and port such as 127.0.0.1:4319, found a list",
        ),
        ("limits: {memory: 1MiB}", "c.yaml:1:18: limits.memory: expected at least 64MiB, found \"1MiB\""),
        (
            "limits: {cpu: 0}",
            "c.yaml:1:15: limits.cpu: expected a number of processors such as 0.5, at least 0.05, found \"0\"",
        ),
        (
            "limits: {connections: -1}",
            "c.yaml:1:23: limits.connections: expected a number of connections from 1024 to 4194304, found \"-1\"",
        ),
        (
            "overrides: [{match: {namespace: shop}, capture: off}]",
            "c.yaml:1:12: overrides: overriding by node, namespace, workload or pod is not built yet: it comes with \
             the kubernetes capability",
        ),
        ("capture: &a {}\nstore: *a\n", "c.yaml:2:8: aliases are not read here: write the value out"),
    ];
    for (text, message) in cases {
        assert_eq!(refused(text), [*message], "{text}");
    }
}

#[test]
fn all_problems_are_said_at_once_and_in_order() {
    let text = "limits:\n  cpus: 1\ncapture:\n  paths: x\nstore:\n  retention: {size: x, aage: 1}\n";
    let places: Vec<String> = refused(text)
        .iter()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        places,
        [
            "c.yaml:2:3 limits.cpus",
            "c.yaml:4:10 capture.paths",
            "c.yaml:6:21 store.retention.size",
            "c.yaml:6:24 store.retention.aage"
        ]
    );
}

#[test]
fn broken_yaml_names_the_place() {
    for text in ["capture: [", "a: b: c", "a: 1\n- b", "capture: {enabled: \"tru"] {
        let lines = refused(text);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].starts_with("c.yaml:1:") || lines[0].starts_with("c.yaml:2:"),
            "{lines:?}"
        );
        assert!(lines[0].contains(": not YAML: "), "{lines:?}");
    }
}

#[test]
fn later_capabilities_are_accepted_where_they_switch_nothing_on() {
    accepted(
        "propagate: {enabled: auto, include: [], exclude: [{port: 443}], destinations: [10.0.0.0/8]}\n\
         ingress: {enabled: auto, headers: [server-timing], trust: [], services: []}\n\
         route: []\nsampling: {head: {ratio: 1.0}, tail: {}, adaptive: {}}\noverrides: []\ntenant: {}\n",
    );
    accepted("propagate: {enabled: false}\ningress: {enabled: false}\nsampling: {head: {ratio: 1}}\n");
}

#[test]
fn probes_stay_excluded_unless_the_file_speaks_of_user_agents() {
    let shown =
        |text: &str| -> Vec<String> { accepted(text).capture.exclude.iter().map(ToString::to_string).collect() };
    assert_eq!(
        shown("capture: {exclude: [{uid: 0}]}"),
        ["uid=0", "user_agent=kube-probe/*"]
    );
    assert_eq!(
        shown("capture: {exclude: [{user_agent: \"*bot*\"}]}"),
        ["user_agent=*bot*"]
    );
    assert_eq!(shown("capture: {exclude: []}"), Vec::<String>::new());
}

#[test]
fn at_most_32_selectors_of_a_kind() {
    let list = |count: usize| {
        (1..=count)
            .map(|port| format!("{{port: {port}}}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let config = accepted(&format!(
        "capture: {{include: [{}], exclude: [{}]}}",
        list(32),
        list(32)
    ));
    assert_eq!(config.capture.include.len(), 32);
    assert_eq!(
        refused(&format!("capture: {{include: [{}]}}", list(33))),
        ["c.yaml:1:20: capture.include: expected at most 32 items, found 33"]
    );
}

#[test]
fn errors_are_kept_as_long_as_everything_else_at_least() {
    let retention = accepted("store: {retention: {age: 30d}}").store.retention;
    assert_eq!(retention.errors, retention.age);
}

#[test]
fn off_loopback_with_a_token_file() {
    let api = accepted("api: {listen: \"0.0.0.0:4319\", token_file: /run/token}").api;
    assert_eq!(api.token_file.unwrap().to_str(), Some("/run/token"));
}

#[test]
fn secrets_do_not_show() {
    let config = accepted("export: [{headers: {authorization: hunter2}}]");
    assert!(!format!("{config:?}").contains("hunter2"));
}

fn load(text: &str, flags: &Flags, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, text).unwrap();
    let environment = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::load(Some(&file), flags, &environment)
}

#[test]
fn flags_go_over_the_file() {
    let text = "capture: {include: [{port: 80}], exclude: [{uid: 0}]}\nexport: [{name: a}]\nstore: {enabled: false}\n";
    let flags = Flags {
        include: vec!["exe=*/nginx,port=8080".into()],
        exclude: vec!["path=/healthz".into()],
        otlp: Some("http://c:4318".into()),
        store: Some("data".into()),
        listen: Some("127.0.0.1:0".into()),
        no_store: false,
    };
    let config = load(text, &flags, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://ignored")]).unwrap();
    assert_eq!(config.capture.include.len(), 1);
    assert_eq!(config.capture.include[0].to_string(), "exe=*/nginx,port=8080");
    let excluded: Vec<String> = config.capture.exclude.iter().map(ToString::to_string).collect();
    assert_eq!(excluded, ["uid=0", "user_agent=kube-probe/*", "path=/healthz"]);
    assert_eq!(config.exporters.len(), 1);
    assert_eq!(config.exporters[0].endpoint.to_string(), "http://c:4318/v1/traces");
    assert!(config.store.enabled);
    assert_eq!(config.store.path.to_str(), Some("data"));
    assert_eq!(config.api.listen.port(), 0);
}

#[test]
fn no_store_wins_over_the_file() {
    let flags = Flags {
        no_store: true,
        ..Flags::default()
    };
    assert!(!load("store: {enabled: true}", &flags, &[]).unwrap().store.enabled);
}

#[test]
fn the_flag_for_otlp_chooses_the_protocol() {
    for (url, protocol, shown) in [
        ("http://c:4317", ExportProtocol::OtlpGrpc, "http://c:4317/"),
        ("http://c", ExportProtocol::OtlpGrpc, "http://c:4317/"),
        ("http://c:9", ExportProtocol::OtlpGrpc, "http://c:9/"),
        ("http://c:4318", ExportProtocol::OtlpHttp, "http://c:4318/v1/traces"),
        (
            "http://c:9/x/v1/traces",
            ExportProtocol::OtlpHttp,
            "http://c:9/x/v1/traces",
        ),
    ] {
        let flags = Flags {
            otlp: Some(url.into()),
            ..Flags::default()
        };
        let exporter = load("", &flags, &[]).unwrap().exporters.remove(0);
        assert_eq!(
            (exporter.protocol, exporter.endpoint.to_string().as_str()),
            (protocol, shown),
            "{url}"
        );
    }
}

#[test]
fn the_environment_counts_when_nothing_else_names_an_exporter() {
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")];
    let names = |text: &str| -> Vec<String> {
        let config = load(text, &Flags::default(), &variables).unwrap();
        config.exporters.into_iter().map(|exporter| exporter.name).collect()
    };
    assert_eq!(names(""), ["environment"]);
    assert_eq!(names("export:"), ["environment"]);
    assert_eq!(names("export: [{name: a}]"), ["a"]);
    assert_eq!(names("export: []"), Vec::<String>::new());
}

#[test]
fn bad_flags_are_named_beside_what_is_wrong_in_the_file() {
    let flags = Flags {
        include: vec!["nginx".into()],
        exclude: vec!["port=x".into()],
        otlp: Some("c:4317".into()),
        listen: Some("0.0.0.0:1".into()),
        ..Flags::default()
    };
    let error = load("capture: {paths: x}", &flags, &[]).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines[0].ends_with("c.yaml:1:18: capture.paths: expected templated, raw or off, found \"x\""));
    assert_eq!(
        lines[1..],
        [
            "--include: expected a selector such as exe=*/nginx,port=80",
            "--exclude: port: expected a port from 1 to 65535",
            "--otlp: expected a URL that begins with http:// or https://",
            "--listen: expected a loopback address: off loopback a bearer token file is required (api.token_file)",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = std::path::Path::new("no/such.yaml");
    let error = Config::load(Some(missing), &Flags::default(), &Environment::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("no/such.yaml: cannot read the configuration: "),
        "{error}"
    );
    let big = "#".repeat(yaml::FILE_BYTES_MAX + 1);
    assert!(load(&big, &Flags::default(), &[])
        .unwrap_err()
        .to_string()
        .ends_with("larger than 1048576 bytes"));
    let directory = tempfile::tempdir().unwrap();
    let latin1 = directory.path().join("latin1.yaml");
    std::fs::write(&latin1, b"a: \xe9").unwrap();
    assert!(Config::check(&latin1).is_err());
}

/// The keys the parser asks for when every section is there.
fn asked_keys() -> std::collections::BTreeSet<String> {
    let mut reader = Reader::new("every_key.yaml");
    let root = yaml::parse(EVERY_KEY).unwrap().unwrap();
    parse::document(&mut reader, &root);
    assert_eq!(reader.problems, []);
    reader.asked
}

#[test]
fn the_reference_page_describes_every_key_and_no_other() {
    let page = include_str!("../../../docs/configuration.md");
    let keys = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let described: std::collections::BTreeSet<String> = keys
        .map(|(key, _)| key.to_owned())
        .filter(|key| !key.starts_with("OTEL_") && !key.starts_with("--"))
        .collect();
    let asked = asked_keys();
    let missing: Vec<_> = asked.difference(&described).collect();
    let stale: Vec<_> = described.difference(&asked).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not described: {missing:?}; described, not read: {stale:?}"
    );
}

#[test]
fn the_sample_on_the_reference_page_is_the_one_tested() {
    let page = include_str!("../../../docs/configuration.md");
    assert!(
        page.contains(EVERY_KEY),
        "docs/configuration.md must hold agent/src/config/every_key.yaml as it is"
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_accepted_or_refused(text in "[a-z{}\\[\\]:,\\n \"*&|>-]{0,120}") {
        let _ = Config::from_yaml("c.yaml", &text);
    }

    #[test]
    fn any_value_of_a_key_is_accepted_or_refused(key in "(paths|headers|include|exclude|enabled)", value in "\\PC{0,40}") {
        let _ = Config::from_yaml("c.yaml", &format!("capture:\n  {key}: {value}\n"));
    }
}
