//! Long-lived commands.

use super::*;

#[tokio::test]
async fn one_child_answers_call_after_call() {
    let env = TestEnv::new();
    let service = env.service(&env.python(ANSWERS), 2);
    let pid = field(&service, "ord-1", "pid").await;
    assert_eq!(field(&service, "ord-2", "pid").await, pid);
    assert_eq!(field(&service, "ord-3", "order").await, "ord-3");
    let (first, second) = tokio::join!(field(&service, "ord-4", "pid"), field(&service, "ord-5", "pid"));
    assert_ne!(first, second, "a second child is started only for calls at the same time");
}

#[tokio::test]
async fn there_are_never_more_children_than_allowed() {
    let env = TestEnv::new();
    let service = env.service(&env.python(ANSWERS), 2);
    let orders: Vec<String> = (0..20).map(|number| format!("ord-{number}")).collect();
    let calls = orders.iter().map(|order| async {
        assert_eq!(field(&service, order, "order").await, *order);
        field(&service, order, "pid").await
    });
    let pids: std::collections::BTreeSet<String> = futures_util::future::join_all(calls).await.into_iter().collect();
    assert!(pids.len() <= 2, "{pids:?}");
}

#[tokio::test]
async fn a_request_has_key_trace_and_body() {
    let env = TestEnv::new();
    let script = ANSWERS.replace("\"pid\": os.getpid()", "\"call\": call, \"cwd\": os.getcwd()");
    let service = env.service(&env.python(&script), 1);
    let answer = call(&service, "ord-1", LONG).await.unwrap();
    let result: serde_json::Value = serde_json::from_str(answer.result.get()).unwrap();
    let call = &result["call"];
    assert_eq!(call["idempotency_key"], "ord-1/charge");
    assert_eq!(call["traceparent"], "00-trace-span-01");
    assert_eq!(call["tracestate"], "shop=1,bank=2");
    assert_eq!(call["request"], serde_json::json!({"order": {"id": "ord-1"}}));
    assert_eq!(result["cwd"].as_str(), env.directory.path().canonicalize().unwrap().to_str());
}

#[tokio::test]
async fn a_child_answers_that_it_is_done_asks_for_a_retry_or_rejects() {
    let env = TestEnv::new();
    let script = ANSWERS.replace(
        "    print",
        r#"    answers = {"ord-1": {"retry": "the bank is closed", "after": "90s"}, "ord-2": {"reject": "card\nrefused"}}
    if call["request"]["order"]["id"] in answers:
        print(json.dumps({"id": call["id"], **answers[call["request"]["order"]["id"]]}), flush=True)
        continue
    print"#,
    );
    let service = env.service(&env.python(&script), 1);
    let retry = call(&service, "ord-1", LONG).await.unwrap_err();
    assert_eq!((retry.failure.kind, retry.failure.code.as_str()), (FailureKind::Transient, "command_retry"));
    assert_eq!(
        (retry.failure.reason.as_str(), retry.retry_after),
        ("the bank is closed", Some(Duration::from_secs(90)))
    );
    let rejected = call(&service, "ord-2", LONG).await.unwrap_err();
    assert_eq!((rejected.failure.kind, rejected.failure.code.as_str()), (FailureKind::Permanent, "command_rejected"));
    assert_eq!((rejected.failure.reason.as_str(), rejected.cause), ("card\nrefused", FailureCause::Refused));
    assert_eq!(field(&service, "ord-3", "order").await, "ord-3", "the child runs on");
}

#[tokio::test]
async fn a_child_that_is_killed_during_a_call_costs_that_call_and_no_other() {
    let env = TestEnv::new();
    let script = ANSWERS.replace(
        "    print",
        "    if call[\"request\"][\"order\"][\"id\"] == \"ord-1\":\n        os.kill(os.getpid(), 9)\n    print",
    );
    let service = env.service(&env.python(&script), 1);
    let failure = call(&service, "ord-1", LONG).await.unwrap_err().failure;
    assert_eq!(failure.code, "command_exited");
    assert!(failure.reason.contains("signal 9"), "{failure}");
    assert_eq!(field(&service, "ord-2", "order").await, "ord-2");
}

