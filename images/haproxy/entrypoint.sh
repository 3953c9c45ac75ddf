#!/bin/sh
# Start HAProxy in the foreground, as a master with workers: a reload keeps its connections.
set -eu
case ${1-} in
    haproxy) shift ;;
    -*) ;;
    *) exec "$@" ;;
esac
exec haproxy -W -db "$@"
