//! A TCP proxy between orderd and the broker. It can stop forwarding what orderd sends on one connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// How much of the start of a connection is searched for its name, in bytes.
const PREAMBLE: usize = 4_096;

/// Listens on its own port and forwards connections.
pub struct AmqpProxy {
    /// The address it listens on.
    pub address: String,
    blocked: Arc<Mutex<Option<String>>>,
}

impl AmqpProxy {
    /// Starts a proxy that forwards to a port on 127.0.0.1.
    pub fn to(port: u16) -> AmqpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let blocked = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&blocked);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, blocked) = (client.unwrap(), Arc::clone(&shared));
                let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (from_broker, to_client) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || forward(from_broker, to_client, &Mutex::new(None)));
                thread::spawn(move || forward(client, broker, &blocked));
            }
        });
        AmqpProxy { address, blocked }
    }

    /// Stops forwarding to the broker on connections whose names contain `name`.
    pub fn block(&self, name: &str) {
        *self.blocked.lock().unwrap() = Some(name.to_owned());
    }
}

/// Forwards until either side closes, then closes both.
fn forward(mut from: TcpStream, mut to: TcpStream, blocked: &Mutex<Option<String>>) {
    let (mut preamble, mut buffer) = (Vec::new(), [0; 16_384]);
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        if preamble.len() < PREAMBLE {
            preamble.extend_from_slice(&buffer[..count]);
        }
        let is_blocked = blocked.lock().unwrap().as_ref().is_some_and(|name| contains(&preamble, name.as_bytes()));
        if !is_blocked && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
