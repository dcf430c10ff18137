//! What keeps the broker from confirming, in words, each once until it confirms again. Pure.

use std::fmt;
use std::mem::discriminant;
use std::time::Duration;

use crate::message::CONFIRMS_OVERDUE;

/// A connection that is lost for less than this is not worth a line.
const NOTABLE_OUTAGE: Duration = Duration::from_secs(1);

/// The publishing connection.
#[derive(Debug, Clone, Default)]
pub(in crate::cli::publish) struct ConnectionState {
    pub connected: bool,
    /// Why the last attempt to connect failed; `None` if it succeeded.
    pub error: Option<String>,
    /// Why the broker has blocked it; `None` if it has not.
    pub blocked: Option<String>,
    /// How long the oldest publication sent has been waiting for its confirm.
    pub waiting: Duration,
}

/// What keeps the broker from confirming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    NotConnected { error: Option<String> },
    Blocked { reason: String },
    Silent,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotConnected { error } => {
                f.write_str("no connection to the broker, trying again")?;
                error.iter().try_for_each(|error| write!(f, ": {error}"))
            }
            Obstacle::Blocked { reason } => write!(f, "the broker has blocked publishing: it has an alarm ({reason})"),
            Obstacle::Silent => f.write_str("the broker is connected and confirms nothing"),
        }
    }
}

/// What was reported since the last confirm, the latest last: at most one obstacle of each kind.
#[derive(Debug, Default)]
pub(super) struct Obstacles(Vec<Obstacle>);

impl Obstacles {
    /// The present obstacle, if none of its kind was reported since the last confirm. `disconnected`: for how long there has been
    /// no connection.
    pub fn observe(&mut self, connection: &ConnectionState, disconnected: Duration) -> Option<&Obstacle> {
        let obstacle = if !connection.connected {
            (disconnected >= NOTABLE_OUTAGE).then(|| Obstacle::NotConnected { error: connection.error.clone() })
        } else if let Some(reason) = &connection.blocked {
            Some(Obstacle::Blocked { reason: reason.clone() })
        } else {
            (connection.waiting >= CONFIRMS_OVERDUE).then_some(Obstacle::Silent)
        };
        let obstacle = obstacle?;
        // During an alarm, connections are given up and opened again: the alarm explains that.
        let is_explained = matches!(self.latest(), Some(Obstacle::Blocked { .. }));
        if is_explained || self.0.iter().any(|known| discriminant(known) == discriminant(&obstacle)) {
            return None;
        }
        self.0.push(obstacle);
        self.latest()
    }

    /// The obstacle that was reported last.
    pub fn latest(&self) -> Option<&Obstacle> {
        self.0.last()
    }

    /// The broker confirms. Returns whether an obstacle was reported before.
    pub fn ended(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_is_reported_once_until_the_broker_confirms() {
        let connected = ConnectionState { connected: true, ..ConnectionState::default() };
        let silent = ConnectionState { waiting: CONFIRMS_OVERDUE, ..connected.clone() };
        let blocked = ConnectionState { blocked: Some("low on memory".into()), ..silent.clone() };
        let lost = ConnectionState { error: Some("refused".into()), ..ConnectionState::default() };
        let mut obstacles = Obstacles::default();
        let mut observe = |state: &ConnectionState, millis: u64| {
            obstacles.observe(state, Duration::from_millis(millis)).map(ToString::to_string)
        };
        assert_eq!(observe(&connected, 0), None);
        assert_eq!(observe(&lost, 200), None);
        assert!(observe(&lost, 1000).unwrap().contains("refused"));
        assert_eq!(observe(&lost, 2000), None);
        assert!(observe(&silent, 0).is_some());
        assert!(observe(&blocked, 0).unwrap().contains("low on memory"));
        // It reconnects during an alarm, and each new connection is blocked again.
        assert_eq!((observe(&lost, 5000), observe(&silent, 0), observe(&blocked, 0)), (None, None, None));
        assert!(obstacles.ended() && !obstacles.ended());
        assert!(obstacles.observe(&blocked, Duration::ZERO).is_some());
    }
}
