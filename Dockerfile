# Every image of kube3fs. `make images` builds all of them; by hand, for one:
#
#     docker build --target operator -t ghcr.io/kube3fs/operator .
#
# What a machine needs to reach its package registries comes as build secrets, never into an image:
# pip.conf, cargo.toml (cargo's config.toml) and ca.crt (a bundle of certificates); each may be absent.

ARG DEBIAN=docker.io/library/debian:trixie-slim
ARG RUST=docker.io/library/rust:1.95-slim-trixie

# ---- Rust: daemon, library and Python package, for every glibc since 2.28 -----------------------------------------------

FROM ${RUST} AS native-build
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils ca-certificates file python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src/client-native
COPY client-native/build-requirements.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/zig \
 && /opt/zig/bin/pip install --quiet --require-hashes -r build-requirements.txt
COPY client-native/ ./
COPY tests/bench/native/ ../tests/bench/native/
# The cache of compiled crates is shared by every tree that is built here, and cargo goes by a file's time: `touch`.
RUN --mount=type=secret,id=cargo.toml,target=/usr/local/cargo/config.toml \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,id=kube3fs-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=kube3fs-target,target=/src/client-native/target \
    find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
 && export PATH=/opt/zig/bin:$PATH \
 && usrbio-capi/build-release.sh /out/opt/usrbio \
 && usrbio-py/build-wheels.sh /out/opt/usrbio/wheels \
 && pip install --quiet --no-deps --no-index --target /out/opt/usrbio/python /out/opt/usrbio/wheels/*abi3*.whl \
 && install -D target/usrbio.data/scripts/usrbiod /out/usr/local/bin/usrbiod \
 && cargo --locked build --quiet --release -p kube3fs-tree \
 && install target/release/kube3fs-tree /out/usr/local/bin/kube3fs-tree
# pip writes the path of its own Python into programs.
RUN sed -i '1s|^#!.*|#!/usr/bin/env python3|' /out/opt/usrbio/python/bin/usrbio

# ---- Python: one virtual environment a service, without pip ------------------------------------------------------

FROM ${DEBIAN} AS python-build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip

FROM python-build AS operator-build
COPY operator/requirements.txt /tmp/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip /opt/venv \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes -r /tmp/requirements.txt

FROM python-build AS csi-build
COPY csi/requirements.txt /tmp/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip --system-site-packages /opt/venv \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes -r /tmp/requirements.txt

FROM python-build AS demo-build
COPY docs/examples/demo/ /opt/demo/
# Of scikit-learn only the data set is used, which comes in its wheel.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip /opt/venv \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes -r /opt/demo/requirements.txt \
 && /opt/pip/bin/pip download --quiet --no-deps --require-hashes -r /opt/demo/dataset.txt -d /tmp/wheels \
 && python3 -m zipfile -e /tmp/wheels/scikit_learn-*.whl /tmp/scikit-learn \
 && cp /tmp/scikit-learn/sklearn/datasets/data/digits.csv.gz /opt/demo/

FROM ${DEBIAN} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/kube3fs \
    PYTHONUNBUFFERED=1

# ---- The images --------------------------------------------------------------------------------------------------

FROM python AS operator
COPY --from=operator-build /opt/venv /opt/venv
COPY crds/src/ operator/src/ /opt/kube3fs/
RUN python3 -m compileall -q /opt/kube3fs
USER 65532:65532
ENTRYPOINT ["python3", "-m", "kube3fs_operator"]
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="kube3fs operator" \
      org.opencontainers.image.source="https://github.com/kube3fs/kube3fs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Mounts file systems and makes device files: root, in a privileged container.
FROM python AS csi
RUN apt-get update \
 && apt-get install -y --no-install-recommends btrfs-progs e2fsprogs python3-pyverbs quota \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=csi-build /opt/venv /opt/venv
COPY --from=native-build /out/usr/local/bin/kube3fs-tree /usr/local/bin/kube3fs-tree
COPY crds/src/ csi/src/ /opt/kube3fs/
# The gRPC stubs are made, not kept in the tree: without them this program could not start.
RUN test -f /opt/kube3fs/kube3fs_csi/api/csi_pb2.py \
 || { echo 'there are no gRPC stubs in csi/src/kube3fs_csi/api: run `make stubs`, then build again' >&2; exit 1; }
RUN python3 -m compileall -q /opt/kube3fs
ENTRYPOINT ["python3", "-m", "kube3fs_csi"]
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="kube3fs CSI driver" \
      org.opencontainers.image.source="https://github.com/kube3fs/kube3fs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Serves files as whoever asks for them: root, with a few capabilities and not privileged.
FROM ${DEBIAN} AS usrbiod
COPY --from=native-build /out/usr/local/bin/usrbiod /usr/local/bin/usrbiod
ENTRYPOINT ["usrbiod"]
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="kube3fs node daemon" \
      org.opencontainers.image.source="https://github.com/kube3fs/kube3fs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# What a training pod gets as /opt/usrbio: lib/, include/, wheels/ and the Python package in python/, for any Python from
# 3.11 on. As an image of its own it is the smallest training pod.
FROM python AS client
COPY --from=native-build /out/opt/usrbio /opt/usrbio
ENV PATH=/opt/usrbio/python/bin:$PATH \
    PYTHONPATH=/opt/usrbio/python
USER 65532:65532
CMD ["python3"]
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="kube3fs client" \
      org.opencontainers.image.source="https://github.com/kube3fs/kube3fs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The training pod of `make demo`: NumPy, a data set and the programs of docs/examples/demo.
FROM client AS demo
COPY --from=demo-build /opt/venv /opt/venv
COPY --from=demo-build /opt/demo /opt/demo
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="kube3fs demo" \
      org.opencontainers.image.source="https://github.com/kube3fs/kube3fs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
