#!/bin/sh
# A user manager of systemd in namespaces of its own, which can write to one folder and nothing else of this machine.
#
# usage: unshare --mount --pid --fork --kill-child --mount-proc sh user_manager.sh FOLDER CGROUP
#
# Every step is checked before the next one, and systemd is started only when it was seen that nothing outside FOLDER
# can be written: a manager that believes to own the machine would otherwise tidy the machine up.
set -eu
folder=$1 cgroup=$2

stop() { echo "not possible here: $1" >&2; exit 77; }

[ "$$" = 1 ] || stop "this is no PID namespace of its own"
mount --make-rprivate / || stop "mounts cannot be made private"
mount --bind "$folder" "$folder" || stop "the folder cannot be bound"
mount -o remount,bind,ro / || stop "the root cannot be made read-only"
for place in / /tmp /var /etc /usr "$(dirname "$folder")"; do
    if touch "$place/.agentd-probe" 2>/dev/null; then
        rm -f "$place/.agentd-probe"
        stop "$place can still be written"
    fi
done
touch "$folder/.agentd-probe" || stop "the folder cannot be written"
mount -t tmpfs none /dev/shm || stop "no tmpfs for /dev/shm"
mount -t tmpfs none /run || stop "no tmpfs for /run"
mkdir -p /run/systemd/system /run/user/0
mount -t cgroup2 none /sys/fs/cgroup || stop "no cgroup2"
mkdir -p "/sys/fs/cgroup/$cgroup"
echo 1 >"/sys/fs/cgroup/$cgroup/cgroup.procs" || stop "no cgroup of its own"

# The log of this machine is not ours to read, and its audit not ours to switch on.
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nForwardToSyslog=no\nForwardToWall=no\n' >/run/journald.conf
mount --bind /run/journald.conf /etc/systemd/journald.conf || stop "journald cannot be configured"

cat >/run/manager.sh <<'END'
set -eu
folder=$1
umount /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
[ "$(cat /proc/self/cgroup | sed -n 's/^0:://p')" = / ] || { echo "not possible here: no cgroup namespace" >&2; exit 77; }
mount --make-rshared /
cd "$folder"
env -i PATH="$PATH" LC_ALL=C /lib/systemd/systemd-journald >"$folder/journald.log" 2>&1 &
env -i PATH="$PATH" HOME="$folder/home" LC_ALL=C TMPDIR="$folder/tmp" XDG_RUNTIME_DIR=/run/user/0 \
    XDG_CONFIG_HOME="$folder/config" SYSTEMD_UNIT_PATH="$folder/config/systemd/user" SYSTEMD_LOG_TARGET=console \
    ${3:-/lib/systemd/systemd} --user --unit=default.target >"$folder/manager.log" 2>&1 &
wait $!
END
exec unshare --cgroup sh /run/manager.sh "$folder" "$cgroup" ${3:-}
