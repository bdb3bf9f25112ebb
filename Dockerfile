# Kagami's image: the program, glibc, the system's certificate authorities, and nothing to log in to.
#
#   docker build --tag registry.example.com/kagami .
#
# With --platform linux/amd64,linux/arm64 `docker buildx build` builds for both, the foreign one in emulation, which is
# slow. scripts/image --all does so by cross compilers and without Docker, and of programs that are built already.
ARG RUST=1.95
FROM rust:${RUST}-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin kagami

# The same Debian as above, for its glibc. Without a shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build --chmod=0755 /src/target/release/kagami /kagami
# In numbers, so that kubelets can tell that it is not root. Any other user will do as well: nothing here is its own.
USER 65532:65532
ENTRYPOINT ["/kagami"]
