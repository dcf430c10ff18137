//! The common part of the three producers: options, configuration, publishing at a rate, and waiting for confirms.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use orderd::amqp::Connector;
use orderd::config::{Config, Sources};
use orderd::message::{Message, Properties, Publication, Publisher};
use tokio::time::{Instant, sleep_until, timeout};

/// How long to wait for a confirm, including reconnects.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit of unconfirmed messages.
const MAX_UNCONFIRMED: usize = 1_000;

/// Options of every producer.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Messages to publish
    #[arg(long, default_value_t = 100)]
    pub count: u64,
    /// Messages per second; 0 means as fast as the broker confirms them
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Prefix of all message ids
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// orderd's configuration file, for the connection to the broker; environment variables such as ORDERD_BROKER__ADDRESSES
    /// take precedence
    #[arg(long, env = "ORDERD_CONFIG", default_value = "config/orderd.toml")]
    config: PathBuf,
}

/// A message to publish.
pub struct Outgoing {
    /// The routing key, such as `order.normal.created`.
    pub routing_key: String,
    /// The `message_id`, by which orderd recognizes duplicates.
    pub id: String,
    /// The body, labelled as JSON even if it is not valid.
    pub body: Vec<u8>,
}

/// Publishes `count` messages at the given rate, and waits until the broker has confirmed all of them.
///
/// # Errors
/// The configuration is invalid, the broker cannot be reached, or it refuses a message.
pub async fn publish(options: &Options, mut make: impl FnMut(u64) -> Outgoing) -> Result<(), Box<dyn Error>> {
    let sources = Sources::from_process(Some(options.config.clone()), Vec::new(), orderd::handlers::REGISTRY);
    let config = Config::load(&sources)?.config;
    let exchange = config.names().orders;
    let publisher = Connector::new(config.broker).publisher();

    let begin = Instant::now();
    let mut confirms = FuturesUnordered::new();
    for number in 1..=options.count {
        if options.rate > 0 {
            sleep_until(begin + Duration::from_secs(number) / options.rate).await;
        }
        let Outgoing { routing_key, id, body } = make(number);
        let properties = Properties {
            message_id: Some(id),
            content_type: Some("application/json".to_owned()),
            ..Properties::default()
        };
        let message = Message { properties, body: body.into(), ..Message::default() };
        let publication = Publication { exchange: exchange.clone(), routing_key, message };
        confirms.push(timeout(CONFIRM_TIMEOUT, publisher.publish([publication].into())));
        if confirms.len() >= MAX_UNCONFIRMED
            && let Some(confirm) = confirms.next().await
        {
            confirm??;
        }
    }
    while let Some(confirm) = confirms.next().await {
        confirm??;
    }
    publisher.close(CONFIRM_TIMEOUT).await?;
    Ok(())
}

/// Whether `number` belongs to an evenly spread share of all numbers. For a share of 0.2, every fifth number does.
#[allow(dead_code, reason = "only the order producer uses it")]
pub fn is_in_share(number: u64, share: f64) -> bool {
    let steps = |n: u64| (n as f64 * share).floor();
    steps(number) > steps(number - 1)
}
