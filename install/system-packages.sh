#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages named, if their programs (of the same names) are missing: make system-packages
set -eu
missing=
for package in "$@"; do
  command -v "$package" >/dev/null || missing="$missing $package"
done
if [ -z "$missing" ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "system-packages: there is no apt-get here; install with this system's own tool:$missing" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "system-packages: only root installs packages: sudo apt-get install$missing" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
needed=
for package in $missing; do
  [ "$package" = chromium ] || needed="$needed $package"
done
if [ -n "$needed" ]; then
  apt-get install -y -qq --no-install-recommends $needed
fi
case "$missing" in
  *chromium*) # Ubuntu has it as a snap only
    apt-get install -y -qq --no-install-recommends chromium ||
      echo "system-packages: there is no package chromium here; the page's tests in a browser will be skipped" >&2 ;;
esac
