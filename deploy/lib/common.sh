# shellcheck shell=bash
# What all services share: messages, folders, ports, locks, processes. Sourced by deploy/stack.
# Invariant: nothing listens elsewhere than on loopback, and nothing that is started holds a
# descriptor of the caller, so a script that runs `up` in a pipe ends when `up` ends.

say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'deploy/stack: %s\n' "$*" >&2
  exit 1
}

# --- folders ---

# Server configuration files have their own ideas about spaces, commas and quotes. Rather than
# quoting for three of them, a folder with an unusual name is not used.
is_plain_path() { [[ $1 =~ ^/[A-Za-z0-9/_.+-]*$ ]]; }

# A folder in the system's temporary folder that belongs to this user and this clone alone.
fallback_folder() {
  local base folder hash
  hash=$(printf '%s' "$DEPLOY" | sha256sum | cut -c1-12)
  for base in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
    folder="${base%/}/onelog-stack-$(id -u)-$hash"
    if ! is_plain_path "$folder" || [[ ! -d $base || ! -w $base ]]; then continue; fi
    # Anybody may create names in /tmp: take the folder only if it is ours and no link.
    mkdir -m 755 "$folder" 2> /dev/null || true
    [[ -d $folder && ! -L $folder && -O $folder ]] || continue
    "$@" "$folder" || continue
    printf '%s\n' "$folder"
    return 0
  done
  return 1
}

settle_folders() {
  unset -v "${!PG@}" # PGDATA, PGPORT and so on would reach initdb and pg_ctl
  STATES=$(readlink -m -- "${ONELOG_STACK_DIR:-$DEPLOY/../target/stack}")
  if ! is_plain_path "$STATES"; then
    STATES=$(fallback_folder true) || die "no usable folder: set ONELOG_STACK_DIR to a path of plain letters"
  fi
  CACHE=$(readlink -m -- "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/onelog")
  is_plain_path "$CACHE" || die "unusual letters in $CACHE: set XDG_CACHE_HOME to a path of plain letters"
  STATE="$STATES/$NAME"
}

# --- locks ---

# One command at a time for each stack. The lock's descriptor must not reach a server: see `detach`.
# `down --wipe` deletes the lock, so whoever waited for it looks whether it is still the one.
lock_stack() {
  local file="$STATES/$NAME.lock"
  mkdir -p "$STATES" || die "cannot create $STATES: set ONELOG_STACK_DIR to a folder that you can write"
  while true; do
    exec {LOCK}> "$file"
    flock -w 300 "$LOCK" || die "another deploy/stack command holds stack '$NAME' for five minutes now"
    [[ ! "/proc/self/fd/$LOCK" -ef $file ]] || break
    exec {LOCK}>&-
  done
  mkdir -p "$STATE"
}

# prepare_once FOLDER FUNCTION…: calls FUNCTION with a new folder, then renames it to FOLDER.
# Whoever sees FOLDER sees it complete; who comes second waits and finds it done.
prepare_once() {
  local folder=$1 lock
  shift
  [[ ! -d $folder ]] || return 0
  mkdir -p "$(dirname "$folder")"
  (
    exec {lock}> "$(dirname "$folder")/prepare.lock"
    flock "$lock"
    [[ ! -d $folder ]] || exit 0
    rm -rf -- "$folder".new-*
    mkdir "$folder.new-$$"
    "$@" "$folder.new-$$"
    mv -T -- "$folder.new-$$" "$folder"
  ) # no `|| die` here: it would switch off `set -e` inside, and a half-made folder would be renamed
}

# --- downloads ---

# copy_jars POM VERSION FOLDER [MAVEN OPTION…]: the jars of POM and what they need. Which registry
# is Maven's own setting (~/.m2/settings.xml or the system's). -C: a wrong checksum is an error.
copy_jars() {
  local pom=$1 version=$2 folder=$3 log
  shift 3
  command -v mvn > /dev/null || die "mvn is missing: run deploy/stack install"
  log="$folder/maven.log"
  say "downloading $(basename "$(dirname "$pom")") $version"
  if ! mvn -B -C -f "$pom" -Dserver.version="$version" "$@" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$folder/lib" > "$log" 2>&1 < /dev/null; then
    grep -v '^\[INFO\]' "$log" | tail -n 20 >&2
    die "Maven could not fetch $(basename "$(dirname "$pom")") $version"
  fi
}

# --- Java ---

