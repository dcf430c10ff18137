//! The commands that act on dead letters on a terminal: what they ask and show, and what they say after Ctrl-C at each of their steps.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::pause::send_command;
use super::replays::{Service, ask, dead_letter_orders, open, replay_env, states};
use crate::support::raw_client::properties::Properties;
use crate::support::step_server::StepServer;
use crate::support::terminal::{CTRL_C, CTRL_D, Terminal};
use crate::support::test_env::{LedgerReader, OrderdProcess, PATIENCE, TestEnv, order, wait_until};
use crate::support::{Node, free_address};

/// A command that asks the daemon, on a terminal.
fn on_terminal(env: &TestEnv<'_>, orderd: &OrderdProcess, command: &str) -> Terminal {
    let address = orderd.admin_address().to_string();
    let arguments: Vec<&str> = command.split(' ').collect();
    Terminal::start(env, &[&["dead-letters"], &arguments[..], &["--address", &address]].concat(), &[])
}

fn replays(ledger: &LedgerReader) -> u64 {
    ledger.number("SELECT count(*) FROM replays")
}

#[test]
fn on_a_terminal_a_replay_asks_shows_how_far_it_is_and_continues_after_ctrl_c() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let mut orderd = env.start();
    let ledger = env.ledger();
    dead_letter_orders(&env, 3);
    service.repair();
    assert_eq!(send_command(&orderd, "pause", "order").0, 200);

    // Neither a no, nor anything else, nor the end of the input, nor Ctrl-C begins it.
    for (keys, exit, text) in [
        ("n\n", 1, "3 to order_queue"),
        ("\n", 1, "3600.00 EUR"),
        (CTRL_D, 1, "to replay: 3 dead letters"),
        (CTRL_C, 130, "interrupted: nothing was replayed"),
    ] {
        let mut terminal = on_terminal(&env, &orderd, "replay --all");
        terminal.await_text("Replay them? [y/N] ");
        terminal.type_keys(keys);
        let (code, shown) = terminal.end();
        assert!(code == exit && shown.contains(text), "{keys:?}: {code} {shown}");
    }
    assert_eq!((replays(&ledger), states(&ledger)), (0, vec!["open|3".to_owned()]));
    for (keys, exit) in [("n\n", 1), (CTRL_C, 130), ("y\n", 0)] {
        assert_eq!(open(&ledger), 3);
        let mut terminal = on_terminal(&env, &orderd, "discard 3 --note test");
        terminal.await_text("Discard them? They cannot be replayed then. [y/N] ");
        terminal.type_keys(keys);
        let (code, shown) = terminal.end();
        assert!(code == exit && shown.contains("1 dead letter, 1200.00 EUR"), "{keys:?}: {code} {shown}");
        assert_eq!(shown.contains("interrupted: nothing was discarded"), exit == 130, "{shown}");
    }
    assert_eq!(states(&ledger), ["discarded|1", "open|2"]);

    let mut terminal = on_terminal(&env, &orderd, "replay --all");
    terminal.await_text("[y/N] ");
    terminal.type_keys("y\n");
    terminal.await_text("replay 1 running: 2 not published yet; waits: ");
    terminal.type_keys(CTRL_C);
    let (code, shown) = terminal.end();
    assert!(code == 130 && shown.contains("replay 1 continues"), "{code} {shown}");
    let (_, progress) = shown.split_once("[y/N] y").unwrap();
    let lines: Vec<_> = progress.lines().filter(|line| line.contains("not published yet")).collect();
    assert!(lines.len() == 1 && lines[0].contains("\u{1b}[2K"), "it is one line, which is replaced: {lines:?}");
    assert_eq!(ledger.rows("SELECT state FROM replays"), ["running"]);

    // Others can follow it.
    let following = on_terminal(&env, &orderd, "replays 1");
    following.await_text("2 not published yet");
    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    let (code, shown) = following.end();
    assert!(code == 0 && shown.contains("replay 1 finished: 2 processed"), "{code} {shown}");
    assert_eq!(ledger.processed(), 2);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_command_that_waits_says_when_its_daemon_is_away_and_when_it_is_back() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let env = env.set("admin.listen", &free_address().to_string());
    let mut orderd = env.start();
    dead_letter_orders(&env, 2);
    service.repair();
    assert_eq!(send_command(&orderd, "pause", "order").0, 200);
    let arguments = ["dead-letters", "replay", "--all", "--yes"];
    let terminal = Terminal::start(&env, &arguments, &[]);
    terminal.await_text("is paused");
    let mut plain = env.command(&["dead-letters", "replays", "1"]);
    wait_until("it follows the replay", || plain.output().contains("is paused"));
    assert_eq!(orderd.stop(), 0);
    let away = "waiting for the daemon, which continues the replay: no daemon answers at";
    terminal.await_text(away);
    wait_until("the other one says it too", || plain.output().contains(away));
    let mut orderd = env.start();
    terminal.await_text("the daemon answers again");
    wait_until("the other one says it too", || plain.output().contains("the daemon answers again"));
    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    let (code, shown) = terminal.end();
    assert!(code == 0 && shown.contains("replay 1 finished: 2 processed"), "{code} {shown}");
    assert_eq!(shown.matches(away).count(), 1, "it is said once: {shown}");
    assert_eq!(plain.wait_for_exit(), 0);
    assert_eq!(plain.output().matches(away).count(), 1, "{}", plain.output());
    assert_eq!(orderd.stop(), 0);
}

