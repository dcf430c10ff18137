//! How children end: with their service, at orderd's stop, with all that they have started.

use super::*;

/// Ends when its input ends; a child of its own does not.
const WITH_GRANDCHILD: &str = "sleep 600 & echo $! > grandchild; echo '{\"orderd\": 1}'; echo $$ > child\n\
    while read -r line; do id=${line#*:}; id=${id%%,*}; echo \"{\\\"id\\\": $id, \\\"result\\\": $$}\"; done";

#[tokio::test]
async fn children_and_grandchildren_end_with_their_service() {
    let env = TestEnv::new();
    let service = env.service(&env.shell(CommandMode::LongLived, WITH_GRANDCHILD), 1);
    let child = call(&service, "ord-1", LONG).await.unwrap().result.get().to_owned();
    let grandchild = env.written("grandchild").await;
    assert!(is_running(&child) && is_running(&grandchild));
    drop(service);
    gone(&child).await;
    gone(&grandchild).await;
}

#[tokio::test]
async fn grandchildren_end_with_a_child_that_dies() {
    let env = TestEnv::new();
    let service = env.service(&env.shell(CommandMode::LongLived, WITH_GRANDCHILD), 1);
    let child = call(&service, "ord-1", LONG).await.unwrap().result.get().to_owned();
    signal(&child, rustix::process::Signal::KILL);
    gone(&env.written("grandchild").await).await;
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed() {
    let env = TestEnv::new();
    let script = "trap '' TERM; echo '{\"orderd\": 1}'; echo $$ > child; while true; do sleep 1; done";
    let service = env.service(&env.shell(CommandMode::LongLived, script), 1);
    let ready = async { transient(&service, LONG).await };
    // Cancel-safe: the call is dropped, and its child works on.
    tokio::select! {
        code = ready => panic!("{code}"),
        _ = env.written("child") => {}
    }
    let child = env.written("child").await;
    tokio::time::timeout(LONG, env.processes.finish()).await.unwrap();
    assert!(!is_running(&child));
    assert_eq!(transient(&service, LONG).await, "command_exited", "nothing is started any more");
}

#[tokio::test]
async fn a_child_that_ends_by_itself_when_its_input_ends_is_not_killed() {
    let env = TestEnv::new();
    let script = format!("trap 'echo bye > ended; exit 0' TERM\n{WITH_GRANDCHILD}\necho bye > ended");
    let service = env.service(&env.shell(CommandMode::LongLived, &script), 1);
    call(&service, "ord-1", LONG).await.unwrap();
    drop(service);
    tokio::time::timeout(LONG, env.processes.finish()).await.unwrap();
    assert_eq!(env.written("ended").await, "bye");
}

#[test]
fn children_are_killed_when_the_runtime_is_shut_down() {
    let env = TestEnv::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let service = env.service(&env.shell(CommandMode::LongLived, WITH_GRANDCHILD), 1);
    let child = runtime.block_on(async { call(&service, "ord-1", LONG).await.unwrap().result.get().to_owned() });
    let grandchild = runtime.block_on(env.written("grandchild"));
    runtime.shutdown_background();
    let outside = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    outside.block_on(async {
        gone(&grandchild).await;
        gone(&child).await;
    });
}

#[tokio::test]
async fn a_call_that_is_dropped_lets_its_child_finish() {
    let env = TestEnv::new();
    let script = "touch started; sleep 0.3; echo done > finished";
    let service = env.service(&env.shell(CommandMode::PerMessage, script), 1);
    let started = until(|| env.path("started").exists().then_some(()));
    // Cancel-safe: the call is dropped, and its child works on.
    tokio::select! {
        _ = call(&service, "ord-1", LONG) => panic!("it was dropped"),
        () = started => {}
    }
    assert_eq!(env.written("finished").await, "done");
    assert!(call(&service, "ord-2", LONG).await.is_ok());
}
