//! Users with exactly the permissions that orderd needs, and with fewer; wrong passwords and virtual hosts.

use serde_json::{Value, json};

use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};
use crate::support::{Node, http};

const CONFIG: i32 = 78;
const PASSWORD: &str = "p4ssword-of-this-test";
const OTHER_PASSWORD: &str = "another-of-this-test";

/// A test environment whose orderd has a user of its own, without any permissions yet.
struct Restricted<'a> {
    env: TestEnv<'a>,
    user: String,
}

impl<'a> Restricted<'a> {
    fn new(node: &'a Node) -> Self {
        let env = TestEnv::new(node);
        let user = format!("orderd-{}", env.vhost.name);
        let env = env
            .set("broker.username", &user)
            .set("broker.password", PASSWORD)
            .set("log.level", "info")
            // As in production, the management API has a user of its own.
            .set("management.username", "guest")
            .set("management.password", "guest");
        let restricted = Restricted { env, user };
        restricted.set_password(PASSWORD);
        restricted
    }

    fn set_password(&self, password: &str) {
        let user = format!(r#"{{"password":"{password}","tags":""}}"#);
        let (status, _) = self.env.vhost.node.management("PUT", &format!("/users/{}", self.user), &user);
        assert!([201, 204].contains(&status), "{status}");
    }

    /// Runs a printed command: every argument is in single quotes, and none has a space or a quote.
    fn run_printed(&self, command: &str) {
        let words = command.strip_prefix("rabbitmqctl ").unwrap().split(' ');
        let words: Vec<&str> = words.map(|word| word.trim_matches('\'')).collect();
        self.env.vhost.node.ctl(&words);
    }

    /// The permissions that `orderd check` prints.
    fn needed(&self) -> Value {
        let mut check = self.env.command(&["check", "--format", "json"]);
        assert_eq!(check.wait_for_exit(), 0, "{}", check.output());
        let output = check.stdout();
        serde_json::from_str::<Value>(&output).unwrap()["permissions"].clone()
    }

    fn grant(&self, permissions: &Value) {
        let body =
            json!({"configure": permissions["configure"], "write": permissions["write"], "read": permissions["read"]});
        let path = format!("/permissions/{}/{}", self.env.vhost.name, self.user);
        let (status, _) = self.env.vhost.node.management("PUT", &path, &body.to_string());
        assert!([201, 204].contains(&status), "{status}");
    }
}

impl Drop for Restricted<'_> {
    fn drop(&mut self) {
        self.env.vhost.node.management("DELETE", &format!("/users/{}", self.user), "");
    }
}

/// Processes orders that succeed, are retried, and are dead-lettered.
fn work(env: &TestEnv<'_>) {
    let mut orderd = env.start();
    let mut raw = env.raw();
    for n in 0..40 {
        let id = format!("ord-{n}");
        raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order(&id));
    }
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), &order("urgent"));
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), b"malformed");
    env.ledger().await_settled(41);
    let ledger = env.ledger();
    wait_until("one is dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == 1);
    assert!(ledger.number("SELECT count(*) FROM attempts WHERE delay = '300ms'") > 0, "none was retried");
    assert_eq!(orderd.stop(), 0);
    // A malformed message is its sender's mistake, and logged as a warning.
    assert!(orderd.has_logged("[Failed] dead-lettered in the dead letter queue"));
    assert_eq!(orderd.logged_errors(), [""; 0]);
}

#[test]
fn the_permissions_that_check_prints_suffice_where_orderd_declares() {
    let node = Node::shared();
    let mut own = Restricted::new(&node);
    own.env.change("consumers.order.faults.transient", "0.5");
    let mut check = own.env.command(&["check", "--permissions"]);
    assert_eq!(check.wait_for_exit(), 0);
    let printed = check.stdout();
    let of_orderd = |line: &&str| line.contains(" set_") && line.contains(&format!("'{}'", own.user));
    let commands: Vec<_> = printed.lines().filter(of_orderd).collect();
    let [permissions, topics] = commands[..] else { panic!("{printed}") };
    own.run_printed(permissions);
    assert_eq!(own.env.start().stop(), 0);
    own.run_printed(topics);
    work(&own.env);
    let mut check = own.env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), 0, "{}", check.output());
}

