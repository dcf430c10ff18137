//! What a broker's user must be allowed: the needs of a plan, and the permissions that they add up to. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::{Argument, Binding, Declaration, Exchange, Queue};

/// Something that orderd does on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequiredPermission {
    /// Declares.
    Declare(Declaration),
    /// Looks whether an exchange that others declare is there.
    FindExchange {
        /// Its name.
        exchange: String,
    },
    /// Looks whether a queue that others declare is there.
    FindQueue {
        /// Its name.
        queue: String,
    },
    /// Publishes.
    Publish {
        /// To this exchange.
        exchange: String,
        /// With this key.
        routing_key: String,
    },
    /// Consumes from a queue.
    Consume {
        /// Its name.
        queue: String,
    },
}

impl fmt::Display for RequiredPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequiredPermission::Declare(Declaration::Exchange(Exchange { name, .. })) => {
                write!(f, "declare exchange {name:?}")
            }
            RequiredPermission::Declare(Declaration::Queue(Queue { name, .. })) => write!(f, "declare queue {name:?}"),
            RequiredPermission::Declare(Declaration::Binding(Binding { exchange, queue, routing_key })) => {
                write!(f, "bind queue {queue:?} to exchange {exchange:?} with key {routing_key:?}")
            }
            RequiredPermission::FindExchange { exchange } => write!(f, "look for exchange {exchange:?}"),
            RequiredPermission::FindQueue { queue } => write!(f, "look for queue {queue:?}"),
            RequiredPermission::Publish { exchange, routing_key } => {
                write!(f, "publish to exchange {exchange:?} with key {routing_key:?}")
            }
            RequiredPermission::Consume { queue } => write!(f, "consume from queue {queue:?}"),
        }
    }
}

/// Permissions in a virtual host, as RabbitMQ has them: regular expressions that match names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// What may be declared.
    pub configure: String,
    /// What may be published to and bound, or only looked for.
    pub write: String,
    /// What may be consumed, and bound to.
    pub read: String,
    /// On the topic exchange: what keys may be published with, and bound with.
    pub topic: TopicPermissions,
}

/// Permissions on one topic exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPermissions {
    /// Its name.
    pub exchange: String,
    /// Keys to publish with.
    pub write: String,
    /// Keys and patterns to bind with.
    pub read: String,
}

impl Permissions {
    /// The least that serves all needs. `orders` is the topic exchange. What RabbitMQ asks for: declaring needs
    /// `configure`; with a dead-letter or alternate exchange also `read` on what is declared and `write` on that
    /// exchange; binding needs `write` on the queue and `read` on the exchange. Looking for something needs any permission
    /// on it since RabbitMQ 4.2.7 and 4.3.1 (`configure` in 4.2.6 and 4.3.0, nothing before): `write` if there is no other,
    /// since a queue that may be read may be emptied.
    pub fn least(needs: &[RequiredPermission], orders: &str) -> Self {
        let (mut configure, mut write, mut read) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut found = BTreeSet::new();
        let (mut keys, mut patterns) = (BTreeSet::new(), BTreeSet::new());
        for need in needs {
            match need {
                RequiredPermission::Declare(
                    Declaration::Exchange(Exchange { name, arguments, .. })
                    | Declaration::Queue(Queue { name, arguments }),
                ) => {
                    configure.insert(name.as_str());
                    for key in ["alternate-exchange", "x-dead-letter-exchange"] {
                        if let Some(Argument::Text(target)) = arguments.get(key) {
                            read.insert(name.as_str());
                            write.insert(target.as_str());
                        }
                    }
                }
                RequiredPermission::Declare(Declaration::Binding(Binding { exchange, queue, routing_key })) => {
                    write.insert(queue.as_str());
                    read.insert(exchange.as_str());
                    if exchange == orders {
                        patterns.insert(routing_key.as_str());
                    }
                }
                RequiredPermission::Publish { exchange, routing_key } => {
                    write.insert(exchange.as_str());
                    if exchange == orders {
                        keys.insert(routing_key.as_str());
                    }
                }
                RequiredPermission::Consume { queue } => drop(read.insert(queue.as_str())),
                RequiredPermission::FindExchange { exchange: name } | RequiredPermission::FindQueue { queue: name } => {
                    found.insert(name.as_str());
                }
            }
        }
        write.extend(found.into_iter().filter(|name| !configure.contains(name) && !read.contains(name)));
        let topic = TopicPermissions {
            exchange: orders.to_owned(),
            write: any_channel(expression(&keys)),
            read: expression(&patterns),
        };
        Permissions { configure: expression(&configure), write: expression(&write), read: expression(&read), topic }
    }