/// Whether the stopped daemon has received bytes that it has not read: the request of a command.
fn has_unread_request(orderd: &OrderdProcess) -> bool {
    let port = format!(":{:04X}", orderd.admin_address().port());
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    connections.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let received = columns[4].split(':').nth(1).unwrap();
        // 0A: it listens, and the number is that of connections.
        columns[1].ends_with(&port) && columns[3] != "0A" && u64::from_str_radix(received, 16).unwrap() > 0
    })
}

#[test]
fn a_command_that_ends_while_its_daemon_begins_the_replay_says_so_and_can_be_repeated() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let mut orderd = env.start();
    let (ledger, orders) = (env.ledger(), 20);
    service.repair();
    let mut published = 0;
    for is_killed in [false, true] {
        let names: Vec<_> = (published..published + orders).map(|n| format!("o-{n}")).collect();
        let dead = names.iter().map(|name| ("oder.normal.web".to_owned(), order(name)));
        env.raw().publish_all("orders", dead);
        published += orders;
        wait_until("all are stored", || open(&ledger) == orders);
        let mut terminal = on_terminal(&env, &orderd, "replay --source unrouted_queue --to order_queue --rate 1000");
        terminal.await_text("[y/N] ");
        orderd.signal("STOP");
        terminal.type_keys("y\n");
        wait_until("the daemon has the request", || has_unread_request(&orderd));
        if is_killed {
            drop(terminal);
        } else {
            terminal.type_keys(CTRL_C);
            let (code, shown) = terminal.end();
            assert!(code == 130 && shown.contains("the daemon may have begun the replay"), "{code} {shown}");
        }
        orderd.signal("CONT");
        // Whether the daemon notices first that nobody waits is a matter of luck.
        let again = ["replay", "--source", "unrouted_queue", "--to", "order_queue", "--rate", "1000", "--yes"];
        let (code, text) = ask(&env, &orderd, &again);
        assert!([0, 3].contains(&code), "{code}: {text}");
        wait_until("all are processed", || ledger.processed() == published);
        wait_until("the replays end", || ledger.number("SELECT count(*) FROM replays WHERE state <> 'finished'") == 0);
        assert_eq!(ledger.number("SELECT count(*) FROM replay_letters WHERE state = 'processed'"), published);
        assert_eq!(server.calls().len() as u64, published, "each is charged once");
    }
    assert_eq!(orderd.stop(), 0);
}

