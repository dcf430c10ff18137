//! The users that orderd and producers need on the broker, and the commands that create them. It runs none of them.

use std::io::{self, Write};

use serde::Serialize;

use super::DEFAULT_USER;
use crate::config::Config;
use crate::topology::{Permissions, quoted};

/// The user of orderd in the commands, if the configuration has none of its own.
const ORDERD_USER: &str = "orderd";
/// The user of a producer in the commands.
const PRODUCER_USER: &str = "shop";

/// The minimum permissions, as regular expressions, and the commands that grant them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PermissionsReport {
    /// The user that the commands are for: `broker.username`, or another one if that is the broker's default user.
    pub user: String,
    /// Objects that may be declared.
    pub configure: String,
    /// Exchanges to publish to, and queues to bind.
    pub write: String,
    /// Queues to consume, and exchanges to bind to.
    pub read: String,
    /// Shell commands that grant these permissions, and the topic permissions.
    pub commands: [String; 2],
    /// The user of the management API.
    pub management: ManagementUser,
    /// What a producer of orders needs.
    pub producer: ProducerPermissions,
}

/// The user of the management API, and the commands that let it read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ManagementUser {
    /// `management.username`, or orderd's user.
    pub user: String,
    /// Shell commands.
    pub commands: Vec<String>,
}

/// The permissions of a user that only publishes orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProducerPermissions {
    /// An example of a name.
    pub user: String,
    /// Shell commands that grant the permissions.
    pub commands: [String; 2],
}

impl PermissionsReport {
    pub(super) fn new(config: &Config) -> Self {
        let (virtual_host, permissions) = (&config.broker.virtual_host, config.permissions());
        let user = own_user(&config.broker.username);
        let commands = permissions.commands(virtual_host, &user);
        let producer = config.producer_permissions().commands(virtual_host, PRODUCER_USER);
        let Permissions { configure, write, read, topic: _ } = permissions;
        let management = ManagementUser::new(config, &user);
        let producer = ProducerPermissions { user: PRODUCER_USER.to_owned(), commands: producer };
        PermissionsReport { user, configure, write, read, commands, management, producer }
    }
}

impl ManagementUser {
    fn new(config: &Config, orderd: &str) -> Self {
        let user = own_user(&config.management.username);
        let tag = format!("rabbitmqctl set_user_tags {} monitoring", quoted(&user));
        let may_read = || {
            let virtual_host = quoted(&config.broker.virtual_host);
            format!("rabbitmqctl set_permissions -p {virtual_host} {} '^$' '^$' '.*'", quoted(&user))
        };
        let commands = if user == orderd { vec![tag] } else { vec![tag, may_read()] };
        ManagementUser { user, commands }
    }
}

/// Never the user that every installation has: the commands would restrict it for everybody.
fn own_user(configured: &str) -> String {
    if configured == DEFAULT_USER { ORDERD_USER.to_owned() } else { configured.to_owned() }
}

/// Writes the commands with comments, as a script for a shell.
pub(super) fn write(config: &Config, out: &mut dyn Write) -> io::Result<()> {
    let PermissionsReport { user, commands: [permissions, topics], management, producer, .. } =
        PermissionsReport::new(config);
    let add = |user: &str| format!("rabbitmqctl add_user {}", quoted(user));
    if config.broker.username == DEFAULT_USER {
        writeln!(
            out,
            "# broker.username is {DEFAULT_USER:?}, the broker's default user, which needs nothing and must not be restricted.\n\
             # Create a user for orderd, then set broker.username = {user:?} and broker.password_file."
        )?;
    } else {
        writeln!(out, "# orderd's user")?;
    }
    writeln!(out, "{}   # asks for its password; not if it exists", add(&user))?;
    writeln!(out, "{permissions}")?;
    if config.topology.declare {
        writeln!(out, "# RabbitMQ 4.3 accepts the next command once the exchange exists: after orderd's first start")?;
    }
    writeln!(out, "{topics}")?;
    writeln!(out, "\n# the management API, as management.username")?;
    if management.user != user {
        writeln!(out, "{}", add(&management.user))?;
    }
    management.commands.iter().try_for_each(|command| writeln!(out, "{command}"))?;
    writeln!(
        out,
        "\n# a producer of orders, such as `orderd publish`: a user of its own, here {:?}, once the exchange exists",
        producer.user
    )?;
    writeln!(out, "{}", add(&producer.user))?;
    producer.commands.iter().try_for_each(|command| writeln!(out, "{command}"))
}
