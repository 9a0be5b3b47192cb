# shellcheck shell=bash
# Elasticsearch from Maven's jars, with a launcher of our own. Sourced by deploy/stack.
# The registry lacks the stock launcher and the module that answers `GET /`: Server.java and
# RootPlugin.java stand in. The home (modules) is shared by all stacks and only read.

# Another launcher is another home, so that clones of different age share the cache. The number
# counts changes of elasticsearch_build.
elasticsearch_home() {
  local sources="$DEPLOY/elasticsearch"
  echo "$CACHE/elasticsearch-$ELASTICSEARCH_VERSION-$(cat "$sources"/*.java "$sources/pom.xml" - <<< 1 | sha256sum | cut -c1-12)"
}

elasticsearch_log() { echo "$STATE/elasticsearch/server.log"; }
elasticsearch_address() { echo "http://127.0.0.1:$(port_of elasticsearch)"; }
elasticsearch_runs() { runs "$STATE/elasticsearch"; }

elasticsearch_prepare() {
  need_jdk
  prepare_once "$(elasticsearch_home)" elasticsearch_build
}

elasticsearch_build() { # FOLDER
  local home=$1 netty="$1/modules/transport-netty4"
  copy_jars "$DEPLOY/elasticsearch/pom.xml" "$ELASTICSEARCH_VERSION" "$home"
  # A module has a folder with its jars and the descriptor, which its own jar carries.
  mkdir -p "$home/plugins" "$netty"
  mv "$home"/lib/netty-*.jar "$home"/lib/transport-netty4-*.jar "$netty/"
  unzip -q -p "$netty/transport-netty4-$ELASTICSEARCH_VERSION.jar" \
    META-INF/es-plugins/transport-netty4/plugin-descriptor.properties > "$netty/plugin-descriptor.properties"
  elasticsearch_compile "$home"
  elasticsearch_zstd "$home"
}

elasticsearch_compile() {
  local home=$1 root="$1/modules/onelog-stack-root"
  mkdir -p "$home/classes" "$home/root-classes" "$root"
  elasticsearch_javac "$home" classes Server.java
  elasticsearch_javac "$home" root-classes RootPlugin.java
  "$JDK/bin/jar" --create --file "$root/root.jar" -C "$home/root-classes" .
  printf '%s\n' 'name=onelog-stack-root' 'description=GET /' 'classname=onelog.stack.RootPlugin' \
    "version=$ELASTICSEARCH_VERSION" "elasticsearch.version=$ELASTICSEARCH_VERSION" \
    'java.version=21' > "$root/plugin-descriptor.properties"
}

# An annotation that the jars mention and lack makes javac warn: shown only when it fails.
elasticsearch_javac() { # HOME CLASSES SOURCE
  "$JDK/bin/javac" --release 21 -nowarn -Xlint:none -cp "$1/lib/*" -d "$1/$2" \
    "$DEPLOY/elasticsearch/$3" > "$1/javac.log" 2>&1 || {
    cat "$1/javac.log" >&2
    die "elasticsearch: compiling $3 failed"
  }
}

# The system's libzstd, where the server looks for its own. Every Debian has it (dpkg needs it).
elasticsearch_zstd() {
  local platform library
  case $(uname -m) in
    x86_64) platform=linux-x64 ;;
    aarch64) platform=linux-aarch64 ;;
    *) die "elasticsearch does not run on $(uname -m)" ;;
  esac
  mkdir -p "$1/lib/platform/$platform"
  for library in /usr/lib/*/libzstd.so.1 /lib/*/libzstd.so.1 /usr/lib64/libzstd.so.1 /usr/lib/libzstd.so.1; do
    [[ ! -e $library ]] || { ln -s "$library" "$1/lib/platform/$platform/libzstd.so"; return 0; }
  done
  die "elasticsearch needs libzstd.so.1 (package libzstd1)"
}

elasticsearch_configure() {
  local folder="$STATE/elasticsearch"
  cp "$DEPLOY/elasticsearch/log4j2.properties" "$folder/log4j2.properties"
  cat "$DEPLOY/elasticsearch/elasticsearch.yml" - > "$folder/elasticsearch.yml" << YML

cluster.name: onelog-$NAME
network.host: 127.0.0.1
http.port: $(port_of elasticsearch)
transport.port: $(port_of elasticsearch_transport)
path.data: $folder/data
path.logs: $folder/logs
YML
}

elasticsearch_start() {
  local folder="$STATE/elasticsearch" home heap=${ONELOG_ELASTICSEARCH_HEAP:-512m} options
  home=$(elasticsearch_home)
  need_jdk
  mkdir -p "$folder/tmp" "$folder/logs"
  elasticsearch_configure
  read -ra options <<< "${ONELOG_STACK_JAVA_OPTIONS:-} ${ONELOG_ELASTICSEARCH_JAVA_OPTIONS:-}"
  spawn "$folder" "$JDK/bin/java" "-Xms$heap" "-Xmx$heap" -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError \
    "${options[@]}" "-Donelog.stack=$folder" "-Djava.io.tmpdir=$folder/tmp" "-XX:ErrorFile=$folder/logs/hs_err.log" \
    "-Des.path.home=$home" "-Des.nativelibs.path=$(echo "$home"/lib/platform/*)" -Des.distribution.type=tar \
    -Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false -Dio.netty.noUnsafe=true \
    -Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true -Djava.awt.headless=true -Dfile.encoding=UTF-8 \
    --add-modules=jdk.net,jdk.management.agent,jdk.incubator.vector,ALL-MODULE-PATH \
    --enable-native-access=org.elasticsearch.nativeaccess,org.elasticsearch.foreign,org.apache.lucene.core \
    --module-path "$home/lib" -cp "$home/classes" Server "$home" "$folder"
  await elasticsearch 120
  say "elasticsearch is up"
}

elasticsearch_is_up() {
  elasticsearch_runs && curl -q --noproxy '*' -sf -m 5 -o /dev/null \
    "$(elasticsearch_address)/_cluster/health?wait_for_status=yellow&timeout=3s"
}

elasticsearch_stop() { stop_gently "$STATE/elasticsearch" 30; }
elasticsearch_kill() { end "$STATE/elasticsearch" KILL 10; }
