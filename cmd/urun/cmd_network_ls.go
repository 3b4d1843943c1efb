package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
)

// networkFilters are the keys for networks.
func networkFilters(users map[string]int) filterKeys[*network.Network] {
	labels := func(n *network.Network) map[string]string { return n.Labels }
	return filterKeys[*network.Network]{
		"name": func(value string) (func(*network.Network) bool, error) {
			return func(n *network.Network) bool { return strings.Contains(n.Name, value) }, nil
		},
		"id": func(value string) (func(*network.Network) bool, error) {
			return func(n *network.Network) bool { return strings.HasPrefix(n.ID, value) }, nil
		},
		"dangling": boolFilter(func(n *network.Network) bool { return users[n.Name] == 0 }),
		"internal": boolFilter(func(n *network.Network) bool { return n.Internal }),
		"driver":   wordFilter([]string{"bridge"}, func(*network.Network) string { return "bridge" }),
		"scope":    wordFilter([]string{"local"}, func(*network.Network) string { return "local" }),
		"type":     wordFilter([]string{"custom"}, func(*network.Network) string { return "custom" }),
		"label":    labelFilter(labels),
		"label!":   noLabelFilter(labels),
		"until":    untilFilter(func(n *network.Network) time.Time { return n.Created }),
	}
}

// NetworkLsCmd lists networks.
type NetworkLsCmd struct {
	Quiet   bool     `short:"q" help:"Print ids only."`
	NoTrunc bool     `name:"no-trunc" help:"Print ids in full."`
	Format  string   `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .ID .Name .Driver .Scope .IPv6 .Internal .Labels .Label .CreatedAt .Subnets .Containers."`
	Filter  []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"Only networks with this name, id, label[=value], dangling=true|false, internal=true|false or until=TIME."`
}

// networkRow is a network as docker network ls shows it.
type networkRow struct {
	ID, Name, Driver, Scope, IPv6, Internal, Labels, CreatedAt, Subnets, Containers string

	labels map[string]string
}

// Label is the value of one label, for templates.
func (r networkRow) Label(key string) string { return r.labels[key] }

// Run prints the list.
func (c *NetworkLsCmd) Run(app *App) error {
	st, _, all, err := app.allNetworks()
	if err != nil {
		return err
	}
	records, err := st.List()
	if err != nil {
		return err
	}
	users := map[string]int{}
	for _, r := range records {
		for _, ep := range r.Networks {
			users[ep.Network]++
		}
	}
	keep, err := parseFilters(c.Filter, networkFilters(users))
	if err != nil {
		return err
	}
	var rows []networkRow
	for _, n := range all {
		if keep.match(n) {
			rows = append(rows, c.row(n, users[n.Name]))
		}
	}
	format := c.Format
	switch {
	case format == "" && c.Quiet:
		format = "{{.ID}}"
	case format == "" || format == "table":
		format = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
	}
	return printFormat(app.Stdout, format, networkRow{
		ID: "NETWORK ID", Name: "NAME", Driver: "DRIVER", Scope: "SCOPE", IPv6: "IPV6", Internal: "INTERNAL",
		Labels: "LABELS", CreatedAt: "CREATED AT", Subnets: "SUBNETS", Containers: "CONTAINERS",
	}, rows)
}

func (c *NetworkLsCmd) row(n *network.Network, users int) networkRow {
	r := networkRow{
		ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: "local",
		IPv6: strconv.FormatBool(n.IPv6()), Internal: strconv.FormatBool(n.Internal),
		CreatedAt: n.Created.Local().Format(time.RFC3339), Subnets: n.Subnet4.String(), Containers: fmt.Sprint(users),
		labels: n.Labels,
	}
	if !c.NoTrunc {
		r.ID = n.ID[:12]
	}
	if n.IPv6() {
		r.Subnets += "," + n.Subnet6.String()
	}
	r.Labels = labelText(n.Labels)
	return r
}

// NetworkInspectCmd shows networks.
type NetworkInspectCmd struct {
	Format   string   `short:"f" placeholder:"json|TEMPLATE" help:"A Go template for each, instead of JSON."`
	Networks []string `arg:"" name:"network"`
}

// Run prints the networks that there are and tells of those that there are not.
func (c *NetworkInspectCmd) Run(app *App) error {
	return (&InspectCmd{Format: c.Format, Type: "network", Names: c.Networks}).Run(app)
}

// inspectedNet is a network as docker network inspect shows it.
type inspectedNet struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       inspectedIPAM
	Internal   bool
	Containers map[string]inspectedMember // that run
	Options    map[string]string
	Labels     map[string]string
}

type inspectedIPAM struct {
	Driver string
	Config []inspectedSubnet
}

type inspectedSubnet struct{ Subnet, Gateway string }

// inspectedMember is a container on the network.
type inspectedMember struct {
	Name        string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

func (a *App) inspectNetwork(ref string) (any, error) {
	nets, err := a.networks()
	if err != nil {
		return nil, err
	}
	n, err := nets.Find(ref)
	if err != nil {
		return nil, err
	}
	st, err := state.Open(a.stateRoot())
	if err != nil {
		return nil, err
	}
	i := &inspectedNet{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true, EnableIPv6: n.IPv6(),
		IPAM:     inspectedIPAM{Driver: "default", Config: []inspectedSubnet{{n.Subnet4.String(), n.Gateway4.String()}}},
		Internal: n.Internal, Containers: map[string]inspectedMember{}, Options: n.Options, Labels: n.Labels,
	}
	if n.IPv6() {
		i.IPAM.Config = append(i.IPAM.Config, inspectedSubnet{n.Subnet6.String(), n.Gateway6.String()})
	}
	members, err := network.Members(st, n, "")
	for _, r := range members {
		ep := r.Endpoint(n.Name)
		i.Containers[r.ID] = inspectedMember{Name: r.Name, MacAddress: ep.MAC, IPv4Address: prefixText(ep.IPv4), IPv6Address: prefixText(ep.IPv6)}
	}
	return i, err
}

// prefixText is "" for none.
func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
