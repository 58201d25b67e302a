#!/bin/busybox sh
# The guest's first process: this machine's files, read-only below a layer in memory, then the command.
# xtask fills in @RELEASE@ and @MODULES@.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev

fail() {
    echo "vm: $*"
    $busybox poweroff -f
}

while read -r module; do
    $busybox insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

$busybox mount -t virtiofs -o ro root /ro || fail "cannot mount the machine's files"
$busybox mount -t tmpfs tmpfs /rw
$busybox mkdir /rw/upper /rw/work
$busybox mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new || fail "cannot mount the layer"

$busybox mount -t proc proc /new/proc
$busybox mount -t sysfs sysfs /new/sys
$busybox mount -t devtmpfs devtmpfs /new/dev
$busybox mkdir -p /new/dev/pts /new/dev/shm
$busybox mount -t devpts devpts /new/dev/pts
$busybox mount -t tmpfs tmpfs /new/dev/shm
# What runs on the machine itself leaves pid files and sockets here; they mean nothing in the guest.
$busybox mount -t tmpfs tmpfs /new/run
$busybox mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
$busybox mount -t bpf bpf /new/sys/fs/bpf
$busybox mount -t debugfs debugfs /new/sys/kernel/debug
$busybox mount -t tracefs tracefs /new/sys/kernel/tracing 2>/dev/null
$busybox mkdir -p "/new/lib/modules/@RELEASE@"
$busybox mount --bind "/new@MODULES@" "/new/lib/modules/@RELEASE@"

$busybox ip link set lo up
$busybox hostname spanwire-vm
$busybox cp /command /new/run/command
$busybox chroot /new /bin/sh /run/command </dev/console >/dev/console 2>&1
echo $? >/dev/ttyS1
$busybox sync
# The kernel would say goodbye on the console.
echo 0 >/proc/sys/kernel/printk
$busybox poweroff -f
