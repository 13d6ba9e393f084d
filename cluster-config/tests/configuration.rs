//! What a configuration means, what it may not say, and that it says where.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use understudy_config::{Config, HostPort, Isolation, LogFormat, OnDamage, Roles};

/// The least that a node is told.
const LEAST: &str =
    "[node]\nname = \"a\"\ndata_dir = \"/d\"\n[transport]\nlisten = \"127.0.0.1:7600\"\n";

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    fs::write(&path, text).unwrap();
    let env = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    let before = format!("{}/", dir.path().display());
    Config::load(&path, env).map_err(|errors| {
        let lines = errors.0.iter().map(|error| error.to_string());
        lines.map(|line| line.replace(&before, "")).collect()
    })
}

/// `LEAST` with `more` after it is refused with these beginnings of errors, and no others.
fn refuses(more: &str, env: &[(&str, &str)], errors: &[&str]) {
    let refused = load(&format!("{LEAST}{more}"), env).unwrap_err();
    let fits = refused.len() == errors.len()
        && refused
            .iter()
            .zip(errors)
            .all(|(seen, said)| seen.starts_with(said));
    assert!(fits, "{more:?} {env:?}: {refused:#?}, not {errors:#?}");
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = load(LEAST, &[]).unwrap();
    let listen = "127.0.0.1:7600".parse().unwrap();
    let gateway = "127.0.0.1:8080".parse().unwrap();
    let same = Config::development("a", "/d".into(), listen, gateway, Vec::new());
    assert_eq!(config, same);
    assert_eq!(config.transport.identity, Path::new("/d/identity"));
    assert_eq!(config.transport.advertise.to_string(), "127.0.0.1:7600");
    assert_eq!(config.transport.advertise.heart_port(), 7_601);
    assert_eq!(config.gateway.token_file, Path::new("/d/token"));
    assert_eq!(config.lease.ttl.as_millis(), 3_000);
    assert_eq!(
        (config.checkpoint.replicas, config.checkpoint.min_copies),
        (3, 2)
    );
    assert_eq!(config.store.on_damage, OnDamage::Rebuild);
    assert_eq!(config.log.level.as_str(), "info");
    assert_eq!(
        (config.browser.binary.as_deref(), config.browser.sandbox),
        (None, true)
    );
    assert_eq!(config.browser.isolation, Isolation::Context);
    assert!(config.browser.egress_allow.is_empty(), "nothing is open");
}

#[test]
fn every_example_is_valid_and_reads_back_as_it_was() {
    let check = |name: &str, holds: fn(&Config) -> bool| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name);
        let config = Config::load(&path, []).unwrap();
        assert!(holds(&config), "{config:#?}");
        assert_eq!(load(&config.to_toml(), &[]), Ok(config));
        1
    };
    let checked = check("single.toml", |config| config.checkpoint.min_copies == 1)
        + check("three-nodes.toml", |config| {
            config.transport.seeds.len() == 3
                && config.node.labels["zone"] == "z1"
                && config.browser.egress_allow.len() == 2
        })
        + check("two-nodes-and-a-witness.toml", |config| {
            config.node.roles.votes && !config.node.roles.works
        });
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    assert_eq!(fs::read_dir(examples).unwrap().count(), checked);
}

#[test]
fn whatever_is_written_reads_back_as_it_was() {
    let mut config = load(LEAST, &[]).unwrap();
    let seed = |text: &str| HostPort::from(text.parse::<std::net::SocketAddr>().unwrap());
    config.transport.seeds = vec![seed("[::1]:7600"), seed("127.0.0.1:1")];
    config
        .node
        .labels
        .insert("a \"label\"".into(), "= odd\n".into());
    config.log.format = LogFormat::Json;
    config.log.events = true;
    config.sandbox.memory_limit = 3 << 16;
    config.sandbox.call_limit = Duration::from_millis(2_500);
    config.sandbox.module_cache = (64 << 20) + 1;
    config.browser.binary = Some("/opt/a b/chrome".into());
    config.browser.isolation = Isolation::Process;
    config.browser.user = Some("nobody".into());
    config.browser.sandbox = false;
    config.browser.sessions = 1_000;
    let entries = ["shop.localhost:3000", "*.lan", "[fd00::1]:80", "10.0.0.0/8"];
    let entries = entries.map(understudy_protocol::workload::egress::Allow::parse);
    config.browser.egress_allow = entries.into_iter().map(Result::unwrap).collect();
    for (votes, works) in [(true, true), (true, false), (false, true), (false, false)] {
        config.node.roles = Roles { votes, works };
        assert_eq!(load(&config.to_toml(), &[]), Ok(config.clone()));
    }
}

