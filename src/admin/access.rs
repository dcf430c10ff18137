//! Who sends a request: users with their tokens, and anyone who can read the token in the ledger's directory.
//!
//! It never decides what somebody may do, and never shows a token.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION as AUTHORIZATION_HEADER;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::config::{AdminUser, CommandToken, Role, Secret};
use crate::ledger::LOCAL_ACTOR;

/// The header that carries the token.
pub const AUTHORIZATION: &str = "authorization";
/// The header in which the command line says which user of the operating system runs it. It counts only with the token in the ledger's
/// directory, whose readers could as well change the ledger.
pub const LOCAL_USER: &str = "orderd-local-user";
/// Longest name in [`LOCAL_USER`].
const MAX_LOCAL_USER: usize = 64;

/// The value of [`AUTHORIZATION`] for a token.
pub fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.expose())
}

/// Who has sent a request. It is in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) struct Actor {
    /// As in the journal.
    pub name: String,
    pub role: Role,
}

/// SHA-256 of a token.
type TokenDigest = [u8; 32];

#[derive(Debug, Clone)]
pub(super) struct KnownUser {
    actor: Actor,
    digest: TokenDigest,
}

/// The users of a configuration.
pub(super) fn known_users(users: &[AdminUser]) -> Vec<KnownUser> {
    let known = |AdminUser { name, role, token }: &AdminUser| KnownUser {
        actor: Actor { name: name.clone(), role: *role },
        digest: digest(token.expose()),
    };
    users.iter().map(known).collect()
}

fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token).into()
}

/// Compares whole digests, so that timing reveals nothing about where they differ.
fn is_same(one: &TokenDigest, other: &TokenDigest) -> bool {
    one.iter().zip(other).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
}

/// Finds out who sends a request.
pub(super) struct Authenticator {
    /// Changes with each reload.
    pub users: watch::Receiver<Vec<KnownUser>>,
    pub local: CommandToken,
}

/// A token that belongs to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnknownToken;

impl Authenticator {
    /// Whether the configuration names users.
    pub fn has_users(&self) -> bool {
        !self.users.borrow().is_empty()
    }

    /// `None` without a token.
    pub async fn actor(&self, headers: &HeaderMap) -> Result<Option<Actor>, UnknownToken> {
        let Some(given) = headers.get(AUTHORIZATION_HEADER) else { return Ok(None) };
        let given = given.to_str().ok().and_then(|value| value.split_once(' '));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let given = digest(given.ok_or(UnknownToken)?.1.trim());
        if let Some(actor) = self.user(&given) {
            return Ok(Some(actor));
        }
        let local = self.local_token().await.ok_or(UnknownToken)?;
        if !is_same(&digest(local.expose()), &given) {
            return Err(UnknownToken);
        }
        Ok(Some(Actor { name: local_name(headers), role: Role::Operator }))
    }

    /// The user with this token. All are compared, whichever it is.
    fn user(&self, given: &TokenDigest) -> Option<Actor> {
        let users = self.users.borrow();
        users.iter().fold(None, |found, user| is_same(&user.digest, given).then(|| user.actor.clone()).or(found))
    }

    /// The token in the ledger's directory. It is rarely used, so the file is read each time; one that was deleted is created again.
    async fn local_token(&self) -> Option<Secret> {
        let token = self.local.clone();
        tokio::task::spawn_blocking(move || token.read_or_create()).await.ok()?.ok()
    }
}

/// `local/<user>`, if the client says which user of the operating system runs it.
fn local_name(headers: &HeaderMap) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '@');
    let user = headers.get(LOCAL_USER).and_then(|user| user.to_str().ok());
    let user = user.filter(|user| (1..=MAX_LOCAL_USER).contains(&user.len()) && user.chars().all(is_allowed));
    user.map_or_else(|| LOCAL_ACTOR.to_owned(), |user| format!("{LOCAL_ACTOR}/{user}"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// `ada` is an operator, `bob` a viewer.
    pub fn authenticator(directory: &Path) -> Authenticator {
        let user = |name: &str, role, token: &str| AdminUser { name: name.to_owned(), role, token: Secret::new(token) };
        let users = [user("ada", Role::Operator, "0123456789abcdef"), user("bob", Role::Viewer, "fedcba9876543210")];
        let (_, users) = watch::channel(known_users(&users));
        Authenticator { users, local: CommandToken::in_directory(directory) }
    }

    async fn actor(
        authenticator: &Authenticator,
        headers: &[(&'static str, &str)],
    ) -> Result<Option<String>, UnknownToken> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        authenticator.actor(&headers).await.map(|actor| actor.map(|actor| format!("{} {:?}", actor.name, actor.role)))
    }

    #[tokio::test]
    async fn a_user_is_known_by_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let authenticator = authenticator(directory.path());
        let known = async |token: &str| actor(&authenticator, &[(AUTHORIZATION, token)]).await;
        assert_eq!(known("Bearer 0123456789abcdef").await, Ok(Some("ada Operator".to_owned())));
        assert_eq!(known("bearer fedcba9876543210").await, Ok(Some("bob Viewer".to_owned())));
        for wrong in ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "0123456789abcdef"]
        {
            assert_eq!(known(wrong).await, Err(UnknownToken), "{wrong}");
        }
        assert_eq!(actor(&authenticator, &[]).await, Ok(None));
    }

    #[tokio::test]
    async fn anyone_who_can_read_the_token_in_the_ledgers_directory_is_an_operator() {
        let directory = tempfile::tempdir().unwrap();
        let authenticator = authenticator(directory.path());
        let token = format!("Bearer {}", authenticator.local_token().await.unwrap().expose());
        let with =
            async |user| actor(&authenticator, &[(AUTHORIZATION, &token), (LOCAL_USER, user)]).await.unwrap().unwrap();
        assert_eq!(with("ada").await, "local/ada Operator");
        for wrong in ["", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(with(wrong).await, "local Operator", "{wrong}");
        }
        let spoofed = [(AUTHORIZATION, "Bearer fedcba9876543210"), (LOCAL_USER, "ada")];
        assert_eq!(actor(&authenticator, &spoofed).await, Ok(Some("bob Viewer".to_owned())));
        let missing =
            Authenticator { local: CommandToken::in_directory(&directory.path().join("missing")), ..authenticator };
        assert_eq!(actor(&missing, &[(AUTHORIZATION, &token)]).await, Err(UnknownToken));
    }
}
