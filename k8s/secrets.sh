#!/bin/sh
# secrets.sh [DATABASE_HOST [REDIS_HOST]]: prints a Secret with passwords made at random, for the PostgreSQL and the Valkey of
# components/. Makes nothing and changes nothing itself:
#
#   k8s/secrets.sh | kubectl create -f -
#
# `create` refuses where there is one, which is right: the database knows the password in it. For servers of yours write
# the same keys by what you trust with secrets.
set -eu
database=${1:-postgres} redis=${2:-valkey}
# KEDA asks from another namespace; a server that is not of components/ has TLS.
keda_database=postgres.strandline.svc:5432/strandline?sslmode=disable
[ $# = 0 ] || keda_database="$1:5432/strandline?sslmode=require"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1; }
postgres_password=$(random) valkey_password=$(random) api_token=$(random)
api_token_hash=$(printf %s "$api_token" | sha256)
[ ${#api_token_hash} = 64 ] || { echo "$0: neither sha256sum nor shasum is here" >&2; exit 1; }
cat <<END
apiVersion: v1
kind: Secret
metadata:
  name: strandline
  namespace: strandline
type: Opaque
stringData:
  database_url: postgresql+psycopg://strandline:$postgres_password@$database/strandline
  redis_url: redis://:$valkey_password@$redis:6379/0
  # Whoever has this token is an admin of the API; Prometheus shows it, too.
  api_token: $api_token
  api_tokens: '{"$api_token_hash": "admin"}'
  flower_auth: ops:$(random)
  # KEDA counts shards. For real give it a role of its own, see README.md.
  keda_connection: postgresql://strandline:$postgres_password@$keda_database
  postgres_password: $postgres_password
  valkey_conf: requirepass $valkey_password
  valkey_password: $valkey_password
END
