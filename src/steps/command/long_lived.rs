//! Children that run on and answer one request after the other. One is started when a call finds none that is free; one that
//! misbehaves is killed, and the next is started after a back-off.
//!
//! A child is used by one call at a time. A call that is dropped leaves its child to a task, which waits for the answer, discards
//! it and makes the child available again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Buf;
use futures_util::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use super::CommandRequest;
use super::call_error::CallError;
use super::child::{ChildExit, ChildStarter, LAST_OUTPUT, RunningChild};
use super::line_reader::{ChildLineError, read_line};
use super::protocol::{self, ChildAnswer, MAX_LINE_BYTES};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::steps::StepAnswer;
use crate::telemetry::RepeatedLog;

/// How long a child may take from its start to its hello line: a Java virtual machine on a busy host takes seconds.
const READY_WAIT: Duration = Duration::from_secs(30);
/// Waits before a child is started again after failures in a row.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };

/// Children that failed, by consumer, step and kind of failure.
static FAILURES: RepeatedLog = RepeatedLog::new();
/// Children that could not be used for another call, by consumer and step.
static DISCARDED: RepeatedLog = RepeatedLog::new();

/// The children of one command.
pub(super) struct LongLivedChildren {
    starter: Arc<ChildStarter>,
    state: Mutex<ChildPoolState>,
}

struct ChildPoolState {
    /// Children that wait for a request, the one used last at the end.
    idle: Vec<ReadyChild>,
    /// Failures since the last answer.
    failures: u32,
    /// The last of these.
    last_failure: Option<String>,
    /// When the next child may be started.
    start_at: Instant,
}

/// A child that has said hello.
#[derive(Debug)]
struct ReadyChild {
    child: RunningChild,
    answers: u64,
}

impl LongLivedChildren {
    pub(super) fn new(starter: Arc<ChildStarter>) -> Self {
        let state = ChildPoolState { idle: Vec::new(), failures: 0, last_failure: None, start_at: Instant::now() };
        LongLivedChildren { starter, state: Mutex::new(state) }
    }

