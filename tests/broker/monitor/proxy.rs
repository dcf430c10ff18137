//! A network between orderd and the management API that can be slow, or fail. What the API answers is real.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What the network does to answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Weather {
    /// Nothing.
    Clear,
    /// Delays each by 300 ms.
    Slow,
    /// Lets one byte through every 100 ms.
    Trickling,
    /// Lets nothing through.
    Silent,
    /// Closes all connections.
    Down,
}

impl Weather {
    const ALL: [Weather; 5] = [Weather::Clear, Weather::Slow, Weather::Trickling, Weather::Silent, Weather::Down];
}

#[derive(Default)]
struct State {
    weather: AtomicU8,
    connections: AtomicUsize,
}

impl State {
    fn weather(&self) -> Weather {
        Weather::ALL[usize::from(self.weather.load(Ordering::SeqCst))]
    }
}

/// Listens on a port of its own and hands connections on.
pub struct Proxy {
    pub url: String,
    state: Arc<State>,
}

impl Proxy {
    /// To a port on this machine; clear.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (client, state) = (client.unwrap(), Arc::clone(&shared));
                thread::spawn(move || hand_on(&client, port, &state));
            }
        });
        Proxy { url, state }
    }

    /// Changes the weather, for connections that are open as well.
    pub fn set(&self, weather: Weather) {
        self.state.weather.store(weather as u8, Ordering::SeqCst);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

fn hand_on(client: &TcpStream, port: u16, state: &Arc<State>) {
    if state.weather() == Weather::Down {
        return;
    }
    let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut questions, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut questions, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    // Either side may close; the other is told.
    let _ = answer(&broker, client, state);
    let _ = client.shutdown(Shutdown::Both);
    let _ = broker.shutdown(Shutdown::Both);
}

fn answer(mut broker: &TcpStream, mut client: &TcpStream, state: &State) -> std::io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        let count = broker.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        match state.weather() {
            Weather::Clear => client.write_all(&buffer[..count])?,
            Weather::Slow => {
                thread::sleep(Duration::from_millis(300));
                client.write_all(&buffer[..count])?;
            }
            Weather::Trickling => {
                for byte in &buffer[..count] {
                    thread::sleep(Duration::from_millis(100));
                    client.write_all(&[*byte])?;
                }
            }
            Weather::Silent => {}
            Weather::Down => return Ok(()),
        }
    }
}
