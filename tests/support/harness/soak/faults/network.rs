//! Faults of the network between orderd and the broker. They last until orderd or the broker gives up the connections.

use super::super::super::Outcome;
use super::super::super::amqp_proxy::Direction;
use super::super::fault::Fault;
use super::super::targets::Targets;

pub fn cut(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    targets.proxy.cut();
    Ok(true)
}

pub fn black_hole(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    drop_data(targets, &[Direction::ToBroker, Direction::ToClient])
}

pub fn half_open_to_broker(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    drop_data(targets, &[Direction::ToBroker])
}

pub fn half_open_to_orderd(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    drop_data(targets, &[Direction::ToClient])
}

fn drop_data(targets: &mut Targets<'_>, directions: &[Direction]) -> Outcome<bool> {
    targets.proxy.drop_data(directions);
    Ok(true)
}

pub fn force_close(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    Ok(targets.api().close_connections()? > 0)
}
