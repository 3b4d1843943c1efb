package monitor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/thrift"
	"github.com/urun-dev/urun/slirp"
)

// Network is the main function of the stage that moves the container's network
// traffic (P4).
func Network() { helper(networkStage) }

// helper runs the main function of a stage whose failure the monitor is told.
func helper(run func(*handoff.Conn) error) {
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	if err := run(parent); err != nil {
		if errors.Is(err, io.EOF) {
			os.Exit(0) // the monitor is gone, and the container with it
		}
		_ = parent.Send(KindFailed, stage.Failure(err))
		os.Exit(125)
	}
	os.Exit(0)
}

func networkStage(parent *handoff.Conn) error {
	// What only the start needed goes back once; with traffic the process is never idle for long.
	var memory thrift.Thrift
	memory.Busy()
	m, err := parent.Expect(KindPorts)
	if err != nil {
		return err
	}
	var cfg slirp.Config
	if err := m.Decode(&cfg); err != nil {
		return err
	}
	l, err := slirp.Listen(cfg)
	if err != nil {
		return err
	}
	if err := parent.Send(KindListening, l.Ports()); err != nil {
		return err
	}
	m, err = parent.Expect(KindAttach)
	if err != nil {
		return err
	}
	var first Attach
	if err := m.Decode(&first); err != nil {
		return err
	}
	if len(m.Files) == 0 {
		return errors.New("attach network: got no files")
	}
	redirect, driver := m.Files[1:], slirp.DriverKernel
	if len(redirect) == 0 {
		driver = slirp.DriverNetstack
	}
	runtime.GOMAXPROCS(slirp.WantedProcs(driver))
	n, err := l.Attach(m.Files[0], slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if driver == slirp.DriverKernel {
		n.OnFallback(func(driver, reason string) {
			// Nobody depends on the record's being right.
			_ = parent.Send(KindDriver, Driver{driver, reason})
		})
		if err := n.UseKernel(&slirp.Redirect{Files: redirect}); err != nil {
			return err
		}
	}
	if err := slirp.Lockdown(); err != nil {
		return err
	}
	if len(first.Frame) > 0 {
		n.Replay(first.Frame)
	}
	go publishMore(parent, n)
	return n.Serve(context.Background())
}

// published are ports as the record has them. One that was published on all
// addresses is there once for each family, as docker shows it.
func published(ports []slirp.PortMapping) []state.Port {
	var all []state.Port
	for _, p := range ports {
		hosts := []netip.Addr{p.HostIP}
		if !p.HostIP.IsValid() {
			hosts = []netip.Addr{netip.IPv4Unspecified()}
			if slirp.HaveIPv6() {
				hosts = append(hosts, netip.IPv6Unspecified())
			}
		}
		for _, ip := range hosts {
			all = append(all, state.Port{HostIP: ip.String(), HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
		}
	}
	return all
}
