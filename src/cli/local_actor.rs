//! Who runs a command on this machine, for the journal. It is what the operating system says, which root can change.

use std::env;
use std::fs;

use rustix::process::getuid;

use crate::ledger::LOCAL_ACTOR;

/// Most characters of a name.
const MAX_NAME: usize = 64;

/// `local/<user>`.
pub(super) fn local_actor() -> String {
    format!("{LOCAL_ACTOR}/{}", os_user())
}

/// The user who has called sudo, else the process's user; the number of a user without a plain name.
pub(super) fn os_user() -> String {
    let uid = getuid();
    let by_sudo = env::var("SUDO_USER").ok().filter(|_| uid.is_root());
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = by_sudo.or_else(|| name_of(uid.as_raw(), &users)).filter(|name| is_plain(name));
    name.unwrap_or_else(|| uid.as_raw().to_string())
}

/// The name of a user in the content of `/etc/passwd`.
fn name_of(uid: u32, users: &str) -> Option<String> {
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields.get(2).is_some_and(|id| *id == uid.to_string()))?;
    found.first().map(|name| (*name).to_owned())
}

fn is_plain(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_as_the_operating_system_names_it() {
        let users = "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(
            [0, 1000, 100].map(|uid| name_of(uid, users)),
            [Some("root".to_owned()), Some("ada".to_owned()), None]
        );
        assert!(local_actor().starts_with("local/"));
        assert!(["", "a b", "a\n", "a/b", &"a".repeat(65)].into_iter().all(|name| !is_plain(name)));
    }
}
