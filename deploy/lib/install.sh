# shellcheck shell=bash
# `deploy/stack install`: packages of the system, then the servers' jars and Python's packages. Sourced by
# deploy/stack. With --browser also Chromium, which only the tests need.
# Installs only what is missing, so on a prepared machine it needs neither root nor network.

# What and why, one line each. Asked of dpkg by these names.
packages() {
  local postgres="postgresql-$POSTGRES_VERSION"
  if [[ ! -x $(debian_postgres_bin "$POSTGRES_VERSION")/initdb ]]; then
    # A newer Debian or Ubuntu has another version. Its package still brings the user `postgres`
    # and psql, and the server itself comes from Maven then.
    [[ -n $(apt-cache search --names-only "^$postgres\$" 2> /dev/null) ]] || postgres=postgresql-client
    echo "postgresql-common the user postgres"
    echo "$postgres Postgres"
  fi
  command -v mvn > /dev/null || echo "maven fetches the jars of Kafka and Elasticsearch"
  if ! find_jdk > /dev/null; then
    local jdk
    for jdk in openjdk-25-jdk-headless openjdk-21-jdk-headless; do
      [[ -z $(apt-cache search --names-only "^$jdk\$" 2> /dev/null) ]] || { echo "$jdk runs them"; break; }
    done
  fi
  command -v unzip > /dev/null || echo "unzip opens jars"
  command -v xz > /dev/null || echo "xz-utils opens the archives of Postgres in jars"
  command -v curl > /dev/null || echo "curl asks Elasticsearch for its health"
  command -v cc > /dev/null && command -v make > /dev/null || echo "build-essential compiles librdkafka"
  command -v pkg-config > /dev/null || echo "pkg-config finds the two libraries below"
  has_venv || echo "python3-venv runs the robots and the Django example"
  is_installed libssl-dev || echo "libssl-dev TLS of librdkafka"
  is_installed zlib1g-dev || echo "zlib1g-dev compression of librdkafka"
  is_installed libclang-dev || echo "libclang-dev reads C headers for the SQL parser"
  if [[ -n $BROWSER ]] && ! find_chromedriver > /dev/null; then
    echo "chromium opens the demo's page in tests"
    echo "chromium-driver drives it"
  fi
}

find_chromedriver() { command -v "${ONELOG_CHROMEDRIVER:-chromedriver}"; }

is_installed() { [[ $(dpkg-query -W -f '${Status}' "$1" 2> /dev/null) == *"ok installed" ]]; }

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo -- "$@"
  else
    die "packages are missing and there is no sudo: run 'deploy/stack install' once as root"
  fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" < /dev/null >&2; }

command_install() {
  local missing
  if ! command -v apt-get > /dev/null; then
    say "no apt-get here: see that these are there: Postgres $POSTGRES_VERSION (or use --postgres), a JDK >= 21, mvn, unzip, xz, curl, python3 with venv, a C compiler, make, pkg-config, and libssl, zlib and libclang with headers; for the tests chromium and chromedriver"
  else
    missing=$(packages)
    if [[ -n $missing ]]; then
      say "installing packages: $(cut -d ' ' -f 1 <<< "$missing" | tr '\n' ' ')"
      apt update
      missing=$(packages) # what there is to choose from is known only now
      sed 's/ / - /; s/^/  /' <<< "$missing" >&2
      install_packages "$(cut -d ' ' -f 1 <<< "$missing")"
    fi
  fi
  local service
  for service in "${SERVICES[@]}"; do
    "${service}_prepare"
  done
  postgres_prepare_others
  python_prepare
}

# Debian's package starts a cluster of its own on port 5432 unless told otherwise before.
install_packages() {
  local names drop_in=/etc/postgresql-common/createcluster.d/onelog-stack.conf
  mapfile -t names <<< "$1"
  if [[ " ${names[*]} " == *" postgresql-"* ]]; then
    apt install --no-install-recommends postgresql-common
    as_root mkdir -p "$(dirname "$drop_in")"
    as_root sh -c "echo 'create_main_cluster = false' > '$drop_in'"
  fi
  apt install --no-install-recommends "${names[@]}" || die "apt-get could not install: ${names[*]}"
  as_root rm -f "$drop_in"
}
