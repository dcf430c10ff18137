//! The services of a shop: HTTP servers that charge, reserve and ship orders, and undo that, and count what they did.
//!
//! ```text
//! books   what was done for which order, and its comparison with what became of the orders; pure
//! server  an HTTP server that can go away
//! ```
//! They know nothing of orderd but the requests of its steps.

pub mod books;
mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use books::{Books, Refusals};
use server::Server;

/// The running services: one for reservations, which can go away, and one for everything else.
#[derive(Debug)]
pub struct Shop {
    books: Arc<Mutex<Books>>,
    payments: Server,
    reservations: Server,
}

impl Shop {
    /// Starts the services.
    pub fn start() -> io::Result<Shop> {
        let books = Arc::new(Mutex::new(Books::default()));
        let mut servers = [2_u8, 3].map(|host| Server::new(address(host), Arc::clone(&books)));
        servers.iter_mut().try_for_each(Server::start)?;
        let [payments, reservations] = servers;
        Ok(Shop { books, payments, reservations })
    }

    /// The value of `consumers.<name>.steps` that calls these services.
    pub fn steps(&self) -> String {
        let step = |name: &str, undo: &str, server: &Server, more: &str| {
            let url = |path: &str| format!("http = {{ url = \"http://{}/{path}\" }}", server.address());
            format!("{{ name = \"{name}\", {}, undo = {{ {} }}, timeout = \"5s\"{more} }}", url(name), url(undo))
        };
        let breaker = ", circuit_breaker = { failures = 0.2, window = \"1s\", open = \"1s\" }";
        let steps = [
            step("charge", "refund", &self.payments, ""),
            step("reserve", "release", &self.reservations, breaker),
            step("ship", "cancel", &self.payments, ""),
        ];
        format!("[{}]", steps.join(", "))
    }

    /// The reservation service goes away: calls that it is answering are cut off, and connections are refused.
    pub fn stop_reservations(&mut self) {
        self.reservations.stop();
    }

    /// The reservation service comes back, at the same address.
    pub fn start_reservations(&mut self) -> io::Result<()> {
        self.reservations.start()
    }

    /// From now on no other orders are refused than these.
    pub fn refuse(&self, refusals: Refusals) {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).refuse(refusals);
    }

    /// What the services have done so far.
    pub fn books(&self) -> Books {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A loopback address that the kernel does not assign to clients, which it places on 127.0.0.1.
fn address(host: u8) -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    ([127, 128 | a, b, c], 18_080 + u16::from(host)).into()
}
