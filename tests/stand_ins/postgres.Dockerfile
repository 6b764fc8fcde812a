# Stands in for the PostgreSQL image that compose.yaml names, where no registry can be reached: Debian's server, with as
# much of that image's outside as compose.yaml uses.
ARG BASE
FROM ${BASE}
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends postgresql >/dev/null && \
    rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* /etc/postgresql && \
    ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
COPY --chmod=0755 tests/stand_ins/postgres.sh /usr/local/bin/docker-entrypoint.sh
ENV PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
