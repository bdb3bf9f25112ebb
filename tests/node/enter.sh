#!/bin/bash
# Makes the machine that the node ring runs on, then becomes the given command: enter.sh FOLDER CGROUP COMMAND...
#
# Runs as the first process of fresh network, mount and process namespaces. Whatever kubelet and containerd
# write lands in memory or in these namespaces, so that nothing is left when they end; only the cgroup is the
# machine's own, and the caller removes it.
set -euo pipefail
folder=$1 cgroup=$2
shift 2

# Kubelet's mounts must reach its containers.
mount --make-rshared /
in_memory() { mount -t tmpfs -o mode=755 node "$1"; }
for place in /run /var/log "$folder"; do in_memory "$place"; done
mkdir -p /run/netns "$folder"/{etc,changes,work}
# Folders can be made in /var/lib without making them there; it may hold this repository.
mount -t overlay -o "lowerdir=/var/lib,upperdir=$folder/changes,workdir=$folder/work" node /var/lib
for place in /var/lib/{kubelet,containerd,cni}; do mkdir -p "$place" && in_memory "$place"; done

# Names are those that the tests give (tests/support/dns.rs); any other fails at once.
printf '127.0.0.1 localhost\n10.200.0.1 node1\n' >"$folder/etc/hosts"
printf 'nameserver 10.200.0.1\noptions timeout:1 attempts:1\n' >"$folder/etc/resolv.conf"
for file in hosts resolv.conf; do
  target=$(realpath -m "/etc/$file")
  [ -e "$target" ] || { mkdir -p "${target%/*}" && touch "$target"; }
  mount --bind "$folder/etc/$file" "$target"
done
# Kubelet insists on these settings of the kernel: it finds them in files that stand before the real ones.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1; do
  name=${setting%=*}
  echo "${setting#*=}" >"$folder/etc/${name#*/}"
  mount --bind "$folder/etc/${name#*/}" "/proc/sys/$name"
done

# A node's address may not be one of loopback. Nothing leads out of the bridge.
ip link set lo up
ip link add node0 type bridge
ip address add 10.200.0.1/24 dev node0
ip link set node0 up
ip route add default via 10.200.0.1 dev node0

if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir "/sys/fs/cgroup/$cgroup"
else
  for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "$hierarchy$cgroup" 2>/dev/null || true; done
  for file in cpus mems; do
    cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$cgroup/cpuset.$file"
  done
fi
exec "$@"
