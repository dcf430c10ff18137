//! The broker users whose publications count as orderd's own.
//!
//! RabbitMQ accepts a message with the property `user_id` only if it names the user of the publishing connection, so the property
//! proves who published a message. Nothing here talks to the broker.

use std::sync::{Arc, PoisonError, RwLock};

/// orderd's own user, as far as it is known, and further users from the configuration. Shared by the publisher, which states
/// the user, and by the consumers, which compare it.
#[derive(Debug)]
pub struct TrustedUsers {
    /// The first one is orderd's own user now; the others are its former ones and those of other instances.
    users: RwLock<Vec<Arc<str>>>,
}

impl TrustedUsers {
    /// `own` is the configured name. The broker may know the user by another one ([`TrustedUsers::set_own`]).
    pub fn new(own: &str, further: &[String]) -> Self {
        let users = std::iter::once(own).chain(further.iter().map(String::as_str)).map(Arc::from).collect();
        TrustedUsers { users: RwLock::new(users) }
    }

    /// The user that orderd's publications state.
    pub fn own(&self) -> Arc<str> {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(users.first().expect("there is always orderd's own user"))
    }

    /// Sets the name by which the broker knows orderd's user. Messages of its former name stay trusted: they may still be in
    /// a queue.
    pub fn set_own(&self, name: &str) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user| &**user != name);
        users.insert(0, name.into());
    }

    /// Whether this user's messages count as orderd's own.
    pub fn contains(&self, user: &str) -> bool {
        self.users.read().unwrap_or_else(PoisonError::into_inner).iter().any(|trusted| &**trusted == user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_under_a_former_name_stay_trusted() {
        let users = TrustedUsers::new("guest", &["other-instance".to_owned()]);
        users.set_own("CN=orderd");
        assert_eq!(&*users.own(), "CN=orderd");
        assert!(["CN=orderd", "guest", "other-instance"].iter().all(|user| users.contains(user)));
        assert!(!users.contains("shop"));
    }
}
