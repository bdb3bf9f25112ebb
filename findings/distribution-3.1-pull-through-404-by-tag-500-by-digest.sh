#!/bin/bash
# A pull-through cache of distribution 3.1.2 (`proxy.remoteurl`) says other things of a tag than of a digest that it
# cannot have. What its upstream (olareg 0.2.2, a registry of another make) lacks is 404 by tag and 500 by
# digest, with the upstream's own MANIFEST_UNKNOWN inside the message. The same while the upstream is down: a tag that
# it does not hold yet is 404 MANIFEST_UNKNOWN, as if upstream had none, and a digest 500. `/v2/` is 200 all the while.
# So neither does 404 mean that there is no such image, nor 500 that the cache is broken.
#
# Seen (what the script prints):
#   upstream there: /v2/ 200, its image 200, absent tag 404, absent digest 500
#   upstream gone:  /v2/ 200, tag not asked before 404, its digest 500
#
# Needs Go 1.26, Python 3 and curl. Everything stays in a temporary folder but Go's own caches; fails if that behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
upstream= cache=
trap 'for process in $upstream $cache; do kill "$process"; done; rm -rf "$folder"' EXIT
cd "$folder"

# As a module of its own for each: a program's own requirements are to hold, and nobody else's.
build() { # name, package, module@version
  mkdir "build-$1"
  (cd "build-$1" && go mod init example.test/build && go mod edit -require "$3" -tool "$2" && go mod tidy &&
    CGO_ENABLED=0 go build -o "../$1" "$2") >/dev/null 2>&1
}
build registry github.com/distribution/distribution/v3/cmd/registry github.com/distribution/distribution/v3@v3.1.2
build olareg github.com/olareg/olareg/cmd/olareg github.com/olareg/olareg@v0.2.2

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
up() { local tries; for tries in $(seq 100); do curl -s -o /dev/null "$1/v2/" && return; sleep 0.1; done; }
one=http://127.0.0.1:$(port) two=http://127.0.0.1:$(port)
mkdir images
./olareg serve --addr 127.0.0.1 --port "${one##*:}" --dir images >upstream.log 2>&1 &
upstream=$!
# The cache asks for it when it starts.
up "$one"
cat >cache.yml <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {inmemory: {}}
http: {addr: "${two#http://}"}
proxy: {remoteurl: "$one"}
END
OTEL_TRACES_EXPORTER=none ./registry serve cache.yml >cache.log 2>&1 &
cache=$!
up "$two"

digest() { printf 'sha256:%s' "$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat --format %s "$1"; }
type=application/vnd.oci.image.manifest.v1+json
push() { # repository
  local location blob
  printf '{"architecture":"amd64","os":"linux","author":"%s","rootfs":{"type":"layers","diff_ids":[]}}' "$1" >config
  printf 'layer of %s' "$1" >layer
  printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
    $type "$(digest config)" "$(size config)" "$(digest layer)" "$(size layer)" >"$1"
  for blob in config layer; do
    location=$(curl -sS --fail -X POST -D - -o /dev/null "$one/v2/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    case $location in /*) location=$one$location ;; esac
    case $location in *\?*) location=$location\& ;; *) location=$location\? ;; esac
    curl -sS --fail -X PUT --data-binary "@$blob" -H 'Content-Type: application/octet-stream' "${location}digest=$(digest "$blob")" >/dev/null
  done
  curl -sS --fail -X PUT --data-binary "@$1" -H "Content-Type: $type" "$one/v2/$1/manifests/1" >/dev/null
}
status() { curl -sS -o "${2:-/dev/null}" -w '%{http_code}' -H "Accept: $type" "$two/v2/$1"; }

push web
push db
there="/v2/ $(status ''), its image $(status web/manifests/1), absent tag $(status web/manifests/2), absent digest $(status "web/manifests/sha256:$(printf '0%.0s' {1..64})" answer)"
echo "upstream there: $there"
grep -q MANIFEST_UNKNOWN answer
kill "$upstream"
wait "$upstream" || true
upstream=
gone="/v2/ $(status ''), tag not asked before $(status db/manifests/1 answer), its digest $(status "db/manifests/$(digest db)")"
echo "upstream gone:  $gone"
grep -q MANIFEST_UNKNOWN answer
[ "$there" = "/v2/ 200, its image 200, absent tag 404, absent digest 500" ] &&
  [ "$gone" = "/v2/ 200, tag not asked before 404, its digest 500" ] ||
  { echo "the behaviour has changed" >&2; exit 1; }
