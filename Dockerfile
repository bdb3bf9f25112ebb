# Kagami's image: the program, glibc, the system's certificate authorities, and nothing to log in to.
#
#   docker build --tag registry.example.com/kagami .
#
# scripts/image makes an image of a program that is built already, without Docker.
ARG RUST=1.95
FROM rust:${RUST}-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin kagami

# The same Debian as above, for its glibc. Without a shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/kagami /kagami
# In numbers, so that kubelets can tell that it is not root.
USER 65532:65532
ENTRYPOINT ["/kagami"]
