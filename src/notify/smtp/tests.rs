//! A scripted SMTP server: what each reply means, which connections are used again, and what a hanging server costs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::tcp::OwnedReadHalf;

use super::super::settings::Sender;
use super::super::templates::{TemplateFiles, TemplateOptions};
use super::*;
use crate::config::Address as ServerAddress;
use crate::tls::TlsFiles;

/// What the server does with the recipient of each local part, or at another point.
#[derive(Clone, Copy, Default)]
struct Script {
    greeting: Option<&'static str>,
    mail: Option<&'static str>,
    recipient: Option<&'static str>,
    data: Option<&'static str>,
    /// Of the e-mail. Empty: none ever.
    accepted: Option<&'static str>,
    /// Closes the connection after the first e-mail.
    close: bool,
    /// To `EHLO`.
    offers: Option<&'static str>,
    starttls: Option<&'static str>,
    /// So many e-mails are accepted over one connection, the next one is refused; 0: no limit.
    most: usize,
    /// Does not answer `RSET`.
    ignores_reset: bool,
    /// Answers to an e-mail after twice [`LIMIT`].
    slow: bool,
    /// Writes each character as one byte.
    is_latin_1: bool,
}

struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    mails: Arc<Mutex<Vec<String>>>,
    quits: Arc<AtomicUsize>,
}

impl Server {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, mails) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Vec<String>>>::default());
        let quits = Arc::new(AtomicUsize::new(0));
        let (received, sent) = (Arc::clone(&connections), Arc::clone(&mails));
        let server = Server { port, connections: received, mails: sent, quits: Arc::clone(&quits) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (mails, quits) = (Arc::clone(&mails), Arc::clone(&quits));
                tokio::spawn(async move {
                    let _ = serve(stream, script, &mails, &quits).await;
                });
            }
        });
        server
    }

    fn provider(&self, tls: SmtpTls) -> SmtpProvider {
        let settings = SmtpSettings {
            address: ServerAddress { host: "127.0.0.1".to_owned(), port: self.port },
            tls,
            files: TlsFiles::default(),
            login: None,
            sender: Sender {
                from: address::parse_mailbox("orders@example.com").unwrap(),
                reply_to: None,
                list_unsubscribe: None,
            },
            accept_timeout: LIMIT,
            section: "notify.email".into(),
        };
        let options =
            TemplateOptions { shop: "Lamps".to_owned(), language: "en".to_owned(), zone: jiff::tz::TimeZone::UTC };
        SmtpProvider::new(settings, Arc::new(Templates::new(&TemplateFiles::built_in(), &options).unwrap()))
    }

    fn mails(&self) -> usize {
        self.mails.lock().unwrap().len()
    }
}

async fn serve(
    stream: TcpStream,
    script: Script,
    mails: &Mutex<Vec<String>>,
    quits: &AtomicUsize,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(format!("{}\r\n", script.greeting.unwrap_or("220 ready")).as_bytes()).await?;
    let mut begun = 0;
    while let Some(line) = lines.next_line().await? {
        let word = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let reply = match word.as_str() {
            "EHLO" => script.offers.unwrap_or("250-localhost\r\n250 8BITMIME"),
            "MAIL" if begun == script.most && begun > 0 => "452 4.5.3 too many over this connection",
            "MAIL" => {
                begun += 1;
                script.mail.unwrap_or("250 OK")
            }
            "RCPT" => script.recipient.unwrap_or("250 OK"),
            "STARTTLS" => script.starttls.unwrap_or("454 no"),
            "DATA" if script.data.is_none() => {
                write.write_all(b"354 go on\r\n").await?;
                let mail = mail(&mut lines).await?;
                mails.lock().unwrap().push(mail);
                if script.slow {
                    tokio::time::sleep(2 * LIMIT).await;
                }
                script.accepted.unwrap_or("250 accepted")
            }
            "DATA" => script.data.unwrap_or_default(),
            "RSET" if script.ignores_reset => "",
            _ => "250 OK",
        };
        quits.fetch_add(usize::from(word == "QUIT"), Ordering::SeqCst);
        if reply.is_empty() {
            std::future::pending::<()>().await;
        }
        let mut reply = format!("{reply}\r\n").into_bytes();
        if script.is_latin_1 {
            let text = String::from_utf8(reply).unwrap();
            reply = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        }
        write.write_all(&reply).await?;
        if script.close && word == "DATA" {
            return Ok(());
        }
    }
    Ok(())
}

async fn mail(lines: &mut tokio::io::Lines<BufReader<OwnedReadHalf>>) -> std::io::Result<String> {
    let mut mail = String::new();
    while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
        mail.push_str(&line);
        mail.push('\n');
    }
    Ok(mail)
}

