# shellcheck shell=bash
# Apache Kafka from Maven's jars: one broker, its own controller. Sourced by deploy/stack.

kafka_home() { echo "$CACHE/kafka-$KAFKA_VERSION"; }
kafka_log() { echo "$STATE/kafka/server.log"; }
kafka_address() { echo "127.0.0.1:$(port_of kafka)"; }
kafka_runs() { runs "$STATE/kafka"; }

kafka_prepare() {
  need_jdk
  prepare_once "$(kafka_home)" copy_jars "$DEPLOY/kafka/pom.xml" "$KAFKA_VERSION"
}

kafka_configure() {
  local folder="$STATE/kafka" port controller
  port=$(port_of kafka) controller=$(port_of kafka_controller)
  cat "$DEPLOY/kafka/server.properties" - > "$folder/server.properties" << PROPERTIES

process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
log.dirs=$folder/data
PROPERTIES
}

# The words of a Kafka process, without heap: into the array KAFKA_JAVA.
kafka_java() {
  need_jdk
  KAFKA_JAVA=("$JDK/bin/java" -XX:+UseSerialGC "-Donelog.stack=$STATE/kafka"
    "-Dlog4j.configuration=file:$DEPLOY/kafka/log4j.properties" -Djava.awt.headless=true
    -cp "$(kafka_home)/lib/*")
}

kafka_format() {
  local folder="$STATE/kafka" id
  [[ ! -f $folder/data/meta.properties ]] || return 0
  rm -rf -- "$folder/data" # a half-formatted one
  id=$(head -c 16 /dev/urandom | base64 | sed 's|[+/]|_|g; s/=//g') # never starts with a dash
  "${KAFKA_JAVA[0]}" -XX:TieredStopAtLevel=1 "${KAFKA_JAVA[@]:1}" kafka.tools.StorageTool format -t "$id" \
    -c "$folder/server.properties" > "$folder/format.log" 2>&1 < /dev/null || {
    tail -n 20 "$folder/format.log" >&2
    die "kafka: formatting its data folder failed"
  }
}

kafka_start() {
  local folder="$STATE/kafka" heap=${ONELOG_KAFKA_HEAP:-512m} options
  mkdir -p "$folder"
  kafka_configure
  kafka_java
  kafka_format
  read -ra options <<< "${ONELOG_STACK_JAVA_OPTIONS:-} ${ONELOG_KAFKA_JAVA_OPTIONS:-}"
  spawn "$folder" "${KAFKA_JAVA[0]}" -Xms128m "-Xmx$heap" -XX:+ExitOnOutOfMemoryError "${options[@]}" \
    "${KAFKA_JAVA[@]:1}" kafka.Kafka "$folder/server.properties"
  await kafka 90
  say "kafka is up"
}

# Three questions: does our process run, has it said that it serves, does it answer a request? The
# request is ApiVersions, version 0: its answer's bytes 9 and 10 are the error code.
kafka_is_up() {
  local port
  kafka_runs && grep -qsF 'Kafka Server started' "$(kafka_log)" && port=$(port_of kafka) || return 1
  # shellcheck disable=SC2016 # for the inner shell
  [[ $(timeout 5 bash -c 'exec 3<> "/dev/tcp/127.0.0.1/$1" || exit 1
    printf "\0\0\0\12\0\22\0\0\0\0\0\1\377\377" >&3
    head -c 10 <&3 | od -An -tx1 -j8' onelog-stack "$port" 2> /dev/null) == " 00 00" ]]
}

kafka_stop() { stop_gently "$STATE/kafka" 30; }
kafka_kill() { end "$STATE/kafka" KILL 10; }
