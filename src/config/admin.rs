//! Reads `[admin]`: the listener's address, who may use it, and the names it answers to.

use std::net::SocketAddr;

use super::layers::Value;
use super::model::{Admin, AdminUser, Role};
use super::secret;
use super::section::Section;
use super::value_parser;
use crate::ledger::LOCAL_ACTOR;

/// Most entries of `admin.hosts`.
const MAX_HOSTS: usize = 32;
/// Longest host name, in bytes.
const MAX_HOST_BYTES: usize = 255;
/// Most entries of `admin.users`.
const MAX_USERS: usize = 100;
/// Longest name of a user, in bytes.
const MAX_USER_BYTES: usize = 64;

pub(super) fn admin(mut section: Section<'_>) -> Admin {
    let names_users = section.has("users");
    let admin = Admin {
        listen: section.optional_or("listen", Some(SocketAddr::from(([127, 0, 0, 1], 9640))), &listen),
        users: users(&mut section),
        hosts: section.list("hosts", MAX_HOSTS, &host).unwrap_or_default(),
    };
    let is_exposed = admin.listen.is_some_and(|listen| !listen.ip().is_loopback());
    // If users are named, the problems with them are reported.
    if is_exposed && admin.users.is_empty() && !names_users {
        section.problem(
            "listen",
            "must be a loopback address such as \"127.0.0.1:9640\", unless [[admin.users]] says who may use it",
        );
    }
    section.finish();
    admin
}

/// The users without problems.
fn users(section: &mut Section<'_>) -> Vec<AdminUser> {
    let mut users: Vec<AdminUser> = Vec::new();
    for mut user in section.sections("users", MAX_USERS) {
        let name = user.required("name", ": the name that the journal shows, such as \"ada\"", &user_name);
        let roles = [("viewer", Role::Viewer), ("operator", Role::Operator)];
        let role = user.required("role", ": \"viewer\" or \"operator\"", &value_parser::one_of(&roles));
        if !user.has("token_file") {
            user.problem("token_file", "is missing: a file with the user's token");
        }
        let token = secret::token(&mut user);
        if let (Some(name), Some(role), Some(token)) = (name, role, token) {
            if users.iter().any(|other| other.name == name) {
                user.problem("name", format!("must be unique, is {name:?} again"));
            }
            if let Some(other) = users.iter().find(|other| other.token == token) {
                user.problem(
                    "token_file",
                    format!("has the same token as that of {:?}: give each user an own token", other.name),
                );
            }
            users.push(AdminUser { name, role, token });
        }
        user.finish();
    }
    users
}

/// A name that needs no escaping, and is not that of what is done without a user's token.
fn user_name(value: &Value) -> Result<String, String> {
    let name = value_parser::text(MAX_USER_BYTES)(value)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '@');
    if name == LOCAL_ACTOR {
        Err(format!(
            "must not be {LOCAL_ACTOR:?}, which is what the journal shows for the token in the ledger's directory"
        ))
    } else if name.chars().all(is_allowed) {
        Ok(name)
    } else {
        Err(format!("must consist of letters, digits and \"-._@\", is {value}"))
    }
}

fn listen(value: &Value) -> Result<Option<SocketAddr>, String> {
    let text = value_parser::text(64)(value)?;
    if text == "off" {
        return Ok(None);
    }
    let problem = |_| format!("must be an IP address and port such as \"127.0.0.1:9640\", or \"off\", is {value}");
    text.parse().map(Some).map_err(problem)
}

/// A host name that requests to the admin listener may use.
fn host(value: &Value) -> Result<String, String> {
    let name = value_parser::text(MAX_HOST_BYTES)(value)?.to_ascii_lowercase();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.chars().all(is_allowed) { Ok(name) } else { Err(format!("must be a host name without a port, is {value}")) }
}
