//! What orderd's user must be allowed to do on the broker, and the RabbitMQ permissions that grant it. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::{Argument, Binding, Declaration, Exchange, Queue};

/// One thing that orderd does on the broker and needs permission for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequiredPermission {
    /// Declare this.
    Declare(Declaration),
    /// Check passively that an exchange exists.
    FindExchange {
        /// Its name.
        exchange: String,
    },
    /// Check passively that a queue exists.
    FindQueue {
        /// Its name.
        queue: String,
    },
    /// Publish a message.
    Publish {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// Consume from a queue.
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
            RequiredPermission::FindExchange { exchange } => write!(f, "check that exchange {exchange:?} exists"),
            RequiredPermission::FindQueue { queue } => write!(f, "check that queue {queue:?} exists"),
            RequiredPermission::Publish { exchange, routing_key } => {
                write!(f, "publish to exchange {exchange:?} with key {routing_key:?}")
            }
            RequiredPermission::Consume { queue } => write!(f, "consume from queue {queue:?}"),
        }
    }
}

/// Permissions in a virtual host. As in RabbitMQ, each is a regular expression that matches names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// What the user may declare.
    pub configure: String,
    /// Exchanges to publish to, queues to bind, and objects whose existence is only checked.
    pub write: String,
    /// Queues to consume, and exchanges to bind to.
    pub read: String,
    /// Routing keys on the topic exchange.
    pub topic: TopicPermissions,
}

/// Topic permissions on one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPermissions {
    /// The exchange's name.
    pub exchange: String,
    /// Routing keys to publish with, as a regular expression.
    pub write: String,
    /// Routing keys and patterns to bind with, as a regular expression.
    pub read: String,
}

impl Permissions {
    /// The least permissions that allow everything in `required`. `orders` is the name of the topic exchange.
    ///
    /// RabbitMQ's rules: declaring needs `configure`; with a dead-letter or alternate exchange also `read` on what is
    /// declared and `write` on that exchange. Binding needs `write` on the queue and `read` on the exchange. A passive check
    /// needs any permission on the object since RabbitMQ 4.2.7 and 4.3.1 (`configure` in 4.2.6 and 4.3.0, none before). It
    /// is given `write` if it has no other, because `read` on a queue would allow emptying it.
    pub fn least(required: &[RequiredPermission], orders: &str) -> Self {
        let (mut configure, mut write, mut read) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut checked = BTreeSet::new();
        let (mut keys, mut patterns) = (BTreeSet::new(), BTreeSet::new());
        for permission in required {
            match permission {
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
                    checked.insert(name.as_str());
                }
            }
        }
        write.extend(checked.into_iter().filter(|name| !configure.contains(name) && !read.contains(name)));
        let topic = TopicPermissions {
            exchange: orders.to_owned(),
            write: any_channel(expression(&keys)),
            read: expression(&patterns),
        };
        Permissions { configure: expression(&configure), write: expression(&write), read: expression(&read), topic }
    }

    /// What a producer needs: to publish to the topic exchange `orders` with the routing keys that match these patterns.
    pub fn of_producer<'p>(orders: &str, patterns: impl IntoIterator<Item = &'p str>) -> Self {
        let keys: BTreeSet<String> = patterns.into_iter().map(key_expression).collect();
        let nothing = || expression(&BTreeSet::new());
        let write = match keys.into_iter().collect::<Vec<_>>().join("|") {
            none if none.is_empty() => nothing(),
            keys => format!("^({keys})$"),
        };
        let topic = TopicPermissions { exchange: orders.to_owned(), write, read: nothing() };
        Permissions { configure: nothing(), write: expression(&[orders].into()), read: nothing(), topic }
    }

    /// The `rabbitmqctl` commands that grant them, quoted for a shell.
    pub fn commands(&self, virtual_host: &str, user: &str) -> [String; 2] {
        let (vhost, user) = (quoted(virtual_host), quoted(user));
        let TopicPermissions { exchange, write, read } = &self.topic;
        [
            format!(
                "rabbitmqctl set_permissions -p {vhost} {user} {} {} {}",
                quoted(&self.configure),
                quoted(&self.write),
                quoted(&self.read)
            ),
            format!(
                "rabbitmqctl set_topic_permissions -p {vhost} {user} {} {} {}",
                quoted(exchange),
                quoted(write),
                quoted(read)
            ),
        ]
    }
}