    /// The commands that grant them, ready for a shell.
    pub fn commands(&self, virtual_host: &str, user: &str) -> [String; 2] {
        let (place, user) = (quoted(virtual_host), quoted(user));
        let TopicPermissions { exchange, write, read } = &self.topic;
        [
            format!(
                "rabbitmqctl set_permissions -p {place} {user} {} {} {}",
                quoted(&self.configure),
                quoted(&self.write),
                quoted(&self.read)
            ),
            format!(
                "rabbitmqctl set_topic_permissions -p {place} {user} {} {} {}",
                quoted(exchange),
                quoted(write),
                quoted(read)
            ),
        ]
    }
}

/// Matches exactly these names; `^$`, which matches no name of ours, if there are none.
fn expression(names: &BTreeSet<&str>) -> String {
    let escaped: Vec<String> = names.iter().map(|name| escape(name)).collect();
    match &escaped[..] {
        [] => "^$".to_owned(),
        [one] => format!("^{one}$"),
        many => format!("^({})$", many.join("|")),
    }
}

fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if r"\.+*?()|[]{}^$#".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// An order may ask for its notification by any channel, of which a plan knows one.
fn any_channel(expression: String) -> String {
    expression.replace(r"order\.notification\.email", r"order\.notification\.[^.]+")
}

/// In single quotes, as a shell takes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_granted_beyond_the_names() {
        let needs = [
            RequiredPermission::Publish { exchange: "orders".into(), routing_key: "order.failed.a".into() },
            RequiredPermission::Publish { exchange: "orders.retry".into(), routing_key: "a.retry.1s".into() },
            RequiredPermission::Consume { queue: "a".into() },
            RequiredPermission::FindQueue { queue: "a".into() },
            RequiredPermission::FindExchange { exchange: "orders.retry".into() },
            RequiredPermission::FindQueue { queue: "a.retry.1s".into() },
        ];
        let least = Permissions::least(&needs, "orders");
        assert_eq!(least.configure, "^$");
        assert_eq!(least.write, r"^(a\.retry\.1s|orders|orders\.retry)$", "what is only looked for among them");
        assert_eq!(least.read, "^a$");
        assert_eq!((least.topic.write.as_str(), least.topic.read.as_str()), (r"^order\.failed\.a$", "^$"));
        let [all, topic] = least.commands("/", "it's");
        assert_eq!(
            all,
            r"rabbitmqctl set_permissions -p '/' 'it'\''s' '^$' '^(a\.retry\.1s|orders|orders\.retry)$' '^a$'"
        );
        assert_eq!(topic, r"rabbitmqctl set_topic_permissions -p '/' 'it'\''s' 'orders' '^order\.failed\.a$' '^$'");
    }

    #[test]
    fn dead_letter_exchanges_and_bindings_have_their_price() {
        let arguments = [("x-dead-letter-exchange", Argument::Text("dlx".into()))].into();
        let needs = [
            RequiredPermission::Declare(Declaration::Queue(Queue { name: "a".into(), arguments })),
            RequiredPermission::Declare(Declaration::Binding(Binding {
                exchange: "orders".into(),
                queue: "a".into(),
                routing_key: "order.*".into(),
            })),
        ];
        let least = Permissions::least(&needs, "orders");
        assert_eq!((least.configure.as_str(), least.write.as_str()), ("^a$", "^(a|dlx)$"));
        assert_eq!((least.read.as_str(), least.topic.read.as_str()), ("^(a|orders)$", r"^order\.\*$"));
    }
}
