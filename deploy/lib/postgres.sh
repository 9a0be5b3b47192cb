# shellcheck shell=bash
# Postgres: Debian's, or a build from Maven. Sourced by deploy/stack.
# Postgres refuses root, so root runs it as user `postgres`, anybody else as themselves.
# Invariant: the stack's settings are in conf.d/, so ALTER SYSTEM and files that sort later win.

debian_postgres_bin() { echo "/usr/lib/postgresql/$1/bin"; }

# The version is settled when the data is made: another binary could not read it.
postgres_version() {
  if [[ -f $STATE/postgres.version ]]; then
    cat "$STATE/postgres.version"
  else
    echo "${POSTGRES_WANTED:-$POSTGRES_VERSION}"
  fi
}

as_server_user() {
  if [[ $(id -u) == 0 ]]; then
    (cd / && setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/ "$@")
  else
    (cd / && "$@")
  fi
}

can_enter() { as_server_user test -x "$1"; }

# A socket's path must fit in 107 bytes, whichever the port.
fits_socket() { [[ ${#1} -le 85 ]]; }

is_home() { fits_socket "$1/$NAME/postgres" && can_enter "$1"; }

# The folder of data, socket and log. Beside the stack's other state if the server's user can get
# there (root's clone below /root is closed to user `postgres`), otherwise in the temporary folder.
postgres_home() {
  local home
  if [[ -f $STATE/postgres.home ]]; then
    cat "$STATE/postgres.home"
    return
  fi
  if is_home "$STATES"; then
    home="$STATE/postgres"
  else
    home="$(fallback_folder is_home)/$NAME/postgres" ||
      die "no folder that the Postgres user can enter: set ONELOG_STACK_DIR to one, outside of home folders"
  fi
  printf '%s\n' "$home"
}

# Where a build from Maven is unpacked: its user must be able to execute it.
postgres_jar_folder() {
  local variable="POSTGRES_$1_JAR" base=$CACHE
  [[ -n ${!variable:-} ]] || die "--postgres $1: choose 14, 15, 16, 17 or 18"
  mkdir -p "$CACHE"
  can_enter "$CACHE" || base=$(fallback_folder can_enter) || die "no folder that the Postgres user can enter: set XDG_CACHE_HOME"
  echo "$base/postgres-${!variable}"
}

postgres_bin() {
  local version bin
  version=$(postgres_version)
  bin=$(debian_postgres_bin "$version")
  if [[ -x $bin/initdb ]]; then
    echo "$bin"
  else
    echo "$(postgres_jar_folder "$version")/bin"
  fi
}

postgres_check_version() {
  local version
  version=$(postgres_version)
  [[ -z $POSTGRES_WANTED || $POSTGRES_WANTED == "$version" ]] ||
    die "stack '$NAME' has data of Postgres $version: 'deploy/stack down --wipe --name $NAME' first"
}

postgres_prepare() {
  local version variable
  version=$(postgres_version)
  [[ $(id -u) != 0 ]] || id postgres > /dev/null 2>&1 || die "there is no user 'postgres': run deploy/stack install"
  [[ ! -x $(debian_postgres_bin "$version")/initdb ]] || return 0
  variable="POSTGRES_${version}_JAR"
  prepare_once "$(postgres_jar_folder "$version")" unpack_postgres "${!variable}"
}

# For tests of what only newer versions do: some 15 s each, once.
postgres_prepare_others() {
  local version variable
  for version in "${POSTGRES_OTHERS[@]}"; do
    variable="POSTGRES_${version}_JAR"
    prepare_once "$(postgres_jar_folder "$version")" unpack_postgres "${!variable}"
  done
}

unpack_postgres() { # VERSION FOLDER
  local architecture
  case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64v8 ;;
    *) die "no Postgres from Maven for $(uname -m)" ;;
  esac
  copy_jars "$DEPLOY/postgres/pom.xml" "$1" "$2" -Dserver.architecture="$architecture"
  unzip -q -p "$2"/lib/*.jar '*.txz' > "$2/archive.txz"
  rm -r -- "${2:?}/lib"
  tar -xJf "$2/archive.txz" --no-same-owner -C "$2"
  rm "$2/archive.txz"
  chmod -R go+rX "$2"
}

postgres_create() {
  local home=$1 data="$1/data" bin=$2
  mkdir -p "$(dirname "$home")"
  rm -rf -- "$home"
  mkdir -m 700 "$home"
  [[ $(id -u) != 0 ]] || chown postgres: "$home"
  as_server_user "$bin/initdb" -D "$data.new" -U postgres -A trust --locale=C -E UTF8 --no-sync \
    > "$STATE/initdb.log" 2>&1 < /dev/null || { tail -n 20 "$STATE/initdb.log" >&2; die "initdb failed"; }
  as_server_user mkdir "$data.new/conf.d"
  as_server_user tee "$data.new/conf.d/10-onelog.conf" < "$DEPLOY/postgres/postgresql.conf" > /dev/null
  as_server_user tee "$data.new/pg_hba.conf" < "$DEPLOY/postgres/pg_hba.conf" > /dev/null
  echo "include_dir = 'conf.d'" | as_server_user tee -a "$data.new/postgresql.conf" > /dev/null
  as_server_user mv -T "$data.new" "$data"
  postgres_version > "$STATE/postgres.version.new"
  printf '%s\n' "$home" > "$STATE/postgres.home"
  mv "$STATE/postgres.version.new" "$STATE/postgres.version"
}

postgres_start() {
  local home bin
  home=$(postgres_home) bin=$(postgres_bin)
  [[ -d $home/data ]] || postgres_create "$home" "$bin"
  printf "listen_addresses = '127.0.0.1'\nport = %s\nunix_socket_directories = '%s'\n" \
    "$(port_of postgres)" "$home" | as_server_user tee "$home/data/conf.d/20-address.conf" > /dev/null
  # pg_ctl leaves the server in a session of its own, and the log is appended to.
  if ! as_server_user bash -c "$DETACHED" onelog-stack "$bin/pg_ctl" -D "$home/data" -s -w -t 90 \
    -l "$home/server.log" -o "${ONELOG_POSTGRES_OPTIONS:-}" start < /dev/null > /dev/null 2> "$STATE/pg_ctl.log"; then
    tail -n 30 "$home/server.log" "$STATE/pg_ctl.log" >&2
    die "postgres did not start; the end of $home/server.log is above"
  fi
  say "postgres is up"
}

postgres_control() { # MODE SECONDS: stops the server
  local home bin
  home=$(postgres_home) bin=$(postgres_bin)
  [[ -f $home/data/postmaster.pid ]] || return 0
  as_server_user "$bin/pg_ctl" -D "$home/data" status > /dev/null 2>&1 || return 0
  as_server_user "$bin/pg_ctl" -D "$home/data" -s -w -t "$2" -m "$1" stop < /dev/null > /dev/null 2>&1
}

# A fast shutdown waits for walsenders whose clients do not read: not for ever.
postgres_stop() {
  postgres_control fast 30 || {
    say "postgres did not stop within 30 s: immediate shutdown"
    postgres_control immediate 30
  }
}

postgres_kill() { postgres_control immediate 30; }

# The server writes "ready" in its pid file once it takes connections, after crash recovery too.
postgres_is_up() {
  local home
  home=$(postgres_home)
  as_server_user "$(postgres_bin)/pg_ctl" -D "$home/data" status > /dev/null 2>&1 &&
    [[ $(sed -n 8p "$home/data/postmaster.pid" 2> /dev/null) == ready* ]]
}

postgres_wipe() {
  local home
  home=$(postgres_home)
  [[ $home == */"$NAME"/postgres ]] || die "will not delete $home"
  rm -rf -- "$home"
  [[ $(dirname "$home") == "$STATE" ]] || rmdir --ignore-fail-on-non-empty -- "$(dirname "$home")" 2> /dev/null || true
}

postgres_log() { echo "$(postgres_home)/server.log"; }
postgres_address() { echo "postgres://postgres@127.0.0.1:$(port_of postgres)/postgres"; }