/// A regular expression that matches exactly these names; `^$` if there are none.
fn expression(names: &BTreeSet<&str>) -> String {
    let escaped: Vec<String> = names.iter().map(|name| escape(name)).collect();
    match &escaped[..] {
        [] => "^$".to_owned(),
        [one] => format!("^{one}$"),
        many => format!("^({})$", many.join("|")),
    }
}

/// A regular expression, without anchors, that matches what a topic pattern matches.
fn key_expression(pattern: &str) -> String {
    let words: Vec<&str> = pattern.split('.').collect();
    let mut expression = String::new();
    for (index, word) in words.iter().enumerate() {
        // The dot before a word, unless a leading "#" brings its own.
        let separator = if index == 0 || (index == 1 && words[0] == "#") { "" } else { r"\." };
        match *word {
            "#" if words.len() == 1 => expression.push_str(".*"),
            "#" if index == 0 => expression.push_str(r"(.*\.)?"),
            "#" => expression.push_str(r"(\..*)?"),
            "*" => expression.extend([separator, "[^.]+"]),
            literal => expression.extend([separator, &escape(literal)]),
        }
    }
    expression
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

/// Allows every notification channel: each order names its own, and the required permissions contain one for all.
fn any_channel(expression: String) -> String {
    expression.replace(r"order\.notification\.email", r"order\.notification\.[^.]+")
}

/// In single quotes, for a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_objects_are_granted() {
        let required = [
            RequiredPermission::Publish { exchange: "orders".into(), routing_key: "order.failed.a".into() },
            RequiredPermission::Publish { exchange: "orders.retry".into(), routing_key: "a.retry.1s".into() },
            RequiredPermission::Consume { queue: "a".into() },
            RequiredPermission::FindQueue { queue: "a".into() },
            RequiredPermission::FindExchange { exchange: "orders.retry".into() },
            RequiredPermission::FindQueue { queue: "a.retry.1s".into() },
        ];
        let least = Permissions::least(&required, "orders");
        assert_eq!(least.configure, "^$");
        assert_eq!(least.write, r"^(a\.retry\.1s|orders|orders\.retry)$", "including what is only checked");
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
    fn a_producer_may_publish_with_the_keys_that_the_patterns_match_and_nothing_else() {
        let producer = Permissions::of_producer("orders", ["order.normal.*", "order.priority.#"]);
        assert_eq!((producer.configure.as_str(), producer.write.as_str()), ("^$", "^orders$"));
        assert_eq!(producer.topic.write, r"^(order\.normal\.[^.]+|order\.priority(\..*)?)$");
        assert_eq!((producer.read.as_str(), producer.topic.read.as_str()), ("^$", "^$"));
        assert_eq!(Permissions::of_producer("orders", []).topic.write, "^$");
        for (pattern, expected) in
            [("#", ".*"), ("#.a", r"(.*\.)?a"), ("a.#.b", r"a(\..*)?\.b"), ("*.#", r"[^.]+(\..*)?"), ("a+", r"a\+")]
        {
            assert_eq!(key_expression(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn dead_letter_exchanges_and_bindings_need_permissions_of_their_own() {
        let arguments = [("x-dead-letter-exchange", Argument::Text("dlx".into()))].into();
        let required = [
            RequiredPermission::Declare(Declaration::Queue(Queue { name: "a".into(), arguments })),
            RequiredPermission::Declare(Declaration::Binding(Binding {
                exchange: "orders".into(),
                queue: "a".into(),
                routing_key: "order.*".into(),
            })),
        ];
        let least = Permissions::least(&required, "orders");
        assert_eq!((least.configure.as_str(), least.write.as_str()), ("^a$", "^(a|dlx)$"));
        assert_eq!((least.read.as_str(), least.topic.read.as_str()), ("^(a|orders)$", r"^order\.\*$"));
    }
}
