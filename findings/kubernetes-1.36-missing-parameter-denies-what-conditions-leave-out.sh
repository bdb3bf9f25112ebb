#!/bin/bash
# Kubernetes' API server 1.36.3: a ValidatingAdmissionPolicyBinding whose `paramRef` names an object, with
# `parameterNotFoundAction: Deny`, refuses every request of the policy's `matchConstraints` while that object is missing,
# also those that the policy's own `matchConditions` leave out: the parameter is looked for before the conditions. So a
# policy that is to hold one account alone stops the updates of everybody once somebody deletes its parameter.
#
# Seen with 1.36.3 (what the script prints), an update by `admin` where the condition asks for another user:
#   no binding:            200
#   parameter there:       200
#   parameter missing:     422 failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction
#   missing, action Allow: 200
#
# Needs Go, Python 3 (which finds free ports) and curl; builds etcd and the API server from their Go modules, ten minutes
# once. Everything stays in a temporary folder and on loopback; fails if that behaviour changes.
set -euo pipefail
kubernetes=1.36.3 etcd=3.7.3
folder=$(mktemp -d)
running=()
# The API server takes a minute to end by itself.
trap '[ ${#running[@]} = 0 ] || kill -KILL "${running[@]}"; rm -rf "$folder"' EXIT
cd "$folder"

mkdir etcd.module kubernetes.module
(
  cd etcd.module
  go mod init finding
  go get "go.etcd.io/etcd/server/v3@v$etcd"
  go build -mod=mod -o ../etcd go.etcd.io/etcd/server/v3
  cd ../kubernetes.module
  go mod init finding
  # Its own modules have no versions there; each is published beside it.
  for name in api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap \
    code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming \
    csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator \
    kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission \
    sample-apiserver streaming; do
    go mod edit -replace "k8s.io/$name=k8s.io/$name@v0.${kubernetes#1.}"
  done
  go mod edit -require "k8s.io/kubernetes@v$kubernetes"
  go build -mod=mod -o ../kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
) >build.log 2>&1 || { tail -n 20 build.log; exit 1; }

free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
client=http://127.0.0.1:$(free) peer=http://127.0.0.1:$(free) port=$(free)
./etcd --data-dir data --unsafe-no-fsync --listen-client-urls "$client" --advertise-client-urls "$client" \
  --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" >etcd.log 2>&1 &
running+=($!)
disown
openssl genrsa -out key 2048 2>/dev/null
echo 'admin,admin,1,"system:masters"' >tokens
./kube-apiserver --etcd-servers "$client" --bind-address 127.0.0.1 --secure-port "$port" --cert-dir certificates \
  --token-auth-file tokens --authorization-mode AlwaysAllow --service-account-key-file key \
  --service-account-signing-key-file key --service-account-issuer https://finding \
  --service-cluster-ip-range 10.0.0.0/24 >api.log 2>&1 &
running+=($!)
disown
url=https://127.0.0.1:$port
call() { curl -sk -H 'Authorization: Bearer admin' -H 'Content-Type: application/json' -X "$1" "$url$2" "${@:3}"; }
for _ in $(seq 240); do
  [ "$(call GET /readyz 2>/dev/null)" != ok ] || break
  sleep 0.5
done

policies=/apis/admissionregistration.k8s.io/v1
maps=/api/v1/namespaces/default/configmaps
map() { printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"},"data":{"at":"%s"}}' "$1" "$(date +%s%N)"; }
binding() {
  printf '{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicyBinding","metadata":{"name":"one"},"spec":{"policyName":"one","validationActions":["Deny"],"matchResources":{"namespaceSelector":{}},"paramRef":{"name":"parameter","namespace":"default","parameterNotFoundAction":"%s"}}}' "$1"
}
for name in subject parameter; do call POST $maps -d "$(map $name)" >/dev/null; done
call POST $policies/validatingadmissionpolicies -d '{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"one"},"spec":{"failurePolicy":"Fail","paramKind":{"apiVersion":"v1","kind":"ConfigMap"},"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"resources":["configmaps"],"operations":["UPDATE"],"resourceNames":["subject"]}]},"matchConditions":[{"name":"by-somebody-else","expression":"request.userInfo.username == \"somebody-else\""}],"validations":[{"expression":"true"}]}}' >/dev/null

# Tells how an update by admin ends, once that has been the same for five seconds: a policy takes a moment.
update() {
  local now before='' same=0
  for _ in $(seq 120); do
    now=$(call PUT $maps/subject -d "$(map subject)" -o answer -w '%{http_code}')
    if [ "$now" = 200 ]; then now=200; else now="$now $(grep -o 'failed to configure binding[^"]*' answer | head -n 1)"; fi
    if [ "$now" = "$before" ]; then same=$((same + 1)); else same=0 before=$now; fi
    [ $same -lt 10 ] || break
    sleep 0.5
  done
  echo "$now"
}
told=("no binding:            $(update)")
call POST $policies/validatingadmissionpolicybindings -d "$(binding Deny)" >/dev/null
told+=("parameter there:       $(update)")
call DELETE $maps/parameter >/dev/null
told+=("parameter missing:     $(update)")
call DELETE $policies/validatingadmissionpolicybindings/one >/dev/null
call POST $policies/validatingadmissionpolicybindings -d "$(binding Allow)" >/dev/null
told+=("missing, action Allow: $(update)")
printf '%s\n' "${told[@]}"
[ "${told[*]}" = "no binding:            200 parameter there:       200 parameter missing:     422 failed to configure binding: no params found for policy binding with \`Deny\` parameterNotFoundAction missing, action Allow: 200" ] ||
  { echo "the behaviour has changed" >&2; exit 1; }
