#!/bin/sh
# Installs the Debian packages that tests need: chromium renders the report page. Needs root; does nothing where they are.
set -eu
command -v chromium >/dev/null 2>&1 && exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
