#!/bin/sh
# Makes each secret of compose.yaml that is missing, at random; what is there stays. Containers read these files as other
# users: the folder is closed to all but its owner, and the files in it are not.
set -eu
umask 022
cd "$(dirname "$0")"
mkdir -p -m 0700 secrets
cd secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# put NAME VALUE: at once or not at all
put() { printf '%s\n' "$2" >".$1" && mv ".$1" "$1"; }

[ -e postgres_password ] || put postgres_password "$(random)"
put database_url "postgresql+psycopg://strandline:$(cat postgres_password)@postgres/strandline"
[ -e valkey_password ] || put valkey_password "$(random)"
put valkey_conf "requirepass $(cat valkey_password)"
put redis_url "redis://:$(cat valkey_password)@valkey:6379/0"
[ -e api_token ] || put api_token "$(random)"
[ -e api_tokens ] || put api_tokens "{\"$(printf %s "$(cat api_token)" | sha256sum | cut -d' ' -f1)\": \"admin\"}"
[ -e flower_auth ] || put flower_auth "ops:$(random)"
[ -e grafana_password ] || put grafana_password "$(random)"
