import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Starts one Elasticsearch node from the jars of the registry, which lack the stock launcher.
 *
 * <p>Unlike the stock one it has no entitlement agent, no keystore, no bootstrap checks, and does
 * not refuse root: fit for tests and demonstrations on loopback, never for production.
 *
 * <p>Arguments: the folder with modules/ and plugins/ (shared by all stacks, only read), and the
 * folder with elasticsearch.yml (the stack's own).
 */
public final class Server {
    private static final String NODE = "onelog";

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]).toAbsolutePath();
        Path config = Path.of(arguments[1]).toAbsolutePath();
        Environment environment = configureLogging(home, config);
        environment = InternalSettingsPreparer.prepareEnvironment(
            Settings.EMPTY, Map.of("path.home", home.toString()), config, () -> NODE);
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir(), false),
            PluginsLoader.loadPluginsBundles(environment.pluginsDir(), false),
            Map.of());
        Node node = new Node(environment, plugins);
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node, closed)));
        node.start();
        closed.await();
    }

    /** Must come before anything else of the server is touched: its classes log when they load. */
    private static Environment configureLogging(Path home, Path config) throws Exception {
        LogConfigurator.registerErrorListener();
        LogConfigurator.setNodeName(NODE);
        Settings settings = Settings.builder()
            .put("path.home", home.toString())
            .put("path.logs", config.resolve("logs").toString())
            .build();
        Environment environment = new Environment(settings, config);
        LogConfigurator.configure(environment, true);
        return environment;
    }

    private static void close(Node node, CountDownLatch closed) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(10, TimeUnit.SECONDS);
        } catch (Exception failure) {
            failure.printStackTrace();
        } finally {
            closed.countDown();
        }
    }
}