#[test]
fn the_environment_goes_before_the_file() {
    let env = [
        ("UNDERSTUDY_NODE__NAME", "b"),
        ("UNDERSTUDY_NODE__ROLES", "worker"),
        ("UNDERSTUDY_NODE__LABELS", "zone=z1, disk = ssd"),
        (
            "UNDERSTUDY_TRANSPORT__SEEDS",
            "a.example.net:7600,[::1]:7600",
        ),
        ("UNDERSTUDY_CHECKPOINT__REPLICAS", "1"),
        ("UNDERSTUDY_LEASE__TTL", "750ms"),
        ("UNDERSTUDY_SANDBOX__MEMORY_LIMIT", "8MiB"),
        ("UNDERSTUDY_SANDBOX__GUESTS", "50"),
        (
            "UNDERSTUDY_BROWSER__EGRESS_ALLOW",
            "shop.localhost:3000, 10.0.0.0/8",
        ),
        ("UNDERSTUDY_BROWSER__SANDBOX", "false"),
        ("UNDERSTUDY_BROWSER__SESSIONS", "1"),
        ("UNDERSTUDY_TOKEN", "the command line's"),
        ("HOME", "/root"),
    ];
    let config = load(LEAST, &env).unwrap();
    assert_eq!(config.node.name, "b");
    assert_eq!(
        (config.sandbox.memory_limit, config.sandbox.guests),
        (8 << 20, 50)
    );
    assert_eq!(config.browser.egress_allow[1].to_string(), "10.0.0.0/8");
    assert!(!config.browser.sandbox);
    assert_eq!(config.browser.sessions, 1);
    assert_eq!(
        (config.node.roles.votes, config.node.roles.works),
        (false, true)
    );
    assert_eq!(config.node.labels["disk"], "ssd");
    assert_eq!(config.transport.seeds[1].to_string(), "[::1]:7600");
    assert_eq!(config.transport.seeds[1].host(), "::1");
    assert_eq!(config.checkpoint.min_copies, 1);
    assert_eq!(config.lease.ttl.duration(), Duration::from_millis(750));
}

