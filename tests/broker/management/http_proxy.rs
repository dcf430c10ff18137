//! A proxy between orderd and the management API that can delay or drop responses.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What the proxy does to responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum NetworkCondition {
    /// Forwards them unchanged.
    Normal,
    /// Delays each by 300 ms.
    Slow,
    /// Forwards one byte per 100 ms.
    Trickling,
    /// Forwards nothing.
    Silent,
    /// Closes all connections.
    Down,
}

impl NetworkCondition {
    const ALL: [NetworkCondition; 5] = [
        NetworkCondition::Normal,
        NetworkCondition::Slow,
        NetworkCondition::Trickling,
        NetworkCondition::Silent,
        NetworkCondition::Down,
    ];
}

#[derive(Default)]
struct State {
    condition: AtomicU8,
    connections: AtomicUsize,
}

impl State {
    fn condition(&self) -> NetworkCondition {
        NetworkCondition::ALL[usize::from(self.condition.load(Ordering::SeqCst))]
    }
}

/// Listens on its own port and forwards connections.
pub struct HttpProxy {
    pub url: String,
    state: Arc<State>,
}

impl HttpProxy {
    /// Starts a proxy that forwards to a port on 127.0.0.1; `Normal` at first.
    pub fn to(port: u16) -> HttpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (client, state) = (client.unwrap(), Arc::clone(&shared));
                thread::spawn(move || forward(&client, port, &state));
            }
        });
        HttpProxy { url, state }
    }

    /// Sets the condition, also of open connections.
    pub fn set(&self, condition: NetworkCondition) {
        self.state.condition.store(condition as u8, Ordering::SeqCst);
    }

    /// Number of connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

fn forward(client: &TcpStream, port: u16, state: &Arc<State>) {
    if state.condition() == NetworkCondition::Down {
        return;
    }
    let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut requests, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut requests, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    // When either side closes, both are closed.
    let _ = forward_responses(&broker, client, state);
    let _ = client.shutdown(Shutdown::Both);
    let _ = broker.shutdown(Shutdown::Both);
}

fn forward_responses(mut broker: &TcpStream, mut client: &TcpStream, state: &State) -> std::io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        let count = broker.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        match state.condition() {
            NetworkCondition::Normal => client.write_all(&buffer[..count])?,
            NetworkCondition::Slow => {
                thread::sleep(Duration::from_millis(300));
                client.write_all(&buffer[..count])?;
            }
            NetworkCondition::Trickling => {
                for byte in &buffer[..count] {
                    thread::sleep(Duration::from_millis(100));
                    client.write_all(&[*byte])?;
                }
            }
            NetworkCondition::Silent => {}
            NetworkCondition::Down => return Ok(()),
        }
    }
}
