#!/bin/bash
# Start PostgreSQL; on the first boot make the database cluster in PGDATA.
#
# First boot only: POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, POSTGRES_USER (postgres), POSTGRES_DB (as the user),
# POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD (scram-sha-256). Arguments that begin with "-" are the server's.
#
# The cluster is made in PGDATA/.first-boot, renamed to PGDATA/.complete when nothing is missing, then moved up.
# A boot that was killed leaves one of the two: the first is thrown away, the second is moved up. Nothing else is
# ever deleted.
set -Eeuo pipefail
shopt -s dotglob nullglob

fail() {
    printf 'entrypoint: %s\n' "$@" >&2
    exit 1
}

# The value of $1, or the content of the file that $1_FILE names, or $2.
setting() {
    local name=$1 file=${1}_FILE
    if [[ -n ${!file-} ]]; then
        [[ -z ${!name-} ]] || fail "$name and $file are both set: set one of them"
        [[ -r ${!file} ]] || fail "$file names ${!file}, which $(id -un) cannot read"
        printf '%s' "$(<"${!file}")"
    else
        printf '%s' "${!name:-${2-}}"
    fi
}

check_version() {
    local found
    found=$(<"$PGDATA/PG_VERSION")
    [[ $found == "$PG_MAJOR" ]] || fail \
        "$PGDATA was made by PostgreSQL $found, and this is PostgreSQL $PG_MAJOR: it cannot read it. Nothing was changed." \
        "To upgrade: start an image of PostgreSQL $found on this volume again, save everything with" \
        "    pg_dumpall -U ${POSTGRES_USER:-postgres} >everything.sql" \
        "start PostgreSQL $PG_MAJOR on a new, empty volume, and restore there with" \
        "    psql -U ${POSTGRES_USER:-postgres} -d postgres -f everything.sql"
}

make_cluster() {
    local cluster=$PGDATA/.first-boot method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    local user password database entry
    user=$(setting POSTGRES_USER postgres)
    password=$(setting POSTGRES_PASSWORD)
    database=$(setting POSTGRES_DB "$user")
    [[ -n $password || $method == trust ]] || fail \
        "the superuser's password is missing: set POSTGRES_PASSWORD_FILE to a file that holds it, or POSTGRES_PASSWORD"

    rm -rf "$cluster"
    for entry in "$PGDATA"/*; do
        [[ ${entry##*/} == lost+found ]] || fail \
            "$PGDATA holds no database cluster, and is not empty: there is ${entry##*/}. Nothing was changed." \
            "Use an empty volume, or set PGDATA to a folder of its own in this one"
    done
    # shellcheck disable=SC2086 # several arguments in one variable
    initdb --pgdata="$cluster" --username="$user" --pwfile=<(printf '%s\n' "$password") --no-instructions \
        --auth-local=trust --auth-host="$method" --set=listen_addresses='*' ${POSTGRES_INITDB_ARGS-}
    printf '\nhost all all all %s\n' "$method" >>"$cluster/pg_hba.conf"
    if [[ $database != postgres ]]; then
        # Single-user mode: no server that a client or a health check could find before the time.
        postgres --single -D "$cluster" -c exit_on_error=on postgres \
            <<<"CREATE DATABASE \"${database//\"/\"\"}\"" >/dev/null
    fi
    sync --file-system "$PGDATA"
    mv "$cluster" "$PGDATA/.complete"
}

case ${1-} in
    -* | '') set -- postgres "$@" ;;
esac
[[ $1 == postgres ]] || exec "$@"

if [[ $(id -u) == 0 ]]; then
    mkdir -p "$PGDATA"
    find "$PGDATA" ! -user postgres -exec chown postgres:postgres {} +
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
fi

mkdir -p "$PGDATA"
[[ -w $PGDATA ]] || fail "$PGDATA belongs to $(stat -c %u:%g "$PGDATA"), and the server runs as $(id -u):$(id -g)"
chmod 0700 "$PGDATA"
[[ -e $PGDATA/PG_VERSION || -d $PGDATA/.complete ]] || make_cluster
if [[ -d $PGDATA/.complete ]]; then
    for entry in "$PGDATA"/.complete/*; do
        mv "$entry" "$PGDATA/"
    done
    rmdir "$PGDATA/.complete"
fi
check_version
unset "${!POSTGRES_@}"
exec "$@"
