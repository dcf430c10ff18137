import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

/** Publishes orders for orderd: one JSON object per line of standard input. */
public final class Producer {
    private static final long CONFIRM_TIMEOUT_MS = 30_000;
    private static final int PERSISTENT = 2;

    private final ObjectMapper json = new ObjectMapper();
    private final Channel channel;
    private volatile boolean returned;

    private Producer(Channel channel) throws Exception {
        this.channel = channel;
        channel.confirmSelect();
        channel.addReturnListener(message -> returned = true); // before the message is confirmed
    }

    /**
     * Returns once the broker has confirmed the order: only then is it safe. After an exception, publish it again: it has the
     * same id, and orderd processes it once.
     */
    void publish(String body) throws Exception {
        JsonNode order = json.readTree(body);
        BasicProperties properties = new BasicProperties.Builder()
                .messageId(order.required("id").asText())
                .contentType("application/json")
                .deliveryMode(PERSISTENT)
                .build();
        boolean priority = order.path("priority").asBoolean();
        String routingKey = priority ? "order.priority.created" : "order.normal.created";
        channel.basicPublish("orders", routingKey, true, properties, body.getBytes(StandardCharsets.UTF_8));
        channel.waitForConfirmsOrDie(CONFIRM_TIMEOUT_MS);
        if (returned) {
            throw new IllegalStateException("no queue is bound for " + routingKey);
        }
        System.out.println("confirmed: " + order.get("id").asText());
    }

    public static void main(String[] arguments) throws Exception {
        ConnectionFactory factory = new ConnectionFactory(); // it reconnects by itself after a lost connection
        factory.setUri(System.getenv().getOrDefault("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F"));
        try (Connection connection = factory.newConnection("shop"); Channel channel = connection.createChannel()) {
            Producer producer = new Producer(channel);
            BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = input.readLine(); line != null; line = input.readLine()) {
                producer.publish(line);
            }
        }
    }
}
