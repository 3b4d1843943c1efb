package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Policy says when a pull goes to the source.
type Policy string

// Policies. The zero value is PolicyAlways.
const (
	PolicyAlways  Policy = "always"  // ask the source which image the name stands for
	PolicyMissing Policy = "missing" // only if the store has no such name
	PolicyNever   Policy = "never"   // use what the store has, or fail
)

// maxParallel bounds the layers that are fetched at the same time.
const maxParallel = 4

// PullOptions say how to pull.
type PullOptions struct {
	Platform string       // os/arch[/variant]; "" is this machine's
	Insecure bool         // --tls-verify=false: accept any certificate, and plain http from any host
	Policy   Policy       // "" is PolicyAlways
	Auth     *Credentials // nil: look into the user's docker and podman config
	Progress func(Event)  // called by one goroutine at a time; may be nil
}

// Pull brings an image into the store. ref is a registry reference, with or without docker://, or oci:DIR[:TAG], oci-archive:FILE[:TAG],
// docker-archive:FILE[:REF]. Layers that the store has are not fetched; a pull that was broken off goes on after its last
// finished layer; two pulls of the same layer share one.
func (s *Store) Pull(ctx context.Context, ref string, opt PullOptions) (*Image, error) {
	img, err := s.pull(ctx, ref, opt)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, s.explainSpace(err))
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref string, opt PullOptions) (*Image, error) {
	want, err := parseWant(opt.Platform)
	if err != nil {
		return nil, err
	}
	kind, location, local := splitTransport(ref)
	switch opt.Policy {
	case "", PolicyAlways:
	case PolicyMissing, PolicyNever:
		img, err := s.resolve(ref)
		missing := errors.Is(err, ErrNotFound) || errors.Is(err, ErrIncomplete)
		if err == nil && want.check(img) == nil || opt.Policy == PolicyNever || err != nil && !missing {
			return img, err
		}
	default:
		return nil, fmt.Errorf("pull policy %q: want always, missing or never", opt.Policy)
	}
	if err := s.writable(); err != nil {
		return nil, err
	}
	rep := &reporter{fn: opt.Progress}
	rep.report(Event{Kind: EventResolve, Ref: ref})
	if local {
		return s.pullLocal(ctx, kind, location, want, rep)
	}
	return s.pullRegistry(ctx, strings.TrimPrefix(ref, "docker://"), want, opt, rep)
}

func parseWant(platform string) (wantPlatform, error) {
	p, err := ParsePlatform(platform)
	return wantPlatform{Platform: p, explicit: platform != ""}, err
}

func (s *Store) pullRegistry(ctx context.Context, ref string, want wantPlatform, opt PullOptions, rep *reporter) (*Image, error) {
	name, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if name.Registry == "localhost" {
		return nil, withHint(ErrNotFound, "localhost/... names images that came from no registry; give the port of a registry on this machine, localhost:5000/...")
	}
	auth, err := chooseAuth(name, opt.Auth)
	if err != nil {
		return nil, err
	}
	reg, err := connect(ctx, name, registryOptions{insecure: opt.Insecure, auth: auth, rep: rep})
	if err != nil {
		return nil, err
	}
	defer reg.client.CloseIdleConnections()
	raw, dgst, err := reg.top(ctx)
	if err != nil {
		return nil, err
	}
	f, err := resolveManifest(ctx, reg, raw, want)
	if err != nil {
		return nil, err
	}
	byDigest := name
	byDigest.Tag, byDigest.Digest = "", dgst
	f.names = []Reference{byDigest}
	if name.Tag != "" {
		name.Digest = ""
		f.names = append(f.names, name)
	}
	return s.add(ctx, f, want, rep)
}

func chooseAuth(ref Reference, given *Credentials) (authn.Authenticator, error) {
	if given == nil {
		return findAuth(ref)
	}
	return authn.FromConfig(authn.AuthConfig{Username: given.Username, Password: given.Password}), nil
}

// add brings what was found into the store: layers, merged tree, config, names, in this order, so that
// what is visible is always whole.
func (s *Store) add(ctx context.Context, f *found, want wantPlatform, rep *reporter) (_ *Image, err error) {
	img, err := s.describe(f.config)
	if err != nil {
		return nil, err
	}
	if err := want.check(img); err != nil {
		return nil, err
	}
	if len(f.layers) != len(img.Layers) {
		return nil, fmt.Errorf("manifest has %d layers but config has %d: %w", len(f.layers), len(img.Layers), ErrDigest)
	}
	rep.report(foundEvent(f))
	pins, err := s.addLayers(ctx, f, img, rep)
	defer func() { err = errors.Join(err, pins.release()) }()
	if err != nil {
		return nil, err
	}
	tree, err := s.pinnedTree(ctx, img)
	if err != nil {
		return nil, err
	}
	pins.add(tree)
	config, err := s.commit(ctx, img, f.names)
	if err != nil {
		return nil, err
	}
	pins.add(config) // a prune at this moment leaves it until it has been read back
	img, err = s.load(img.ID)
	if err != nil {
		return nil, err
	}
	img.addNames(f.names)
	rep.report(Event{Kind: EventImage, ID: img.ID})
	return img, nil
}

func foundEvent(f *found) Event {
	e := Event{Kind: EventFound, Count: len(f.layers)}
	for _, l := range f.layers {
		e.Total += max(l.size, 0)
	}
	return e
}

// pins are locks on files that the store's committed images do not protect yet.
type pins struct {
	mu    sync.Mutex
	locks []*lockFile
}

func (p *pins) add(l *lockFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.locks = append(p.locks, l)
}

func (p *pins) release() error {
	var errs []error
	for _, l := range p.locks {
		errs = append(errs, l.release())
	}
	return errors.Join(errs...)
}

// addLayers fetches what is missing. The pins are valid also beside an error.
func (s *Store) addLayers(ctx context.Context, f *found, img *Image, rep *reporter) (*pins, error) {
	held := new(pins)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxParallel)
	seen := make(map[digest.Digest]bool)
	for _, i := range largestFirst(f.layers) {
		l := img.Layers[i]
		if seen[l.DiffID] {
			continue // an image may have a layer twice, an empty one say
		}
		seen[l.DiffID] = true
		g.Go(func() error {
			lock, err := s.ingestLayer(ctx, f.layers[i], l.DiffID, rep)
			if err == nil {
				held.add(lock)
			}
			return err
		})
	}
	return held, g.Wait()
}

// largestFirst orders layers so that no large one is left alone at the end, with one core idle.
func largestFirst(layers []blob) []int {
	order := make([]int, len(layers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(layers[b].size, layers[a].size) })
	return order
}

// commit makes the image visible, and pins it.
func (s *Store) commit(ctx context.Context, img *Image, names []Reference) (_ *lockFile, err error) {
	l, err := s.lockStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	if err := s.writeFiles(append(s.configFiles(img), s.nameFiles(img.ID, names...)...)...); err != nil {
		return nil, err
	}
	return pin(s.configPath(img.ID))
}
