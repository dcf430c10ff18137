//! Commands that are started for each call.

use super::*;

fn shell(env: &TestEnv, script: &str) -> CommandService {
    env.service(&env.shell(CommandMode::PerMessage, script), 2)
}

#[tokio::test]
async fn the_exit_code_is_the_answer() {
    let env = TestEnv::new();
    let service = shell(
        &env,
        "printf '{\"read\": %s, \"key\": \"%s\", \"trace\": \"%s %s\"}' \"$(cat)\" \"$IDEMPOTENCY_KEY\" \"$TRACEPARENT\" \"$TRACESTATE\"",
    );
    let answer = call(&service, "ord-1", LONG).await.unwrap();
    let expected =
        r#"{"read": {"order":{"id":"ord-1"}}, "key": "ord-1/charge", "trace": "00-trace-span-01 shop=1,bank=2"}"#;
    assert_eq!(answer.result.get(), expected);
    let nothing = call(&shell(&env, "exit 0"), "ord-1", LONG).await.unwrap();
    assert_eq!(nothing.result.get(), "null");
    let retry = call(&shell(&env, "echo the bank is closed >&2; exit 75"), "ord-1", LONG).await.unwrap_err();
    assert_eq!((retry.failure.code.as_str(), retry.failure.reason.as_str()), ("command_retry", "the bank is closed"));
    for code in [1, 2, 64, 126, 255] {
        let service = shell(&env, &format!("echo card refused >&2; exit {code}"));
        let rejected = call(&service, "ord-1", LONG).await.unwrap_err().failure;
        assert_eq!((rejected.kind, rejected.code.as_str()), (FailureKind::Permanent, "command_rejected"));
        assert_eq!(rejected.reason, "card refused");
    }
    let silent = call(&shell(&env, "exit 9"), "ord-1", LONG).await.unwrap_err().failure;
    assert!(silent.reason.contains("code 9"), "{silent}");
}

#[tokio::test]
async fn the_reason_is_the_end_of_standard_error() {
    let env = TestEnv::new();
    let script = "i=0; while [ $i -lt 500 ]; do echo line $i >&2; i=$((i+1)); done; printf last >&2; exit 1";
    let rejected = call(&shell(&env, script), "ord-1", LONG).await.unwrap_err().failure;
    assert!(rejected.reason.ends_with("line 499\nlast"), "{rejected}");
    assert!(rejected.reason.len() > 900, "{}", rejected.reason.len());
}

#[tokio::test]
async fn what_is_neither_success_nor_refusal_is_transient() {
    let env = TestEnv::new();
    for (script, code) in [
        ("kill -9 $$", "command_exited"),
        ("kill -15 $$", "command_exited"),
        ("echo this is not JSON", "command_malformed_answer"),
        ("head -c 100000000 /dev/zero", "command_answer_too_large"),
        ("cat > /dev/null; exec >&-; exec cat /dev/zero >&2", "command_stderr_flood"),
    ] {
        assert_eq!(transient(&shell(&env, script), LONG).await, code, "{script}");
    }
    assert_eq!(timed_out(&shell(&env, "sleep 600"), SHORT).await, "step_timeout");
    let missing = env.service(&env.command(CommandMode::PerMessage, &["/nowhere/charge"]), 1);
    assert_eq!(transient(&missing, LONG).await, "command_not_started");
}

#[tokio::test]
async fn a_command_need_not_read_its_input() {
    let env = TestEnv::new();
    let body = format!("{{\"order\":\"{}\"}}", "x".repeat(4 << 20));
    let answer = call_with(&shell(&env, "echo true"), "ord-1/charge", body, LONG).await.unwrap();
    assert_eq!(answer.result.get(), "true");
}

#[tokio::test]
async fn a_process_that_keeps_the_output_open_does_not_delay_the_answer() {
    let env = TestEnv::new();
    // In the group, and in a session of its own.
    let script = "sleep 600 & echo $! > in_group; setsid sh -c 'echo $$ > escaped; exec sleep 600' &\n\
                  while [ ! -s escaped ]; do sleep 0.01; done; echo 7";
    let answer = call(&shell(&env, script), "ord-1", LONG).await.unwrap();
    assert_eq!(answer.result.get(), "7");
    gone(&env.written("in_group").await).await;
    let escaped = env.written("escaped").await;
    assert!(is_running(&escaped), "only a service manager ends what has left the group");
    signal(&escaped, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn a_child_inherits_no_secret_and_no_open_file() {
    let env = TestEnv::new();
    let _open = fs::File::create(env.path("ledger")).unwrap();
    let script = "tr '\\0' '\\n' < /proc/$$/environ > environment; ls -l /proc/$$/fd > files";
    let mut settings = env.shell(CommandMode::PerMessage, script);
    settings.environment.insert("SHOP".to_owned(), crate::config::Secret::new("s3cret"));
    call(&env.service(&settings, 1), "ord-1", LONG).await.unwrap();
    let environment = env.written("environment").await;
    let names: Vec<_> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(std::env::vars_os().count() > 6, "this test has an environment of its own");
    let allowed = ["PATH", "HOME", "LANG", "SHOP", "IDEMPOTENCY_KEY", "TRACEPARENT", "TRACESTATE"];
    assert!(names.contains(&"SHOP") && names.iter().all(|name| allowed.contains(name)), "{names:?}");
    assert!(environment.contains("SHOP=s3cret"), "{environment}");
    let files = env.written("files").await;
    assert!(files.contains("pipe:") && !files.contains("ledger"), "{files}");
}
