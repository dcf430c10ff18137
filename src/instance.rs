//! Which of several running orderds this process is: what the broker's pages, the status and the monitor tell it by.
//!
//! It only names. Nothing that is recorded or published depends on it.

use std::process;
use std::sync::LazyLock;

/// Told apart from every other process, those on other hosts and those before it in the same container included.
static INSTANCE: LazyLock<Instance> = LazyLock::new(|| {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Instance { name: format!("{host}:{}", process::id()), start: fastrand::u32(..) }
});

struct Instance {
    name: String,
    /// Another one at every start: in containers of one name, process ids are always the same.
    start: u32,
}

/// `<host>:<process id>`, for people. At most 76 bytes: Linux allows host names of 64.
pub fn name() -> &'static str {
    &INSTANCE.name
}

/// What a connection of this process is called on the broker's management pages.
pub fn connection_name(purpose: &str) -> String {
    format!("orderd {purpose} ({})", name())
}

/// How the tags of this process's consumers begin, and no other process's.
pub fn tag_prefix() -> String {
    format!("orderd {} {:08x} ", name(), INSTANCE.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_this_process_and_fit_into_amqp() {
        assert!(name().ends_with(&format!(":{}", process::id())) && name().len() <= 76, "{}", name());
        assert_eq!(connection_name("publish"), format!("orderd publish ({})", name()));
        assert_eq!(tag_prefix(), tag_prefix());
        assert!(tag_prefix().starts_with("orderd ") && tag_prefix().len() + 20 < 255);
    }
}
