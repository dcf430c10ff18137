//! A broker whose management plugin is off, and comes up later; then an alarm.

use crate::support::Node;
use crate::support::raw::properties::Properties;
use crate::support::shop::{Shop, order, until};

#[test]
fn without_the_plugin_orders_are_processed_and_once_it_is_on_the_broker_is_watched() {
    let node = Node::own("plugin");
    let shop = Shop::new(&node).set("management.poll_every", "100ms");
    node.ctl(&["eval", "application:stop(rabbitmq_management)."]);
    let mut orderd = shop.open();
    shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    shop.book().await_settled(1);
    let silent = "the management API does not answer: the broker's side is not shown";
    until("it says so", || orderd.says(silent));
    node.ctl(&["eval", "application:start(rabbitmq_management)."]);
    until("it is watched", || orderd.says("the management API answers again"));
    assert_eq!(orderd.lines(silent).len(), 1, "once");

    let alarm = "the broker has an alarm: publishing is blocked";
    node.set_alarm();
    until("the alarm is told", || orderd.says(alarm));
    assert_eq!(orderd.lines(alarm)[0]["resource"], "memory");
    node.clear_alarm();
    until("its end is told", || orderd.says("the broker's alarm is over"));
    assert_eq!((orderd.lines(alarm).len(), orderd.stop()), (1, 0));
}
