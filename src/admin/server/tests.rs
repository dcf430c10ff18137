//! Connections: slow, silent, vanished and too many clients.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

use super::*;
use crate::admin::access::tests::authenticator;
use crate::admin::guard::check_access;

/// A server with one path that answers at once, and one that waits for `answers`.
async fn serve(answers: &Arc<Notify>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
    let (address, answers) = (listener.local_addr().unwrap(), Arc::clone(answers));
    let waiting = || async move {
        answers.notified().await;
        "late"
    };
    let guard = AccessGuard {
        loopback: true,
        hosts: Vec::new(),
        authenticator: authenticator(std::path::Path::new("/no/such/directory")),
    };
    let long = Bytes::from(vec![b'x'; 32 << 20]);
    let guarded = Router::new().route("/token", get(|| async { "secret" }));
    let router = Router::new()
        .route("/", get(|| async { "at once" }))
        .route("/late", get(waiting))
        .route("/long", get(move || std::future::ready(long.clone())))
        .route("/parts", get(parts))
        .merge(guarded.layer(from_fn_with_state(Arc::new(guard), check_access)));
    let task = tokio::spawn(accept(listener, router, CancellationToken::new()));
    (address, AbortOnDropHandle::new(task))
}

/// The parts of [`parts`], and their size.
const PARTS: usize = 192;
const PART: usize = 64 << 10;

/// Answers in parts, each made only when it is sent.
async fn parts(request: axum::extract::Request) -> axum::body::Body {
    let progress = request.extensions().get::<Progress>().cloned().unwrap();
    let parts = futures_util::stream::iter(0..PARTS).map(move |_| {
        progress.advanced();
        Ok::<_, io::Error>(Bytes::from(vec![b'x'; PART]))
    });
    axum::body::Body::from_stream(parts)
}

async fn request(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Longer than an answer takes on a busy machine.
const IN_TIME: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_a_token_that_ask_all_the_time_do_not_starve_health_checks() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let refused = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let refused = Arc::clone(&refused);
        clients.spawn(async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                let head = b"GET /token HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
                let _ = stream.write_all(head).await;
                // Ends only when the server closes the connection.
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer).await;
                if answer.starts_with("HTTP/1.1 401") {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    for _ in 0..8 {
        let answered = timeout(IN_TIME, async { answer(request(address, "/").await).await }).await;
        assert!(answered.expect("an answer in time").ends_with("at once"));
    }
    timeout(IN_TIME, async {
        // More than if each connection lasted until a time limit closed it.
        while refused.load(Ordering::Relaxed) < 400 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the connections of refused clients are closed");
}

#[tokio::test]
async fn clients_that_do_not_read_their_answers_do_not_keep_others_out() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let mut unread = Vec::new();
    // If only the time limits ended these connections, the last would be accepted after 30 s.
    let answered = timeout(IN_TIME, async {
        for _ in 0..4 * MAX_CONNECTIONS {
            unread.push(request(address, "/long").await);
        }
        answer(request(address, "/").await).await
    });
    assert!(answered.await.expect("an answer in time").ends_with("at once"));
}

#[tokio::test]
async fn connections_that_send_a_byte_now_and_then_do_not_keep_others_out() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let patient = request(address, "/late").await;
    let mut slow = Vec::new();
    // If only their deadline ended these connections, the last would be accepted after 50 s. More connections than the
    // operating system queues are made only once others are accepted.
    let answered = timeout(IN_TIME, async {
        for _ in 0..10 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"G").await.unwrap();
            slow.push(stream);
        }
        answer(request(address, "/").await).await
    });
    assert!(answered.await.expect("an answer in time").ends_with("at once"));
    answers.notify_one();
    assert!(answer(patient).await.ends_with("late"), "a connection that waits for its answer is not evicted");
}

