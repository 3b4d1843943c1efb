package state

import "net/netip"

// Endpoint is a container's place in a network.
type Endpoint struct {
	Network   string `json:"network"` // its name
	NetworkID string `json:"networkID"`
	// Aliases are names of the container in this network, besides its own.
	Aliases []string `json:"aliases,omitempty"`
	// Static4, Static6 and StaticMAC are what the user asked for.
	Static4   netip.Addr `json:"static4,omitzero"`
	Static6   netip.Addr `json:"static6,omitzero"`
	StaticMAC string     `json:"staticMAC,omitempty"`

	// What the container has while it runs. The prefixes are those of the network.
	Interface string       `json:"interface,omitempty"`
	IPv4      netip.Prefix `json:"ipv4,omitzero"`
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	MAC       string       `json:"mac,omitempty"`
}

// Endpoint gives the container's place in a network; nil if it has none.
func (r *Record) Endpoint(network string) *Endpoint {
	for i := range r.Networks {
		if r.Networks[i].Network == network {
			return &r.Networks[i]
		}
	}
	return nil
}
