//! A TCP proxy between orderd and the broker. It can cut connections, and drop what is sent on them in either direction
//! without closing them, as a network does that loses packets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How much of the start of a connection is searched for its name, in bytes.
const PREAMBLE: usize = 4_096;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From orderd to the broker.
    ToBroker,
    /// From the broker to orderd.
    ToClient,
}

/// Listens on its own port and forwards connections.
#[derive(Debug)]
pub struct AmqpProxy {
    /// The address it listens on.
    pub address: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By direction: the name of the connections on which nothing is forwarded.
    blocked: [Mutex<Option<String>>; 2],
    connections: Mutex<Vec<Arc<Connection>>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    broker: TcpStream,
    /// The start of what the client has sent, with its name.
    preamble: Mutex<Vec<u8>>,
    /// By direction: whether what is sent is dropped. Held during each write, so that nothing is forwarded once it is set.
    dropped: [Mutex<bool>; 2],
}

impl AmqpProxy {
    /// Starts a proxy that forwards to a port on 127.0.0.1.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(port: u16) -> io::Result<AmqpProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // If the broker is away, the client is closed, as if it had reached the broker itself.
                if let Ok(broker) = TcpStream::connect(("127.0.0.1", port)) {
                    let _ = shared.forward_both_ways(client, broker);
                }
            }
        });
        Ok(AmqpProxy { address, state })
    }

    /// Stops forwarding to the broker on connections whose names contain `name`. After it returns, nothing more is forwarded.
    pub fn block(&self, name: &str) {
        self.block_direction(name, Direction::ToBroker);
    }

    /// Stops forwarding what the broker sends on these connections.
    pub fn block_answers(&self, name: &str) {
        self.block_direction(name, Direction::ToClient);
    }

    fn block_direction(&self, name: &str, direction: Direction) {
        *lock(&self.state.blocked[direction as usize]) = Some(name.to_owned());
        for connection in lock(&self.state.connections).iter() {
            drop(lock(&connection.dropped[direction as usize]));
        }
    }

    /// Closes all connections.
    pub fn cut(&self) {
        lock(&self.state.connections).drain(..).for_each(|connection| connection.close());
    }

    /// Drops what is sent in these directions on all present connections, without closing them. New ones are not affected.
    pub fn drop_data(&self, directions: &[Direction]) {
        for connection in lock(&self.state.connections).iter() {
            for direction in directions {
                *lock(&connection.dropped[*direction as usize]) = true;
            }
        }
    }
}

impl State {
    fn forward_both_ways(self: &Arc<Self>, client: TcpStream, broker: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        broker.set_nodelay(true)?;
        let dropped = [Mutex::new(false), Mutex::new(false)];
        let connection = Arc::new(Connection { client, broker, preamble: Mutex::default(), dropped });
        lock(&self.connections).push(Arc::clone(&connection));
        for direction in [Direction::ToBroker, Direction::ToClient] {
            let (state, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || {
                state.forward(&connection, direction);
                lock(&state.connections).retain(|other| !Arc::ptr_eq(other, &connection));
            });
        }
        Ok(())
    }

    /// Forwards until either side closes, then closes both. The other side of a direction that drops data does not learn that
    /// the connection was closed.
    fn forward(&self, connection: &Connection, direction: Direction) {
        let (mut from, mut to) = match direction {
            Direction::ToBroker => (&connection.client, &connection.broker),
            Direction::ToClient => (&connection.broker, &connection.client),
        };
        let mut buffer = [0; 16_384];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            if direction == Direction::ToBroker {
                let mut preamble = lock(&connection.preamble);
                let wanted = PREAMBLE.saturating_sub(preamble.len()).min(count);
                preamble.extend_from_slice(&buffer[..wanted]);
            }
            let dropped = lock(&connection.dropped[direction as usize]);
            let blocked = lock(&self.blocked[direction as usize]).clone();
            let is_blocked = blocked.is_some_and(|name| contains(&lock(&connection.preamble), name.as_bytes()));
            if !is_blocked && !*dropped && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        if *lock(&connection.dropped[direction as usize]) {
            let _ = from.shutdown(Shutdown::Both);
        } else {
            connection.close();
        }
    }
}

impl Connection {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
