# syntax=docker/dockerfile:1
# The `understudy` binary in a small image.
#
# Written where no Docker daemon runs: it has never been built. Whoever builds it first should say so
# here, with the date and the size of the image.
#
#   docker build -t understudy .
#   docker run --rm understudy --version
#   docker run -v ./node:/var/lib/understudy understudy node run --config /var/lib/understudy/node.toml
#
# The HTTP surface listens on loopback only, so it is reached from inside the container's network
# namespace: `docker exec NAME understudy node list`.

# The version is that of `rust-version` in Cargo.toml.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --package understudy \
    && cp target/release/understudy /usr/local/bin/understudy

FROM debian:bookworm-slim
# tini is process 1, because a node must not be: process 1 inherits every orphan, and the node's
# warden has to be the one parent of its helpers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/understudy --create-home understudy
COPY --from=build /usr/local/bin/understudy /usr/local/bin/understudy
USER understudy
WORKDIR /var/lib/understudy
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/understudy"]
CMD ["--help"]
# Main and heart, both QUIC.
EXPOSE 7600/udp 7601/udp
VOLUME /var/lib/understudy
# No HEALTHCHECK: the image holds no HTTP client, and a node that hangs ends itself (rule L9).