# The first JDK of at least 21 with a compiler. Debian 12's own is 17, so the usual folders of
# other packagings are looked through, too.
find_jdk() {
  local jdk major
  for jdk in "${ES_JAVA_HOME:-}" "${JAVA_HOME:-}" \
    "$(dirname "$(dirname "$(readlink -f "$(command -v javac || echo /)")")")" \
    /usr/lib/jvm/* /usr/java/* /opt/*jdk* /opt/java/* "${HOME:-}"/.sdkman/candidates/java/*; do
    [[ -n $jdk && -x $jdk/bin/javac && -x $jdk/bin/java ]] || continue
    major=$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$jdk/release" 2> /dev/null || true)
    if [[ $major =~ ^[0-9]+$ && $major -ge 21 ]]; then
      printf '%s\n' "$jdk"
      return 0
    fi
  done
  return 1
}

# shellcheck disable=SC2034 # JDK is read by the services
need_jdk() {
  JDK=$(find_jdk) || die "no JDK of version 21 or newer (with javac) found: Elasticsearch $ELASTICSEARCH_VERSION needs one.
  Looked at ES_JAVA_HOME, JAVA_HOME, PATH, /usr/lib/jvm, /usr/java, /opt and ~/.sdkman.
  Debian 12's packages end at 17: install a Temurin (adoptium.net) or Oracle JDK, or set ES_JAVA_HOME."
}

# --- ports ---

# The ports of a service: the first is the one that clients use.
ports_of() {
  case $1 in
    postgres) echo postgres ;;
    kafka) echo kafka kafka_controller ;;
    elasticsearch) echo elasticsearch elasticsearch_transport ;;
    opensearch) echo opensearch opensearch_transport ;;
  esac
}

listens() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

# port_of KEY: as remembered in the stack's file of "key port" lines.
port_of() {
  local key port
  [[ -f $STATE/ports ]] || return 1
  while read -r key port; do
    [[ $key != "$1" ]] || { printf '%s\n' "$port"; return 0; }
  done < "$STATE/ports"
  return 1
}

remember_port() {
  {
    if [[ -f $STATE/ports ]]; then grep -v "^$1 " "$STATE/ports" || true; fi
    printf '%s %s\n' "$1" "$2"
  } > "$STATE/ports.new"
  mv -- "$STATE/ports.new" "$STATE/ports"
}

# Below the range that the kernel gives to outgoing connections (32768 and up), at random, so that
# two stacks that start at the same moment do not meet.
pick_port() {
  local range=${ONELOG_STACK_PORTS:-20000-29999} low high port try
  [[ $range =~ ^([0-9]+)-([0-9]+)$ ]] || die "ONELOG_STACK_PORTS: write it as 20000-29999"
  low=${BASH_REMATCH[1]} high=${BASH_REMATCH[2]}
  [[ $low -ge 1024 && $low -le $high && $high -le 65535 ]] || die "ONELOG_STACK_PORTS: $range is no range of free ports"
  for ((try = 0; try < 500; try++)); do
    port=$((low + (RANDOM * 32768 + RANDOM) % (high - low + 1)))
    if ! grep -qs " $port\$" "$STATES"/*/ports && ! listens "$port"; then
      printf '%s\n' "$port"
      return 0
    fi
  done
  die "no free port in $range: set ONELOG_STACK_PORTS to another range"
}

# settle_ports SERVICE may_move|must_stay: decides the ports of a service that is not running.
settle_ports() {
  local key fixed port
  for key in $(ports_of "$1"); do
    fixed="ONELOG_${key^^}_PORT"
    fixed=${!fixed:-}
    port=${fixed:-$(port_of "$key" || true)}
    if [[ -z $port ]]; then
      port=$(pick_port)
    elif listens "$port"; then
      [[ -z $fixed && $2 == may_move ]] || die "port $port of $key is taken by another process"
      say "port $port of $key is taken by another process: choosing another"
      port=$(pick_port)
    fi
    remember_port "$key" "$port"
  done
}

# --- processes ---

# Runs the rest of the words in a session of their own, without the caller's descriptors.
# shellcheck disable=SC2016 # for the inner shell
DETACHED='for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-"; done
exec "$@"'

# spawn FOLDER COMMAND…: in the background, its output to FOLDER/server.log, its id in FOLDER/pid.
spawn() {
  local folder=$1
  shift
  rm -f "$folder/pid"
  # shellcheck disable=SC2016 # for the inner shell
  setsid bash -c 'echo "$$" > "$1/pid.new" && mv "$1/pid.new" "$1/pid"; shift; '"$DETACHED" \
    onelog-stack "$folder" "$@" < /dev/null > "$folder/server.log" 2>&1 &
  local tick
  for ((tick = 0; tick < 100; tick++)); do
    [[ ! -f $folder/pid ]] || return 0
    sleep 0.05
  done
  die "could not start $1"
}

# runs FOLDER: is the process of FOLDER/pid alive, and still the one that we started? Its command
# line carries the folder, which a stranger with a re-used id does not.
runs() {
  local pid
  [[ -f $1/pid ]] && pid=$(< "$1/pid") && [[ $pid =~ ^[0-9]+$ ]] || return 1
  grep -qsF -- "-Donelog.stack=$1" "/proc/$pid/cmdline"
}

# gone PID: has the last of its threads ended? Only then are its ports free; the command line, which
# `runs` looks at, is empty as soon as the first one ends. Nobody may ever reap it.
gone() {
  local threads=("/proc/$1/task/"*)
  [[ -d /proc/$1 ]] || return 0
  [[ ${#threads[@]} == 1 ]] && grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"
}

# end FOLDER SIGNAL SECONDS: sends the signal and waits; false when it still runs afterwards.
end() {
  local tick pid
  runs "$1" || return 0
  pid=$(< "$1/pid")
  kill "-$2" "$pid" 2> /dev/null || true
  for ((tick = 0; tick < $3 * 20; tick++)); do
    ! gone "$pid" || { rm -f "$1/pid"; return 0; }
    sleep 0.05
  done
  return 1
}

# signal FOLDER SIGNAL: to a server that must be running.
signal() {
  runs "$1" || die "$(basename "$1") is not up"
  kill "-$2" "$(< "$1/pid")"
}

# stop_gently FOLDER SECONDS: asks, and after SECONDS insists.
stop_gently() {
  end "$1" TERM "$2" || {
    say "$(basename "$1") did not stop within $2 s: kill -9"
    end "$1" KILL 10
  }
}

# await SERVICE SECONDS: until it is healthy; with the end of its log when it fails.
await() {
  local service=$1 seconds=$2 deadline=$((SECONDS + $2))
  until "${service}_is_up"; do
    if ! "${service}_runs"; then
      tail -n 30 "$("${service}_log")" >&2
      die "$service ended while starting; the end of $("${service}_log") is above"
    fi
    if [[ $SECONDS -ge $deadline ]]; then
      tail -n 30 "$("${service}_log")" >&2
      die "$service is not healthy after $seconds s; the end of $("${service}_log") is above"
    fi
    sleep 0.1
  done
}
