//! The Dockerfile, the compose file and the Kubernetes manifests agree with orderd, its configuration and each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orderd::config::{Config, DEFAULT_FILE, DEFAULT_PATH, Sources};
use serde_json::{Value, json};

/// Time needed after the drain, for the last confirms and for closing the ledger.
const TIME_AFTER_DRAIN: Duration = Duration::from_secs(30);

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn file(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn manifest(name: &str, kind: &str) -> Value {
    let found = documents(name).into_iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("{name} has no {kind}"))
}

fn compose() -> Value {
    documents("config/docker/compose.yaml").remove(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}")).iter().map(text).collect()
}

/// The arguments of all Dockerfile instructions of this name, with continuation lines joined.
fn instructions(name: &str) -> Vec<String> {
    let whole = file("Dockerfile").replace("\\\n", " ");
    let lines = whole.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn instruction(name: &str) -> String {
    instructions(name).pop().unwrap_or_else(|| panic!("the Dockerfile has no {name}"))
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').unwrap_or_else(|| panic!("no port: {address}")).1
}

/// Loads a configuration as in a container, with files for its secrets. Also returns the TOML table.
fn load(toml: &str) -> (Config, toml::Table) {
    let directory = tempfile::tempdir().unwrap();
    let (file, secret) = (directory.path().join("orderd.toml"), directory.path().join("secret"));
    fs::write(&file, toml).unwrap();
    fs::write(&secret, "a-secret-of-many-bytes").unwrap();
    let user =
        format!("admin.users=[{{name = 'x', role = 'viewer', token_file = {:?}}}]", secret.display().to_string());
    let settings = [format!("broker.password_file={}", secret.display()), user];
    let sources = Sources { file: Some(file), settings: settings.into(), ..orderd::handlers::sources() };
    let loaded = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
    (loaded.config, toml.parse().unwrap())
}

/// Asserts that a configuration suits a container: the admin listener is reachable from outside, secrets come from files
/// in the directory `secrets`, the ledger is on the volume, and the drain fits into the time before the container is killed.
fn assert_suits_a_container(config: &Config, raw: &toml::Table, secrets: &str, grace: Duration) {
    let default = Config::load(&Sources { file: Some(path("config/orderd.toml")), ..orderd::handlers::sources() })
        .unwrap()
        .config;
    assert_eq!(config.ledger.directory, default.ledger.directory);
    assert_eq!(config.queues, default.queues);
    let names = |config: &Config| config.consumers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(config), names(&default));
    assert!(config.admin.listen.unwrap().ip().is_unspecified());
    assert_eq!(config.admin.listen.unwrap().port(), default.admin.listen.unwrap().port());
    let value = |section: &str, key: &str| raw[section][key].as_str().unwrap().to_owned();
    assert_eq!(value("broker", "password_file"), format!("{secrets}/broker_password"));
    let user = &raw["admin"]["users"][0];
    let of_user = |key: &str| user[key].as_str().unwrap();
    assert_eq!((of_user("role"), of_user("token_file")), ("viewer", &*format!("{secrets}/prometheus_token")));
    assert!(config.shutdown.drain_timeout + TIME_AFTER_DRAIN <= grace, "orderd would be killed while it drains");
}

#[test]
fn the_image_starts_and_checks_orderd_with_existing_commands() {
    let exec = |form: &str| -> Vec<String> { serde_json::from_str(form).unwrap_or_else(|e| panic!("{form}: {e}")) };
    let health = instruction("HEALTHCHECK");
    let health = exec(health.split_once(" CMD ").unwrap().1);
    let start = [exec(&instruction("ENTRYPOINT")), exec(&instruction("CMD"))].concat();
    assert_eq!((start[1..].join(" "), health[1..].join(" ")), ("run".to_owned(), "probe".to_owned()));
    for command in [start, health] {
        assert_eq!(command[0], "/usr/local/bin/orderd");
        let mut orderd = crate::orderd();
        assert!(orderd.args(&command[1..]).arg("--help").stdout(Stdio::null()).status().unwrap().success());
    }
}