#[tokio::test]
async fn a_child_that_ends_between_two_calls_costs_none() {
    let env = TestEnv::new();
    let service = env.service(&env.python(ANSWERS), 1);
    let first = field(&service, "ord-1", "pid").await;
    signal(&first, rustix::process::Signal::KILL);
    gone(&first).await;
    let second = field(&service, "ord-2", "pid").await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_child_that_is_stopped_is_killed_when_the_call_times_out() {
    let env = TestEnv::new();
    let service = env.service(&env.python(ANSWERS), 1);
    let pid = field(&service, "ord-1", "pid").await;
    signal(&pid, rustix::process::Signal::STOP);
    assert_eq!(timed_out(&service, SHORT).await, "step_timeout");
    gone(&pid).await;
    assert_ne!(field(&service, "ord-2", "pid").await, pid);
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_that_of_the_next_call() {
    let env = TestEnv::new();
    // Answers the first call of each order too late: after the next one has been asked.
    let script = ANSWERS.replace(
        "    print",
        "    if call[\"request\"][\"order\"][\"id\"] == \"late\":\n        import time\n        time.sleep(1)\n    print",
    );
    let service = env.service(&env.python(&script), 1);
    field(&service, "ord-0", "pid").await;
    // Dropped while the child works on it, as when the connection to the broker is lost.
    assert!(tokio::time::timeout(SHORT, call(&service, "late", LONG)).await.is_err());
    assert_eq!(field(&service, "ord-1", "order").await, "ord-1");
    let timed_out = call(&service, "late", SHORT).await.unwrap_err();
    assert_eq!(timed_out.failure.code, "step_timeout");
    assert_eq!(field(&service, "ord-2", "order").await, "ord-2");
}

#[tokio::test]
async fn nonsense_half_a_line_and_a_huge_line_are_failures_with_a_code_each() {
    for (answer, code) in [
        ("print('hello', flush=True)", "command_malformed_answer"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()", "command_malformed_answer"),
        ("print('{\"id\": 1, \"result\": 1}', flush=True)", "command_malformed_answer"),
        ("print(json.dumps({'id': call['id'], 'result': 1, 'reject': 'no'}), flush=True)", "command_malformed_answer"),
        ("print('{\"id\": %d, \"res' % call['id'], end='', flush=True); sys.exit()", "command_malformed_answer"),
        ("sys.stdout.write('x' * 100_000_000 + '\\n')", "command_answer_too_large"),
        ("sys.exit(3)", "command_exited"),
        ("os.close(1)", "command_exited"),
        ("sys.stderr.write(('x' * 99 + '\\n') * 1_000_000); sys.exit()", "command_stderr_flood"),
    ] {
        let env = TestEnv::new();
        let (start, _) = ANSWERS.split_once("    print").unwrap();
        let service = env.service(&env.python(&format!("{start}    {answer}\n    import time; time.sleep(600)\n")), 1);
        assert_eq!(transient(&service, LONG).await, code, "{answer}");
    }
}

#[tokio::test]
async fn a_child_that_answers_without_reading_is_not_believed() {
    let env = TestEnv::new();
    // Guesses ids. It also never reads, so a large request is never written completely.
    let script = "echo '{\"orderd\": 1}'; while true; do echo '{\"id\": 1, \"result\": null}'; sleep 0.05; done";
    let service = env.service(&env.shell(CommandMode::LongLived, script), 1);
    assert_eq!(transient(&service, LONG).await, "command_malformed_answer");
    let silent = env.service(&env.shell(CommandMode::LongLived, "echo '{\"orderd\": 1}'; sleep 600"), 1);
    let body = format!("{{\"order\":\"{}\"}}", "x".repeat(1 << 20));
    let failure = call_with(&silent, "ord-1/charge", body, SHORT).await.unwrap_err();
    // Its start may have taken longer than the call's time.
    assert!(["step_timeout", "command_not_ready"].contains(&failure.failure.code.as_str()), "{failure}");
}

#[tokio::test]
async fn a_large_request_and_a_child_that_writes_while_it_reads_do_not_block_each_other() {
    let env = TestEnv::new();
    let script = r#"
import json, sys
print('{"orderd": 1}', flush=True)
for line in sys.stdin:
    for _ in range(20_000):
        sys.stderr.write("progress\n")
    print(json.dumps({"id": json.loads(line)["id"], "result": len(line)}), flush=True)
"#;
    let service = env.service(&env.python(script), 1);
    let body = format!("{{\"order\":\"{}\"}}", "x".repeat(8 << 20));
    let answer = call_with(&service, "ord-1/charge", body, LONG).await.unwrap();
    assert!(answer.result.get().parse::<usize>().unwrap() > 8 << 20);
}

#[tokio::test]
async fn a_command_that_cannot_be_started_or_does_not_say_hello_is_not_reached() {
    let env = TestEnv::new();
    let not_executable = env.path("data");
    fs::write(&not_executable, "no program").unwrap();
    let garbage = env.script("garbage", "\u{7f}ELF no program");
    let directory = env.directory.path().to_owned();
    let long_lived = |words: &[&str]| env.command(CommandMode::LongLived, words);
    let in_missing_directory = CommandSettings { working_directory: env.path("missing"), ..long_lived(&["true"]) };
    for (settings, code) in [
        (long_lived(&["/nowhere/charge"]), "command_not_started"),
        (long_lived(&["no-such-program"]), "command_not_started"),
        (long_lived(&[not_executable.to_str().unwrap()]), "command_not_started"),
        (long_lived(&[garbage.to_str().unwrap()]), "command_not_started"),
        (long_lived(&[directory.to_str().unwrap()]), "command_not_started"),
        (in_missing_directory, "command_not_started"),
        (long_lived(&["true"]), "command_bad_hello"),
        (long_lived(&["sh", "-c", "exit 3"]), "command_bad_hello"),
        (long_lived(&["echo", "hello"]), "command_bad_hello"),
        (long_lived(&["echo", "{\"orderd\": 2}"]), "command_bad_hello"),
        (long_lived(&["cat", "/dev/zero"]), "command_bad_hello"),
    ] {
        let service = env.service(&settings, 1);
        let failure = call(&service, "ord-1", LONG).await.unwrap_err();
        assert_eq!(failure.failure.code, code, "{settings:?}: {failure}");
        assert_eq!(failure.cause, FailureCause::NotReached);
    }
    let service = env.service(&long_lived(&["sleep", "600"]), 1);
    assert_eq!(transient(&service, SHORT).await, "command_not_ready");
}

#[tokio::test]
async fn a_child_whose_start_takes_longer_than_a_call_serves_the_calls_after_it() {
    let env = TestEnv::new();
    let service = env.service(&env.python(&format!("import time\ntime.sleep(1)\n{ANSWERS}")), 1);
    assert_eq!(transient(&service, SHORT).await, "command_not_ready");
    assert_eq!(field(&service, "ord-2", "order").await, "ord-2");
}

#[tokio::test]
async fn a_child_that_keeps_dying_is_started_again_with_a_backoff() {
    let env = TestEnv::new();
    let script = "echo x >> starts; exit 1";
    let service = env.service(&env.shell(CommandMode::LongLived, script), 1);
    let begun = std::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(transient(&service, LONG).await, "command_bad_hello");
    }
    // 100, 200, 400 and 800 ms, a tenth of each at least.
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
    assert_eq!(fs::read_to_string(env.path("starts")).unwrap().lines().count(), 5);
}

#[tokio::test]
async fn a_child_that_dies_is_noticed_although_a_process_it_started_keeps_its_output() {
    let escapes = "setsid sh -c 'echo $$ > escaped; exec sleep 600' &\nwhile [ ! -s escaped ]; do sleep 0.01; done\n";
    for (rest, code) in
        [("echo '{\"orderd\": 1}'; read -r line; exit 3", "command_exited"), ("exit 3", "command_bad_hello")]
    {
        let env = TestEnv::new();
        let service = env.service(&env.shell(CommandMode::LongLived, &format!("{escapes}{rest}")), 1);
        // The call's time is long: it does not have to pass.
        let failed = tokio::time::timeout(LONG, transient(&service, 10 * LONG)).await;
        assert_eq!(failed.expect("it is noticed at once"), code);
        signal(&env.written("escaped").await, rustix::process::Signal::KILL);
    }
}

#[tokio::test]
async fn children_that_answer_twice_do_not_accumulate() {
    let env = TestEnv::new();
    // Both answers at once. It also survives SIGTERM and the end of its input.
    let script = r#"
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"orderd": 1}', flush=True)
for line in sys.stdin:
    answer = json.dumps({"id": json.loads(line)["id"], "result": {"pid": os.getpid()}}) + "\n"
    sys.stdout.write(answer + answer)
    sys.stdout.flush()
time.sleep(600)
"#;
    let service = env.service(&env.python(script), 1);
    let mut before: Option<String> = None;
    for order in ["ord-1", "ord-2", "ord-3"] {
        let pid = field(&service, order, "pid").await;
        assert!(before.is_none_or(|before| !is_running(&before)), "{order}: the one before is gone");
        before = Some(pid);
    }
}

#[tokio::test]
async fn a_command_that_is_not_ready_says_how_it_failed_before() {
    let env = TestEnv::new();
    let script = "[ -e started ] && exec sleep 600; touch started; echo no licence >&2; exit 7";
    let service = env.service(&env.shell(CommandMode::LongLived, script), 1);
    assert_eq!(transient(&service, LONG).await, "command_bad_hello");
    let failure = call(&service, "ord-1", SHORT).await.unwrap_err().failure;
    assert_eq!(failure.code, "command_not_ready");
    assert!(failure.reason.contains("no licence"), "{failure}");
}
