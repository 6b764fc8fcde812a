# The release before this one, where both are locked to the same: its code in place of this one's.
ARG IMAGE
FROM ${IMAGE}
USER 0
COPY . /former
RUN cd /opt/strandline/lib/python3*/site-packages && rm -r db tasks orchestrator && \
    mv /former/db /former/tasks /former/orchestrator . && rm -r /former && \
    python3 -m compileall -q --invalidation-mode unchecked-hash db tasks orchestrator
USER 10001:10001
