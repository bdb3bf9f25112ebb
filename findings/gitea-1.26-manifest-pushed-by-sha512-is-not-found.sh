#!/bin/bash
# Gitea's container registry 1.26.0: a manifest that is pushed under its SHA-512 (`PUT …/manifests/sha512:…`, which the
# distribution specification allows) is answered by 201 with a Location of that name, and is not found there: 404. It
# is stored under its SHA-256, which stands in Docker-Content-Digest. Who copies images that are named by SHA-512 sees
# the copy succeed and the pull fail; distribution 3.1 refuses such a push (400).
#
# Seen (what the script prints):
#   pushed under SHA-512: 201, Location sha512, Docker-Content-Digest sha256
#   by SHA-512 404, by SHA-256 200
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
status() { ask -I -o /dev/null -w '%{http_code}' -H "Accept: $type" "$url/web/manifests/$1"; }

printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' >config
printf 'a layer' >layer
for blob in config layer; do
  location=$(ask --fail -X POST -D - -o /dev/null "$url/web/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  ask --fail -X PUT --data-binary "@$blob" -H 'Content-Type: application/octet-stream' \
    "http://127.0.0.1:$port$location?digest=$(digest $blob)" >/dev/null
done
printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
  $type "$(digest config)" "$(size config)" "$(digest layer)" "$(size layer)" >manifest
long=sha512:$(sha512sum manifest | cut -d' ' -f1)
code=$(ask -X PUT -D headers -o /dev/null -w '%{http_code}' --data-binary @manifest -H "Content-Type: $type" "$url/web/manifests/$long")
header() { tr -d '\r' <headers | sed -n "s/^$1: //Ip" | grep -o 'sha[0-9]*' | head -1; }
pushed="$code, Location $(header Location), Docker-Content-Digest $(header Docker-Content-Digest)"
found="by SHA-512 $(status "$long"), by SHA-256 $(status "$(digest manifest)")"
echo "pushed under SHA-512: $pushed"
echo "$found"
[ "$pushed" = "201, Location sha512, Docker-Content-Digest sha256" ] && [ "$found" = "by SHA-512 404, by SHA-256 200" ] ||
  { echo "the behaviour has changed" >&2; exit 1; }