#[test]
fn a_wrong_value_is_refused_where_it_stands() {
    for (more, error) in [
        (
            "[lease]\npreset = \"lam\"",
            "a.toml:7: lease.preset: \"lam\" is none of default, lan, wan, did you mean \"lan\"?",
        ),
        (
            "[lease]\nttl = \"3\"",
            "a.toml:7: lease.ttl: \"3\" should be a whole number and its unit",
        ),
        (
            "[lease]\nttl = 3000",
            "a.toml:7: lease.ttl: should be a text, but is the number 3000",
        ),
        (
            "[lease]\nttl = \"1ms\"",
            "a.toml:7: lease.ttl: 1ms is not from 250ms to 60000ms",
        ),
        (
            "[lease]\nttl = \"2000000h\"",
            "a.toml:7: lease.ttl: 7200000000000ms is not",
        ),
        (
            "[lease]\nttl = \"1s\"\npreset = \"lan\"",
            "a.toml:7: lease.ttl: contradicts `preset`",
        ),
        (
            "[checkpoint]\nreplicas = 2\nmin_copies = 3",
            "a.toml:8: checkpoint.min_copies: 3 is more than `replicas`",
        ),
        (
            "[checkpoint]\nreplicas = 0",
            "a.toml:7: checkpoint.replicas: 0 is not from 1 to 7",
        ),
        (
            "[checkpoint]\nreplicas = \"3\"",
            "a.toml:7: checkpoint.replicas: should be a whole number, but is the text \"3\"",
        ),
        (
            "[checkpoint]\nreplicas = 0xffffffffffffffff",
            "a.toml:7: checkpoint.replicas: should be a whole number, but is a number beyond",
        ),
        (
            "[gateway]\nlisten = \"0.0.0.0:8080\"",
            "a.toml:7: gateway.listen: 0.0.0.0:8080 is no loopback address",
        ),
        (
            "[gateway]\nlisten = \"localhost\"",
            "a.toml:7: gateway.listen: \"localhost\" should be",
        ),
        (
            "[gateway]\ntoken_file = \"token\"",
            "a.toml:7: gateway.token_file: token should be an absolute path",
        ),
        (
            "[sandbox]\nmemory_limit = \"1GiB\"",
            "a.toml:7: sandbox.memory_limit: 1GiB is more than 256MiB",
        ),
        (
            "[sandbox]\nmemory_limit = \"1KiB\"",
            "a.toml:7: sandbox.memory_limit: 1KiB is less than 64KiB",
        ),
        (
            "[sandbox]\nmemory_limit = \"256MB\"",
            "a.toml:7: sandbox.memory_limit: \"256MB\" should be a whole number and its unit (B, KiB",
        ),
        (
            "[sandbox]\ncall_cpu = \"15ms\"",
            "a.toml:7: sandbox.call_cpu: 15ms should be a multiple of 10ms",
        ),
        (
            "[sandbox]\ncall_limit = \"1min\"",
            "a.toml:7: sandbox.call_limit: 60s is not from 10ms to 10s",
        ),
        (
            "[sandbox]\ncall_cpu = \"2s\"\ncall_limit = \"1s\"",
            "a.toml:8: sandbox.call_limit: 1s is less than `call_cpu`, which is 2s",
        ),
        (
            "[sandbox]\nguests = 0",
            "a.toml:7: sandbox.guests: 0 is not from 1 to 8000",
        ),
        (
            "[sandbox]\nfunction_instance = 3",
            "a.toml:7: sandbox.function_instance: there is no such key, did you mean \"function_instances\"?",
        ),
        (
            "[sandbox]\nmodule_cache = \"1MiB\"",
            "a.toml:7: sandbox.module_cache: 1MiB is less than 64MiB",
        ),
        (
            "[browser]\nbinary = \"chromium\"",
            "a.toml:7: browser.binary: chromium should be an absolute path",
        ),
        (
            "[browser]\nisolation = \"proces\"",
            "a.toml:7: browser.isolation: \"proces\" is none of context, process, did you mean \"process\"?",
        ),
        (
            "[browser]\nuser = \"root\"",
            "a.toml:7: browser.user: root is no unprivileged user",
        ),
        (
            "[browser]\nuser = \"a:b\"",
            "a.toml:7: browser.user: \"a:b\" should be a user's name",
        ),
        (
            "[browser]\nsandbox = \"off\"",
            "a.toml:7: browser.sandbox: should be true or false, but is the text \"off\"",
        ),
        (
            "[browser]\nsessions = 0",
            "a.toml:7: browser.sessions: 0 is not from 1 to 1000",
        ),
        (
            "[browser]\nsessions = 1001",
            "a.toml:7: browser.sessions: 1001 is not from 1 to 1000",
        ),
        (
            "[browser]\nsessions = 4\nwarm = 2",
            "a.toml:8: browser.warm: there is no such key",
        ),
        (
            "[browser]\nidle_limit = \"2min\"",
            "a.toml:7: browser.idle_limit: there is no such key",
        ),
        (
            "[browser]\negress_allow = \"a\"",
            "a.toml:7: browser.egress_allow: should be a list",
        ),
        (
            "[browser]\negress_allow = [\"a\", \"http://b\"]",
            "a.toml:7: browser.egress_allow: \"http://b\" should be",
        ),
        (
            "[browser]\negress_allow = [\"10.0.0.1/8\"]",
            "a.toml:7: browser.egress_allow: \"10.0.0.1/8\" begins at 10.0.0.0: write \"10.0.0.0/8\"",
        ),
        (
            "[store]\non_damage = true",
            "a.toml:7: store.on_damage: should be a text, but is true or false",
        ),
        (
            "[log]\nlevel = \"loud\"",
            "a.toml:7: log.level: \"loud\" is none of",
        ),
        (
            "[log]\nformat = 1.5",
            "a.toml:7: log.format: should be a text",
        ),
        (
            "[log]\nevents = \"of\"",
            "a.toml:7: log.events: \"of\" is none of",
        ),
    ] {
        refuses(more, &[], &[error]);
    }
}

