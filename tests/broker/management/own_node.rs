//! A broker whose management plugin is disabled at first, and a broker with an alarm.

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};

#[test]
fn without_the_management_plugin_orders_are_processed_and_polling_starts_once_it_is_on() {
    let node = Node::own("plugin");
    let env = TestEnv::new(&node).set("management.poll_every", "100ms");
    node.ctl(&["eval", "application:stop(rabbitmq_management)."]);
    let mut orderd = env.start();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    let silent = "the management API does not answer: the broker state is stale";
    wait_until("the outage is logged", || orderd.has_logged(silent));
    node.ctl(&["eval", "application:start(rabbitmq_management)."]);
    wait_until("polling has started", || orderd.has_logged("the management API answers again"));
    assert_eq!(orderd.log_lines(silent).len(), 1, "logged more than once");

    let alarm = "the broker has an alarm: publishing is blocked";
    node.set_alarm();
    wait_until("the alarm is logged", || orderd.has_logged(alarm));
    assert_eq!(orderd.log_lines(alarm)[0]["resource"], "memory");
    node.clear_alarm();
    wait_until("the end of the alarm is logged", || orderd.has_logged("the broker's alarm has ended"));
    assert_eq!((orderd.log_lines(alarm).len(), orderd.stop()), (1, 0));
}