#[test]
fn the_permissions_that_check_prints_suffice_where_an_administrator_declares() {
    let node = Node::shared();
    let mut own = Restricted::new(&node);
    own.env.change("consumers.order.faults.transient", "0.5");
    // guest declares the topology in the virtual host; then the user, who must not declare, runs orderd there.
    own.env.change("broker.username", "guest");
    own.env.change("broker.password", "guest");
    assert_eq!(own.env.start().stop(), 0);
    own.env.change("broker.username", &own.user.clone());
    own.env.change("broker.password", PASSWORD);
    own.env.change("topology.declare", "false");
    let needed = own.needed();
    assert_eq!(needed["configure"], "^$");
    for command in needed["commands"].as_array().unwrap() {
        own.run_printed(command.as_str().unwrap());
    }
    work(&own.env);
    // A missing permission to publish failures is reported at the start, not with the first failure.
    let mut less = needed.clone();
    less["write"] = json!(needed["write"].as_str().unwrap().replace(r"|orders\.retry", ""));
    own.grant(&less);
    let error = own.env.spawn().startup_error();
    assert!(error.contains("publish to exchange \"orders.retry\"") && error.contains("--permissions"), "{error}");
    less = needed;
    less["read"] = json!(less["read"].as_str().unwrap().replace("|order_queue", ""));
    own.grant(&less);
    let error = own.env.spawn().startup_error();
    assert!(error.contains("consume from queue \"order_queue\""), "{error}");
}

#[test]
fn orders_are_processed_without_the_permission_to_read_the_dead_letter_queues() {
    let node = Node::shared();
    let mut own = Restricted::new(&node);
    own.env.change("broker.username", "guest");
    own.env.change("broker.password", "guest");
    assert_eq!(own.env.start().stop(), 0);
    own.env.change("broker.username", &own.user.clone());
    own.env.change("broker.password", PASSWORD);
    own.env.change("topology.declare", "false");
    // As granted for an orderd that did not read them.
    for command in own.needed()["commands"].as_array().unwrap() {
        own.run_printed(command.as_str().unwrap());
    }
    own.env.change("dead_letters.collect", "true");
    let mut orderd = own.env.start();
    own.env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    own.env.ledger().await_settled(1);
    wait_until("the status says why nothing is collected", || {
        let collectors = orderd.status()["dead_letters"]["collectors"].clone();
        ["dead_letter_queue", "unrouted_queue"].iter().all(|queue| !collectors[*queue]["subscribe_error"].is_null())
    });
    assert_eq!(orderd.stop(), 0);
    assert!(orderd.has_logged("the user may not drain the dead letter queues, so dead letters stay there"));
    let mut check = own.env.command(&["check", "--connect"]);
    assert_ne!(check.wait_for_exit(), 0);
    assert!(check.output().contains("dead_letter_queue"), "{}", check.output());
}

