package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// Union is the main function of the stage that serves an image (P2).
func Union() { helper(union) }

// Network is the main function of the stage that moves the container's network
// traffic (P4).
func Network() { helper(network) }

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
		_ = parent.Send(KindFailed, stage.Failed{Error: err.Error(), Hint: hintOf(err), Code: 125})
		os.Exit(125)
	}
	os.Exit(0)
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func union(parent *handoff.Conn) error {
	m, err := parent.Expect(KindTree)
	if err != nil {
		return err
	}
	var img Image
	if err := m.Decode(&img); err != nil {
		return err
	}
	tree, err := fuseunion.OpenTree(img.Tree, img.Data)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	m, err = parent.Expect(KindServe)
	if err != nil {
		return err
	}
	if len(m.Files) != 1 {
		return fmt.Errorf("serve image: got %d files", len(m.Files))
	}
	// The image server only reads the caller's own files.
	if err := handoff.DropCapabilities(); err != nil {
		return err
	}
	if err := fuseunion.Serve(context.Background(), m.Files[0], tree, img.Serve); err != nil {
		return fmt.Errorf("serve image: %w", err)
	}
	return nil
}

func network(parent *handoff.Conn) error {
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
	if err := parent.Send(KindListening, published(l.Ports())); err != nil {
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
	if len(m.Files) != 1 {
		return fmt.Errorf("attach network: got %d files", len(m.Files))
	}
	n, err := l.Attach(m.Files[0], slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := slirp.Lockdown(); err != nil {
		return err
	}
	if len(first.Frame) > 0 {
		n.Replay(first.Frame)
	}
	return n.Serve(context.Background())
}

func published(ports []slirp.PortMapping) []state.Port {
	var all []state.Port
	for _, p := range ports {
		ip := p.HostIP
		if !ip.IsValid() {
			ip = netip.IPv4Unspecified()
		}
		all = append(all, state.Port{HostIP: ip.String(), HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
	}
	return all
}