#[test]
fn a_wrong_variable_is_refused_by_its_name() {
    for (name, value, error) in [
        (
            "UNDERSTUDY_NODE__NAME",
            "a b",
            "UNDERSTUDY_NODE__NAME: node.name: \"a b\" should be 1 to 63",
        ),
        (
            "UNDERSTUDY_NODE__NAME",
            "",
            "UNDERSTUDY_NODE__NAME: node.name",
        ),
        (
            "UNDERSTUDY_NODE__DATA_DIR",
            "d",
            "UNDERSTUDY_NODE__DATA_DIR: node.data_dir: d should be an absolute",
        ),
        (
            "UNDERSTUDY_NODE__DATADIR",
            "/d",
            "UNDERSTUDY_NODE__DATADIR: node.datadir: there is no such key, did you mean \"data_dir\"?",
        ),
        (
            "UNDERSTUDY_NOED__NAME",
            "a",
            "UNDERSTUDY_NOED__NAME: noed: there is no such section, did you mean \"node\"?",
        ),
        (
            "UNDERSTUDY_NODE__ROLES",
            "",
            "UNDERSTUDY_NODE__ROLES: node.roles: a node without a role",
        ),
        (
            "UNDERSTUDY_NODE__ROLES",
            "witness,worker",
            "UNDERSTUDY_NODE__ROLES: node.roles: a witness votes and does nothing else",
        ),
        (
            "UNDERSTUDY_NODE__ROLES",
            "witness,gateway",
            "UNDERSTUDY_NODE__ROLES: node.roles: a witness votes and does nothing else",
        ),
        (
            "UNDERSTUDY_NODE__ROLES",
            "gateway,voter",
            "UNDERSTUDY_NODE__ROLES: node.roles: every node answers",
        ),
        (
            "UNDERSTUDY_NODE__ROLES",
            "wittness",
            "UNDERSTUDY_NODE__ROLES: node.roles: \"wittness\" is none of voter, worker, witness, gateway, did you mean \"witness\"?",
        ),
        (
            "UNDERSTUDY_NODE__LABELS",
            "zone",
            "UNDERSTUDY_NODE__LABELS: node.labels: \"zone\" should be written name=value",
        ),
        (
            "UNDERSTUDY_TRANSPORT__LISTEN",
            "127.0.0.1:65535",
            "UNDERSTUDY_TRANSPORT__LISTEN: transport.listen: port 65535 leaves no room",
        ),
        (
            "UNDERSTUDY_TRANSPORT__LISTEN",
            "127.0.0.1:0",
            "UNDERSTUDY_TRANSPORT__LISTEN: transport.listen: the port cannot be 0",
        ),
        (
            "UNDERSTUDY_TRANSPORT__LISTEN",
            "[::]:7600",
            "UNDERSTUDY_TRANSPORT__LISTEN: transport.advertise: is needed where",
        ),
        (
            "UNDERSTUDY_TRANSPORT__ADVERTISE",
            "0.0.0.0:7600",
            "UNDERSTUDY_TRANSPORT__ADVERTISE: transport.advertise: nobody can dial",
        ),
        (
            "UNDERSTUDY_TRANSPORT__ADVERTISE",
            "a:65535",
            "UNDERSTUDY_TRANSPORT__ADVERTISE: transport.advertise: port 65535",
        ),
        (
            "UNDERSTUDY_TRANSPORT__SEEDS",
            "a",
            "UNDERSTUDY_TRANSPORT__SEEDS: transport.seeds: \"a\" should be a host and a port",
        ),
        (
            "UNDERSTUDY_TRANSPORT__SEEDS",
            "::1:7600",
            "UNDERSTUDY_TRANSPORT__SEEDS: transport.seeds: \"::1:7600\" should be",
        ),
        (
            "UNDERSTUDY_TRANSPORT__SEEDS",
            "a b:7600",
            "UNDERSTUDY_TRANSPORT__SEEDS: transport.seeds",
        ),
        (
            "UNDERSTUDY_CHECKPOINT__REPLICAS",
            "three",
            "UNDERSTUDY_CHECKPOINT__REPLICAS: checkpoint.replicas: should be a whole number, but is \"three\"",
        ),
    ] {
        refuses("", &[(name, value)], &[error]);
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    refuses(
        "seed = []\n[checkpont]\nreplicas = 3\n[gateway]\nlisten = 8080\n[log]\nlevel = \"inf\"",
        &[("UNDERSTUDY_LEASE__TTL", "1")],
        &[
            "a.toml:6: transport.seed: there is no such key, did you mean \"seeds\"?",
            "UNDERSTUDY_LEASE__TTL: lease.ttl",
            "a.toml:10: gateway.listen: should be a text, but is the number 8080",
            "a.toml:12: log.level: \"inf\" is none of error, warn, info, debug, trace, did you mean \"info\"?",
            "a.toml:7: checkpont: there is no such section, did you mean \"checkpoint\"?",
        ],
    );
}

#[test]
fn what_is_needed_is_asked_for() {
    let errors = load("", &[]).unwrap_err();
    assert_eq!(errors[0], "a.toml: node.name: is needed");
    assert_eq!(errors[1], "a.toml: node.data_dir: is needed");
    assert!(errors[2].starts_with("a.toml: transport.advertise: is needed where `listen`"));
    assert_eq!(errors.len(), 3, "{errors:#?}");
    let errors = load(
        "\n[node]\nname = \"a\"\n[transport]\nadvertise = \"a:1\"",
        &[],
    )
    .unwrap_err();
    assert_eq!(errors, ["a.toml:2: node.data_dir: is needed"]);
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    refuses("[log\nlevel = 1", &[], &["a.toml:6: "]);
    refuses(
        "[log]\nlevel = \"info\"\nlevel = \"warn\"",
        &[],
        &["a.toml:8: "],
    );
    let errors = load(&format!("name = \"a\"\n{LEAST}"), &[]).unwrap_err();
    assert!(
        errors[0].starts_with("a.toml:1: name: belongs into a section"),
        "{errors:?}"
    );
    let missing = Config::load(Path::new("/nonexistent/a.toml"), []).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/a.toml: cannot be read: ")
    );
}
