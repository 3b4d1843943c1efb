package ladder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urun-dev/urun/internal/doctor"
)

// kept is the cache file's content.
type kept struct {
	Key    string                  `json:"key"`
	Trials map[string]doctor.Trial `json:"trials"`
}

// attempts returns the results of attempts on this machine, kept or made now.
func attempts(ctx context.Context, o Options, m mounts) (map[string]doctor.Trial, error) {
	key := cacheKey(o, m)
	var k kept
	data, err := os.ReadFile(o.Cache)
	if err == nil && json.Unmarshal(data, &k) == nil && k.Key == key {
		return k.Trials, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Debug("what was found out earlier can not be read", "error", err)
	}
	trials, err := doctor.TryMounts(ctx, o.Exe, o.Map)
	if err != nil {
		return nil, err
	}
	if err := keep(o.Cache, kept{key, trials}); err != nil {
		// It costs the next start a few milliseconds, and no more.
		o.Log.Debug("what was found out can not be kept", "error", err)
	}
	return trials, nil
}

// cacheKey is another one on another boot or kernel, in another container, for another id map.
func cacheKey(o Options, m mounts) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte(err.Error())
	}
	ns, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		ns = err.Error()
	}
	// The first is the number of the list of attempts, for what an older urun has kept.
	const attempts = "2"
	sum := sha256.Sum256([]byte(strings.Join(append(m.lines, attempts, string(boot), ns, o.Map.String()), "\x00")))
	return hex.EncodeToString(sum[:16])
}

func keep(name string, k kept) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".probe-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep %s: %w", name, err), os.Remove(tmp.Name()))
	}
	return nil
}
