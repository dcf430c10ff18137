//! Detects tasks that are stuck: workers that do not yield their thread, and a runtime in which no task runs.
//!
//! Pure detection and the counters it reads; it never stops or restarts anything.

mod health;
mod heartbeat;
mod stall_detector;

pub use health::Health;
pub use heartbeat::{HeartbeatGuard, HeartbeatReading, Heartbeats};
pub(crate) use stall_detector::StallDetector;
pub use stall_detector::Stuck;
