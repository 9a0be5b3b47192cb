import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.json.JsonConverter;

/** Reads lines of a key, a tab and a value with Kafka's own JsonConverter, and shows each. */
public class Convert {
    public static void main(String[] arguments) throws Exception {
        JsonConverter keys = new JsonConverter();
        keys.configure(Map.of("schemas.enable", "true"), true);
        JsonConverter values = new JsonConverter();
        values.configure(Map.of("schemas.enable", "true"), false);
        for (String line : Files.readAllLines(Path.of(arguments[0]))) {
            String[] parts = line.split("\t", 2);
            Object key = keys.toConnectData("t", bytes(parts[0])).value();
            byte[] bytes = parts[1].isEmpty() ? null : bytes(parts[1]);
            SchemaAndValue value = values.toConnectData("t", bytes);
            if (value.value() == null) {
                System.out.println(key + " null");
                continue;
            }
            Struct envelope = (Struct) value.value();
            envelope.validate();
            System.out.println(key + " " + value.schema().name() + " " + envelope.getString("op")
                + " " + shown(envelope.getStruct("before")) + " " + shown(envelope.getStruct("after")));
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String shown(Struct row) {
        if (row == null) {
            return "null";
        }
        StringBuilder text = new StringBuilder();
        for (Field field : row.schema().fields()) {
            if (row.get(field) != null) {
                String name = field.schema().name() == null ? "" : " " + field.schema().name();
                text.append(text.isEmpty() ? "" : ", ").append(field.name()).append('=')
                    .append(field.schema().type()).append(name).append(' ').append(row.get(field));
            }
        }
        return "Struct{" + text + "}";
    }
}
