# Stands in for the Valkey image that compose.yaml names, as postgres.Dockerfile does for the other.
ARG BASE
FROM ${BASE}
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends valkey-server valkey-tools >/dev/null && \
    rm -rf /var/lib/apt/lists/* && install -d -o valkey -g valkey /data
VOLUME /data
CMD ["valkey-server"]
