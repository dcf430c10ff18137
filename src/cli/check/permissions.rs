//! The users that orderd and producers need on the broker, and the commands that create them. It runs none of them.

use std::io::{self, Write};

use serde::Serialize;

use super::DEFAULT_USER;
use crate::config::Config;
use crate::topology::{Permissions, quoted};

/// The user of orderd in the commands, if the configuration has none of its own.
const ORDERD_USER: &str = "orderd";
/// The user of a producer in the commands, unless orderd uses that name: then it gets a number.
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
    /// Shell commands that grant these permissions, and the topic permissions. They replace those that the user has.
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
    /// Shell commands for orderd's user.
    pub commands: Vec<String>,
    /// Shell commands for a user that is not orderd's, if it is a new one: they replace its tags and permissions.
    pub new_user_commands: Vec<String>,
}

/// The permissions of a user that only publishes orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProducerPermissions {
    /// An example of a name: never one that orderd uses.
    pub user: String,
    /// Shell commands that grant the permissions.
    pub commands: [String; 2],
}

impl PermissionsReport {
    pub(super) fn new(config: &Config) -> Self {
        let (virtual_host, permissions) = (&config.broker.virtual_host, config.permissions());
        let user = own_user(&config.broker.username);
        let commands = permissions.commands(virtual_host, &user);
        let producer_user = producer_user(config, &user);
        let producer = config.producer_permissions().commands(virtual_host, &producer_user);
        let Permissions { configure, write, read, topic: _ } = permissions;
        let management = ManagementUser::new(config, &user);
        let producer = ProducerPermissions { user: producer_user, commands: producer };
        PermissionsReport { user, configure, write, read, commands, management, producer }
    }
}

impl ManagementUser {
    fn new(config: &Config, orderd: &str) -> Self {
        let user = own_user(&config.management.username);
        if config.management.poll_every.is_none() {
            return ManagementUser { user, commands: Vec::new(), new_user_commands: Vec::new() };
        }
        let tag = format!("rabbitmqctl set_user_tags {} monitoring", quoted(&user));
        if user == orderd {
            return ManagementUser { user, commands: vec![tag], new_user_commands: Vec::new() };
        }
        let virtual_host = quoted(&config.broker.virtual_host);
        let may_read = format!("rabbitmqctl set_permissions -p {virtual_host} {} '^$' '^$' '.*'", quoted(&user));
        let new_user_commands = vec![add_user(&user), tag, may_read];
        ManagementUser { user, commands: Vec::new(), new_user_commands }
    }
}

fn add_user(user: &str) -> String {
    format!("rabbitmqctl add_user {}", quoted(user))
}

/// A name that orderd neither uses nor trusts: the commands would take its permissions away.
fn producer_user(config: &Config, orderd: &str) -> String {
    let own = [orderd, &config.broker.username, &config.management.username];
    let is_own = |name: &str| own.contains(&name) || config.broker.trusted_users.iter().any(|trusted| trusted == name);
    let numbered = (2_u32..).map(|number| format!("{PRODUCER_USER}-{number}"));
    let mut names = std::iter::once(PRODUCER_USER.to_owned()).chain(numbered);
    names.find(|name| !is_own(name)).expect("orderd uses few names")
}

/// Never the user that every installation has: the commands would restrict it for everybody.
fn own_user(configured: &str) -> String {
    if configured == DEFAULT_USER { ORDERD_USER.to_owned() } else { configured.to_owned() }
}

/// Writes the commands with comments, as a script for a shell.
pub(super) fn write(config: &Config, out: &mut dyn Write) -> io::Result<()> {
    let PermissionsReport { user, commands: [permissions, topics], management, producer, .. } =
        PermissionsReport::new(config);
    writeln!(out, "# Run the lines one by one: `add_user` reads the password from standard input.")?;
    if config.broker.username == DEFAULT_USER {
        writeln!(
            out,
            "# broker.username is {DEFAULT_USER:?}, the broker's default user, which needs nothing and must not be restricted.\n\
             # Create a user for orderd, then set broker.username = {user:?} and broker.password_file."
        )?;
    } else {
        writeln!(out, "# orderd's user: one of its own, since the commands replace its permissions and tags")?;
    }
    writeln!(out, "{}   # asks for its password; not if it exists", add_user(&user))?;
    writeln!(out, "{permissions}")?;
    if config.topology.declare {
        writeln!(out, "# RabbitMQ 4.3 accepts the next command once the exchange exists: after orderd's first start")?;
    }
    writeln!(out, "{topics}")?;
    if !management.commands.is_empty() {
        writeln!(out, "\n# the management API, as management.username")?;
        management.commands.iter().try_for_each(|command| writeln!(out, "{command}"))?;
    }
    if !management.new_user_commands.is_empty() {
        writeln!(
            out,
            "\n# the management API, as management.username = {:?}. Only for a new user: they replace its tags and permissions",
            management.user
        )?;
        management.new_user_commands.iter().try_for_each(|command| writeln!(out, "#   {command}"))?;
    }
    writeln!(
        out,
        "\n# a producer of orders, such as `orderd publish`: a user of its own, here {:?}, once the exchange exists",
        producer.user
    )?;
    writeln!(out, "{}", add_user(&producer.user))?;
    producer.commands.iter().try_for_each(|command| writeln!(out, "{command}"))
}
