package monitor

import (
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/slirp"
)

// Kinds of messages to a network stage that serves: ports to publish and to take back, []slirp.PortMapping. The answer is
// KindListening with the same, KindFailed, or KindDone.
const (
	KindPublish   = "publish"
	KindUnpublish = "unpublish"
)

// publishMore publishes what the stage is asked for while it serves, until the channel ends. Only the network stage of
// bridges is asked: containers come and go on those.
func publishMore(parent *handoff.Conn, n *slirp.Network) {
	for {
		m, err := parent.Recv()
		if err != nil {
			return
		}
		m.Close()
		if m.Kind == KindDrain {
			n.Drain(drainStalled)
			return
		}
		var ports []slirp.PortMapping
		err = m.Decode(&ports)
		kind, answer := KindDone, any(nil)
		if err == nil && m.Kind == KindPublish {
			kind = KindListening
			answer, err = n.Publish(ports)
		} else if err == nil {
			err = n.Unpublish(ports)
		}
		if err != nil {
			kind, answer = KindFailed, stage.Failure(err)
		}
		if parent.Send(kind, answer) != nil {
			return
		}
	}
}
