//! What the three producers share: their flags, the way to the broker, the pace, and the wait for confirms.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use orderd::amqp::Connector;
use orderd::config::{Config, Sources};
use orderd::message::{Message, Properties, Publication, Publisher};
use tokio::time::{Instant, sleep_until, timeout};

/// How long the broker may take for one confirm, reconnecting included.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages on their way at most.
const MAX_IN_FLIGHT: usize = 1_000;

/// Flags of every producer.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Messages to publish
    #[arg(long, default_value_t = 100)]
    pub count: u64,
    /// Messages a second; 0 is as fast as the broker takes them
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// What ids begin with; numbers from 1 follow
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// orderd's configuration, for the broker's address; ORDERD_BROKER__ADDRESSES and the like go before it
    #[arg(long, env = "ORDERD_CONFIG", default_value = "config/orderd.toml")]
    config: PathBuf,
}

/// One message to publish.
pub struct Outgoing {
    /// Such as `order.normal.created`.
    pub routing_key: String,
    /// The `message_id`: what a second copy of the message is recognised by.
    pub id: String,
    /// JSON, or what is said to be.
    pub body: Vec<u8>,
}

/// Publishes `count` messages at the wanted rate and waits until the broker has confirmed every one.
///
/// # Errors
/// The configuration is wrong, the broker cannot be reached, or it refused a message.
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
        confirms.push(timeout(PATIENCE, publisher.publish([publication].into())));
        if confirms.len() >= MAX_IN_FLIGHT
            && let Some(confirm) = confirms.next().await
        {
            confirm??;
        }
    }
    while let Some(confirm) = confirms.next().await {
        confirm??;
    }
    publisher.close(PATIENCE).await?;
    Ok(())
}

/// Whether number `number` belongs to a share of all numbers, spread evenly: of 0.2, every fifth does.
#[allow(dead_code, reason = "only the order producer mixes")]
pub fn is_in_share(number: u64, share: f64) -> bool {
    let steps = |n: u64| (n as f64 * share).floor();
    steps(number) > steps(number - 1)
}
