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
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres_password=$(random) valkey_password=$(random) api_token=$(random)
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
  api_tokens: '{"$(printf %s "$api_token" | sha256sum | cut -d' ' -f1)": "admin"}'
  flower_auth: ops:$(random)
  # KEDA's own way to the database: it counts shards, no more.
  keda_connection: postgresql://strandline:$postgres_password@$database.strandline.svc:5432/strandline?sslmode=disable
  postgres_password: $postgres_password
  valkey_conf: requirepass $valkey_password
  valkey_password: $valkey_password
END
