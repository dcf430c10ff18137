//! Publishes notifications as other services of the shop would, by e-mail and SMS.
//!
//! ```text
//! cargo run --bin notification_producer -- --count 100
//! ```

mod producer;

use std::error::Error;

use clap::Parser;
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
        let channel = if number.is_multiple_of(3) { "sms" } else { "email" };
        let customer = number % 500;
        let body = json!({
            "event": "promotion",
            "channel": channel,
            "customer_id": format!("cust-{customer}"),
            "email": format!("user{customer}@example.com"),
            "text": "Ten per cent off all headphones this week",
        });
        Outgoing {
            routing_key: format!("order.notification.{channel}"),
            id: format!("{}ntf-{number}", options.prefix),
            body: body.to_string().into_bytes(),
        }
    })
    .await?;
    println!("published {} notifications", options.count);
    Ok(())
}