fn content(email: &str) -> Content {
    Content::read(&serde_json::json!({"event": "processed", "order_id": "1", "email": email}).to_string()).unwrap()
}

const LIMIT: Duration = Duration::from_millis(500);

async fn deliver(provider: &SmtpProvider, email: &str) -> Result<(), StepFailure> {
    deliver_within(provider, email, LIMIT).await
}

async fn deliver_within(provider: &SmtpProvider, email: &str, limit: Duration) -> Result<(), StepFailure> {
    let mail = provider.prepare("1/notification/processed", provider.domain(), &content(email))?;
    provider.send(&mail, limit).await
}

use FailureCause::{NotReached, Refused, Unanswered};
use FailureKind::{Permanent, Transient};

#[tokio::test]
async fn each_reply_has_a_defined_meaning() {
    let none = Script::default();
    for (what, script, expected) in [
        ("refused", Script { recipient: Some("550 5.1.1 no such user"), ..none }, (Permanent, "smtp_550", Refused)),
        ("busy", Script { recipient: Some("450 later"), ..none }, (Transient, "smtp_450", Refused)),
        ("gone", Script { recipient: Some("421 bye"), ..none }, (Transient, "smtp_421", NotReached)),
        ("data", Script { data: Some("554 no"), ..none }, (Permanent, "smtp_554", Refused)),
        ("spam", Script { accepted: Some("554 spam"), ..none }, (Permanent, "smtp_554", Refused)),
        ("full", Script { accepted: Some("452 full"), ..none }, (Transient, "smtp_452", Refused)),
        ("closing", Script { accepted: Some("421 bye"), ..none }, (Transient, "smtp_421", NotReached)),
        ("sender", Script { mail: Some("550 not you"), ..none }, (Transient, "sender_refused", NotReached)),
        ("no service", Script { greeting: Some("554 no"), ..none }, (Transient, "smtp_554", NotReached)),
        ("no login", Script { recipient: Some("530 log in"), ..none }, (Transient, "smtp_530", NotReached)),
        ("login lost", Script { accepted: Some("535 no"), ..none }, (Transient, "smtp_535", NotReached)),
        (
            "not SMTP",
            Script { greeting: Some("SSH-2.0-OpenSSH_9.2"), ..none },
            (Transient, "connection_lost", NotReached),
        ),
        (
            "relay",
            Script { recipient: Some("554 5.7.1 relay access denied"), ..none },
            (Transient, "smtp_554", NotReached),
        ),
        ("full disk", Script { accepted: Some("452 4.3.1 no space"), ..none }, (Transient, "smtp_452", NotReached)),
        ("odd code", Script { recipient: Some("571 no"), ..none }, (Permanent, "smtp_551", Refused)),
        ("bare code", Script { recipient: Some("550"), ..none }, (Permanent, "smtp_550", Refused)),
        ("hangs", Script { recipient: Some(""), ..none }, (Transient, "timed_out", NotReached)),
        ("hangs at the end", Script { accepted: Some(""), ..none }, (Transient, "timed_out", Unanswered)),
    ] {
        let server = Server::start(script).await;
        let failure = deliver(&server.provider(SmtpTls::None), "ada@example.com").await.unwrap_err();
        let facts = (failure.failure.kind, failure.failure.code.as_str(), failure.cause);
        assert_eq!(facts, expected, "{what}");
    }
    let multi = Script { recipient: Some("550-one\x1b[2J\r\n550 two"), ..none };
    let server = Server::start(multi).await;
    let failure = deliver(&server.provider(SmtpTls::None), "ada@example.com").await.unwrap_err();
    let reason = &failure.failure.reason;
    assert!(reason.contains("one") && reason.contains("two") && !reason.contains(['\x1b', '\n']), "{reason:?}");
}

#[tokio::test]
async fn an_acceptance_with_a_bare_code_or_a_text_that_is_not_utf_8_is_one() {
    // The scripted server writes U+0080 and the like as single bytes.
    for accepted in ["250", "250 Nachricht \u{fc}bernommen", "250-eins\r\n250", "290 fine"] {
        let server = Server::start(Script { accepted: Some(accepted), is_latin_1: true, ..Script::default() }).await;
        let provider = server.provider(SmtpTls::None);
        for _ in 0..2 {
            deliver(&provider, "ada@example.com").await.unwrap();
        }
        assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{accepted}");
    }
}

#[tokio::test]
async fn a_server_that_takes_longer_than_the_timeout_to_accept_gets_the_e_mail_once() {
    let server = Server::start(Script { slow: true, ..Script::default() }).await;
    let mut provider = server.provider(SmtpTls::None);
    provider.settings.accept_timeout = Duration::from_secs(60);
    let mail = provider.prepare("1/x", "example.com", &content("ada@example.com")).unwrap();
    provider.send(&mail, LIMIT).await.unwrap();
    assert_eq!(server.mails(), 1);
}

