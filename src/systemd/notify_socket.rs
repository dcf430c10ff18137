//! The socket of sd_notify(3): its address from the environment, and sending; each message is one datagram.
//!
//! It never decides when a message is sent.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long sending waits while the service manager's socket is full, before the message is dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the service manager cannot be notified.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The address is neither a path nor the name of an abstract socket.
    #[error("cannot use NOTIFY_SOCKET {0:?}: it must be an absolute path, or @ and a name")]
    UnsupportedAddress(OsString),
    /// The socket cannot be created, or the message cannot be sent.
    #[error("cannot send to NOTIFY_SOCKET {address:?}")]
    Socket {
        /// The address.
        address: OsString,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// The service manager's socket, if there is one, and its watchdog interval.
#[derive(Debug)]
pub struct NotifySocket {
    socket: Option<DatagramSocket>,
    /// The longest time allowed between two WATCHDOG=1, if the service manager expects them.
    pub(super) watchdog: Option<Duration>,
}

#[derive(Debug)]
struct DatagramSocket {
    name: OsString,
    address: SocketAddr,
    socket: UnixDatagram,
}

impl NotifySocket {
    /// No service manager: sending does nothing.
    pub fn disabled() -> Self {
        NotifySocket { socket: None, watchdog: None }
    }

    /// The socket named by this process's environment; disabled if there is none.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn from_env() -> Result<Self, NotifyError> {
        Self::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    /// The socket named by these environment variables to the process `pid`.
    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<Self, NotifyError> {
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self::disabled());
        };
        let socket = DatagramSocket::to(name)?;
        // WATCHDOG_PID may name another process: for example, a shell that systemd started passes its variables on.
        let is_for_us = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| is_for_us && usec > 0).map(Duration::from_micros);
        Ok(NotifySocket { socket: Some(socket), watchdog })
    }

    /// Sends `message`, lines of `NAME=value`. Waits up to [`SEND_TIMEOUT`].
    pub(super) fn send(&self, message: &str) -> Result<(), NotifyError> {
        self.socket.as_ref().map_or(Ok(()), |socket| socket.send(message))
    }
}

impl DatagramSocket {
    fn to(name: OsString) -> Result<Self, NotifyError> {
        let failed = |source| NotifyError::Socket { address: name.clone(), source };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).map_err(failed)?,
            [b'/', ..] => SocketAddr::from_pathname(OsStr::new(&name)).map_err(failed)?,
            _ => return Err(NotifyError::UnsupportedAddress(name)),
        };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT)).map_err(failed)?;
        Ok(DatagramSocket { name, address, socket })
    }

    /// Not connected: a connected socket would stop working when the service manager recreates its own.
    fn send(&self, message: &str) -> Result<(), NotifyError> {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.address);
        sent.map(drop).map_err(|source| NotifyError::Socket { address: self.name.clone(), source })
    }
}

/// CLOCK_MONOTONIC in microseconds, the clock that systemd compares MONOTONIC_USEC with.
pub(super) fn monotonic_usec() -> u128 {
    let now = clock_gettime(ClockId::Monotonic);
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    since_boot.as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<NotifySocket, NotifyError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        NotifySocket::from_variables(find, 42)
    }

    #[test]
    fn the_watchdog_interval_applies_only_to_the_process_it_names() {
        let watchdog = |more: &[(&str, &str)]| {
            let all = [&[("NOTIFY_SOCKET", "@somewhere"), ("WATCHDOG_USEC", "30000000")], more].concat();
            from(&all).unwrap().watchdog
        };
        let interval = Some(Duration::from_secs(30));
        assert_eq!(watchdog(&[]), interval);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "42")]), interval);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "43")]), None);
        assert_eq!(watchdog(&[("WATCHDOG_PID", "")]), None);
        let none = |usec| from(&[("NOTIFY_SOCKET", "@somewhere"), ("WATCHDOG_USEC", usec)]).unwrap().watchdog;
        assert_eq!((none("0"), none("soon")), (None, None));
    }

    #[test]
    fn without_a_socket_sending_does_nothing() {
        for variables in [&[][..], &[("NOTIFY_SOCKET", "")], &[("WATCHDOG_USEC", "1000000")]] {
            let socket = from(variables).unwrap();
            socket.send("READY=1\n").unwrap();
            assert_eq!(socket.watchdog, None);
        }
    }

    #[test]
    fn an_unsupported_address_is_rejected_and_named_in_the_error() {
        let error = from(&[("NOTIFY_SOCKET", "vsock:2:1234")]).unwrap_err();
        assert!(error.to_string().contains("vsock:2:1234"), "{error}");
    }

    #[test]
    fn sending_to_a_socket_without_a_listener_is_an_error() {
        let socket = from(&[("NOTIFY_SOCKET", "/nonexistent/notify")]).unwrap();
        assert!(matches!(socket.send("READY=1\n"), Err(NotifyError::Socket { .. })));
    }
}
