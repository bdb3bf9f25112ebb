#!/bin/bash
# Debian's docker-registry 2.8.2 (CNCF distribution): `garbage-collect --delete-untagged` removes the manifests
# that a tagged multi-platform index names, because they carry no tag of their own, and leaves the index.
# Afterwards the tag still answers 200 with the same digest, while every platform's manifest answers 404: who
# asks for the tag alone believes in an image that no runtime can pull.
#
# Seen with 2.8.2+ds1-1 (what the script prints):
#   before: index 200, amd64 200, arm64 200
#   after:  index 200, amd64 404, arm64 404
#
# Needs Debian's apt-get (after apt-get update), dpkg, curl. Everything stays in a temporary folder; fails if that
# behaviour changes.
set -euo pipefail
version=2.8.2+ds1-1
folder=$(mktemp -d)
registry=
trap '[ -z "$registry" ] || kill "$registry"; rm -rf "$folder"' EXIT
cd "$folder"

apt-get download "docker-registry=$version" >/dev/null 2>&1
dpkg --extract docker-registry_*.deb package
cat >config.yml <<END
version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $folder/data}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0"}
END

start() {
  package/usr/bin/docker-registry serve config.yml >log 2>&1 &
  registry=$!
  local tries
  for tries in $(seq 100); do
    url=$(sed -n 's/.*listening on \(127[0-9.:]*\).*/\1/p' log)
    [ -z "$url" ] || break
    sleep 0.1
  done
  url=http://$url/v2/web
}
stop() { kill "$registry"; wait "$registry" || true; registry=; }

digest() { printf 'sha256:%s' "$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat --format %s "$1"; }
blob() {
  local location
  location=$(curl -sS --fail -X POST -D - -o /dev/null "$url/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  curl -sS --fail -X PUT --data-binary "@$1" -H 'Content-Type: application/octet-stream' "$location&digest=$(digest "$1")" >/dev/null
}
manifest() { # file, media type, reference
  curl -sS --fail -X PUT --data-binary "@$1" -H "Content-Type: $2" "$url/manifests/$3" >/dev/null
}
image=application/vnd.docker.distribution.manifest.v2+json
list=application/vnd.docker.distribution.manifest.list.v2+json
status() { curl -sS -I -o /dev/null -w '%{http_code}' -H "Accept: $list, $image" "$url/manifests/$1"; }

start
for platform in amd64 arm64; do
  printf '{"architecture":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' $platform >config.$platform
  printf 'layer of %s' $platform >layer.$platform
  blob config.$platform
  blob layer.$platform
  printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"%s","size":%s}]}' \
    $image "$(digest config.$platform)" "$(size config.$platform)" "$(digest layer.$platform)" "$(size layer.$platform)" >$platform
  manifest $platform $image "$(digest $platform)"
done
printf '{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s","digest":"%s","size":%s,"platform":{"architecture":"amd64","os":"linux"}},{"mediaType":"%s","digest":"%s","size":%s,"platform":{"architecture":"arm64","os":"linux"}}]}' \
  $list $image "$(digest amd64)" "$(size amd64)" $image "$(digest arm64)" "$(size arm64)" >index
manifest index $list 1

tell() { echo "index $(status 1), amd64 $(status "$(digest amd64)"), arm64 $(status "$(digest arm64)")"; }
before=$(tell)
stop
package/usr/bin/docker-registry garbage-collect --delete-untagged config.yml >/dev/null 2>&1
start
after=$(tell)
echo "before: $before"
echo "after:  $after"
[ "$before" = "index 200, amd64 200, arm64 200" ] && [ "$after" = "index 200, amd64 404, arm64 404" ] ||
  { echo "the behaviour has changed" >&2; exit 1; }
