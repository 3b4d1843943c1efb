package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions say what the image made of a container is to be.
type CommitOptions struct {
	Name      string              // name[:tag]; "" for none
	Config    ocispec.ImageConfig // what the container ran with
	Changes   []string            // Dockerfile instructions, applied to Config
	Author    string
	Message   string // comment in the image's history
	CreatedBy string // command in the image's history
}

// Commit makes an image of base, which the caller holds, and one layer more, a tar
// stream of what a container has changed.
func (s *Store) Commit(ctx context.Context, base *Image, layer io.Reader, opt CommitOptions) (*Image, error) {
	img, err := s.commitLayer(ctx, base, layer, opt)
	if err != nil {
		return nil, fmt.Errorf("commit image: %w", s.explainSpace(err))
	}
	return img, nil
}

func (s *Store) commitLayer(ctx context.Context, base *Image, r io.Reader, opt CommitOptions) (_ *Image, err error) {
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
	// Before the layer is read, which takes its time.
	for _, c := range opt.Changes {
		if err := applyChange(&opt.Config, c); err != nil {
			return nil, fmt.Errorf("change %q: %w", c, err)
		}
	}
	layer, diffID, err := s.importLayer(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, layer.release()) }()
	f := &found{names: names}
	for _, l := range base.Layers {
		f.layers = append(f.layers, present(l.DiffID))
	}
	f.layers = append(f.layers, present(diffID))
	rootfs := ocispec.RootFS{Type: "layers", DiffIDs: append(slices.Clone(base.Config.RootFS.DiffIDs), diffID)}
	if f.config, err = commitConfig(base, rootfs, opt); err != nil {
		return nil, err
	}
	return s.add(ctx, f, wantPlatform{Platform: base.Platform}, &reporter{})
}

// commitConfig is base's config with another layer. What the OCI type does not know
// stays, docker's Healthcheck for instance; what told of base's own making does not.
func commitConfig(base *Image, rootfs ocispec.RootFS, opt CommitOptions) ([]byte, error) {
	top, err := rawObject(base.RawConfig)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"container", "container_config", "id", "parent", "parent_id", "Size", "comment", "author"} {
		delete(top, key)
	}
	config, err := rawObject(top["config"])
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal"} {
		delete(config, key)
	}
	if err := setFields(config, opt.Config); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	history := append(slices.Clone(base.Config.History), ocispec.History{
		Created: &now, CreatedBy: opt.CreatedBy, Author: opt.Author, Comment: opt.Message,
	})
	fields := struct {
		Created *time.Time                 `json:"created"`
		Author  string                     `json:"author,omitempty"`
		Config  map[string]json.RawMessage `json:"config"`
		RootFS  ocispec.RootFS             `json:"rootfs"`
		History []ocispec.History          `json:"history"`
	}{&now, opt.Author, config, rootfs, history}
	if err := setFields(top, fields); err != nil {
		return nil, err
	}
	return json.Marshal(top)
}

// rawObject takes a JSON object apart; nothing and null are an empty one.
func rawObject(raw []byte) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if len(raw) == 0 {
		return fields, nil
	}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	return fields, nil
}

// setFields puts v's fields, as JSON has them, into an object.
func setFields(object map[string]json.RawMessage, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, &object)
}
