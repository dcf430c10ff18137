//! The result of `orderd publish`, as text and as JSON.

use std::collections::BTreeMap;
use std::{fmt, io};

use serde::{Serialize, Serializer};

/// Why publishing ended.
#[derive(Debug)]
pub(super) enum EndReason {
    /// The whole input was read, and the broker has answered for every line.
    Input,
    /// Interrupted once: the broker has answered for every line read so far.
    Interrupted,
    /// Interrupted twice: lines may be unconfirmed.
    Aborted,
    /// The input cannot be read further; the broker has answered for every line read so far.
    Unreadable(io::Error),
    /// The broker was unreachable for too long; the last error.
    NoBroker(Option<String>),
}

impl Serialize for EndReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            EndReason::Input => "end_of_input",
            EndReason::Interrupted => "interrupted",
            EndReason::Aborted => "aborted",
            EndReason::Unreadable(_) => "unreadable",
            EndReason::NoBroker(_) => "no_broker",
        })
    }
}

/// What was published. As JSON, the output of `--format json`.
#[derive(Debug, Serialize)]
pub(super) struct PublishSummary {
    /// Messages that the broker confirmed.
    pub published: u64,
    /// Those of them whose routing key matches no binding of the configuration.
    pub unbound: u64,
    /// Orders whose customer may not be notified, by what is wrong.
    pub warnings: BTreeMap<&'static str, u64>,
    /// Lines that are invalid, or that the broker refused.
    pub refused: u64,
    /// Messages that the broker has not answered.
    pub unconfirmed: usize,
    /// Line number of the first of them; 0 if there are none.
    pub first_unconfirmed: u64,
    /// From the start to the last confirm.
    pub seconds: f64,
    pub end: EndReason,
}

impl PublishSummary {
    /// Nothing was published.
    pub fn of_nothing(end: EndReason) -> Self {
        let warnings = BTreeMap::new();
        PublishSummary {
            published: 0,
            unbound: 0,
            warnings,
            refused: 0,
            unconfirmed: 0,
            first_unconfirmed: 0,
            seconds: 0.0,
            end,
        }
    }
}

impl fmt::Display for PublishSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PublishSummary { published, unbound, refused, seconds, .. } = self;
        let rate = *published as f64 / seconds.max(0.001);
        write!(f, "published {published}, ")?;
        if *unbound > 0 {
            write!(f, "of which {unbound} match no binding of the configuration, ")?;
        }
        for (code, count) in &self.warnings {
            write!(f, "{count} with {code}, ")?;
        }
        write!(f, "refused {refused}, in {seconds:.2} s ({rate:.0}/s)")?;
        match self.end {
            EndReason::Input | EndReason::Unreadable(_) => Ok(()),
            EndReason::Interrupted => f.write_str("; interrupted"),
            EndReason::Aborted | EndReason::NoBroker(_) => write!(f, "; {} unconfirmed", self.unconfirmed),
        }
    }
}
