#!/bin/sh
# A database of that name for a user with that password, at the first start; then the server.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --encoding=UTF8 \
        --auth-host=scram-sha-256 --auth-local=trust >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    postgres --single -D "$PGDATA" postgres >/dev/null <<EOF
CREATE DATABASE "$POSTGRES_DB"
EOF
fi
exec "$@" -D "$PGDATA" -c listen_addresses='*'
