package slirp

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	tunName = "tun0"
	// loIndex: the loopback device is the first of every network namespace (net/core/dev.c,
	// LOOPBACK_IFINDEX).
	loIndex = 1
)

// Configure sets up the network namespace of the calling thread: loopback up, a TUN device (with NoTUN a veth device) with the
// container's addresses and default routes. The caller has locked the OS thread and holds CAP_NET_ADMIN
// over the namespace. The returned file is the TUN, to be handed to New in the helper. It blocks: one that does not would be put among what the
// runtime polls, in each process that holds it, and each packet would wake them all.
func Configure(cfg Config) (*os.File, error) {
	return configure(cfg, "/dev/net/tun")
}

// ConfigureDevice is Configure for a thread whose root no longer has /dev/net/tun: dev is an open file
// of it (O_PATH is enough), nil with NoTUN. It is opened again through /proc/self/fd, because a TUN device belongs to the
// network namespace in which its file was opened (tun_chr_open, drivers/net/tun.c).
func ConfigureDevice(cfg Config, dev *os.File) (*os.File, error) {
	if dev == nil {
		return Configure(cfg)
	}
	return configure(cfg, "/proc/self/fd/"+strconv.Itoa(int(dev.Fd())))
}

// ConfigureLoopback brings loopback up in the network namespace of the calling thread, and does nothing
// else: the whole set-up of a container without a network.
func ConfigureLoopback() error {
	var b batch
	b.linkUp("lo", loIndex, 0)
	return b.send()
}

func configure(cfg Config, path string) (*os.File, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	ipv6 := !cfg.NoIPv6 && HaveIPv6()
	var tun *os.File
	if cfg.NoTUN {
		tun, err = openVeth(cfg.MTU, ipv6)
	} else {
		tun, err = openTUN(path, tunName)
	}
	if err != nil {
		return nil, err
	}
	index, err := linkIndex(tunName)
	if err != nil {
		return nil, errors.Join(err, tun.Close())
	}
	var b batch
	b.linkUp("lo", loIndex, 0)
	if ipv6 {
		b.noLinkLocal(tunName, index)
	}
	b.linkUp(tunName, index, cfg.MTU)
	b.address(tunName, index, cfg.Address4)
	b.defaultRoute(tunName, index, cfg.Gateway4)
	if ipv6 {
		b.address(tunName, index, cfg.Address6)
		b.localRoute(tunName, index, cfg.Address6.Addr())
		b.defaultRoute(tunName, index, cfg.Gateway6)
	}
	if err := b.send(); err != nil {
		return nil, errors.Join(err, tun.Close())
	}
	return tun, nil
}

// HaveIPv6 tells whether the kernel has IPv6 (it may be booted with ipv6.disable=1; then addresses are
// refused with EOPNOTSUPP).
func HaveIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

// openTUN makes a TUN device with virtio headers and segmentation offload: the kernel hands over TCP
// segments of up to 64 KiB with the checksum left to do, and takes the same.
func openTUN(path, name string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("name tun device %s: %w", name, err), unix.Close(fd))
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, errors.Join(fmt.Errorf("make tun device %s: %w", name, err), unix.Close(fd))
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return nil, errors.Join(fmt.Errorf("set offloads of %s: %w", name, err), unix.Close(fd))
	}
	// Closing the last descriptor would unregister the device, for which the closing process waits in rcu_barrier
	// (some 20 ms). A persistent device goes with its network namespace, in the kernel's own time.
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("keep tun device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tun:"+name), nil
}

func linkIndex(name string) (int32, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	return int32(ifr.Uint32()), nil
}
