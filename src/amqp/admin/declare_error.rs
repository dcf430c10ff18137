//! Why the topology could not be declared.
//!
//! Owns the error type and which of its variants are permanent. Never decides what to do about them.

use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::ConnectionEnd;
use crate::amqp::protocol::MAX_SHORT_STRING;
use crate::topology::{Declaration, Object};

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Why a topology plan was not declared completely.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The object exists with other properties (406). The reply names the argument, its value and the requested value.
    #[error("{declaration} exists with other properties: {reply}")]
    Mismatch {
        /// What was to be declared.
        declaration: String,
        /// The broker's reply text.
        reply: String,
    },
    /// The user lacks a permission (403).
    #[error(
        "the user may not declare {declaration}: {reply}; `orderd check --permissions` prints the commands that \
         grant what is needed"
    )]
    AccessRefused {
        /// What was to be declared.
        declaration: String,
        /// The broker's reply text.
        reply: String,
    },
    /// The exchange or queue that it refers to does not exist, or is on a node that is down (404).
    #[error("cannot declare {declaration}: {reply}")]
    NotFound {
        /// What was to be declared.
        declaration: String,
        /// The broker's reply text.
        reply: String,
    },
    /// orderd could not connect.
    #[error("cannot declare the topology")]
    Connect(#[from] ConnectError),
    /// A name or key does not fit AMQP.
    #[error("{declaration} has a name or key of more than {MAX_SHORT_STRING} bytes")]
    TooLong {
        /// What was to be declared.
        declaration: String,
    },
    /// The broker refused it for another reason, or the connection was lost.
    #[error("cannot declare {declaration}")]
    Other {
        /// What was to be declared.
        declaration: String,
        /// Why.
        #[source]
        source: ConnectionEnd,
    },
}

impl DeclareError {
    /// Whether this exchange or queue was not declared.
    pub(super) fn concerns(&self, object: &Object) -> bool {
        match self {
            DeclareError::Mismatch { declaration, .. }
            | DeclareError::AccessRefused { declaration, .. }
            | DeclareError::NotFound { declaration, .. }
            | DeclareError::TooLong { declaration }
            | DeclareError::Other { declaration, .. } => *declaration == object.to_string(),
            DeclareError::Connect(_) => false,
        }
    }

    /// Whether the broker refused this one declaration, so that the others may still succeed.
    pub(super) fn concerns_one_declaration(&self) -> bool {
        match self {
            DeclareError::Mismatch { .. }
            | DeclareError::AccessRefused { .. }
            | DeclareError::NotFound { .. }
            | DeclareError::Other { source: ConnectionEnd::ChannelClosed { .. }, .. } => true,
            DeclareError::Connect(_) | DeclareError::TooLong { .. } | DeclareError::Other { .. } => false,
        }
    }

    /// Whether trying again is pointless until someone changes the broker or the configuration.
    pub fn is_permanent(&self) -> bool {
        match self {
            DeclareError::Mismatch { .. } | DeclareError::AccessRefused { .. } | DeclareError::TooLong { .. } => true,
            // A queue whose node is down is "not found" until the node is up again.
            DeclareError::NotFound { .. } => false,
            DeclareError::Connect(error) => error.is_permanent(),
            DeclareError::Other { source, .. } => matches!(source, ConnectionEnd::ChannelClosed { .. }),
        }
    }

    /// Like [`DeclareError::new`], for an exchange or queue that does not exist, so that 406 has another cause, such as a virtual
    /// host's `max-queues`.
    pub(super) fn of_new(declaration: &Declaration, end: ConnectionEnd) -> Self {
        match end {
            source @ ConnectionEnd::ChannelClosed { code: PRECONDITION_FAILED, .. } => {
                DeclareError::Other { declaration: describe(declaration), source }
            }
            end => DeclareError::new(declaration, end),
        }
    }

    pub(super) fn new(declaration: &Declaration, end: ConnectionEnd) -> Self {
        let declaration = describe(declaration);
        match end {
            ConnectionEnd::ChannelClosed { code: PRECONDITION_FAILED, text: reply } => {
                DeclareError::Mismatch { declaration, reply }
            }
            ConnectionEnd::ChannelClosed { code: ACCESS_REFUSED, text: reply } => {
                DeclareError::AccessRefused { declaration, reply }
            }
            ConnectionEnd::ChannelClosed { code: NOT_FOUND, text: reply } => {
                DeclareError::NotFound { declaration, reply }
            }
            source => DeclareError::Other { declaration, source },
        }
    }
}

/// Names the object of a declaration, for error messages.
pub fn describe(step: &Declaration) -> String {
    match Object::from(step) {
        binding @ Object::Binding { .. } => format!("the {binding}"),
        object => object.to_string(),
    }
}
