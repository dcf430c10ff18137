//! Publishes normal and urgent orders, and on request some bad ones.
//!
//! ```text
//! cargo run --bin order_producer -- --count 1000 --rate 200 --bad 0.02
//! ```

mod producer;

use std::error::Error;

use clap::Parser;
use jiff::Timestamp;
use producer::{Options, Outgoing, is_in_share, publish};
use serde_json::json;

/// Products and prices.
const PRODUCTS: [(&str, &str); 6] = [
    ("Laptop", "1299.00"),
    ("Phone", "799.90"),
    ("Mouse", "24.95"),
    ("Keyboard", "89.50"),
    ("Monitor", "349.00"),
    ("Headphones", "59.99"),
];

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Share of urgent orders, from 0 to 1
    #[arg(long, default_value_t = 0.2)]
    priority: f64,
    /// Share of bad orders, from 0 to 1: in turn invalid JSON, without a product, and with a quantity of 0
    #[arg(long, default_value_t = 0.0)]
    bad: f64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let (mut normal, mut urgent, mut bad) = (0_u64, 0_u64, 0_u64);
    publish(&arguments.options, |number| {
        let id = format!("{}ord-{number}", arguments.options.prefix);
        let priority = is_in_share(number, arguments.priority);
        *if priority { &mut urgent } else { &mut normal } += 1;
        let mut body = order(&id, number, priority);
        if is_in_share(number + 3, arguments.bad) {
            bad += 1;
            body = make_bad(body, bad);
        }
        let routing_key = if priority { "order.priority.created" } else { "order.normal.created" }.to_owned();
        Outgoing { routing_key, id, body: body.into_bytes() }
    })
    .await?;
    println!("published {} orders: {normal} normal, {urgent} urgent; {bad} of them bad", arguments.options.count);
    Ok(())
}

fn order(id: &str, number: u64, priority: bool) -> String {
    let line = |line: u64| {
        let (product, price) = PRODUCTS[((number + line) % PRODUCTS.len() as u64) as usize];
        json!({"product": product, "quantity": 1 + (number + line) % 5, "price": price})
    };
    // Every fifth order is for several products.
    let mut order = if number.is_multiple_of(5) {
        json!({"items": (0..2 + number % 3).map(line).collect::<Vec<_>>()})
    } else {
        line(0)
    };
    let customer = number % 500;
    order["id"] = json!(id);
    order["currency"] = json!(if number.is_multiple_of(4) { "USD" } else { "EUR" });
    order["priority"] = json!(priority);
    order["customer_id"] = json!(format!("cust-{customer}"));
    order["email"] = json!(format!("user{customer}@example.com"));
    order["placed_at"] = json!(Timestamp::now());
    order.to_string()
}

/// Makes an order bad: invalid JSON or a missing product, which are malformed, or a quantity of 0, which violates a rule of
/// the shop.
fn make_bad(order: String, number: u64) -> String {
    match number % 3 {
        0 => order.replace("\"product\"", "\"produkt\""),
        1 => order.replace('}', ""),
        _ => order.replace("\"quantity\":", "\"quantity\":0,\"wanted\":"),
    }
}
