package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Details are what `docker image inspect` shows of an image, under the same names.
type Details struct {
	ID            string `json:"Id"`
	RepoTags      []string
	RepoDigests   []string
	Parent        string
	Comment       string
	Created       string
	Author        string
	Config        json.RawMessage // as published
	Architecture  string
	Variant       string `json:",omitempty"`
	Os            string
	OsVersion     string `json:",omitempty"`
	Size          int64
	VirtualSize   int64
	GraphDriver   GraphDriver
	RootFS        RootFS
	Metadata      map[string]string
	DockerVersion string
	History       []ocispec.History
}

// RootFS lists the layers of an image.
type RootFS struct {
	Type   string
	Layers []digest.Digest
}

// GraphDriver says where the image lies.
type GraphDriver struct {
	Name string
	Data map[string]string
}

// Details gives what inspect shows.
func (img *Image) Details() (*Details, error) {
	var published struct {
		Config        json.RawMessage `json:"config"`
		Comment       string          `json:"comment"`
		DockerVersion string          `json:"docker_version"`
	}
	if err := json.Unmarshal(img.RawConfig, &published); err != nil {
		return nil, fmt.Errorf("image config %s: %w", img.ID, err)
	}
	if len(published.Config) == 0 || bytes.Equal(published.Config, []byte("null")) {
		published.Config = json.RawMessage("{}")
	}
	d := &Details{
		ID: img.ID.String(), RepoTags: familiar(img.Names), RepoDigests: familiar(img.Digests),
		Comment: published.Comment, Author: img.Config.Author, Config: published.Config,
		Architecture: img.Config.Architecture, Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion,
		Size: img.Size, VirtualSize: img.Size, DockerVersion: published.DockerVersion, History: img.Config.History,
		RootFS:      RootFS{Type: "layers", Layers: img.Config.RootFS.DiffIDs},
		GraphDriver: GraphDriver{Name: "fuseunion", Data: map[string]string{"Tree": img.Tree}},
		Metadata:    map[string]string{},
	}
	if d.RootFS.Layers == nil {
		d.RootFS.Layers = []digest.Digest{}
	}
	if !img.Created.IsZero() {
		d.Created = img.Created.UTC().Format(time.RFC3339Nano)
	}
	if n := len(img.Config.History); d.Comment == "" && n > 0 {
		d.Comment = img.Config.History[n-1].Comment
	}
	return d, nil
}

// familiar gives the short forms of canonical names.
func familiar(names []string) []string {
	short := make([]string, 0, len(names))
	for _, n := range names {
		if r, err := ParseReference(n); err == nil {
			n = r.Familiar()
		}
		short = append(short, n)
	}
	slices.Sort(short)
	return short
}

// ShortID is the first twelve digits of the id, which people type.
func (img *Image) ShortID() string { return img.ID.Encoded()[:12] }

// MatchesName says whether a name of the image matches a pattern of docker's reference filter: a name, with * and ?
// within a path component, with or without a tag. A malformed pattern matches nothing.
func (img *Image) MatchesName(pattern string) bool {
	for _, n := range slices.Concat(img.Names, img.Digests) {
		r, err := ParseReference(n)
		if err != nil {
			continue
		}
		for _, form := range []string{r.Familiar(), r.FamiliarName(), r.String(), r.Name()} {
			if ok, err := path.Match(pattern, form); ok && err == nil {
				return true
			}
		}
	}
	return false
}
