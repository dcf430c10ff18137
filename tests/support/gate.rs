//! A network between orderd and the broker that stops carrying what orderd says on one connection. What the broker
//! answers is real.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Bytes at the beginning of a connection in which its name stands.
const GREETING: usize = 4_096;

/// Listens on a port of its own and hands connections on.
pub struct Gate {
    /// Where it listens.
    pub address: String,
    muted: Arc<Mutex<Option<String>>>,
}

impl Gate {
    /// To a port on this machine; open.
    pub fn to(port: u16) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let muted = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&muted);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, muted) = (client.unwrap(), Arc::clone(&shared));
                let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (from_broker, to_client) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || carry(from_broker, to_client, &Mutex::new(None)));
                thread::spawn(move || carry(client, broker, &muted));
            }
        });
        Gate { address, muted }
    }

    /// From now on nothing is carried to the broker on connections whose names contain this.
    pub fn mute(&self, name: &str) {
        *self.muted.lock().unwrap() = Some(name.to_owned());
    }
}

/// Until either side closes; the other is told.
fn carry(mut from: TcpStream, mut to: TcpStream, muted: &Mutex<Option<String>>) {
    let (mut greeting, mut buffer) = (Vec::new(), [0; 16_384]);
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        if greeting.len() < GREETING {
            greeting.extend_from_slice(&buffer[..count]);
        }
        let is_muted = muted.lock().unwrap().as_ref().is_some_and(|name| has(&greeting, name.as_bytes()));
        if !is_muted && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
