//! The ids of the AMQP 0-9-1 methods that orderd sends and receives.
//!
//! Pure. The numbers are those of the specification (`amqp0-9-1.xml`) and, for `confirm.select`, `basic.nack`,
//! `connection.blocked` and `connection.unblocked`, those of RabbitMQ's extensions.

use std::fmt;

use bytes::Buf;

use super::encoding::ProtocolError;

/// Identifies a method by the number of its class and its number within the class.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MethodId {
    pub class: u16,
    pub method: u16,
}

macro_rules! method_ids {
    ($($constant:ident = ($class:literal, $method:literal), $name:literal;)*) => {
        impl MethodId {
            $(pub const $constant: MethodId = MethodId { class: $class, method: $method };)*

            /// Its name in the specification.
            pub fn name(self) -> &'static str {
                match self {
                    $(MethodId::$constant => $name,)*
                    _ => "unknown",
                }
            }
        }
    };
}

method_ids! {
    CONNECTION_START = (10, 10), "connection.start";
    CONNECTION_START_OK = (10, 11), "connection.start-ok";
    CONNECTION_TUNE = (10, 30), "connection.tune";
    CONNECTION_TUNE_OK = (10, 31), "connection.tune-ok";
    CONNECTION_OPEN = (10, 40), "connection.open";
    CONNECTION_OPEN_OK = (10, 41), "connection.open-ok";
    CONNECTION_CLOSE = (10, 50), "connection.close";
    CONNECTION_CLOSE_OK = (10, 51), "connection.close-ok";
    CONNECTION_BLOCKED = (10, 60), "connection.blocked";
    CONNECTION_UNBLOCKED = (10, 61), "connection.unblocked";
    CHANNEL_OPEN = (20, 10), "channel.open";
    CHANNEL_OPEN_OK = (20, 11), "channel.open-ok";
    CHANNEL_CLOSE = (20, 40), "channel.close";
    CHANNEL_CLOSE_OK = (20, 41), "channel.close-ok";
    EXCHANGE_DECLARE_OK = (40, 11), "exchange.declare-ok";
    QUEUE_DECLARE = (50, 10), "queue.declare";
    QUEUE_DECLARE_OK = (50, 11), "queue.declare-ok";
    QUEUE_BIND_OK = (50, 21), "queue.bind-ok";
    QUEUE_UNBIND_OK = (50, 51), "queue.unbind-ok";
    BASIC_QOS = (60, 10), "basic.qos";
    BASIC_QOS_OK = (60, 11), "basic.qos-ok";
    BASIC_CONSUME = (60, 20), "basic.consume";
    BASIC_CONSUME_OK = (60, 21), "basic.consume-ok";
    BASIC_CANCEL = (60, 30), "basic.cancel";
    BASIC_CANCEL_OK = (60, 31), "basic.cancel-ok";
    BASIC_PUBLISH = (60, 40), "basic.publish";
    BASIC_RETURN = (60, 50), "basic.return";
    BASIC_DELIVER = (60, 60), "basic.deliver";
    BASIC_ACK = (60, 80), "basic.ack";
    BASIC_NACK = (60, 120), "basic.nack";
    CONFIRM_SELECT = (85, 10), "confirm.select";
    CONFIRM_SELECT_OK = (85, 11), "confirm.select-ok";
    TX_SELECT_OK = (90, 11), "tx.select-ok";
    TX_ROLLBACK_OK = (90, 31), "tx.rollback-ok";
}

impl MethodId {
    /// The number of the class `basic`, which every content header contains.
    pub const BASIC_CLASS: u16 = MethodId::BASIC_PUBLISH.class;

    /// Takes an id off the front.
    pub fn get(bytes: &mut &[u8]) -> Result<MethodId, ProtocolError> {
        Ok(MethodId { class: bytes.try_get_u16()?, method: bytes.try_get_u16()? })
    }

    /// The method that replies to this request: AMQP gives it the next number.
    pub const fn reply(self) -> MethodId {
        MethodId { class: self.class, method: self.method + 1 }
    }
}

impl fmt::Debug for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name(), self.class, self.method)
    }
}