#[tokio::test]
async fn an_address_of_the_host_that_does_not_answer_leaves_time_for_the_others() {
    let server = Server::start(Script::default()).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(connect_to_any("localhost", server.port, deadline).await.is_ok());
    drop(server);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = connect_to_any("localhost", closed, deadline).await.unwrap_err();
    assert!(error.to_string().contains(&format!(":{closed}: ")), "what the name stands for: {error}");
    let error = connect_to_any("127.0.0.1", closed, deadline).await.unwrap_err();
    assert!(!error.to_string().contains("127.0.0.1"), "it is shown anyway: {error}");
}

#[tokio::test]
async fn a_server_is_greeted_with_the_hosts_name_or_address_and_never_with_the_senders_domain() {
    let server = Server::start(Script::default()).await;
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let name = hello(&stream).to_string();
    assert!(name == "[127.0.0.1]" || name == instance::host_name(), "{name}");
    for (name, expected) in [
        ("mail.example.com", true),
        ("mail", false),
        ("localhost.localdomain", false),
        ("a..b", false),
        ("a_b.c", false),
    ] {
        assert_eq!(is_full_name(name), expected, "{name}");
    }
}

#[tokio::test]
async fn connections_that_are_idle_for_too_long_are_ended_without_another_e_mail() {
    let server = Server::start(Script::default()).await;
    let provider = server.provider(SmtpTls::None);
    deliver(&provider, "ada@example.com").await.unwrap();
    tokio::time::pause();
    tokio::time::advance(idle::IDLE_TIMEOUT).await;
    tokio::time::resume();
    let ended = async {
        while server.quits.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), ended).await.expect("QUIT was sent");
}

#[tokio::test]
async fn a_connection_is_used_again_unless_the_server_has_closed_it_or_an_exchange_was_not_complete() {
    let server = Server::start(Script::default()).await;
    let provider = server.provider(SmtpTls::None);
    for _ in 0..3 {
        deliver(&provider, "ada@example.com").await.unwrap();
    }
    assert_eq!((server.connections.load(Ordering::SeqCst), server.mails()), (1, 3));
    let closing = Server::start(Script { close: true, ..Script::default() }).await;
    let provider = closing.provider(SmtpTls::None);
    for _ in 0..3 {
        deliver(&provider, "ada@example.com").await.unwrap();
    }
    assert_eq!((closing.connections.load(Ordering::SeqCst), closing.mails()), (3, 3));
    let limited = Server::start(Script { most: 2, ..Script::default() }).await;
    let provider = limited.provider(SmtpTls::None);
    for _ in 0..5 {
        deliver(&provider, "ada@example.com").await.unwrap();
    }
    assert_eq!((limited.connections.load(Ordering::SeqCst), limited.mails()), (3, 5));
    let hanging = Server::start(Script { accepted: Some(""), ..Script::default() }).await;
    let provider = hanging.provider(SmtpTls::None);
    assert!(deliver(&provider, "ada@example.com").await.is_err());
    assert!(deliver(&provider, "ada@example.com").await.is_err());
    assert_eq!(hanging.connections.load(Ordering::SeqCst), 2, "an unanswered connection was used again");
}

#[tokio::test]
async fn a_server_that_does_not_end_a_refused_transaction_does_not_hide_its_reply_or_delay_the_next_e_mail() {
    let server = Server::start(Script { recipient: Some("550 no"), ignores_reset: true, ..Script::default() }).await;
    let provider = server.provider(SmtpTls::None);
    for connections in 1..=2 {
        let failure = deliver_within(&provider, "ada@example.com", 4 * QUIT_TIMEOUT).await.unwrap_err();
        assert_eq!(failure.failure.code, "smtp_550");
        assert_eq!(server.connections.load(Ordering::SeqCst), connections);
    }
}

