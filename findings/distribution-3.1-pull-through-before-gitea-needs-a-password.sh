#!/bin/bash
# A pull-through cache of distribution 3.1.2 (`proxy.remoteurl`) before Gitea 1.26.0, both without passwords: an image
# of a public owner, which Gitea gives to everybody with an anonymous token, cannot be pulled through the cache: 404 by
# tag, 500 by digest. Gitea's 401 offers two challenges, Bearer and Basic; the cache takes up both, and has no password
# for the second ("no basic auth credentials"). With `proxy.username` and `proxy.password` of any user it works.
#
# Seen (what the script prints):
#   Gitea itself, anonymous token: 200
#   through the cache:             by tag 404, by digest 500
#   through one with a password:   by tag 200, by digest 200
#
# Needs Go 1.26.2, a C compiler, git, curl, Python 3; Gitea takes a long while to build. Everything stays in a
# temporary folder but Go's own caches; fails if that behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
processes=()
trap 'for process in "${processes[@]}"; do kill "$process"; done; rm -rf "$folder"' EXIT
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
mkdir assets build
(cd build && go mod init example.test/build && go mod edit -require github.com/distribution/distribution/v3@v3.1.2 \
  -tool github.com/distribution/distribution/v3/cmd/registry && go mod tidy &&
  CGO_ENABLED=0 go build -o ../registry github.com/distribution/distribution/v3/cmd/registry) >/dev/null 2>&1
cp -r --no-preserve=mode "$module"/{options,public,templates} assets

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(port)
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
processes+=($!)
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
push web first 1

# Starts a cache; the arguments are more settings of its proxy.
cache() {
  local at tries
  at=$(port)
  cat >"$at.yml" <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {inmemory: {}}
http: {addr: "127.0.0.1:$at"}
proxy: {remoteurl: "http://127.0.0.1:$port"$1}
END
  OTEL_TRACES_EXPORTER=none ./registry serve "$at.yml" >"$at.log" 2>&1 &
  processes+=($!)
  for tries in $(seq 100); do curl -s -o /dev/null "http://127.0.0.1:$at/v2/" && break; sleep 0.1; done
  cache=http://127.0.0.1:$at
}
image=v2/alice/web/manifests
status() { curl -sS -o answer -w '%{http_code}' -H "Accept: $type" "$@"; }
both() { echo "by tag $(status "$cache/$image/1"), by digest $(status "$cache/$image/$(digest first)")"; }

token=$(curl -sS "http://127.0.0.1:$port/v2/token?service=container_registry&scope=repository:alice/web:pull" |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
itself=$(status -H "Authorization: Bearer $token" "http://127.0.0.1:$port/$image/1")
cache ''
without=$(both)
grep -q 'no basic auth credentials' answer || without="$without for another reason"
cache ', username: alice, password: wonderland'
with=$(both)
echo "Gitea itself, anonymous token: $itself"
echo "through the cache:             $without"
echo "through one with a password:   $with"
[ "$itself" = 200 ] && [ "$without" = "by tag 404, by digest 500" ] && [ "$with" = "by tag 200, by digest 200" ] ||
  { echo "the behaviour has changed" >&2; exit 1; }
