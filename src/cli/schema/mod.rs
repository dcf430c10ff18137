//! `orderd schema`: JSON Schemas of orders, of the configuration, of the events that orderd publishes and of what steps are called with.
//!
//! An order or a configuration that orderd accepts is valid by its schema, which tests hold; the rules that a schema cannot state,
//! such as the sum of an order, are orderd's own.

mod config;
mod formats;
mod order;
mod places;
mod step;

use std::io::{self, Write};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::Exit;
use super::output::write_json;
use crate::domain::{AnalyticsEvent, CancelledEvent, Notification};
use crate::handlers::DeadLetteredEvent;

/// Arguments of `orderd schema`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SchemaArgs {
    /// What the schema describes
    #[arg(value_enum, value_name = "DOCUMENT")]
    pub of: SchemaOf,
}

/// What a schema describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SchemaOf {
    /// An order in orderd's own format
    Order,
    /// The configuration file
    Config,
    /// The events about orders that orderd publishes
    Event,
    /// What a step's service is called with
    Step,
}

/// An event about an order.
#[derive(JsonSchema)]
#[schemars(title = "event")]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Event<'a> {
    Notification(Notification<'a>),
    Processed(AnalyticsEvent<'a>),
    Cancelled(CancelledEvent<'a>),
    Failed(DeadLetteredEvent<'a>),
}

impl SchemaOf {
    /// The schema.
    pub fn schema(self) -> Schema {
        // Messages are embedded in other documents, so their schemas refer to nothing.
        let settings = |inline| SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = inline);
        match self {
            SchemaOf::Order => settings(true).into_generator().into_root_schema_for::<order::OrderMessage>(),
            SchemaOf::Config => settings(false).into_generator().into_root_schema_for::<config::ConfigDocument>(),
            SchemaOf::Event => settings(true).into_generator().into_root_schema_for::<Event<'_>>(),
            SchemaOf::Step => settings(true).into_generator().into_root_schema_for::<step::StepRequest<'_>>(),
        }
    }
}

/// Prints a schema.
///
/// # Errors
/// When `out` cannot be written.
pub fn run(args: SchemaArgs, out: &mut dyn Write) -> io::Result<Exit> {
    write_json(&args.of.schema(), out)?;
    Ok(Exit::Done)
}
