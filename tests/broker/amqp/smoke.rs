//! A healthy broker: publish, consume, settle, close.

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::message::{Consumer, HeaderValue, Headers, Properties, Publisher, Settlement};

use super::to_queue;
use crate::support::{Node, eventually, with_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn a_published_message_is_delivered_and_gone_once_acknowledged() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let connector = Connector::new(vhost.broker());
    let publisher = connector.publisher();
    let mut publication = to_queue("q", "hello");
    publication.message.headers = Headers::from([("note".to_owned(), HeaderValue::from("keep"))]);
    publication.message.properties = Properties { message_id: Some("m-1".into()), ..Properties::default() };
    let mut expected = publication.message.clone();
    // The broker has verified it.
    expected.properties.user_id = Some("guest".to_owned());
    with_deadline("confirm", publisher.publish([publication].into())).await.unwrap();
    assert!(publisher.state().connected);
    // The caller gets the confirm shortly before the publication stops counting as unconfirmed.
    eventually("nothing is unconfirmed", async || publisher.state().unconfirmed == 0).await;

    let mut subscription = with_deadline("subscribe", connector.subscribe("q", 10)).await.unwrap();
    let delivery = with_deadline("delivery", subscription.deliveries.next()).await.unwrap();
    assert_eq!(delivery.message, expected);
    assert_eq!((delivery.exchange.as_str(), delivery.routing_key.as_str()), ("", "q"));
    assert!(!delivery.redelivered);
    subscription.settler.settle(delivery.id, Settlement::Ack);
    with_deadline("cancel", subscription.settler.cancel()).await;
    assert!(with_deadline("end", subscription.deliveries.next()).await.is_none());
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.depth("q"), 0);
    publisher.close(std::time::Duration::from_secs(5)).await.unwrap();
}