#[test]
fn check_reports_each_revoked_permission_and_declares_nothing() {
    let node = Node::shared();
    let own = Restricted::new(&node);
    let needed = own.needed();
    let mut missed = 0;
    for kind in ["configure", "write", "read"] {
        let whole = needed[kind].as_str().unwrap();
        let names: Vec<&str> = whole.trim_start_matches("^(").trim_end_matches(")$").split('|').collect();
        assert!(names.len() > 5, "{whole}");
        for without in &names {
            // The broker checks the alternate exchange only when the exchange is created.
            if (kind, *without) == ("write", r"orders\.unrouted") {
                continue;
            }
            let rest: Vec<&str> = names.iter().filter(|name| *name != without).copied().collect();
            let mut less = needed.clone();
            less[kind] = json!(format!("^({})$", rest.join("|")));
            own.grant(&less);
            let mut check = own.env.command(&["check", "--connect"]);
            assert_eq!(check.wait_for_exit(), CONFIG, "without {kind} on {without}: {}", check.output());
            let name = without.replace('\\', "");
            let output = check.output();
            let about = output.lines().filter(|line| line.starts_with("error: the user may not "));
            assert!(about.clone().count() > 0, "without {kind} on {without}: {output}");
            assert!(about.clone().all(|line| line.contains(&name)), "without {kind} on {without}: {output}");
            missed += 1;
        }
    }
    assert!(missed > 30, "{missed}");
    let (_, found) = node.management("GET", &format!("/queues/{}", own.env.vhost.name), "");
    assert_eq!(found, json!([]), "the check has declared something");

    let mut less = needed.clone();
    less["write"] = json!(needed["write"].as_str().unwrap().replace(r"|orders\.unrouted", ""));
    own.grant(&less);
    let error = own.env.spawn().startup_error();
    assert!(error.contains("declare exchange \"orders\"") && error.contains("orders.unrouted"), "{error}");
    less = needed;
    less["configure"] = json!(less["configure"].as_str().unwrap().replace("|order_queue|", "|"));
    own.grant(&less);
    let error = own.env.spawn().startup_error();
    assert!(error.contains("declare queue \"order_queue\"") && error.contains("--permissions"), "{error}");
}

#[test]
fn a_missing_virtual_host_is_one_clear_error() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("broker.virtual_host", "nowhere");
    let error = env.spawn().startup_error();
    assert!(error.contains("refuses virtual host \"nowhere\""), "{error}");
    let own = Restricted::new(&node);
    let error = own.env.spawn().startup_error();
    assert!(error.contains(&format!("refuses virtual host {:?}", own.env.vhost.name)), "{error}");
}

#[test]
fn publish_reports_a_missing_permission_before_the_first_line() {
    let node = Node::shared();
    let own = Restricted::new(&node);
    own.grant(&json!({"configure": ".*", "write": ".*", "read": ".*"}));
    assert_eq!(own.env.start().stop(), 0);
    let orders = own.env.directory.path().join("orders.ndjson");
    std::fs::write(&orders, order("ord-1")).unwrap();
    let publish = || {
        let mut publish = own.env.command(&["publish", orders.to_str().unwrap()]);
        (publish.wait_for_exit(), publish.output())
    };
    let topic = |write: &str| {
        let path = format!("/topic-permissions/{}/{}", own.env.vhost.name, own.user);
        let body = json!({"exchange": "orders", "write": write, "read": "^$"});
        assert!([201, 204].contains(&node.management("PUT", &path, &body.to_string()).0));
    };
    // Without any permission, the missing one to publish is reported, even by a broker that refuses a passive check.
    own.grant(&json!({"configure": "^$", "write": "^$", "read": "^$"}));
    let (code, output) = publish();
    assert_eq!(code, CONFIG, "{output}");
    assert!(output.contains("publish to exchange \"orders\" with key \"order.normal.created\""), "{output}");
    own.grant(&own.needed());
    topic("^order\\.other$");
    let (code, output) = publish();
    assert_eq!(code, CONFIG, "{output}");
    assert!(output.contains("publish to exchange \"orders\" with key \"order.normal.created\""), "{output}");
    assert_eq!(output.lines().count(), 1, "{output}");
    assert!(output.contains("check --permissions"), "{output}");
    for command in own.needed()["producer"]["commands"].as_array().unwrap() {
        own.run_printed(&command.as_str().unwrap().replace("'shop'", &own.user));
    }
    let (code, output) = publish();
    assert_eq!(code, 0, "{output}");
    // The permission check has published nothing.
    let mut raw = own.env.raw();
    let (_, published) = raw.get_unacked("order_queue").expect("the order is there");
    assert_eq!(published.text().as_bytes(), order("ord-1"));
    assert!(raw.get_unacked("order_queue").is_none(), "there is more than the order");
}