/// Polls without a pause, since what is waited for is over within milliseconds.
fn at_full_speed(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
    }
}

#[test]
fn a_hold_of_many_that_is_interrupted_says_how_far_it_was_and_is_repeated_for_the_rest() {
    /// How long the daemon works before it answers how far it is.
    const ANSWER_TIME: Duration = Duration::from_secs(4);
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true").set("log.level", "info");
    let mut orderd = env.start();
    let (ledger, letters) = (env.ledger(), 4_000);
    let unrouted = (0..letters).map(|n| ("oder.normal.web".to_owned(), order(&format!("o-{n}"))));
    env.raw().publish_all("orders", unrouted);
    wait_until("all are stored", || open(&ledger) == letters);
    let held = || ledger.number("SELECT count(*) FROM stored_dead_letters WHERE state = 'held'");
    let address = orderd.admin_address().to_string();
    let mut command = env.command(&["dead-letters", "hold", "--all", "--note", "SHOP-7", "--address", &address]);
    at_full_speed("some are held", || held() > 0);
    orderd.signal("STOP");
    let stopped = Instant::now();
    wait_until("its first answer is due", || stopped.elapsed() > ANSWER_TIME);
    orderd.signal("CONT");
    at_full_speed("it has answered how far it is", || command.output().contains("held: "));
    orderd.signal("STOP");
    command.signal("INT");
    assert_eq!(command.wait_for_exit(), 130, "{}", command.output());
    orderd.signal("CONT");
    let output = command.output();
    let last = output.lines().last().unwrap();
    let rest = last.strip_prefix("orderd: interrupted: held: ").unwrap_or_else(|| panic!("{output}"));
    let count: u64 =
        rest.strip_suffix(" dead letters or more; repeat the command for the rest").unwrap().parse().unwrap();
    assert!(output.contains(&format!("held: {count} dead letters\n")) && (500..letters).contains(&count), "{output}");
    assert!(held() >= count, "{} of {count}", held());
    let (code, text) = ask(&env, &orderd, &["hold", "--all", "--note", "SHOP-7"]);
    assert!([0, 3].contains(&code), "{code}: {text}");
    assert_eq!(states(&ledger), [format!("held|{letters}")]);
    assert_eq!(orderd.stop(), 0);
}

