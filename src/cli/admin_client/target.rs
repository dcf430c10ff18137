//! Which daemon a command addresses, according to the command line or the configuration. It sends nothing.
//!
//! A configuration with errors must not prevent commands to the daemon that uses it. In that case, only the address is read
//! from it, and the client verifies that the daemon uses that file. The users' tokens in the configuration are never used: they are
//! those of others.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{AdminClient, AdminClientError, ConfigFile};
use crate::config::{
    Admin, CommandToken, Config, LoadError, Secret, Sources, load_admin, load_ledger_directory, read_token_file,
};

/// The daemon that a command addresses.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct DaemonTarget {
    /// Address of the daemon's admin listener, instead of the configuration's admin.listen
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// File with the token of a user in admin.users; default: admin-token in the ledger's directory
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl DaemonTarget {
    /// Whether the daemon is named, so that no other source will do.
    pub(in crate::cli) fn has_address(&self) -> bool {
        self.address.is_some()
    }

    /// Whether a token is given.
    pub(in crate::cli) fn has_token_file(&self) -> bool {
        self.token_file.is_some()
    }

    /// A client for the daemon of a valid configuration.
    ///
    /// # Errors
    /// There is no address or no client, or the token that is given cannot be read.
    pub(in crate::cli) fn client_of(
        &self,
        config: &Config,
        sources: &Sources,
    ) -> Result<AdminClient, AdminClientError> {
        let (path, token) = (sources.path(), self.token(sources)?);
        let address = listen_address(&config.admin, &path)?;
        AdminClient::new(address, token, Some(ConfigFile { path, is_valid: true }))
    }

    fn token(&self, sources: &Sources) -> Result<Option<Secret>, AdminClientError> {
        match &self.token_file {
            Some(path) => read_token_file(path)
                .map(Some)
                .map_err(|problem| AdminClientError::TokenFile { path: path.clone(), problem }),
            // Never sent to another machine: it may not be the daemon of this configuration.
            None if self.address.is_some_and(|address| !address.ip().is_loopback()) => Ok(None),
            None => Ok(local_token(sources)),
        }
    }

    /// A client for the daemon. Writes a warning to `err` if the configuration has errors.
    ///
    /// # Errors
    /// The outer error when `err` cannot be written; the inner one when there is no client.
    pub(in crate::cli) fn client(
        &self,
        sources: &Sources,
        err: &mut dyn Write,
    ) -> io::Result<Result<AdminClient, AdminClientError>> {
        let token = match self.token(sources) {
            Ok(token) => token,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(address) = self.address {
            return Ok(AdminClient::new(address, token, None));
        }
        let path = sources.path();
        let (admin, is_valid) = match Config::load_usable(sources) {
            Ok((loaded, _)) => (loaded.config.admin, true),
            Err(errors) => match load_admin(sources) {
                Ok(admin) => {
                    writeln!(
                        err,
                        "orderd: the configuration has errors, see `orderd check`; using its admin section to find the daemon{}",
                        hint(&errors)
                    )?;
                    (admin, false)
                }
                Err(_) => return Ok(Err(AdminClientError::Load(errors))),
            },
        };
        let address = listen_address(&admin, &path);
        Ok(address.and_then(|address| AdminClient::new(address, token, Some(ConfigFile { path, is_valid }))))
    }
}

/// Another user of this machine may be unable to read the files that the configuration names, which are then its only errors.
fn hint(errors: &LoadError) -> &'static str {
    match errors {
        LoadError::Invalid { problems, .. }
            if problems.iter().any(|problem| problem.message.contains("Permission denied")) =>
        {
            " (this user cannot read some of the files that it names)"
        }
        LoadError::Invalid { .. } | LoadError::Unreadable { .. } => "",
    }
}

/// The token in the ledger's directory. `None` if this user must not read it; reading may work without it.
pub(in crate::cli) fn local_token(sources: &Sources) -> Option<Secret> {
    CommandToken::in_directory(&load_ledger_directory(sources)?).read().ok()
}

/// The address of the admin listener in a configuration.
///
/// # Errors
/// [`AdminClientError::NoAddress`].
pub(super) fn listen_address(admin: &Admin, config: &Path) -> Result<SocketAddr, AdminClientError> {
    let no_address = |listen| AdminClientError::NoAddress { listen, config: config.to_owned() };
    let address = admin.listen.ok_or_else(|| no_address("\"off\""))?;
    if address.port() == 0 { Err(no_address("any free port")) } else { Ok(address) }
}
