//! Steps: the shop's own work on a message, done by the shop's own services, each step recorded once it is done.
//!
//! ```text
//! service   the trait of what performs a step's calls
//! ```
//! It never decides on a retry of the message (`recovery` does) and never acks.

mod service;

pub use service::{
    FailureCause, MAX_ANSWER_BYTES, MAX_EVENTS, StepAnswer, StepCall, StepEvent, StepFailure, StepService, TraceContext,
};