/// A script that is an editor.
fn editor(env: &TestEnv<'_>, name: &str, script: &str) -> String {
    let path = env.directory.path().join(name);
    fs::write(&path, script).unwrap();
    format!("sh {}", path.display())
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn an_edit_keeps_what_was_written_unless_it_is_accepted_and_leaves_ctrl_c_to_the_editor() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true");
    let mut orderd = env.start();
    let ledger = env.ledger();
    env.raw().publish_to("orders", "order.normal.web", &Properties::persistent(), b"not an order");
    wait_until("it is stored", || open(&ledger) == 1);
    let temporary = env.directory.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let address = orderd.admin_address().to_string();
    let edit = |arguments: &[&str], visual: &str| {
        let all = [&["dead-letters", "edit", "1", "--address", &address], arguments].concat();
        let mut command = env.program(&all);
        let output = command.env("VISUAL", visual).env("TMPDIR", &temporary).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text, String::from_utf8(output.stdout).unwrap())
    };
    let revisions = || ledger.number("SELECT count(*) FROM stored_contents");

    let (code, text, _) = edit(&[], "false");
    assert!(code == 1 && text.contains("the editor \"false\" failed"), "{code}: {text}");
    let (code, text, _) = edit(&[], "true");
    assert!(code == 1 && text.contains("nothing was changed"), "{code}: {text}");
    assert!(is_empty(&temporary), "nothing was written");
    let (code, text, _) = edit(&["--file", "/nowhere/order.json"], "");
    assert!(code == 64 && text.contains("/nowhere/order.json"), "{code}: {text}");

    // What the consumer refuses is kept, and named.
    let bad = r#"{"id":"ord-1","product":"Laptop","quantity":0,"price":"1"}"#;
    let writes_bad = editor(&env, "bad", &format!("printf '%s' '{bad}' > \"$1\"\n"));
    let (code, text, _) = edit(&[], &writes_bad);
    let kept: Vec<_> = fs::read_dir(&temporary).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(code == 1 && text.contains("quantity") && text.contains("the dead letter is unchanged"), "{code}: {text}");
    assert!(text.contains(&format!("edit 1 --file {}", kept[0].display())), "{text}");
    assert_eq!((kept.len(), fs::read_to_string(&kept[0]).unwrap()), (1, bad.to_owned()));
    let kept = kept[0].to_str().unwrap();
    let (code, text, _) = edit(&["--file", kept], "");
    assert!(code == 1 && text.contains(kept) && Path::new(kept).exists(), "{code}: {text}");
    assert_eq!(revisions(), 1);
    fs::write(kept, order("ord-1")).unwrap();
    let (code, text, shown) = edit(&["--file", kept], "");
    assert!(code == 0 && shown.contains("dead letter 1 has a new body"), "{code}: {text}{shown}");
    assert!(Path::new(kept).exists(), "it is the operator's file");
    assert_eq!(revisions(), 2);
    fs::remove_file(kept).unwrap();

    // Ctrl-C in an editor that has a meaning for it ends neither the editor nor the command.
    let body = r#"{"id":"ord-1","product":"Laptop","quantity":7,"price":"400.00","currency":"EUR"}"#;
    let catches = format!(
        "trap 'echo the editor has caught it' INT\necho the editor is open\n\
         until read line; do :; done\nprintf '%s' '{body}' > \"$1\"\n"
    );
    let variables = |visual: String| [("VISUAL", visual), ("TMPDIR", temporary.to_str().unwrap().to_owned())];
    let open_editor = |visual: String| {
        let variables = variables(visual);
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let terminal = Terminal::start(&env, &["dead-letters", "edit", "1", "--address", &address], &variables);
        terminal.await_text("the editor is open");
        terminal
    };
    let mut terminal = open_editor(editor(&env, "catches", &catches));
    terminal.type_keys(CTRL_C);
    terminal.await_text("the editor has caught it");
    terminal.type_keys("\n");
    let (code, shown) = terminal.end();
    assert!(code == 0 && shown.contains("dead letter 1 has a new body"), "{code}: {shown}");
    assert_eq!(revisions(), 3);
    // One that has none ends, and the command with it.
    let mut terminal = open_editor(editor(&env, "ends", "echo the editor is open\nread line\nexit 0\n"));
    terminal.type_keys(CTRL_C);
    let (code, shown) = terminal.end();
    assert!(code == 130 && shown.contains("the dead letter is unchanged"), "{code}: {shown}");
    assert_eq!((revisions(), is_empty(&temporary)), (3, true));

    // The new body is on its way.
    let sends = editor(&env, "sends", &format!("echo the editor is open\nread line\nprintf '%s' '{bad}' > \"$1\"\n"));
    let mut terminal = open_editor(sends);
    orderd.signal("STOP");
    terminal.type_keys("\n");
    wait_until("the daemon has the request", || has_unread_request(&orderd));
    terminal.type_keys(CTRL_C);
    let (code, shown) = terminal.end();
    orderd.signal("CONT");
    assert!(code == 130 && shown.contains("may have accepted the new body"), "{code}: {shown}");
    let kept = fs::read_dir(&temporary).unwrap().next().unwrap().unwrap().path();
    assert!(shown.contains(kept.to_str().unwrap()) && fs::read_to_string(&kept).unwrap() == bad, "{shown}");

    assert_eq!(ask(&env, &orderd, &["replay", "1", "--yes"]).0, 0);
    let quantity = ledger.rows("SELECT quantity FROM orders WHERE id = 'ord-1'");
    assert_eq!(quantity, ["7"], "the latest body that was accepted");
    assert_eq!(orderd.stop(), 0);
}
