#!/bin/sh
# Make a minimal Debian and pack it into ARCHIVE, a tar file for `docker import`.
# OVERLAY is laid over it: the recipe's own files, and from this machine apt's sources and the CA bundle.
# ROOT is a folder that does not exist yet. Without MIRROR debootstrap takes the one it knows.
set -eu
umask 022
[ $# -ge 4 ] || { echo "usage: build.sh SUITE OVERLAY ROOT ARCHIVE [MIRROR]" >&2; exit 2; }
recipe=$(dirname "$0") suite=$1 overlay=$2 root=$3 archive=$4
shift 4

debootstrap --variant=minbase --force-check-gpg "$suite" "$root" "$@"
if [ ! -e "$overlay/etc/apt/sources.list" ]; then
    # The mirror that debootstrap knows is Debian's own, with the security updates beside it.
    sed -n "s|^deb \(.*/debian\)/* $suite main\$|deb \1-security $suite-security main|p" \
        "$root/etc/apt/sources.list" >"$root/etc/apt/sources.list.d/security.list"
fi
cp -R "$overlay/." "$root"
tar --create --file "$archive" --directory "$root" --numeric-owner --exclude-from "$recipe/exclude" .
