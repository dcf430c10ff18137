# orderd in a container. The first stage builds it; the image holds the program, the system libraries it is linked with, and
# nothing else: no shell, no package manager. `docker exec NAME orderd status` works all the same.
#
#   docker build --tag orderd .        or: make image

# The compiler version the project is tested with.
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-bookworm AS build
WORKDIR /build

# The dependencies, in a layer of their own, which is rebuilt only when one of these files changes. Benchmarks are taken
# out of the manifest, because their sources are not here; the package in examples/ is a member of the workspace, which
# Cargo needs to see but not to build.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY examples/Cargo.toml examples/
RUN sed -i '/^\[\[bench\]\]/,/^$/d' Cargo.toml \
    && mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
    && cargo build --profile dist --locked --bin orderd

# orderd itself. `touch`: its files may be older than the placeholders above, and Cargo would consider them unchanged.
COPY config config
COPY src src
RUN touch src/lib.rs src/main.rs && cargo build --profile dist --locked --bin orderd

# The contents of the image: orderd, the default configuration without its password (so that
# ORDERD_BROKER__PASSWORD_FILE can be set), the libraries it is linked with, the name resolution order, the certificates of
# public authorities, the time zones (notify.<name>.time_zone), a name for the user, and an empty ledger directory that belongs to this user.
RUN mkdir -p /image/etc/ssl/certs /image/usr/local/bin /image/etc/orderd /ledger \
    && cp target/dist/orderd /image/usr/local/bin/orderd \
    && ldd target/dist/orderd | grep -o '/[^ ]*' | xargs -I'{}' cp --parents --dereference '{}' /image \
    && sed 's/^password = /#&/' config/orderd.toml >/image/etc/orderd/orderd.toml \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && mkdir -p /image/usr/share && cp -r /usr/share/zoneinfo /image/usr/share/ \
    && rm -rf /image/usr/share/zoneinfo/posix /image/usr/share/zoneinfo/right \
    && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
    && echo 'orderd:x:10001:10001:orderd:/var/lib/orderd:/sbin/nologin' >/image/etc/passwd \
    && echo 'orderd:x:10001:' >/image/etc/group

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="orderd" \
      org.opencontainers.image.description="A daemon that processes an online shop's orders from RabbitMQ and loses none of them" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/ /
COPY --from=build --chown=10001:10001 /ledger /var/lib/orderd
ENV PATH=/usr/local/bin
# Numeric, so that Kubernetes can verify that it is not root.
USER 10001:10001
# The only directory orderd writes to; the root file system may be read-only. It is also the working directory, where SQLite
# puts temporary files when sorting a report does not fit into memory.
WORKDIR /var/lib/orderd
VOLUME /var/lib/orderd
EXPOSE 9640
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/orderd", "probe"]
ENTRYPOINT ["/usr/local/bin/orderd"]
CMD ["run"]
