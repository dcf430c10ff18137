//! One child for each call: the request on standard input, the answer is its exit code, with the result on standard output.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; standard output is the result |
//! | 75 (`EX_TEMPFAIL`) | retry |
//! | others | reject, with the end of standard error as the reason |

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::CommandRequest;
use super::call_error::CallError;
use super::child::{ChildExit, ChildStarter, LAST_OUTPUT, RunningChild};
use super::line_reader::read_to_end;
use crate::steps::{MAX_ANSWER_BYTES, StepAnswer};

/// `EX_TEMPFAIL` of sysexits.h.
const TEMPORARY_FAILURE: i32 = 75;

/// Has a child perform a call. A call that is dropped lets the child finish; the permit is kept until then.
pub(super) async fn call(
    starter: Arc<ChildStarter>,
    request: CommandRequest,
    deadline: Instant,
    limit: Duration,
    permit: OwnedSemaphorePermit,
) -> Result<StepAnswer, CallError> {
    let processes = starter.processes.clone();
    let stopping = processes.clone();
    let call = processes.spawn(async move {
        // Cancel-safe enough: a child that is dropped ends.
        let result = tokio::select! {
            result = perform(&starter, &request, deadline, limit) => result,
            () = stopping.stopping() => Err(CallError::Stopping),
        };
        drop(permit);
        result
    });
    call.await.unwrap_or(Err(CallError::Stopping))
}

async fn perform(
    starter: &ChildStarter,
    request: &CommandRequest,
    deadline: Instant,
    limit: Duration,
) -> Result<StepAnswer, CallError> {
    let CommandRequest { idempotency_key, traceparent, tracestate, body } = request;
    let trace = [("TRACEPARENT", traceparent), ("TRACESTATE", tracestate)];
    // The trace context of a message can be any text.
    let trace = trace.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    let mut variables: Vec<(&str, &str)> = trace.filter(|(_, value)| !value.contains('\0')).collect();
    variables.push(("IDEMPOTENCY_KEY", idempotency_key));
    let mut child = starter.start(&variables).map_err(CallError::NotStarted)?;
    let mut output = Vec::new();
    match timeout_at(deadline, run(&mut child, body, &mut output)).await {
        Ok(Ok(exit)) => read_outcome(exit, &output),
        Ok(Err(OutputTooLarge)) => {
            child.kill().await;
            Err(CallError::AnswerTooLarge(MAX_ANSWER_BYTES))
        }
        Err(_) => {
            child.kill().await;
            Err(CallError::TimedOut(limit))
        }
    }
}

struct OutputTooLarge;

/// Writes the request and reads the output until the child has ended.
async fn run(child: &mut RunningChild, body: &[u8], output: &mut Vec<u8>) -> Result<ChildExit, OutputTooLarge> {
    let stdin = child.stdin.take();
    let mut write = std::pin::pin!(async {
        if let Some(mut stdin) = stdin {
            // A child need not read its input: its exit code decides.
            let _ = stdin.write_all(body).await;
        }
    });
    let (mut written, mut read) = (false, false);
    let exited = child.exited();
    let mut exited = std::pin::pin!(exited);
    let exit = loop {
        // Cancel-safe: reading is, and the others are only borrowed.
        tokio::select! {
            exit = &mut exited => break exit,
            () = &mut write, if !written => written = true,
            complete = read_to_end(&mut child.stdout, output, MAX_ANSWER_BYTES), if !read => {
                read = true;
                if !complete.unwrap_or(true) {
                    return Err(OutputTooLarge);
                }
            }
        }
    };
    if !read {
        // A process that has left the child's group may keep the output open.
        let rest = timeout(LAST_OUTPUT, read_to_end(&mut child.stdout, output, MAX_ANSWER_BYTES)).await;
        if let Ok(Ok(false)) = rest {
            return Err(OutputTooLarge);
        }
    }
    Ok(exit)
}

fn read_outcome(exit: ChildExit, output: &[u8]) -> Result<StepAnswer, CallError> {
    if exit.flooded {
        return Err(CallError::StderrFlood);
    }
    match exit.status.and_then(|status| status.code()) {
        Some(0) => StepAnswer::read(output).map_err(|problem| CallError::MalformedAnswer(format!("it {problem}"))),
        Some(TEMPORARY_FAILURE) => Err(CallError::Retry { reason: reason(exit), after: None }),
        Some(_) => Err(CallError::Rejected(reason(exit))),
        None => Err(CallError::Exited(exit)),
    }
}

fn reason(exit: ChildExit) -> String {
    if exit.stderr.is_empty() { format!("the command {exit}") } else { exit.stderr }
}
