# shellcheck shell=bash
# OpenSearch from Maven's jars, with a launcher of our own, in Elasticsearch's place when a stack
# is brought up with `--search opensearch`. Sourced by deploy/stack.

opensearch_home() {
  local sources="$DEPLOY/opensearch"
  echo "$CACHE/opensearch-$OPENSEARCH_VERSION-$(cat "$sources"/*.java "$sources/pom.xml" - <<< 1 | sha256sum | cut -c1-12)"
}

opensearch_log() { echo "$STATE/opensearch/server.log"; }
opensearch_address() { echo "http://127.0.0.1:$(port_of opensearch)"; }
opensearch_runs() { runs "$STATE/opensearch"; }

opensearch_prepare() {
  need_jdk
  prepare_once "$(opensearch_home)" opensearch_build
}

opensearch_build() { # FOLDER
  local home=$1
  copy_jars "$DEPLOY/opensearch/pom.xml" "$OPENSEARCH_VERSION" "$home" "-Dlog4j.version=$OPENSEARCH_LOG4J_VERSION"
  mkdir -p "$home/plugins" "$home/modules" "$home/classes"
  "$JDK/bin/javac" --release 21 -nowarn -Xlint:none -cp "$home/lib/*" -d "$home/classes" \
    "$DEPLOY/opensearch/OpenSearchServer.java" > "$home/javac.log" 2>&1 || {
    cat "$home/javac.log" >&2
    die "opensearch: compiling its launcher failed"
  }
}

opensearch_configure() {
  local folder="$STATE/opensearch"
  cp "$DEPLOY/opensearch/log4j2.properties" "$folder/log4j2.properties"
  cat "$DEPLOY/opensearch/opensearch.yml" - > "$folder/opensearch.yml" << YML

cluster.name: onelog-$NAME
network.host: 127.0.0.1
http.port: $(port_of opensearch)
transport.port: $(port_of opensearch_transport)
path.data: $folder/data
path.logs: $folder/logs
YML
}

opensearch_start() {
  local folder="$STATE/opensearch" home heap=${ONELOG_ELASTICSEARCH_HEAP:-512m} options
  home=$(opensearch_home)
  need_jdk
  mkdir -p "$folder/tmp" "$folder/logs"
  opensearch_configure
  read -ra options <<< "${ONELOG_STACK_JAVA_OPTIONS:-} ${ONELOG_ELASTICSEARCH_JAVA_OPTIONS:-}"
  spawn "$folder" "$JDK/bin/java" "-Xms$heap" "-Xmx$heap" -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError \
    "${options[@]}" "-Donelog.stack=$folder" "-Djava.io.tmpdir=$folder/tmp" "-XX:ErrorFile=$folder/logs/hs_err.log" \
    "-Dopensearch.path.home=$home" -Dopensearch.distribution.type=tar -Dio.netty.noUnsafe=true \
    -Djna.nosys=true -Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true -Djava.awt.headless=true -Dfile.encoding=UTF-8 \
    --add-modules=jdk.incubator.vector --enable-native-access=ALL-UNNAMED \
    -cp "$home/classes:$home/lib/*" OpenSearchServer "$home" "$folder"
  await opensearch 120
  say "opensearch is up"
}

opensearch_is_up() {
  opensearch_runs && curl -q --noproxy '*' -sf -m 5 -o /dev/null \
    "$(opensearch_address)/_cluster/health?wait_for_status=yellow&timeout=3s"
}

opensearch_stop() { stop_gently "$STATE/opensearch" 30; }
opensearch_kill() { end "$STATE/opensearch" KILL 10; }
