//! The service manager: where it listens, and the words of sd_notify(3), each message one datagram.
//!
//! It never decides when something is told.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long the manager may leave its socket full before a message to it is given up.
const SEND_WITHIN: Duration = Duration::from_millis(500);

/// Why the service manager cannot be told anything.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Neither a path nor the name of an abstract socket.
    #[error("NOTIFY_SOCKET is {0:?}: only a path, and @ with a name, can be told anything")]
    Address(OsString),
    /// The system gives no socket, or the manager's does not take the message.
    #[error("cannot send to NOTIFY_SOCKET {address:?}")]
    Socket {
        /// Its address.
        address: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where the service manager listens, and how often it wants to hear that orderd lives.
#[derive(Debug)]
pub struct Manager {
    socket: Option<Socket>,
    /// The longest time between two WATCHDOG=1, if it counts them.
    pub(super) watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Socket {
    name: OsString,
    address: SocketAddr,
    datagrams: UnixDatagram,
}

impl Manager {
    /// Nobody to tell anything.
    pub fn none() -> Self {
        Manager { socket: None, watchdog: None }
    }

    /// The one that the process's environment names.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn of_process() -> Result<Self, NotifyError> {
        Self::named_by(|name| std::env::var_os(name), std::process::id())
    }

    /// The one that an environment names to the process `pid`.
    pub(super) fn named_by(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<Self, NotifyError> {
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(Self::none()) };
        let socket = Socket::to(name)?;
        // Meant for another process, as when a shell was started and this is its child.
        let meant = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| meant && usec > 0).map(Duration::from_micros);
        Ok(Manager { socket: Some(socket), watchdog })
    }

    /// Sends `message`, lines of `NAME=value`. Waits at most for [`SEND_WITHIN`].
    pub(super) fn tell(&self, message: &str) -> Result<(), NotifyError> {
        self.socket.as_ref().map_or(Ok(()), |socket| socket.send(message))
    }
}

impl Socket {
    fn to(name: OsString) -> Result<Self, NotifyError> {
        let failed = |source| NotifyError::Socket { address: name.clone(), source };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).map_err(failed)?,
            [b'/', ..] => SocketAddr::from_pathname(OsStr::new(&name)).map_err(failed)?,
            _ => return Err(NotifyError::Address(name)),
        };
        let datagrams = UnixDatagram::unbound().map_err(failed)?;
        datagrams.set_write_timeout(Some(SEND_WITHIN)).map_err(failed)?;
        Ok(Socket { name, address, datagrams })
    }

    /// Not over a connection: that would be lost when the manager makes its socket anew.
    fn send(&self, message: &str) -> Result<(), NotifyError> {
        let sent = self.datagrams.send_to_addr(message.as_bytes(), &self.address);
        sent.map(drop).map_err(|source| NotifyError::Socket { address: self.name.clone(), source })
    }
}

/// CLOCK_MONOTONIC in microseconds: what MONOTONIC_USEC is compared with.
pub(super) fn monotonic_usec() -> u128 {
    let now = clock_gettime(ClockId::Monotonic);
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    since_boot.as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(variables: &[(&str, &str)]) -> Result<Manager, NotifyError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Manager::named_by(find, 42)
    }

    #[test]
    fn the_watchdog_counts_only_for_the_process_it_is_meant_for() {
        let watchdog = |more: &[(&str, &str)]| {
            let all = [&[("NOTIFY_SOCKET", "@somewhere"), ("WATCHDOG_USEC", "30000000")], more].concat();
            named(&all).unwrap().watchdog
        };
        let half_a_minute = Some(Duration::from_secs(30));
        assert_eq!(watchdog(&[]), half_a_minute);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "42")]), half_a_minute);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "43")]), None);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "")]), None);
        let none = |usec| named(&[("NOTIFY_SOCKET", "@somewhere"), ("WATCHDOG_USEC", usec)]).unwrap().watchdog;
        assert_eq!((none("0"), none("soon")), (None, None));
    }

    #[test]
    fn without_a_socket_everything_is_told_to_nobody() {
        for variables in [&[][..], &[("NOTIFY_SOCKET", "")], &[("WATCHDOG_USEC", "1000000")]] {
            let manager = named(variables).unwrap();
            manager.tell("READY=1\n").unwrap();
            assert_eq!(manager.watchdog, None);
        }
    }

    #[test]
    fn an_address_of_another_kind_is_refused_by_name() {
        let error = named(&[("NOTIFY_SOCKET", "vsock:2:1234")]).unwrap_err();
        assert!(error.to_string().contains("vsock:2:1234"), "{error}");
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_an_error_and_no_more() {
        let manager = named(&[("NOTIFY_SOCKET", "/nonexistent/notify")]).unwrap();
        assert!(matches!(manager.tell("READY=1\n"), Err(NotifyError::Socket { .. })));
    }
}
