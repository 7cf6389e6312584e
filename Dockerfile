# One image for the operator and the agent; what runs is the argument (`operator`, `agent`).
#
#   docker build -t imageprepull .
#   docker build --build-arg BASE=registry.example/python:3.11-slim -t imageprepull .
#
# BASE needs python3 >= 3.11 with venv, at the same path in both stages, and CA certificates.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/imageprepull
# Dependencies come first and alone: a change of our code then rebuilds only the last layers. Of the official client
# only the kubeconfig loader is used; its asyncio half is another 35 MB.
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >requirements.txt \
 && /opt/pip/bin/pip --python /opt/imageprepull/bin/python3 install \
      --no-cache-dir --no-compile --disable-pip-version-check --only-binary :all: -c constraints.txt -r requirements.txt \
 && rm -r /opt/imageprepull/lib/python3*/site-packages/kubernetes/aio \
 && /opt/pip/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt hatchling
COPY README.md ./
COPY operator operator
RUN /opt/pip/bin/hatchling build -t wheel -d /dist \
 && /opt/pip/bin/pip --python /opt/imageprepull/bin/python3 install --no-deps --no-cache-dir --no-compile --disable-pip-version-check /dist/*.whl

FROM ${BASE}
COPY --from=build /opt/imageprepull /opt/imageprepull
# Byte code is compiled in memory at each start otherwise: the root file system is read-only in the cluster.
RUN /opt/imageprepull/bin/python3 -m compileall -q /opt/imageprepull/lib/python3*/site-packages/imageprepull
ENV PATH=/opt/imageprepull/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The operator needs no more. The agent's DaemonSet sets user 0: containerd's socket is root's.
USER 65532:65532
ENTRYPOINT ["imageprepull"]
