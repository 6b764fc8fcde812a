# The release after this one: the same, and a migration that expands the schema.
ARG IMAGE
FROM ${IMAGE}
USER 0
COPY next.py /tmp/
RUN python3 /tmp/next.py && rm /tmp/next.py
USER 10001:10001
