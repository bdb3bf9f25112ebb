#!/bin/bash
# Gitea's container registry 1.26.0: a push that moves a tag deletes the manifest that the tag named before, and its
# configuration and layers with it, at once. Who deploys by digest what was pushed by tag can no longer pull it after
# the next push of that tag, where registries of other makes keep such a manifest until their garbage is collected.
# A second tag on it keeps it.
#
# Seen (what the script prints):
#   before:                    tag 200, digest 200, layer 200
#   after the tag has moved:   tag 200, digest 404, layer 404
#   the same with another tag: tag 200, digest 200, layer 200
#
# Needs Go 1.26.2, a C compiler, git, curl, Python 3; Gitea takes a long while to build. Everything stays in a
# temporary folder but Go's own caches; fails if that behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
gitea=
trap '[ -z "$gitea" ] || kill "$gitea"; rm -rf "$folder"' EXIT
cd "$folder"

cat >go.mod <<'END'
module example.test/build

go 1.26.2

tool code.gitea.io/gitea

require code.gitea.io/gitea v1.26.0
END
module=$(go mod download -json code.gitea.io/gitea@v1.26.0 | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
# A program's own replacements hold for it alone, so they are to be repeated.
sed -n '/^replace /s, *//.*,,p' "$module/go.mod" >>go.mod
go mod tidy >/dev/null 2>&1
CGO_ENABLED=1 go build -trimpath -tags sqlite,sqlite_unlock_notify -ldflags '-s -w' -o gitea code.gitea.io/gitea
mkdir assets
cp -r --no-preserve=mode "$module"/{options,public,templates} assets

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >app.ini <<END
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
RUN_MODE = prod
WORK_PATH = $folder/work
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = $port
ROOT_URL = http://127.0.0.1:$port/
STATIC_ROOT_PATH = $folder/assets
OFFLINE_MODE = true
DISABLE_SSH = true
[database]
DB_TYPE = sqlite3
PATH = $folder/gitea.db
[security]
INSTALL_LOCK = true
[indexer]
ISSUE_INDEXER_TYPE = db
[cron.update_checker]
ENABLED = false
END
export HOME=$folder USER=${USER:-root}
./gitea migrate --config app.ini >migrate.log 2>&1
./gitea admin user create --admin --must-change-password=false --username alice --password wonderland \
  --email alice@example.com --config app.ini >user.log 2>&1
./gitea web --config app.ini >web.log 2>&1 &
gitea=$!
for tries in $(seq 300); do curl -s -o /dev/null "http://127.0.0.1:$port/v2/" && break; sleep 0.2; done

url=http://127.0.0.1:$port/v2/alice
type=application/vnd.oci.image.manifest.v1+json
digest() { printf 'sha256:%s' "$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat --format %s "$1"; }
ask() { curl -sS -u alice:wonderland "$@"; }
# Pushes the image of a name into the repository $1 under each of the tags that follow.
push() {
  local repository=$1 image=$2 location blob tag
  shift 2
  printf '{"architecture":"amd64","os":"linux","author":"%s","rootfs":{"type":"layers","diff_ids":[]}}' "$image" >"config.$image"
  printf 'layer of %s' "$image" >"layer.$image"
  printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
    $type "$(digest "config.$image")" "$(size "config.$image")" "$(digest "layer.$image")" "$(size "layer.$image")" >"$image"
  for blob in "config.$image" "layer.$image"; do
    location=$(ask --fail -X POST -D - -o /dev/null "$url/$repository/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    ask --fail -X PUT --data-binary "@$blob" -H 'Content-Type: application/octet-stream' \
      "http://127.0.0.1:$port$location?digest=$(digest "$blob")" >/dev/null
  done
  for tag; do
    ask --fail -X PUT --data-binary "@$image" -H "Content-Type: $type" "$url/$repository/manifests/$tag" >/dev/null
  done
}
status() { ask -I -o /dev/null -w '%{http_code}' -H "Accept: $type" "$url/$1"; }
tell() { # repository, image
  echo "tag $(status "$1/manifests/1"), digest $(status "$1/manifests/$(digest "$2")"), layer $(status "$1/blobs/$(digest "layer.$2")")"
}

push web first 1
before=$(tell web first)
push web second 1
moved=$(tell web first)
push db third 1 kept
push db fourth 1
kept=$(tell db third)
echo "before:                    $before"
echo "after the tag has moved:   $moved"
echo "the same with another tag: $kept"
[ "$before" = "tag 200, digest 200, layer 200" ] && [ "$moved" = "tag 200, digest 404, layer 404" ] &&
  [ "$kept" = "$before" ] || { echo "the behaviour has changed" >&2; exit 1; }
