package main

import (
	"cmp"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/state"
)

// containerStates are docker's words for where a container is in its life.
var containerStates = []string{"created", "running", "paused", "restarting", "removing", "exited", "dead"}

// containerFilters are the keys for containers.
func (a *App) containerFilters(st *state.Store) filterKeys[*state.Record] {
	labels := func(rec *state.Record) map[string]string { return rec.Labels }
	return filterKeys[*state.Record]{
		"id":       patternFilter(func(rec *state.Record) string { return rec.ID }),
		"name":     patternFilter(func(rec *state.Record) string { return rec.Name }),
		"status":   wordFilter(containerStates, func(rec *state.Record) string { return string(shownStatus(rec)) }),
		"label":    labelFilter(labels),
		"label!":   noLabelFilter(labels),
		"ancestor": a.ancestorFilter,
		"exited": func(value string) (func(*state.Record) bool, error) {
			code, err := strconv.Atoi(value)
			if err != nil {
				return nil, errors.New("want an exit status, a number")
			}
			return func(rec *state.Record) bool { return rec.Status == state.Exited && rec.ExitCode == code }, nil
		},
		"health":  wordFilter([]string{"starting", "healthy", "unhealthy", "none"}, healthOf),
		"volume":  func(value string) (func(*state.Record) bool, error) { return volumeFilter(st, value), nil },
		"network": func(value string) (func(*state.Record) bool, error) { return networkFilter(st, value), nil },
		"publish": publishFilter,
		"before": func(value string) (func(*state.Record) bool, error) {
			other, err := st.Find(value)
			return func(rec *state.Record) bool { return rec.Created.Before(other.Created) }, err
		},
		"since": func(value string) (func(*state.Record) bool, error) {
			other, err := st.Find(value)
			return func(rec *state.Record) bool { return rec.Created.After(other.Created) }, err
		},
		"until": untilFilter(createdAt),
		// podman's, for a unit that starts containers when the machine has come up.
		"restart-policy": wordFilter([]string{"no", "on-failure", "always", "unless-stopped"}, func(rec *state.Record) string {
			return cmp.Or(rec.Restart.Policy, "no")
		}),
		"should-start-on-boot": boolFilter(func(rec *state.Record) bool { return rec.Restart.OnBoot() }),
	}
}

// patternFilter matches, as docker's, a regular expression: ^web$ is web alone.
func patternFilter(get func(*state.Record) string) func(string) (func(*state.Record) bool, error) {
	return func(value string) (func(*state.Record) bool, error) {
		// docker's names begin with a slash.
		re, err := regexp.Compile(strings.Replace(value, "^/", "^", 1))
		if err != nil {
			return nil, err
		}
		return func(rec *state.Record) bool { return re.MatchString(get(rec)) }, nil
	}
}

// ancestorFilter matches containers of an image, by name or id.
func (a *App) ancestorFilter(value string) (func(*state.Record) bool, error) {
	id := ""
	if store, err := a.Store(); err == nil {
		if img, err := store.Resolve(value); err == nil {
			id = img.ID.String()
		} else if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
	}
	return func(rec *state.Record) bool {
		return rec.Image == value || id != "" && rec.ImageID == id || len(value) >= 4 && strings.HasPrefix(rec.ImageID, "sha256:"+value)
	}, nil
}

// volumeFilter matches containers with a volume, by its name or by a path on
// either side.
func volumeFilter(st *state.Store, value string) func(*state.Record) bool {
	return func(rec *state.Record) bool {
		if slices.Contains(rec.NamedVolumes, value) || slices.ContainsFunc(rec.Volumes, func(dir string) bool { return filepath.Base(dir) == value }) {
			return true
		}
		s, err := st.Spec(rec.ID)
		return err == nil && slices.ContainsFunc(userMounts(rec, s, st), func(m mountPoint) bool {
			return m.Destination == value || m.Source == value
		})
	}
}

func networkFilter(st *state.Store, value string) func(*state.Record) bool {
	return func(rec *state.Record) bool {
		s, err := st.Spec(rec.ID)
		return err == nil && slices.Contains(networksOf(rec, s), value)
	}
}

// publishFilter is publish=PORT[/PROTOCOL], the port on either side.
func publishFilter(value string) (func(*state.Record) bool, error) {
	port, proto, _ := strings.Cut(value, "/")
	if proto == "" {
		proto = "tcp"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, errors.New("want PORT[/PROTOCOL]")
	}
	return func(rec *state.Record) bool {
		return slices.ContainsFunc(rec.Ports, func(p state.Port) bool {
			return (p.HostPort == uint16(n) || p.ContainerPort == uint16(n)) && p.Protocol == proto
		})
	}, nil
}

// unknownHealth is docker's word for a container without a health check.
const unknownHealth = "none"

func healthOf(rec *state.Record) string {
	if rec.Health == nil {
		return unknownHealth
	}
	return rec.Health.Status
}

// networksOf names the networks that a container is in.
func networksOf(rec *state.Record, s *specs.Spec) []string {
	if len(rec.Networks) == 0 {
		return []string{networkMode(rec, s)}
	}
	var names []string
	for _, ep := range rec.Networks {
		names = append(names, ep.Network)
	}
	return names
}
