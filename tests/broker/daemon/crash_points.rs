//! orderd is killed with SIGKILL at each point between the record of a call and the ack of its message.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use super::pause::send_command;
use crate::soak::harness::amqp_proxy::AmqpProxy;
use crate::support::Node;
use crate::support::step_server::{StepCall, StepReply, StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

const STEPS: [&str; 3] = ["charge", "reserve", "ship"];
/// The calls for an order whose last step fails for good.
const CALLS: [&str; 5] = ["/charge", "/reserve", "/ship", "/reserve/undo", "/charge/undo"];

/// When orderd is killed, seen from the service that it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// The attempt is recorded, and the service does not see the call.
    Recorded,
    /// The service has done its work and has not answered.
    Called,
    /// The service has just answered.
    Answered,
    /// orderd has the answer and cannot record it: the ledger is locked.
    NotRecorded,
}

/// Each is tried with these calls, and [`Point::Called`] with the others as well.
const DISTURBED: [&str; 3] = ["/charge", "/ship", "/charge/undo"];
const POINTS: [Point; 4] = [Point::Recorded, Point::Called, Point::Answered, Point::NotRecorded];

/// What the services do next to which call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    order: String,
    path: &'static str,
    point: Point,
}

impl Plan {
    fn is_for(&self, call: &StepCall) -> bool {
        self.path == call.path && call.key.split('/').next() == Some(&self.order)
    }
}

/// Kills an orderd with SIGKILL, from any thread.
#[derive(Clone, Default)]
struct Killer(Arc<AtomicU32>);

impl Killer {
    fn aim(&self, orderd: &OrderdProcess) {
        self.0.store(orderd.pid(), Ordering::SeqCst);
    }

    /// Returns once it is gone, and reads nothing that is sent to it any more.
    fn kill(&self) {
        let pid = self.0.load(Ordering::SeqCst);
        let process = Pid::from_raw(pid.cast_signed()).unwrap();
        kill_process(process, Signal::KILL).unwrap();
        let has_ended = |stat: String| stat.contains(") Z ");
        wait_until("orderd has ended", || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, has_ended));
    }
}

/// The services: they know what they have done by its key, and carry out one plan after the other.
#[derive(Clone, Default)]
struct Services {
    plan: Arc<Mutex<Option<Plan>>>,
    /// The plan that is being carried out.
    current: Arc<Mutex<Option<Point>>>,
    /// The calls that they have seen.
    made: Arc<Mutex<Vec<StepCall>>>,
    lock: Arc<Mutex<Option<Connection>>>,
}

impl Services {
    fn start(&self, server: &StepServer, killer: &Killer, ledger: PathBuf) {
        let (services, before) = (self.clone(), killer.clone());
        server.answer(move |call| {
            let point = services.plan.lock().unwrap().take_if(|plan| plan.is_for(call)).map(|plan| plan.point);
            if point != Some(Point::Recorded) {
                services.made.lock().unwrap().push(call.clone());
            }
            match point {
                Some(Point::Recorded | Point::Called) => {
                    before.kill();
                    return StepReply::Reset;
                }
                Some(Point::Answered) => *services.current.lock().unwrap() = point,
                Some(Point::NotRecorded) => {
                    let connection = Connection::open(&ledger).unwrap();
                    connection.busy_timeout(Duration::from_secs(60)).unwrap();
                    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
                    *services.lock.lock().unwrap() = Some(connection);
                }
                None => {}
            }
            answer(call)
        });
        let (services, after) = (self.clone(), killer.clone());
        server.once_answered(move |_| {
            if services.current.lock().unwrap().take().is_some() {
                after.kill();
            }
        });
    }

    fn made(&self, order: &str) -> Vec<String> {
        let made = self.made.lock().unwrap();
        let of_order = made.iter().filter(|call| call.key.split('/').next() == Some(order));
        of_order.map(|call| call.path.clone()).collect()
    }
}

/// The last step of each order fails for good.
fn answer(call: &StepCall) -> StepReply {
    match call.path.as_str() {
        "/ship" => reply("410 Gone", "sold out"),
        _ => reply("200 OK", "1"),
    }
}

/// Calls of the consumer's steps that have not ended, as orderd sees it.
fn in_flight(orderd: &OrderdProcess) -> u64 {
    let status = orderd.status();
    status["consumers"]["order"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["in_flight"].as_u64().unwrap())
        .sum()
}

