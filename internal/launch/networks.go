package launch

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// endpoints are the container's places in its networks, which must exist.
func endpoints(n spec.Network, root string) ([]state.Endpoint, error) {
	if len(n.Attachments) == 0 {
		return nil, nil
	}
	nets, err := network.Open(root)
	if err != nil {
		return nil, err
	}
	var all []state.Endpoint
	published := false
	for _, a := range n.Attachments {
		ep, nw, err := Endpoint(nets, a)
		if err != nil {
			return nil, err
		}
		published = published || !nw.Internal
		all = append(all, ep)
	}
	if len(n.Ports) > 0 && !published {
		return nil, &hintError{
			errors.New("conflicting options: port publishing and internal networks"),
			"an internal network has no way out or in: name one that is not with a second --network",
		}
	}
	return all, nil
}

// Endpoint is a place in a network, whose addresses are not chosen yet.
func Endpoint(nets *network.Store, a spec.Attachment) (state.Endpoint, *network.Network, error) {
	nw, err := nets.Find(a.Network)
	if errors.Is(err, network.ErrNotFound) {
		err = &hintError{err, "urun network ls shows those that there are; urun network create " + a.Network + " makes this one"}
	}
	if err != nil {
		return state.Endpoint{}, nil, fmt.Errorf("--network: %w", err)
	}
	return state.Endpoint{
		Network: nw.Name, NetworkID: nw.ID, Aliases: a.Aliases, Static4: a.IPv4, Static6: a.IPv6, StaticMAC: a.MAC,
	}, nw, nil
}