/// A client that has vanished sends nothing more, not even the end of the stream, and reads nothing.
#[tokio::test(start_paused = true)]
async fn the_connection_of_a_client_that_vanishes_is_closed_in_each_phase() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let mut incomplete = TcpStream::connect(address).await.unwrap();
    incomplete.write_all(b"GET /").await.unwrap();
    let long = request(address, "/long").await;
    let late = request(address, "/late").await;
    sleep(HEAD_TIMEOUT.max(SEND_TIMEOUT) + Duration::from_secs(1)).await;
    assert!(received_until_closed(incomplete).await < 1024, "at most an error");
    assert!(received_until_closed(long).await < 32 << 20, "the rest was not sent");
    sleep(CONNECTION_LIFETIME).await;
    assert_eq!(received_until_closed(late).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_receives_all_of_an_answer_in_parts_for_more_than_an_hour_and_one_that_vanishes_is_closed() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let mut vanished = request(address, "/parts").await;
    let slow = TcpSocket::new_v4().unwrap();
    slow.set_recv_buffer_size(16 << 10).unwrap();
    let mut slow = slow.connect(address).await.unwrap();
    slow.write_all(b"GET /parts HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let (begun, mut received, mut end) = (Instant::now(), 0, Vec::new());
    // 3 KiB a second.
    let mut buffer = Vec::with_capacity(15 << 10);
    loop {
        sleep(SEND_TIMEOUT / 2).await;
        // Paused time does not advance while a blocking task runs: the operating system may need a moment to hand on what was sent.
        let (read_ended, is_read) = std::sync::mpsc::channel::<()>();
        let pause = spawn_blocking(move || is_read.recv());
        let read = (&mut slow).take(buffer.capacity() as u64).read_to_end(&mut buffer).await.unwrap();
        drop(read_ended);
        assert!(pause.await.unwrap().is_err());
        if read == 0 {
            break;
        }
        received += read;
        end.append(&mut buffer);
        end.drain(..end.len().saturating_sub(5));
    }
    assert!(received > PARTS * PART, "{received} after {:?}", begun.elapsed());
    assert_eq!(end, b"0\r\n\r\n", "it is complete");
    assert!(begun.elapsed() > CONNECTION_LIFETIME + Duration::from_secs(3_600), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = vanished.read_to_end(&mut rest).await;
    assert!(rest.len() < PARTS * PART, "the rest was not sent");
}

#[tokio::test(start_paused = true)]
async fn the_connections_of_clients_that_vanish_leave_room_for_others_in_time() {
    let answers = Arc::new(Notify::new());
    let (address, _task) = serve(&answers).await;
    let mut vanished = Vec::new();
    // None of them can be evicted: their answers are not ready.
    for _ in 0..MAX_CONNECTIONS {
        vanished.push(request(address, "/late").await);
    }
    let answered = timeout(2 * CONNECTION_LIFETIME, async { answer(request(address, "/").await).await });
    assert!(answered.await.expect("there is room again").ends_with("at once"));
    for stream in vanished {
        assert_eq!(received_until_closed(stream).await, 0);
    }
}

/// The bytes received until the connection is closed or reset.
async fn received_until_closed(mut stream: TcpStream) -> usize {
    let mut received = Vec::new();
    let closed = timeout(Duration::from_secs(1), stream.read_to_end(&mut received)).await;
    assert!(closed.is_ok(), "it is still open");
    received.len()
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_request_has_arrived_is_not_evicted_even_if_it_was_not_read_yet() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut clients = Vec::new();
    let mut connections = Vec::new();
    let mut callers = Vec::new();
    for _ in 0..2 {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (stream, caller) = Caller::split(listener.accept().await.unwrap().0).unwrap();
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        connections.push(Connection { state: Progress::default(), client: caller.handle(), task });
        callers.push((stream, caller));
    }
    clients[0].write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    callers[0].0.readable().await.unwrap();
    assert!(oldest_evictable(&connections).is_none(), "each client is given some time");
    tokio::time::advance(MIN_WAIT).await;
    let evictable = oldest_evictable(&connections).unwrap();
    assert!(std::ptr::eq(evictable, &connections[1]), "the older one has sent its request");
    connections[1].state.set(Phase::Answer);
    assert!(oldest_evictable(&connections).is_none());
    connections[0].state.set(Phase::Receipt(Instant::now()));
    tokio::time::advance(MIN_WAIT).await;
    assert!(oldest_evictable(&connections).is_some(), "its answer was sent");
}
