<?php
// Publishes orders for orderd: one JSON object per line of standard input.

declare(strict_types=1);

require __DIR__ . '/vendor/autoload.php';

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

const CONFIRM_TIMEOUT = 30; // seconds

function connect(): AMQPStreamConnection
{
    $url = parse_url(getenv('AMQP_URL') ?: 'amqp://guest:guest@127.0.0.1:5672/%2F');
    return new AMQPStreamConnection(
        $url['host'],
        $url['port'] ?? 5672,
        urldecode($url['user'] ?? 'guest'),
        urldecode($url['pass'] ?? 'guest'),
        urldecode(substr($url['path'] ?? '/%2F', 1)),
    );
}

/**
 * Returns once the broker has confirmed the order: only then is it safe. After an exception, publish it again: it has the same
 * id, and orderd processes it once.
 */
function publish(AMQPChannel $channel, string $body): void
{
    $order = json_decode($body, true, flags: JSON_THROW_ON_ERROR);
    $message = new AMQPMessage($body, [
        'message_id' => (string) $order['id'],
        'content_type' => 'application/json',
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
    ]);
    $routingKey = ($order['priority'] ?? false) ? 'order.priority.created' : 'order.normal.created';
    $channel->basic_publish($message, 'orders', $routingKey, mandatory: true);
    $channel->wait_for_pending_acks_returns(CONFIRM_TIMEOUT);
    echo "confirmed: {$order['id']}\n";
}

$connection = connect();
$channel = $connection->channel();
$channel->confirm_select();
$channel->set_nack_handler(fn () => throw new RuntimeException('the broker has not accepted the order'));
$channel->set_return_listener(fn () => throw new RuntimeException('no queue is bound for the order'));
while (($line = fgets(STDIN)) !== false) {
    publish($channel, trim($line));
}
$connection->close();
