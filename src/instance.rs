//! The identity of this process among several instances: the names of its connections and consumer tags on the broker.
//!
//! For display and for counting, and to distinguish this process's claims in the ledger from those of others.

use std::process;
use std::sync::LazyLock;

/// Differs between hosts, between processes, and between successive processes in one container.
static INSTANCE: LazyLock<Instance> =
    LazyLock::new(|| Instance { name: format!("{}:{}", host_name(), process::id()), start: fastrand::u32(..) });

struct Instance {
    name: String,
    /// A random number for each start: in a restarted container, host name and process id are the same again.
    start: u32,
}

/// The name of this host, as the operating system has it.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `<host>:<process id>`. At most 76 bytes, because Linux limits host names to 64.
pub fn name() -> &'static str {
    &INSTANCE.name
}

/// Names this process among all that use the same ledger. No other process has the same, not even a former one on this host.
pub fn owner() -> String {
    format!("{} {:08x}", name(), INSTANCE.start)
}

/// The name of a connection of this process in RabbitMQ's management pages.
pub fn connection_name(purpose: &str) -> String {
    format!("orderd {purpose} ({})", name())
}

/// The prefix of the consumer tags of this process. No other process has the same.
pub fn tag_prefix() -> String {
    format!("orderd {} {:08x} ", name(), INSTANCE.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_contain_the_process_id_and_fit_into_amqp() {
        assert!(name().ends_with(&format!(":{}", process::id())) && name().len() <= 76, "{}", name());
        assert_eq!(connection_name("publish"), format!("orderd publish ({})", name()));
        assert_eq!(tag_prefix(), tag_prefix());
        assert!(tag_prefix().starts_with("orderd ") && tag_prefix().len() + 20 < 255);
    }
}
