import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DeliverCallback;
import io.cloudevents.CloudEvent;
import io.cloudevents.core.format.EventFormat;
import io.cloudevents.jackson.JsonFormat;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Reads sipsim-relay's events out of RabbitMQ: each once, and in the order of the queue. The relay keeps a call's order within a routing
 * key, so for order across its events it has `routing_key = "sipsim.{group}"`.
 *
 * <pre>RABBITMQ=amqp://guest:guest@127.0.0.1:5672/%2f QUEUE=crm.calls BINDINGS=sipsim.call java -cp 'lib/*' RabbitMqExample.java</pre>
 */
public class RabbitMqExample {
    /** The last 100,000 ids. A restart forgets them: where a repetition would do harm, make the id a unique key of your database. */
    private static final Map<String, Boolean> HANDLED = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > 100_000;
        }
    };

    public static void main(String[] args) throws Exception {
        Map<String, String> env = System.getenv();
        String queue = env.get("QUEUE"), exchange = env.getOrDefault("EXCHANGE", "sipsim");
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(env.get("RABBITMQ"));
        Channel channel = factory.newConnection().createChannel();
        channel.exchangeDeclare(exchange, "topic", true);
        // One consumer at a time keeps the order; a second one waits, and takes over when the first is gone.
        channel.queueDeclare(queue, true, false, false, Map.of("x-queue-type", "quorum", "x-single-active-consumer", true));
        for (String key : env.get("BINDINGS").split(",")) channel.queueBind(queue, exchange, key);
        channel.basicQos(100);

        EventFormat json = new JsonFormat(); // RabbitMQ's messages are always structured.
        DeliverCallback take = (tag, message) -> { // One after the other, on one thread.
            try {
                CloudEvent event = json.deserialize(message.getBody());
                if (!HANDLED.containsKey(event.getId())) {
                    handle(event);
                    HANDLED.put(event.getId(), true);
                }
                channel.basicAck(message.getEnvelope().getDeliveryTag(), false); // Only now. Never nack with requeue: it comes back behind others.
            } catch (RuntimeException error) {
                error.printStackTrace();
                System.exit(1); // What is not acknowledged comes again, in order.
            }
        };
        channel.basicConsume(queue, false, take, tag -> System.exit(1));
    }

    private static void handle(CloudEvent event) {
        System.out.println(event.getId() + " " + event.getType() + " " + (event.getSubject() == null ? "-" : event.getSubject()));
    }
}
