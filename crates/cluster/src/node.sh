# Prepares a host of the lab for a kubelet: writes of the node go to memory, and the machine's settings stay unchanged.
# $1 is the node's control group below the root of every hierarchy, $2 the folder of CNI plugins.
set -e
group=$1 plugins=$2
here=/run/kubernetes
mkdir -p "$here/over" "$here/settings"

# Folders that kubelet, containerd and CNI plugins write to. Root of an overlay is the machine's own folder.
for folder in etc opt; do
  mkdir -p "$here/over/$folder.upper" "$here/over/$folder.work"
  mount -t overlay -o "lowerdir=/$folder,upperdir=$here/over/$folder.upper,workdir=$here/over/$folder.work" overlay "/$folder"
done
mount -t tmpfs -o mode=755 tmpfs /var/log
mountpoint -q /var/lib || mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /var/lib/egret /var/lib/kubelet /var/lib/containerd /var/log/pods /etc/cni/net.d /opt/cni/bin
# Further plugins are installed into memory as well.
mkdir -p "$here/over/cni.upper" "$here/over/cni.work"
mount -t overlay -o "lowerdir=$plugins,upperdir=$here/over/cni.upper,workdir=$here/over/cni.work" overlay /opt/cni/bin

# The host has a sysfs of its own, so all existing control group hierarchies have to be mounted there again.
if [ "$(cat /proc/self/cgroup | wc -l)" = 1 ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p "/sys/fs/cgroup/$group"
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while IFS=: read -r _ controllers _; do
    case $controllers in
      '') type=cgroup2 options=rw folder=unified ;;
      name=*) type=cgroup options=none,$controllers folder=${controllers#name=} ;;
      *) type=cgroup options=$controllers folder=$controllers ;;
    esac
    folder=/sys/fs/cgroup/$folder
    mkdir -p "$folder"
    mount -t "$type" -o "$options" cgroup "$folder"
    # A group without processors and memory nodes takes no process, and children do not inherit them.
    parent=$folder
    for part in $(echo "$group" | tr / ' '); do
      mkdir -p "$parent/$part"
      for file in cpuset.cpus cpuset.mems; do
        if [ -f "$parent/$file" ] && [ "$type" = cgroup ]; then cat "$parent/$file" >"$parent/$part/$file"; fi
      done
      parent=$parent/$part
    done
  done </proc/self/cgroup
fi

# The kubelet sets these for the whole machine and does not start if it cannot: here they already have its values.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  name=${setting%%=*}
  file=$here/settings/$(echo "$name" | tr / .)
  echo "${setting#*=}" >"$file"
  if [ -e "/proc/sys/$name" ]; then mount --bind "$file" "/proc/sys/$name"; fi
done
: >"$here/resolv.conf"

# Otherwise mounts of the node do not reach pods that ask for them (HostToContainer).
mount --make-rshared /
