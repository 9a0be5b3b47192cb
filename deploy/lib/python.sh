# shellcheck shell=bash
# Python for the robots, the Django example and Schemathesis, which the demo and the tests run: a virtual environment
# under the cache folder, made anew when the requirements change. Sourced by deploy/stack. Which package index is pip's own setting.

REQUIREMENTS=("$DEPLOY/django_outbox/requirements.txt" "$DEPLOY/robots/requirements.txt" "$DEPLOY/lib/schemathesis.txt")

python_folder() { echo "$CACHE/python-$(cat "${REQUIREMENTS[@]}" | sha256sum | cut -c 1-16)"; }

python_address() { echo "$(python_folder)/bin/python"; }

has_venv() { python3 -c 'import ensurepip, venv' > /dev/null 2>&1; }

python_prepare() { prepare_once "$(python_folder)" python_fill; }

# `python` finds its folder by where it is, so that it may be renamed afterwards.
python_fill() {
  has_venv || die "python3 with venv is missing: run deploy/stack install"
  say "downloading Django, confluent-kafka and Schemathesis"
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${REQUIREMENTS[@]/#/--requirement=}" \
    > "$1/pip.log" 2>&1 < /dev/null || { tail -n 20 "$1/pip.log" >&2; die "pip could not fetch what the robots need"; }
}
