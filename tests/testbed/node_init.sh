#!/bin/sh
# Becomes the init of a node: process 1 of fresh PID, mount, network and UTS namespaces.
#
#   node_init.sh NAME NODE_FOLDER INIT
#
# The node's root is an overlay over the machine's own, with its changes on the node's disk: programs are the
# machine's, but /etc, /opt and /var/log are the node's, and nothing it writes reaches the machine. All of this dies
# with the namespace, mounts and loop device included, however the node ends.
set -eu
name=$1 folder=$2 init=$3

# Mounts of the machine that come or go later come and go here too; none of ours is seen outside.
mount --make-rslave /
hostname "$name"

disk=$folder/disk
mkdir -p "$disk"
mount -t ext4 -o loop "$folder/disk.img" "$disk"
mkdir -p "$disk/containerd" "$disk/kubelet" "$disk/root" "$disk/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/root,workdir=$disk/work" "$folder/root"
cd "$folder/root"

for path in var/lib/containerd var/lib/kubelet var/log/pods var/log/containers etc/cni/net.d etc/containerd opt/cni; do
    mkdir -p "./$path"
done
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/lock
mount --bind "$disk/containerd" var/lib/containerd
mount --bind "$disk/kubelet" var/lib/kubelet
# Written from outside, read inside: by bind mount, since an overlay need not see later changes of what it covers.
mount --bind "$folder/etc/containerd" etc/containerd
mount --bind "$folder/etc/cni" etc/cni/net.d
mkdir -p etc/imageprepull-testbed
mount --bind "$folder/etc/node" etc/imageprepull-testbed
mount --bind "$folder/boot-id" proc/sys/kernel/random/boot_id
cp "$folder/etc/crictl.yaml" etc/crictl.yaml
# Old iptables: it is in every kernel that a CI runner has.
for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf "/usr/sbin/$(echo "$tool" | sed 's/tables/tables-legacy/')" "usr/local/sbin/$tool"
done

for tool in crictl kubectl; do
    ln -sf "$folder/../../bin/$tool" "usr/local/bin/$tool"
done

mkdir -p .machine
pivot_root . .machine
umount -l /.machine
rmdir /.machine
mount --make-rshared /

ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
# Replies of a pod to a pod of the same node, through a service, must pass the rules that rewrite them.
sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true
exec "$init"