#[test]
fn it_waits_for_a_broker_at_its_connection_limit() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let limit = format!("/vhost-limits/{}/max-connections", env.vhost.name);
    assert_eq!(node.management("PUT", &limit, r#"{"value":0}"#).0, 204);
    let mut orderd = env.spawn();
    wait_until("it waits", || orderd.has_logged("waiting for the broker"));
    let error = orderd.log_lines("waiting for the broker")[0]["error"].to_string();
    assert!(error.contains("connection limit"), "{error}");
    assert_eq!(node.management("DELETE", &limit, "").0, 204);
    wait_until("it has started", || {
        assert_eq!(orderd.exit_status(), None, "it has given up");
        orderd.has_logged("started")
    });
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_declare_it_waits_for_an_unreachable_broker() {
    let node = Node::shared();
    let mut env = TestEnv::new(&node);
    assert_eq!(env.start().stop(), 0);
    env.change("topology.declare", "false");
    env.change("broker.addresses", "127.0.0.1:1");
    let mut orderd = env.spawn();
    wait_until("it waits", || {
        assert_eq!(orderd.exit_status(), None, "it has given up");
        orderd.has_logged("waiting for the broker")
    });
    assert!(!orderd.has_logged("cannot check the user's permissions"), "{}", orderd.output());
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn permissions_revoked_at_run_time_are_shown_and_waited_for() {
    let node = Node::shared();
    let own = Restricted::new(&node);
    let needed = own.needed();
    own.grant(&needed);
    let mut orderd = own.env.start();
    wait_until("it is ready", || http::get(orderd.admin_address(), "/readyz").status == 200);

    own.set_password(OTHER_PASSWORD);
    own.env.vhost.close_connections();
    wait_until("the status shows the refused password", || {
        failing_checks(&orderd).contains(&format!("refuses user {:?}", own.user))
    });
    assert_eq!(orderd.exit_status(), None, "it has given up");
    assert!(!orderd.output().contains(PASSWORD));
    own.set_password(PASSWORD);
    wait_until("it is ready again", || http::get(orderd.admin_address(), "/readyz").status == 200);

    let mut less = needed.clone();
    less["read"] = json!(needed["read"].as_str().unwrap().replace("|order_queue|", "|"));
    own.grant(&less);
    own.env.vhost.close_connections();
    wait_until("the status shows the missing permission", || failing_checks(&orderd).contains("ACCESS_REFUSED"));
    own.grant(&needed);
    own.env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    own.env.ledger().await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_permission_to_publish_withdrawn_for_a_while_closes_few_channels_and_everything_is_published_afterwards() {
    let node = Node::shared();
    let mut own = Restricted::new(&node);
    own.env.change("log.level", "debug");
    let needed = own.needed();
    own.grant(&needed);
    let mut orderd = own.env.start();
    let (vhost, user) = (&own.env.vhost, &own.user);
    let publish_orders = |ids: std::ops::Range<u32>| {
        let orders = ids.map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
        own.env.raw().publish_all("orders", orders);
    };
    let is_refused = |key: &str| {
        let error = orderd.status()["consumers"]["order"]["publish_error"].as_str().unwrap_or_default().to_owned();
        error.contains(key) && error.contains("403")
    };

    // One routing key is refused; others, and other exchanges, are not.
    let topic = json!({"exchange": "orders", "write": "^order\\.(analytics|failed)\\.", "read": ".*"});
    let path = format!("/topic-permissions/{}/{user}", vhost.name);
    assert_eq!(node.management("PUT", &path, &topic.to_string()).0, 201);
    // The broker remembers permissions for each channel.
    vhost.close_connections();
    publish_orders(0..100);
    own.env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), b"malformed");
    wait_until("the notifications are refused", || is_refused("order.notification"));
    wait_until("another message is dead-lettered", || {
        own.env.ledger().number("SELECT count(*) FROM dead_letters") == 1
    });
    assert_eq!(node.management("DELETE", &path, "").0, 204);
    own.env.ledger().await_settled(100);

    // All of the exchange is refused.
    let mut less = needed.clone();
    less["write"] = json!("^(?!orders$)");
    own.grant(&less);
    vhost.close_connections();
    publish_orders(100..200);
    wait_until("the events are refused", || is_refused("orders"));
    own.grant(&needed);
    own.env.ledger().await_settled(200);
    let closes = orderd.log_lines("opening the publishing channel again").len();
    // Two hundred publications were refused, each many times.
    assert!((2..100).contains(&closes), "{closes}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_replay_that_the_broker_refuses_stops_with_its_text_and_orders_are_processed_meanwhile() {
    let node = Node::shared();
    let mut own = Restricted::new(&node);
    own.env.change("dead_letters.collect", "true");
    let needed = own.needed();
    own.grant(&needed);
    let mut orderd = own.env.start();
    let ledger = own.env.ledger();
    let orders = |key: &str, ids: std::ops::Range<u32>| {
        let orders = ids.map(|n| (key.to_owned(), order(&format!("ord-{n}"))));
        own.env.raw().publish_all("orders", orders);
    };
    orders("oder.normal.created", 0..5);
    wait_until("they are stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 5);

    let mut less = needed.clone();
    less["write"] = json!(needed["write"].as_str().unwrap().replace(r"|orders\.requeue", ""));
    assert_ne!(less, needed);
    own.grant(&less);
    // The broker remembers permissions for each channel.
    own.env.vhost.close_connections();
    let mut check = own.env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), CONFIG);
    assert!(check.output().contains("orders.requeue"), "{}", check.output());
    let address = orderd.admin_address().to_string();
    let replay = ["dead-letters", "replay", "--all", "--to", "order_queue", "--yes", "--format", "json", "--address"];
    let replay = [&replay[..], &[&address]].concat();
    let mut command = own.env.command(&replay);
    wait_until("it says why it waits", || command.output().contains("403"));
    orders("order.normal.created", 100..150);
    ledger.await_settled(50);
    assert_eq!(command.wait_for_exit(), 1, "{}", command.output());
    let stopped: Value = serde_json::from_str(&command.stdout()).unwrap();
    assert_eq!((&stopped["end_reason"], &stopped["state"]), (&json!("refused"), &json!("stopped")), "{stopped}");
    assert!(stopped["end_detail"].as_str().unwrap().contains("403"), "{stopped}");
    // The broker has accepted none of them, so all are open again.
    assert_eq!(stopped["letters"], json!({"skipped": 1, "returned": 4}), "{stopped}");
    let states = "SELECT state, count(*) FROM stored_dead_letters GROUP BY state ORDER BY state";
    assert_eq!(ledger.rows(states), ["open|5"]);

    own.grant(&needed);
    own.env.vhost.close_connections();
    // Else orderd tries what was refused ever more rarely.
    assert_eq!(orderd.reload()["outcome"], "unchanged");
    let mut command = own.env.command(&replay);
    assert_eq!(command.wait_for_exit(), 0, "{}", command.output());
    ledger.await_settled(55);
    assert_eq!(orderd.stop(), 0);
}

/// The details of all failing checks.
fn failing_checks(orderd: &OrderdProcess) -> String {
    let status = http::json(orderd.admin_address(), "/api/v1/status");
    let failing = status["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false);
    failing.map(|check| check["detail"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_user_that_may_state_any_sender_is_refused() {
    let node = Node::shared();
    let own = Restricted::new(&node);
    own.grant(&json!({"configure": ".*", "write": ".*", "read": ".*"}));
    node.ctl(&["set_user_tags", &own.user, "impersonator"]);
    let error = own.env.spawn().startup_error();
    assert!(error.contains("impersonator"), "{error}");
    let mut check = own.env.command(&["check", "--connect", "--format", "json"]);
    assert_eq!(check.wait_for_exit(), CONFIG, "{}", check.output());
    let report: Value = serde_json::from_str(&check.stdout()).unwrap();
    let user = &report["connected"]["user"];
    assert!(user["name"].is_null() && user["error"].as_str().unwrap().contains("impersonator"), "{user}");
}
