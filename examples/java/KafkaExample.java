import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads sipsim-relay's events out of Kafka: each once, a call's in order, and, in binary mode, only what SIPSIM signed.
 *
 * <pre>KAFKA=127.0.0.1:9092 TOPICS=sipsim.call,sipsim.sms SECRET_FILE=secret java -cp 'lib/*' KafkaExample.java</pre>
 */
public class KafkaExample {
    /** The last 100,000 ids. A restart forgets them: where a repetition would do harm, make the id a unique key of your database. */
    private static final Map<String, Boolean> HANDLED = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > 100_000;
        }
    };

    public static void main(String[] args) throws Exception {
        Map<String, String> env = System.getenv();
        byte[] secret = Files.readString(Path.of(env.get("SECRET_FILE"))).strip().getBytes(StandardCharsets.UTF_8);
        Map<String, Object> config = Map.of("bootstrap.servers", env.get("KAFKA"), "group.id", env.getOrDefault("GROUP", "example"),
                "auto.offset.reset", "earliest", "enable.auto.commit", "false");
        CloudEventDeserializer cloudEvents = new CloudEventDeserializer(); // Knows both modes by the headers.
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(env.get("TOPICS").split(",")));
            while (true) {
                // A call is a key, a key is a partition, and a partition is read by one member of the group: one after the other keeps the order.
                for (ConsumerRecord<String, byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    // Binary mode: the value is what SIPSIM sent, to the byte. A structured envelope does not keep the white space around it.
                    if (record.headers().lastHeader("ce_id") != null && !signedBySipsim(record, secret)) {
                        System.err.printf("not from SIPSIM: %s[%d]@%d%n", record.topic(), record.partition(), record.offset());
                        continue;
                    }
                    CloudEvent event = cloudEvents.deserialize(record.topic(), record.headers(), record.value());
                    if (!HANDLED.containsKey(event.getId())) {
                        handle(event); // If it fails, the program ends, and begins with what is not committed.
                        HANDLED.put(event.getId(), true);
                    }
                }
                consumer.commitSync(); // Only now.
            }
        }
    }

    private static void handle(CloudEvent event) {
        System.out.println(event.getId() + " " + event.getType() + " " + (event.getSubject() == null ? "-" : event.getSubject()));
    }

    private static boolean signedBySipsim(ConsumerRecord<String, byte[]> record, byte[] secret) throws Exception {
        Header timestamp = record.headers().lastHeader("x-webhook-timestamp"), signature = record.headers().lastHeader("x-webhook-signature");
        if (timestamp == null || signature == null) return false;
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(secret, "HmacSHA256"));
        mac.update(timestamp.value());
        mac.update((byte) '.');
        String expected = HexFormat.of().formatHex(mac.doFinal(record.value()));
        String given = new String(signature.value(), StandardCharsets.US_ASCII).toLowerCase();
        return MessageDigest.isEqual(expected.getBytes(StandardCharsets.US_ASCII), given.getBytes(StandardCharsets.US_ASCII)); // In constant time.
    }
}