#[test]
fn the_image_matches_the_configuration() {
    let config: toml::Table = DEFAULT_FILE.parse().unwrap();
    let of = |section: &str, key: &str| config[section][key].as_str().unwrap().to_owned();
    assert_eq!(instruction("VOLUME"), of("ledger", "directory"));
    assert_eq!(instruction("WORKDIR"), of("ledger", "directory"));
    assert_eq!(instruction("EXPOSE"), port_of(&of("admin", "listen")));
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    let user = instruction("USER");
    let (user, group) = user.split_once(':').unwrap();
    assert!([user, group].iter().all(|id| id.parse::<u32>().unwrap() > 0), "{user}:{group}");
    assert!(file("Dockerfile").contains(&format!(">/image{DEFAULT_PATH}")));
    let package: toml::Table = file("Cargo.toml").parse().unwrap();
    let numbers = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    let built_with = instructions("ARG").into_iter().find_map(|arg| arg.strip_prefix("RUST_VERSION=").map(numbers));
    assert!(built_with.unwrap() >= numbers(package["package"]["rust-version"].as_str().unwrap()));
}

#[test]
fn everything_copied_into_the_image_is_in_the_build_context() {
    let ignored = file(".dockerignore");
    let included: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "the whole checkout is in the build context");
    let copies: Vec<String> = instructions("COPY").into_iter().filter(|copy| !copy.starts_with("--from")).collect();
    assert!(copies.len() >= 3, "{copies:?}");
    for copy in &copies {
        let words: Vec<&str> = copy.split(' ').collect();
        for source in &words[..words.len() - 1] {
            assert!(path(source).exists(), "there is no {source}");
            let matches = |path: &&str| *path == *source || path.starts_with(&format!("{source}/"));
            assert!(included.iter().any(matches), ".dockerignore excludes {source}");
        }
    }
}

#[test]
fn the_compose_file_runs_orderd_with_a_valid_configuration() {
    let compose = compose();
    let services = &compose["services"];
    let orderd = &services["orderd"];
    let grace = text(&orderd["stop_grace_period"]).strip_suffix('s').unwrap().parse().unwrap();
    let (config, raw) = load(&file("config/docker/orderd/orderd.toml"));
    assert_suits_a_container(&config, &raw, "/run/secrets", Duration::from_secs(grace));
    assert_eq!(texts(&orderd["secrets"]), ["broker_password", "prometheus_token"]);
    assert_eq!(orderd["image"], format!("orderd:{}", env!("CARGO_PKG_VERSION")));
    for host in [config.broker.addresses[0].host.as_str(), config.management.urls[0].split(['/', ':']).nth(3).unwrap()]
    {
        assert!(services.get(host).is_some(), "there is no service {host}");
    }
    let mounted: Vec<_> = texts(&orderd["volumes"]);
    let directory = Path::new(DEFAULT_PATH).parent().unwrap().to_str().unwrap();
    assert!(mounted.contains(&format!("./orderd:{directory}:ro").as_str()), "{mounted:?}");
    assert!(mounted.contains(&format!("ledger:{}", config.ledger.directory.display()).as_str()), "{mounted:?}");

    let prometheus = documents("config/docker/prometheus/prometheus.yml").remove(0);
    let job = &prometheus["scrape_configs"][0];
    let target = text(&job["static_configs"][0]["targets"][0]);
    let (host, port) = target.split_once(':').unwrap();
    assert!(services.get(host).is_some() && config.admin.hosts.iter().any(|known| known == host), "{target}");
    assert_eq!(port, config.admin.listen.unwrap().port().to_string());
    assert!(file("config/prometheus/orderd.rules.yml").contains(&format!("up{{job={}}}", job["job_name"])));
    let token = text(&job["authorization"]["credentials_file"]).strip_prefix("/run/secrets/").unwrap();
    assert!(texts(&services["prometheus"]["secrets"]).contains(&token));
}

