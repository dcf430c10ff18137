//! Steps that a command performs: child processes that orderd starts, limits and ends.
//!
//! ```text
//! settings      the keys of a command step
//! protocol      hello, request and answer lines (pure)
//! line_reader   lines and output of a limited length
//! child         one child process: its group, its environment, its end
//! guard         ends children if orderd is killed
//! output_log    what children write to standard error, in orderd's log
//! long_lived    children that answer one request after the other, started as needed
//! per_message   one child for each call
//! ```
//! A child ends at the latest when orderd stops, and inherits no secret. The answer to one call is never taken for that to another.
//! Children are not confined otherwise: they run as orderd's user.

mod call_error;
mod child;
mod guard;
mod line_reader;
mod long_lived;
mod output_log;
mod per_message;
mod protocol;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

pub use child::ChildProcesses;
pub use guard::guard_commands;
pub use settings::{CommandMode, CommandSettings};

use self::call_error::CallError;
use self::child::ChildStarter;
use self::long_lived::LongLivedChildren;
use super::{StepAnswer, StepCall, StepFailure, StepService};

/// How much earlier than the engine a call gives up.
const MARGIN: Duration = Duration::from_millis(50);

/// Which step a command performs; for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandName {
    /// The consumer's name.
    pub consumer: Arc<str>,
    /// The step's name; that of an undo ends with `/undo`.
    pub step: Arc<str>,
}

/// Performs the calls of one step, or of its undo, by a command.
pub struct CommandService {
    /// One permit for each child that may run.
    permits: Arc<Semaphore>,
    children: Children,
}

enum Children {
    LongLived(Arc<LongLivedChildren>),
    PerMessage(Arc<ChildStarter>),
}

/// The parts of a call that a child needs, owned: the call may be dropped while the child works on it.
#[derive(Debug, Clone)]
struct CommandRequest {
    idempotency_key: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
    body: Bytes,
}

impl CommandService {
    /// A service with at most this many children. They are started when they are needed, and ended when the service is dropped.
    pub fn new(settings: &CommandSettings, name: CommandName, max_children: usize, processes: &ChildProcesses) -> Self {
        let starter = Arc::new(ChildStarter::new(settings.clone(), name, processes.clone()));
        let children = match settings.mode {
            CommandMode::LongLived => Children::LongLived(Arc::new(LongLivedChildren::new(starter))),
            CommandMode::PerMessage => Children::PerMessage(starter),
        };
        CommandService { permits: Arc::new(Semaphore::new(max_children)), children }
    }

    /// Waits for a free child, then for its answer. A call that is dropped lets its child finish, so that no work is cut off
    /// because a connection to the broker is lost.
    async fn perform(&self, call: StepCall<'_>) -> Result<StepAnswer, CallError> {
        // Before the engine gives up the call, and with it what is known about its failure.
        let deadline = Instant::now() + call.timeout - MARGIN.min(call.timeout / 10);
        let request = CommandRequest::new(call)?;
        let permit = self.permit(deadline, call.timeout).await?;
        match &self.children {
            Children::LongLived(children) => Arc::clone(children).call(request, deadline, call.timeout, permit).await,
            Children::PerMessage(starter) => {
                per_message::call(Arc::clone(starter), request, deadline, call.timeout, permit).await
            }
        }
    }

    async fn permit(&self, deadline: Instant, timeout: Duration) -> Result<OwnedSemaphorePermit, CallError> {
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        permit.map_err(|_| CallError::Busy(timeout))?.map_err(|_| CallError::Stopping)
    }
}

impl CommandRequest {
    fn new(call: StepCall<'_>) -> Result<Self, CallError> {
        if call.body.len() > protocol::MAX_REQUEST_BYTES {
            return Err(CallError::RequestTooLarge);
        }
        Ok(CommandRequest {
            idempotency_key: call.idempotency_key.to_owned(),
            traceparent: call.trace.traceparent.map(str::to_owned),
            tracestate: call.trace.tracestate.map(str::to_owned),
            body: call.body.clone(),
        })
    }
}

impl StepService for CommandService {
    fn call<'a>(&'a self, call: StepCall<'a>) -> BoxFuture<'a, Result<StepAnswer, StepFailure>> {
        Box::pin(async move { self.perform(call).await.map_err(CallError::into_failure) })
    }
}
