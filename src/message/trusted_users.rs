//! The broker users whose publications count as orderd's own.
//!
//! RabbitMQ accepts a message with the property `user_id` only if it names the user of the publishing connection, so the property
//! proves who published a message. Nothing here talks to the broker.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// orderd's own user, as far as it is known, and further users from the configuration. Shared by the publisher, which states
/// the user, and by the consumers, which compare it.
#[derive(Debug)]
pub struct TrustedUsers {
    users: RwLock<Users>,
}

#[derive(Debug)]
struct Users {
    /// What publications state: the configured name until the broker's is known.
    stated: Arc<str>,
    /// The broker's names of orderd's user in this process, and those of the configuration.
    trusted: Vec<Arc<str>>,
}

impl TrustedUsers {
    /// `configured` is `broker.username`. It is not trusted: the broker may know orderd's user by another name, and another
    /// user by this one.
    pub fn new(configured: &str, further: &[String]) -> Self {
        let trusted = further.iter().map(String::as_str).map(Arc::from).collect();
        TrustedUsers { users: RwLock::new(Users { stated: configured.into(), trusted }) }
    }

    /// Of a process whose name on the broker is known.
    pub fn known(own: &str) -> Self {
        TrustedUsers::new(own, &[own.to_owned()])
    }

    /// The user that orderd's publications state.
    pub fn own(&self) -> Arc<str> {
        Arc::clone(&self.read().stated)
    }

    /// Sets the name by which the broker knows orderd's user, and trusts it. Messages of its former names in this process stay
    /// trusted: they may still be in a queue.
    pub fn set_own(&self, name: &str) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        users.stated = name.into();
        if users.trusted.iter().all(|trusted| **trusted != *name) {
            users.trusted.push(name.into());
        }
    }

    /// Whether this user's messages count as orderd's own.
    pub fn contains(&self, user: &str) -> bool {
        self.read().trusted.iter().any(|trusted| **trusted == *user)
    }

    fn read(&self) -> RwLockReadGuard<'_, Users> {
        self.users.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_name_is_trusted_only_if_it_is_the_brokers() {
        let users = TrustedUsers::new("guest", &["other-instance".to_owned()]);
        assert!(!users.contains("guest"), "with a client certificate, guest is somebody else");
        users.set_own("CN=orderd");
        assert_eq!(&*users.own(), "CN=orderd");
        assert!(["CN=orderd", "other-instance"].iter().all(|user| users.contains(user)));
        assert!(!users.contains("guest") && !users.contains("shop"));
    }

    #[test]
    fn messages_under_a_former_name_of_this_process_stay_trusted() {
        let users = TrustedUsers::new("guest", &[]);
        ["CN=orderd,O=old", "CN=orderd,O=new", "CN=orderd,O=new"].iter().for_each(|name| users.set_own(name));
        assert_eq!(&*users.own(), "CN=orderd,O=new");
        assert!(users.contains("CN=orderd,O=old") && users.contains("CN=orderd,O=new"));
        assert_eq!(users.read().trusted.len(), 2);
    }
}
