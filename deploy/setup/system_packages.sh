#!/bin/sh
# Install the programs that the tests run and pip cannot bring, or say what to install.
set -eu

# program  Debian package
wanted='
curl       curl
pg_ctl     postgresql
'

# Debian keeps the programs of a PostgreSQL server off the PATH.
for folder in /usr/lib/postgresql/*/bin; do
    PATH=$PATH:$folder
done

missing=$(echo "$wanted" | while read -r program package; do
    [ -z "$program" ] || command -v "$program" >/dev/null || echo "$package"
done)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086  # one argument a package
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $missing
else
    echo "The tests need these programs; install them, then run make again (Debian's package names):" >&2
    echo $missing >&2
    exit 1
fi
