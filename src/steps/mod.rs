//! Steps: the shop's own work on a message, done by the shop's own services, each step recorded once it is done.
//!
//! ```text
//! settings  [[consumers.<name>.steps]], checked    when     the condition of a step
//! engine    carries out a run: read it first       plan     what is called next: pure
//! claim     one instance works on a run            request  what a step is called with
//! events    what an answer asks to publish         run_error   why a run did not end
//! description  what `orderd check` shows of a step: pure
//! engine_step  one step of the engine: its services, and when a call may be made
//! service   the trait of what performs a step's calls      http/   an HTTP server      command/   child processes
//! breaker   when a service is not called: pure             circuit_breaker   all of them: who waits, who may call
//! breaker_settings   their keys                            call_window   the calls that they count
//! ```
//! It never decides on a retry of the message (`recovery` does) and never acks.

mod breaker;
mod breaker_settings;
mod call_window;
mod circuit_breaker;
mod claim;
mod command;
mod description;
mod engine;
mod engine_step;
mod events;
mod http;
mod plan;
mod request;
mod run_error;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod when;

pub use breaker::BreakerState;
pub use breaker_settings::{BreakerSettings, MIN_CALLS};
pub use circuit_breaker::{BreakerKind, BreakerPermit, BreakerReading, CircuitBreaker, CircuitBreakers};
pub use claim::{ClaimAttempt, Claimed, try_claim};
pub use command::{ChildProcesses, CommandMode, CommandName, CommandService, CommandSettings, guard_commands};
pub use engine::{Engine, RunAccess, RunOutcome};
pub use engine_step::StepResources;
pub use events::EventPublisher;
pub use http::{HttpService, HttpSettings};
pub use plan::left_to_undo;
pub use request::{OrderInput, RunInput, UndoCause};
pub use run_error::RunError;
pub use service::{
    FailureCause, MAX_ANSWER_BYTES, MAX_EVENTS, StepAnswer, StepCall, StepEvent, StepFailure, StepService, TraceContext,
};
pub use settings::{ServiceSettings, StepSettings, StepsSettings, UndoSettings};
pub use when::{OrderFacts, When};
