//! Declaring the topology and checking permissions, with the client library `amqprs`.
//!
//! The only user of that library: its peculiarities are handled here and nowhere else. Never consumes a message, and
//! publishes only in transactions that are rolled back.

mod callbacks;
mod client_connection;
mod declare;
mod declare_error;
mod field_table;
mod permissions;
mod relay;
mod request;

pub use declare::Declared;
pub use declare_error::DeclareError;
pub use permissions::DeniedPermission;

/// Whether a panic came from the client library.
///
/// Its tasks panic on input they did not expect. Such a panic ends only the connection it happened on, which orderd notices
/// and handles, so a panic hook need not report it as an error.
pub fn is_client_panic(panic: &std::panic::PanicHookInfo<'_>) -> bool {
    panic.location().is_some_and(|location| {
        let file = location.file();
        file.contains("amqprs-") || file.contains("amqp_serde-")
    })
}
