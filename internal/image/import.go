package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions say what the image made of a root filesystem is to be.
type ImportOptions struct {
	Name     string   // name[:tag]; "" for none
	Changes  []string // Dockerfile instructions: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ...
	Message  string   // comment in the image's history
	Platform string   // "" is this machine's
}

// Import makes an image of one layer from a tar of a root filesystem, plain or compressed.
func (s *Store) Import(ctx context.Context, r io.Reader, opt ImportOptions) (*Image, error) {
	img, err := s.importTar(ctx, r, opt)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", s.explainSpace(err))
	}
	return img, nil
}

func (s *Store) importTar(ctx context.Context, r io.Reader, opt ImportOptions) (_ *Image, err error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	var names []Reference
	if opt.Name != "" {
		name, err := parseTagName(opt.Name)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	config, err := importConfig(opt)
	if err != nil {
		return nil, err
	}
	layer, diffID, err := s.importLayer(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, layer.release()) }()
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	f := &found{names: names, config: raw, layers: []blob{present(diffID)}}
	return s.add(ctx, f, wantPlatform{Platform: config.Platform}, &reporter{})
}

// present is a layer that the store has and that is pinned: nobody asks for its bytes.
func present(diffID digest.Digest) blob {
	return blob{digest: diffID, size: -1, open: func(context.Context, int64) (io.ReadCloser, error) {
		return nil, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
	}}
}

func importConfig(opt ImportOptions) (*ocispec.Image, error) {
	platform, err := ParsePlatform(opt.Platform)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	config := &ocispec.Image{
		Created:  &now,
		Platform: platform,
		History:  []ocispec.History{{Created: &now, CreatedBy: "urun import", Comment: opt.Message}},
	}
	for _, c := range opt.Changes {
		if err := applyChange(&config.Config, c); err != nil {
			return nil, fmt.Errorf("change %q: %w", c, err)
		}
	}
	return config, nil
}

// importLayer brings in a layer whose diffID is known only at its end.
func (s *Store) importLayer(ctx context.Context, r io.Reader) (_ *lockFile, _ digest.Digest, err error) {
	w, err := s.work(ctx, "import-"+rand.Text(), nil)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	diff := sha256.New()
	dir, err := writeLayer(w, func(data, index io.Writer) error {
		return indexStream(contextReader{ctx, r}, diff, data, index)
	})
	if err != nil {
		return nil, "", err
	}
	diffID := digest.NewDigestFromBytes(digest.SHA256, diff.Sum(nil))
	place, err := s.work(ctx, diffID.Encoded(), nil)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, place.close()) }()
	l, err := pin(s.layerData(diffID))
	if errors.Is(err, fs.ErrNotExist) {
		l, err = s.publishLayer(place, dir, diffID)
	}
	return l, diffID, err
}

// contextReader ends a read of a file or pipe when the context ends, at the next block.
type contextReader struct {
	ctx context.Context // the reader is the call
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// applyChange applies one Dockerfile instruction.
func applyChange(c *ocispec.ImageConfig, change string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return withHint(errors.New("want an instruction and its argument"), "such as 'CMD [\"nginx\"]' or 'ENV A=b'")
	}
	switch strings.ToUpper(word) {
	case "CMD":
		c.Cmd = commandOf(rest)
	case "ENTRYPOINT":
		c.Entrypoint = commandOf(rest)
	case "USER":
		c.User = rest
	case "WORKDIR":
		c.WorkingDir = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "ENV":
		return eachPair(rest, func(k, v string) { c.Env = SetEnv(c.Env, k, v) })
	case "LABEL":
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		return eachPair(rest, func(k, v string) { c.Labels[k] = v })
	case "EXPOSE":
		c.ExposedPorts = addAll(c.ExposedPorts, strings.Fields(rest), func(p string) string {
			if !strings.Contains(p, "/") {
				p += "/tcp"
			}
			return p
		})
	case "VOLUME":
		c.Volumes = addAll(c.Volumes, listOf(rest), func(p string) string { return p })
	default:
		return fmt.Errorf("instruction %s: %w", word, ErrUnsupported)
	}
	return nil
}

// SetEnv gives a variable a value, in its old place if it is there.
func SetEnv(env []string, name, value string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, name+"=") {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

func addAll(set map[string]struct{}, items []string, norm func(string) string) map[string]struct{} {
	if set == nil {
		set = make(map[string]struct{})
	}
	for _, i := range items {
		set[norm(i)] = struct{}{}
	}
	return set
}

// commandOf reads the exec form, a JSON array, or the shell form.
func commandOf(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}

func listOf(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return strings.Fields(s)
}

// eachPair reads k=v pairs, where v may be quoted, or the old form "k v".
func eachPair(s string, do func(k, v string)) error {
	if k, v, ok := strings.Cut(s, " "); ok && !strings.Contains(k, "=") {
		do(k, strings.TrimSpace(v))
		return nil
	}
	for s != "" {
		k, rest, ok := strings.Cut(s, "=")
		if !ok || k == "" || strings.ContainsAny(k, " \t\"") {
			return fmt.Errorf("want key=value at %q", s)
		}
		v, after, err := cutValue(rest)
		if err != nil {
			return err
		}
		do(k, v)
		s = strings.TrimLeft(after, " \t")
	}
	return nil
}

// cutValue takes one value off s, with quotes and backslashes read as a Dockerfile has them.
func cutValue(s string) (value, rest string, err error) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && (c == ' ' || c == '\t'):
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", fmt.Errorf("quote %c is not closed", quote)
	}
	return b.String(), "", nil
}