#[tokio::test]
async fn a_connection_is_replaced_after_as_many_transactions_as_servers_allow_also_if_they_were_refused() {
    let server = Server::start(Script { recipient: Some("550 no"), ..Script::default() }).await;
    let provider = server.provider(SmtpTls::None);
    for _ in 0..=MAX_TRANSACTIONS {
        assert!(deliver(&provider, "ada@example.com").await.is_err());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_reply_that_repeats_the_recipient_does_not_show_it() {
    let reply = "421 4.2.1 <Ada@Example.com> ada@example.com: too many";
    let server = Server::start(Script { recipient: Some(reply), ..Script::default() }).await;
    let failure = deliver(&server.provider(SmtpTls::None), "ada@example.com").await.unwrap_err();
    let reason = failure.failure.reason;
    assert!(!reason.to_lowercase().contains("ada@") && reason.contains("a…@example.com: too many"), "{reason}");
}

#[tokio::test]
async fn a_reply_that_repeats_an_address_with_an_ellipsis_ends_the_attempt_and_does_not_show_it() {
    let offers = Some("250-localhost\r\n250 SMTPUTF8");
    for (email, recipient, expected) in [
        ("a…@x.example", "450 4.1.2 <A…@X.EXAMPLE> a…@x.example: not found", "<a…@x.example> a…@x.example: not found"),
        ("…@x.example", "450 4.1.2 <…@x.example>: not found", "<……@x.example>: not found"),
        ("……@x.example", "450 4.1.2 <……@x.example>: not found", "<……@x.example>: not found"),
    ] {
        let server = Server::start(Script { offers, recipient: Some(recipient), ..Script::default() }).await;
        let failure = deliver(&server.provider(SmtpTls::None), email).await.unwrap_err();
        assert!(failure.failure.reason.ends_with(expected), "{}", failure.failure.reason);
    }
    let long: &'static str =
        format!("550 {} ada@example.com", "x".repeat(crate::recovery::MAX_REASON_BYTES - 8)).leak();
    let server = Server::start(Script { recipient: Some(long), ..Script::default() }).await;
    let failure = deliver(&server.provider(SmtpTls::None), "ada@example.com").await.unwrap_err();
    assert!(!failure.failure.reason.contains("ada"), "part of the address is left at the end of the reason");
}

#[tokio::test]
async fn an_invalid_address_never_reaches_the_server_and_a_dot_does_not_end_the_e_mail() {
    let server = Server::start(Script::default()).await;
    let provider = server.provider(SmtpTls::None);
    for email in ["ada@example.com\r\nRCPT TO:<eve@example.com>", "ada", "jürgen@example.com\n"] {
        assert_eq!(deliver(&provider, email).await.unwrap_err().failure.code, "invalid_address", "{email}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    assert_eq!(deliver(&provider, "jürgen@example.com").await.unwrap_err().failure.code, "invalid_address");
    assert_eq!(deliver(&provider, "").await.unwrap_err().failure.code, "no_address");
    deliver(&provider, "ada@example.com").await.unwrap();
    assert_eq!(server.mails(), 1);
}

#[tokio::test]
async fn nothing_is_sent_in_plain_text_to_a_server_that_should_speak_tls() {
    let offers = Some("250-localhost\r\n250 STARTTLS");
    for (what, script, code) in [
        ("not offered", Script::default(), "tls_failed"),
        ("refused", Script { offers, ..Script::default() }, "tls_failed"),
        ("injected", Script { offers, starttls: Some("220 go\r\n250 injected"), ..Script::default() }, "tls_failed"),
        ("no TLS", Script { offers, starttls: Some("220 go"), ..Script::default() }, "tls_failed"),
    ] {
        let server = Server::start(script).await;
        let failure = deliver(&server.provider(SmtpTls::StartTls), "ada@example.com").await.unwrap_err();
        assert!([code, "timed_out"].contains(&failure.failure.code.as_str()), "{what}: {failure}");
        assert_eq!((failure.cause, server.mails()), (NotReached, 0), "{what}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_the_connection_before_tls_is_not_reported_as_one_without_tls() {
    for (greeting, offers, code) in [
        (Some("554 5.3.2 no service"), None, "smtp_554"),
        (Some("421-busy\r\n421 later"), None, "smtp_421"),
        (None, Some("550 who are you"), "smtp_550"),
        (Some("SSH-2.0-OpenSSH_9.2"), None, "connection_lost"),
    ] {
        let server = Server::start(Script { greeting, offers, ..Script::default() }).await;
        let failure = deliver(&server.provider(SmtpTls::StartTls), "ada@example.com").await.unwrap_err();
        assert_eq!((failure.failure.code.as_str(), failure.cause), (code, NotReached), "{greeting:?}");
    }
}

/// For measurements: `cargo test --release … -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn measure_e_mails_a_second() {
    const MAILS: usize = 4_000;
    let server = Server::start(Script::default()).await;
    let provider = Arc::new(server.provider(SmtpTls::None));
    let begun = std::time::Instant::now();
    let senders = (0..8).map(|_| {
        let provider = Arc::clone(&provider);
        tokio::spawn(async move {
            for _ in 0..MAILS / 8 {
                deliver_within(&provider, "ada@example.com", Duration::from_secs(10)).await.unwrap();
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    println!("{:.0} e-mails a second", MAILS as f64 / begun.elapsed().as_secs_f64());
}