#[test]
fn the_compose_file_grants_only_the_needed_privileges() {
    let compose = compose();
    let script = file("config/docker/secrets.sh");
    for (name, service) in compose["services"].as_object().unwrap() {
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        for port in service.get("ports").map(texts).unwrap_or_default() {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for volume in texts(&service["volumes"]) {
            let source = volume.split(':').next().unwrap();
            let exists = match source.starts_with('.') {
                true => path("config/docker").join(source).exists() && volume.ends_with(":ro"),
                false => compose["volumes"].get(source).is_some(),
            };
            assert!(exists, "{name}: {volume}");
        }
        for secret in service["secrets"].as_array().unwrap() {
            let secret = secret.as_str().unwrap_or_else(|| text(&secret["source"]));
            let file_name = text(&compose["secrets"][secret]["file"]).strip_prefix("./secrets/").unwrap();
            assert!(
                script.contains(&format!("make_secret {file_name}\n"))
                    || script.contains(&format!("secrets/{file_name}\n"))
            );
        }
        for (other, depends) in service.get("depends_on").and_then(Value::as_object).into_iter().flatten() {
            let other = &compose["services"][other];
            assert!(depends["condition"] == "service_started" || other.get("healthcheck").is_some(), "{name}");
        }
    }
    assert_eq!(compose["services"]["orderd"]["read_only"], true);
    assert!(
        compose["services"]["orderd"].get("ports").is_none(),
        "the admin listener must be reachable only for Prometheus"
    );
}

#[test]
fn kubernetes_runs_orderd_with_a_valid_configuration() {
    let of = |kind| manifest("config/kubernetes/orderd.yaml", kind);
    let (config_map, set, service) = (of("ConfigMap"), of("StatefulSet"), of("Service"));
    let pod = &set["spec"]["template"]["spec"];
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let (config, raw) = load(text(&config_map["data"]["orderd.toml"]));
    assert_suits_a_container(&config, &raw, "/run/secrets/orderd", grace);

    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("orderd:{}", env!("CARGO_PKG_VERSION")));
    let port = config.admin.listen.unwrap().port();
    assert_eq!(container["ports"], json!([{"name": "admin", "containerPort": port}]));
    assert_eq!(service["spec"]["ports"], json!([{"name": "admin", "port": port, "targetPort": "admin"}]));
    let pages = file("src/admin/pages/mod.rs");
    for (probe, page) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": page, "port": "admin"}), "{probe}");
        assert!(pages.contains(&format!(".route(\"{page}\"")), "orderd does not answer {page}");
    }
    let mounts = container["volumeMounts"].as_array().unwrap();
    let volume = |name: &str| pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).cloned();
    for (name, at) in [
        ("config", Path::new(DEFAULT_PATH).parent().unwrap()),
        ("secrets", Path::new("/run/secrets/orderd")),
        ("ledger", config.ledger.directory.as_path()),
    ] {
        let mount = mounts.iter().find(|mount| mount["name"] == name).unwrap();
        assert_eq!(Path::new(text(&mount["mountPath"])), at, "{name}");
        // Kubernetes does not update a file that is mounted with subPath.
        assert!(mount.get("subPath").is_none(), "{name}");
    }
    assert_eq!(volume("config").unwrap()["configMap"]["name"], config_map["metadata"]["name"]);
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "ledger");
}

#[test]
fn a_pod_of_orderd_has_no_privileges() {
    let set = manifest("config/kubernetes/orderd.yaml", "StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let user = instruction("USER");
    let (user, group) = user.split_once(':').unwrap();
    let of_pod = &pod["securityContext"];
    assert_eq!(of_pod["runAsNonRoot"], true);
    assert_eq!(of_pod["runAsUser"].to_string(), user);
    assert_eq!((of_pod["runAsGroup"].to_string().as_str(), of_pod["fsGroup"].to_string().as_str()), (group, group));
    assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn the_scaler_and_the_monitor_refer_to_existing_objects() {
    let set = manifest("config/kubernetes/orderd.yaml", "StatefulSet");
    let config_map = manifest("config/kubernetes/orderd.yaml", "ConfigMap");
    let (config, _) = load(text(&config_map["data"]["orderd.toml"]));
    let scaler = manifest("config/kubernetes/scaler.yaml", "ScaledObject");
    let authentication = manifest("config/kubernetes/scaler.yaml", "TriggerAuthentication");
    let target = &scaler["spec"]["scaleTargetRef"];
    assert_eq!((&target["kind"], &target["name"]), (&set["kind"], &set["metadata"]["name"]));
    assert!(scaler["spec"]["minReplicaCount"].as_u64().unwrap() >= 1);
    let triggers = scaler["spec"]["triggers"].as_array().unwrap();
    assert!(!triggers.is_empty());
    for trigger in triggers {
        let (queue, value) = (text(&trigger["metadata"]["queueName"]), text(&trigger["metadata"]["value"]));
        let consumer = config.consumers.values().find(|consumer| consumer.queue == queue);
        let slots = consumer.unwrap_or_else(|| panic!("no consumer has {queue}")).slots();
        assert!(
            value.parse::<u64>().unwrap() > 2 * u64::from(slots),
            "the deliveries that one consumer of {queue} holds would trigger scaling"
        );
        assert_eq!(trigger["authenticationRef"]["name"], authentication["metadata"]["name"]);
    }
    let monitor = manifest("config/kubernetes/monitor.yaml", "ServiceMonitor");
    let service = manifest("config/kubernetes/orderd.yaml", "Service");
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(endpoint["authorization"]["credentials"]["key"], "prometheus_token");
    assert!(file("src/admin/pages/mod.rs").contains(&format!(".route({}", endpoint["path"])));
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }
}
