import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.opensearch.Version;
import org.opensearch.common.logging.LogConfigurator;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.PluginInfo;

/**
 * Starts one OpenSearch node from the jars of the registry, which lack the stock launcher.
 *
 * <p>Unlike the stock one it has no agent, no keystore, no bootstrap checks, and does not refuse
 * root: fit for tests and demonstrations on loopback, never for production.
 *
 * <p>Arguments: the folder with modules/ and plugins/ (shared by all stacks, only read), and the
 * folder with opensearch.yml (the stack's own).
 */
public final class OpenSearchServer extends Node {
    private static final String NODE = "onelog";
    private static final String NETTY = "org.opensearch.transport.Netty4ModulePlugin";

    private OpenSearchServer(Environment environment, List<PluginInfo> plugins) {
        super(environment, plugins, true);
    }

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]).toAbsolutePath();
        Path config = Path.of(arguments[1]).toAbsolutePath();
        // Must come before anything else of the server is touched: its classes log when they load.
        LogConfigurator.registerErrorListener();
        LogConfigurator.setNodeName(NODE);
        Settings settings = Settings.builder()
            .put("path.home", home.toString())
            .put("path.logs", config.resolve("logs").toString())
            .build();
        LogConfigurator.configure(new Environment(settings, config));
        Environment environment = InternalSettingsPreparer.prepareEnvironment(
            Settings.EMPTY, Map.of("path.home", home.toString()), config, () -> NODE);
        String java = Integer.toString(Runtime.version().feature());
        Node node = new OpenSearchServer(environment, List.of(new PluginInfo(
            NETTY, "module", "NA", Version.CURRENT, java, NETTY, Collections.emptyList(), false)));
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node, closed)));
        node.start();
        closed.await();
    }

    private static void close(Node node, CountDownLatch closed) {
        try {
            node.close();
            node.awaitClose(10, TimeUnit.SECONDS);
        } catch (Exception failure) {
            failure.printStackTrace();
        } finally {
            closed.countDown();
        }
    }
}
