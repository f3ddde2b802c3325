#!/bin/sh
# The system manager of systemd as PID 1 of a machine of its own, made of namespaces: its /usr is this machine's, read
# only; all else is new and in memory: /etc, /var, /run, /tmp, /dev, the network (a loopback), the process table.
#
# usage: unshare --mount --pid --fork --kill-child --ipc --uts --net sh system_manager.sh FOLDER CGROUP HOME PACKAGES
#
# FOLDER/opt/agentd becomes /opt/agentd. HOME: of the Python that runs it, seen as /opt/python unless it is below /usr.
# PACKAGES: what agentd needs, seen as /opt/packages.
#
# This machine's own files are out of reach before systemd is started: the old root is detached, what is bound from it
# is read only, and the capabilities that reach past namespaces (modules, clock, raw devices, reboot, audit) are gone.
set -eu
folder=$1 cgroup=$2 home=$3 packages=$4
root=$folder/root

stop() { echo "not possible here: $1" >&2; exit 77; }
read_only() { mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" || stop "$1 cannot be bound read-only"; }

[ "$$" = 1 ] || stop "this is no PID namespace of its own"
mount --make-rprivate / || stop "mounts cannot be made private"
mkdir -p "$root"
mount -t tmpfs -o mode=755 none "$root" || stop "no tmpfs"
cd "$root"
mkdir -p usr etc/systemd/system var run proc sys dev opt/agentd opt/python opt/packages root home
mkdir -m 1777 tmp
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then
        ln -s "$(readlink "/$name")" "$name"
    elif [ -d "/$name" ]; then
        mkdir "$name" && read_only "/$name" "$name"
    fi
done
read_only /usr usr
case $home in /usr | /usr/*) ;; *) read_only "$home" opt/python ;; esac
read_only "$packages" opt/packages
mount --bind "$folder/opt/agentd" opt/agentd || stop "the program cannot be bound"
for name in passwd group nsswitch.conf ld.so.cache ld.so.conf ld.so.conf.d ssl ca-certificates alternatives; do
    if [ -e "/etc/$name" ]; then cp -a "/etc/$name" etc/; fi
done
# A Python that was built to be found elsewhere finds its library here.
if ls opt/python/lib/libpython*.so* >/dev/null 2>&1; then
    { echo /opt/python/lib; cat /etc/ld.so.conf; } >etc/ld.so.conf
    ldconfig -r . || stop "ldconfig cannot be run"
fi
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
echo agentd-test >etc/hostname
echo "127.0.0.1 localhost agentd-test" >etc/hosts

mount -t proc proc proc || stop "no /proc of its own"
for name in sys sysrq-trigger irq bus; do
    if [ -e "proc/$name" ]; then read_only "proc/$name" "proc/$name"; fi
done
mount -t sysfs -o ro sysfs sys || stop "no /sys of its own"
mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom tty; do
    touch "dev/$name" && mount --bind "/dev/$name" "dev/$name" || stop "no /dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts || stop "no terminals of its own"
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs none dev/shm
mount -t tmpfs -o mode=755 none run

mkdir run/cgroup
mount -t cgroup2 none run/cgroup || stop "no cgroup2"
mkdir -p "run/cgroup/$cgroup"
echo 1 >"run/cgroup/$cgroup/cgroup.procs" || stop "no cgroup of its own"
umount run/cgroup && rmdir run/cgroup

cat >run/manager.sh <<'END'
set -eu
mount -t cgroup2 none "$1/sys/fs/cgroup"
[ "$(sed -n 's/^0:://p' /proc/self/cgroup)" = / ] || { echo "not possible here: no cgroup namespace" >&2; exit 77; }
cd "$1"
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
mount --make-rshared /
for place in /usr /opt/packages; do
    if touch "$place/.agentd-probe" 2>/dev/null; then
        rm -f "$place/.agentd-probe"
        echo "not possible here: $place can still be written" >&2
        exit 77
    fi
done
setpriv --reuid 65534 --regid 65534 --clear-groups /opt/agentd/bin/python -c "import agentd.cli, msgspec" ||
    { echo "not possible here: another user cannot read this Python or its packages" >&2; exit 77; }
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=agentd-test \
    SYSTEMD_PROC_CMDLINE="systemd.unit=multi-user.target systemd.log_target=journal-or-kmsg systemd.show_status=no" \
    setpriv --bounding-set=-sys_module,-sys_rawio,-sys_boot,-sys_time,-syslog,-audit_control,-audit_read,-audit_write,-mknod \
    /lib/systemd/systemd --system
END
exec unshare --cgroup sh run/manager.sh "$root"