    /// Has a child perform a call. It keeps the permit until its child is free again.
    pub(super) async fn call(
        self: Arc<Self>,
        request: CommandRequest,
        deadline: Instant,
        limit: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Result<StepAnswer, CallError> {
        let (answer, answered) = oneshot::channel();
        let processes = self.starter.processes.clone();
        let stopping = processes.clone();
        let call = Call { request, deadline, limit, answer };
        processes.spawn(async move {
            // Cancel-safe enough: a child that is dropped ends.
            tokio::select! {
                () = self.perform(call) => {}
                () = stopping.stopping() => {}
            }
            drop(permit);
        });
        answered.await.unwrap_or(Err(CallError::Stopping))
    }

    async fn perform(&self, call: Call) {
        let Call { request, deadline, limit, answer } = call;
        let mut ready = match self.take_idle().await {
            Some(ready) => ready,
            None => {
                let mut starting = std::pin::pin!(self.start());
                match timeout_at(deadline, &mut starting).await {
                    Ok(Ok(ready)) => ready,
                    Ok(Err(error)) => return drop(answer.send(Err(error))),
                    Err(_) => {
                        let last_failure = self.lock().last_failure.clone();
                        let _ = answer.send(Err(CallError::NotReady { within: limit, last_failure }));
                        // A later call finds it ready.
                        if let Ok(ready) = starting.await {
                            self.lock().idle.push(ready);
                        }
                        return;
                    }
                }
            }
        };
        if answer.is_closed() {
            return self.lock().idle.push(ready);
        }
        let exchanged = timeout_at(deadline, ready.exchange(&request)).await;
        let result = match exchanged.unwrap_or(Err(ExchangeError::TimedOut)) {
            Ok(answer) => {
                self.answered(ready);
                answer.into_result()
            }
            Err(error) => Err(self.kill(ready.child, error, limit).await),
        };
        let _ = answer.send(result);
    }

    /// A child that waits for a request. One that has ended meanwhile, or has written something without having been asked, is
    /// discarded.
    async fn take_idle(&self) -> Option<ReadyChild> {
        loop {
            let mut ready = self.lock().idle.pop()?;
            // The runtime notices meanwhile what has happened to the child and its output.
            tokio::task::yield_now().await;
            let quiet = ready.child.stdout.fill_buf().now_or_never().is_none();
            if quiet && !ready.child.has_ended() {
                return Some(ready);
            }
            // At once, so that there are never more children than calls.
            let pid = ready.child.pid;
            ready.child.kill().await;
            if ready.answers == 0 {
                self.failed(&CallError::MalformedAnswer("it ended, or wrote, before it was asked".to_owned()));
                continue;
            }
            let (name, answers) = (&self.starter.name, ready.answers);
            let Some(due) = DISCARDED.occurred((&name.consumer, &name.step)) else { continue };
            let (consumer, step, repeated) = (&name.consumer, &name.step, due.repeated);
            info!(
                %consumer, %step, pid, answers, repeated,
                "a command ended, or wrote without being asked, between two calls; starting another"
            );
        }
    }

    /// Starts a child after the back-off and waits until it is ready.
    async fn start(&self) -> Result<ReadyChild, CallError> {
        let start_at = self.lock().start_at;
        sleep_until(start_at).await;
        let started = async {
            let mut child = self.starter.start(&[]).map_err(CallError::NotStarted)?;
            let exited = child.exited();
            let problem = match timeout(READY_WAIT, read_line_of(&mut child.stdout, exited)).await {
                Err(_) => CallError::NotReady { within: READY_WAIT, last_failure: None },
                Ok(Ok(line)) => match protocol::check_hello(&line) {
                    Ok(()) => return Ok(ReadyChild { child, answers: 0 }),
                    Err(problem) => CallError::BadHello(problem),
                },
                Ok(Err(ChildLineError::TooLong)) => CallError::BadHello("its first line is too long".to_owned()),
                Ok(Err(ChildLineError::Ended { .. })) => {
                    return Err(CallError::BadHello(format!("it {} before", ended(child).await)));
                }
            };
            child.kill().await;
            Err(problem)
        };
        started.await.inspect_err(|error| self.failed(error))
    }

    /// Makes a child that has answered available again.
    fn answered(&self, mut ready: ReadyChild) {
        ready.answers += 1;
        let mut state = self.lock();
        (state.failures, state.last_failure) = (0, None);
        state.idle.push(ready);
    }

    /// Kills a child that did not answer as it must.
    async fn kill(&self, child: RunningChild, error: ExchangeError, limit: Duration) -> CallError {
        let error = match error {
            ExchangeError::Ended => {
                let exit = ended(child).await;
                if exit.flooded { CallError::StderrFlood } else { CallError::Exited(exit) }
            }
            ExchangeError::TimedOut => {
                if child.kill().await.flooded {
                    CallError::StderrFlood
                } else {
                    CallError::TimedOut(limit)
                }
            }
            ExchangeError::Malformed(problem) => {
                child.kill().await;
                CallError::MalformedAnswer(problem)
            }
            ExchangeError::TooLong => {
                child.kill().await;
                CallError::AnswerTooLarge(MAX_LINE_BYTES)
            }
        };
        self.failed(&error);
        error
    }

    fn failed(&self, error: &CallError) {
        {
            let mut state = self.lock();
            state.start_at = Instant::now() + BACKOFF.wait(state.failures, fastrand::f64());
            state.failures = state.failures.saturating_add(1);
            state.last_failure = Some(chain(error));
        }
        let name = &self.starter.name;
        let Some(due) = FAILURES.occurred((&name.consumer, &name.step, std::mem::discriminant(error))) else { return };
        let (consumer, step, error, repeated) = (&name.consumer, &name.step, chain(error), due.repeated);
        warn!(%consumer, %step, error, repeated, "a command failed; it is started again");
    }

    fn lock(&self) -> MutexGuard<'_, ChildPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call, as the task that performs it owns it.
struct Call {
    request: CommandRequest,
    deadline: Instant,
    /// The time it had when it began.
    limit: Duration,
    answer: oneshot::Sender<Result<StepAnswer, CallError>>,
}

/// Why a child did not answer.
enum ExchangeError {
    /// It ended, or closed its standard output.
    Ended,
    TimedOut,
    Malformed(String),
    TooLong,
}

/// How a child ended that has closed its standard output. If it runs on, it is killed.
async fn ended(child: RunningChild) -> ChildExit {
    const MOMENT: Duration = Duration::from_millis(500);
    match timeout(MOMENT, child.exited()).await {
        Ok(exit) => exit,
        Err(_) => ChildExit { status: None, ..child.kill().await },
    }
}

/// Reads a line that a child writes. Once the child has ended, no more is awaited than what it wrote before: a process that has
/// left its group may keep the output open.
async fn read_line_of(
    stdout: &mut BufReader<ChildStdout>,
    exited: impl Future<Output = ChildExit>,
) -> Result<Vec<u8>, ChildLineError> {
    let ended = async {
        exited.await;
        sleep(LAST_OUTPUT).await;
    };
    // Cancel-safe enough: nothing is read from a child that has ended any more.
    tokio::select! {
        biased;
        line = read_line(stdout, MAX_LINE_BYTES) => line,
        () = ended => Err(ChildLineError::Ended { partial: false }),
    }
}

impl ReadyChild {
    /// Writes a request and reads its answer. If it is dropped before it returns, the child cannot be used any more.
    async fn exchange(&mut self, request: &CommandRequest) -> Result<ChildAnswer, ExchangeError> {
        let id = protocol::new_id();
        let (head, end) = protocol::around_body(id, request);
        let exited = self.child.exited();
        let Some(stdin) = &mut self.child.stdin else { return Err(ExchangeError::Ended) };
        let mut line = head.chain(&*request.body).chain(end);
        let mut write = std::pin::pin!(stdin.write_all_buf(&mut line));
        let mut read = std::pin::pin!(read_line_of(&mut self.child.stdout, exited));
        let mut written = None;
        // Both at the same time: a child may write before it has read everything.
        let answer = loop {
            // Cancel-safe: both are only borrowed.
            tokio::select! {
                biased;
                result = &mut write, if written.is_none() => written = Some(result),
                line = &mut read => break line,
            }
        };
        let answer = match answer {
            Ok(line) => protocol::read_answer(&line, id).map_err(ExchangeError::Malformed)?,
            Err(ChildLineError::TooLong) => return Err(ExchangeError::TooLong),
            Err(ChildLineError::Ended { partial: true }) => {
                return Err(ExchangeError::Malformed("it ended in the middle of a line".to_owned()));
            }
            Err(ChildLineError::Ended { partial: false }) => return Err(ExchangeError::Ended),
        };
        match written {
            Some(Ok(())) => Ok(answer),
            // The rest of the request would be in front of the next one.
            Some(Err(_)) | None => {
                Err(ExchangeError::Malformed("it answered before it had read the request".to_owned()))
            }
        }
    }
}

impl ChildAnswer {
    pub(super) fn into_result(self) -> Result<StepAnswer, CallError> {
        match self {
            ChildAnswer::Done(answer) => Ok(answer),
            ChildAnswer::Retry { reason, after } => Err(CallError::Retry { reason, after }),
            ChildAnswer::Reject { reason } => Err(CallError::Rejected(reason)),
        }
    }
}
