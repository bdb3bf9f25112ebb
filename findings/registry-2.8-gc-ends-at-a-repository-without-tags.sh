#!/bin/bash
# Debian's docker-registry 2.8.2 (CNCF distribution): `garbage-collect --delete-untagged` ends with an error at a
# repository whose manifests were all pushed by digest, because that one has no folder of tags, and collects nothing
# anywhere: not what other repositories no longer need either. Without the flag it succeeds. Who copies images by
# digest alone into such a registry can make no room this way.
#
# Seen with 2.8.2+ds1-1 (what the script prints):
#   every repository has a tag: ends with 0, untagged manifest 404
#   one has none:               ends with 1, untagged manifest 200
#   the same without the flag:  ends with 0, untagged manifest 200
# and in the second case: failed to garbage collect: failed to mark: filesystem: filesystem: failed to retrieve tags
# unknown repository name=by-digest
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
  url=http://$url/v2
}
stop() { kill "$registry"; wait "$registry" || true; registry=; }

digest() { printf 'sha256:%s' "$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat --format %s "$1"; }
type=application/vnd.docker.distribution.manifest.v2+json
# Pushes the image of a name into the repository $1, under the reference $3 or its own digest.
push() {
  local location blob
  printf '{"architecture":"amd64","os":"linux","author":"%s","rootfs":{"type":"layers","diff_ids":[]}}' "$2" >"config.$2"
  printf 'layer of %s' "$2" >"layer.$2"
  printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"%s","size":%s}]}' \
    $type "$(digest "config.$2")" "$(size "config.$2")" "$(digest "layer.$2")" "$(size "layer.$2")" >"$2"
  for blob in "config.$2" "layer.$2"; do
    location=$(curl -sS --fail -X POST -D - -o /dev/null "$url/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sS --fail -X PUT --data-binary "@$blob" -H 'Content-Type: application/octet-stream' "$location&digest=$(digest "$blob")" >/dev/null
  done
  curl -sS --fail -X PUT --data-binary "@$2" -H "Content-Type: $type" "$url/$1/manifests/${3:-$(digest "$2")}" >/dev/null
}

told=()
# Collects garbage with these flags and tells how it ended, and what became of the untagged manifest $1.
collect() {
  local untagged=$1 label=$2 code=0
  shift 2
  stop
  package/usr/bin/docker-registry garbage-collect "$@" config.yml >gc.log 2>&1 || code=$?
  start
  told+=("$label ends with $code, untagged manifest $(curl -sS -I -o /dev/null -w '%{http_code}' -H "Accept: $type" "$url/tagged/manifests/$(digest "$untagged")")")
}

start
push tagged kept 1
push tagged first
collect first "every repository has a tag:" --delete-untagged
push tagged second
push by-digest other
collect second "one has none:              " --delete-untagged
cp gc.log refused
collect second "the same without the flag: "
printf '%s\n' "${told[@]}"
[ "${told[*]}" = "every repository has a tag: ends with 0, untagged manifest 404 one has none:               ends with 1, untagged manifest 200 the same without the flag:  ends with 0, untagged manifest 200" ] &&
  grep -q 'failed to retrieve tags unknown repository name=by-digest' refused ||
  { echo "the behaviour has changed" >&2; exit 1; }
