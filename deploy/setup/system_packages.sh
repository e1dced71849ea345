#!/bin/sh
# Install the programs that the tests run and pip cannot bring, or say what to install.
set -eu

# program  Debian package; of several programs one is enough
wanted='
curl       curl
haproxy    haproxy
pg_ctl     postgresql
prometheus prometheus
promtool   prometheus
amtool     prometheus-alertmanager
chromium-headless-shell|chromium|google-chrome chromium-headless-shell
'

# Debian keeps the programs of a PostgreSQL server off the PATH, and HAProxy off that of users.
for folder in /usr/lib/postgresql/*/bin /usr/sbin; do
    PATH=$PATH:$folder
done

missing=$(echo "$wanted" | while read -r program package; do
    found=
    for each in $(echo "$program" | tr '|' ' '); do
        ! command -v "$each" >/dev/null || found=yes
    done
    [ -z "$program" ] || [ -n "$found" ] || echo "$package"
done | sort -u)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # Programs are wanted, no services: Debian asks this script whether it may start one, 101 is no.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update -qq
    # shellcheck disable=SC2086  # one argument a package
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $missing
    for package in $missing; do # nor at the next boot
        ! command -v systemctl >/dev/null || systemctl --quiet disable "$package" 2>/dev/null || true
    done
else
    echo "The tests need these programs; install them, then run make again (Debian's package names):" >&2
    echo $missing >&2
    exit 1
fi
