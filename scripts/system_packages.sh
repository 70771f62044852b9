#!/bin/sh
# Installs the Debian packages that tests need: chromium renders the report page. With the argument `bench` also those
# of the benchmark `peers`: redis-server. Needs root; does nothing where they are.
set -eu
wanted=
command -v chromium >/dev/null 2>&1 || wanted=chromium
if [ "${1:-}" = bench ] && ! command -v redis-server >/dev/null 2>&1; then wanted="$wanted redis-server"; fi
[ -n "$wanted" ] || exit 0
apt-get update -qq
# shellcheck disable=SC2086  # a list
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $wanted >/dev/null
