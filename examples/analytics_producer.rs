//! Publishes analytics events as the shop's web site would: page views, searches and filled carts.
//!
//! ```text
//! cargo run --bin analytics_producer -- --count 100
//! ```

mod producer;

use std::error::Error;

use clap::Parser;
use jiff::Timestamp;
use producer::{Options, Outgoing, publish};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Arguments::parse().options;
    publish(&options, |number| {
        let event = ["page_view", "search", "cart_filled"][(number % 3) as usize];
        let body = json!({
            "event": event,
            "page": format!("/products/{}", number % 40),
            "customer_id": format!("cust-{}", number % 500),
            "at": Timestamp::now(),
        });
        Outgoing {
            routing_key: format!("order.analytics.{event}"),
            id: format!("{}anl-{number}", options.prefix),
            body: body.to_string().into_bytes(),
        }
    })
    .await?;
    println!("published {} analytics events", options.count);
    Ok(())
}