/// For each step and undo of an order: its path, how often it was called and how often that is recorded.
fn calls(ledger: &LedgerReader, made: &[String], order: &str) -> Vec<(String, u64, u64)> {
    let rows = ledger.rows(&format!("SELECT step, action, attempts FROM steps WHERE identity = '{order}'"));
    let rows = rows.iter().map(|row| {
        let [step, action, attempts] = row.split('|').collect::<Vec<_>>().try_into().unwrap();
        let path = if action == "undo" { format!("/{step}/undo") } else { format!("/{step}") };
        let count = made.iter().filter(|made| **made == path).count() as u64;
        (path, count, attempts.parse().unwrap())
    });
    rows.collect()
}

fn is_uncertain(ledger: &LedgerReader, order: &str) -> bool {
    let ship = format!("SELECT uncertain FROM steps WHERE identity = '{order}' AND step = 'ship' AND action = 'do'");
    ledger.number(&ship) == 1
}

#[test]
fn wherever_orderd_is_killed_no_step_is_skipped_nor_called_more_than_once_beyond_what_is_recorded() {
    let node = Node::shared();
    let (server, services) = (StepServer::start(), Services::default());
    let env = TestEnv::new(&node).set("consumers.order.steps", &server.steps(&STEPS, ""));
    let mut orderd = env.start();
    let (killer, ledger) = (Killer::default(), env.ledger());
    services.start(&server, &killer, env.ledger_directory().join("orderd.db"));
    let mut orders = Vec::new();
    for path in CALLS {
        for point in POINTS.into_iter().filter(|point| *point == Point::Called || DISTURBED.contains(&path)) {
            let id = format!("{}-{point:?}", path[1..].replace('/', "-"));
            killer.aim(&orderd);
            *services.plan.lock().unwrap() = Some(Plan { order: id.clone(), path, point });
            env.raw().publish_all("orders", [("order.normal.created".to_owned(), order(&id))]);
            if point == Point::NotRecorded {
                wait_until("the ledger is locked", || services.lock.lock().unwrap().is_some());
                wait_until("orderd has the answer", || server.in_flight() == 0 && in_flight(&orderd) == 0);
                killer.kill();
                *services.lock.lock().unwrap() = None;
            }
            wait_until("orderd is killed", || orderd.exit_status().is_some());
            orderd = env.start();
            orders.push(id);
        }
    }
    let kills = orders.len() as u64;
    wait_until("every order is dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == kills);
    for id in &orders {
        let made = services.made(id);
        let mut expected: BTreeSet<&str> = CALLS.into();
        if is_uncertain(&ledger, id) {
            // Nobody knows what a call did whose answer was lost, so it is undone too.
            expected.insert("/ship/undo");
        }
        assert_eq!(made.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{id}");
        let (mut first, mut seen) = (made.clone(), BTreeSet::new());
        first.retain(|path| path != "/ship/undo" && seen.insert(path.clone()));
        assert_eq!(first, CALLS, "{id}: {made:?}");
        for (path, made, recorded) in calls(&ledger, &made, id) {
            // What was recorded and not called was killed in between.
            assert!(made <= recorded && recorded <= made + kills, "{id} {path}: {made} calls, {recorded} recorded");
        }
    }
    let disturbed = |point: Point, made: u64, recorded: u64| {
        for path in DISTURBED {
            let id = format!("{}-{point:?}", path[1..].replace('/', "-"));
            let calls = calls(&ledger, &services.made(&id), &id);
            let (_, found_made, found_recorded) = calls.into_iter().find(|(found, ..)| found == path).unwrap();
            assert!(found_made >= made && found_recorded >= recorded, "{id}: {found_made}, {found_recorded}");
        }
    };
    disturbed(Point::Recorded, 1, 2);
    disturbed(Point::Called, 2, 2);
    disturbed(Point::NotRecorded, 2, 2);
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters WHERE failure_code <> 'http_410'"), 0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn what_is_recorded_as_done_or_undone_is_not_called_again_if_orderd_is_killed_before_the_ack() {
    let node = Node::shared();
    let server = StepServer::start();
    let mut env = TestEnv::new(&node).set("consumers.order.steps", &server.steps(&STEPS, ""));
    let ended = |ledger: &LedgerReader, id: &str| {
        let processed = format!("SELECT count(*) FROM orders WHERE id = '{id}' AND status = 'processed'");
        let dead = format!("SELECT count(*) FROM dead_letters WHERE identity = '{id}'");
        ledger.number(&processed) + ledger.number(&dead) == 1
    };
    let all: &[&str] = &CALLS;
    for (id, blocked_at, state, expected) in
        [("good", "/ship", "done", &all[..3]), ("gone", "/charge/undo", "undone", all)]
    {
        let proxy = Arc::new(AmqpProxy::start(node.amqp_port).unwrap());
        env.change("broker.addresses", &proxy.address);
        let mut orderd = env.start();
        let ledger = env.ledger();
        let blocking = Arc::clone(&proxy);
        server.answer(move |call| {
            if call.path == blocked_at && call.key.starts_with(id) {
                // Nothing that orderd publishes from now on reaches the broker.
                blocking.block("orderd publish");
            }
            if call.key.starts_with("good") { reply("200 OK", "1") } else { answer(call) }
        });
        env.raw().publish_all("orders", [("order.normal.created".to_owned(), order(id))]);
        let run = format!("SELECT count(*) FROM step_runs WHERE identity = '{id}' AND state = '{state}'");
        wait_until("all calls are recorded", || ledger.number(&run) == 1);
        assert!(!ended(&ledger, id));
        orderd.kill();
        env.change("broker.addresses", &format!("127.0.0.1:{}", node.amqp_port));
        let mut orderd = env.start();
        wait_until("the order is finished", || ended(&ledger, id));
        assert_eq!(server.paths(id), expected);
        assert_eq!(orderd.stop(), 0);
    }
}

/// The handler of failed orders records that the steps are undone, and then sends the order back to its queue.
#[test]
fn an_order_whose_undo_was_decided_is_undone_once_if_orderd_is_killed_before_it_is_back_in_its_queue() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(answer);
    let mut env = TestEnv::new(&node).set("consumers.order.steps", &server.steps(&STEPS, ""));
    // Whether the broker gets the order: if it does, orderd does not see the confirm, and does not ack the copy.
    for (id, is_published) in [("lost", false), ("unconfirmed", true)] {
        let proxy = AmqpProxy::start(node.amqp_port).unwrap();
        env.change("broker.addresses", &proxy.address);
        let mut orderd = env.start();
        let (ledger, mut raw) = (env.ledger(), env.raw());
        assert_eq!(send_command(&orderd, "pause", "failed").0, 200);
        env.raw().publish_all("orders", [("order.normal.created".to_owned(), order(id))]);
        wait_until("it has failed", || raw.depth("failed_order_queue") == 1);
        assert_eq!(send_command(&orderd, "pause", "order").0, 200);
        if is_published {
            proxy.block_answers("orderd publish");
        } else {
            proxy.block("orderd publish");
        }
        assert_eq!(send_command(&orderd, "resume", "failed").0, 200);
        let undoing = format!("SELECT count(*) FROM step_runs WHERE identity = '{id}' AND state = 'undoing'");
        wait_until("the undo is decided", || ledger.number(&undoing) == 1);
        if is_published {
            wait_until("it is back in its queue", || raw.depth("order_queue") == 1);
        }
        assert_eq!(server.paths(id), CALLS[..3]);
        orderd.kill();
        env.change("broker.addresses", &format!("127.0.0.1:{}", node.amqp_port));
        let mut orderd = env.start();
        assert_eq!(send_command(&orderd, "resume", "order").0, 200);
        let dead = format!("SELECT failure_code FROM dead_letters WHERE identity = '{id}'");
        wait_until("it is dead-lettered", || ledger.rows(&dead) == ["http_410"]);
        let queues = ["order_queue", "failed_order_queue"];
        let unsettled = |queue: &str| orderd.status()["consumers"][queue]["in_flight"].as_u64().unwrap();
        wait_until("nothing is left in the queues", || {
            queues.iter().all(|queue| raw.depth(queue) == 0) && unsettled("order") + unsettled("failed") == 0
        });
        assert_eq!(server.paths(id), CALLS, "{id}");
        let run = format!("SELECT state FROM step_runs WHERE identity = '{id}'");
        assert_eq!(ledger.rows(&run), ["undone"]);
        assert_eq!(orderd.stop(), 0);
    }
}
