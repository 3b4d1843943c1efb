package holder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/urun-dev/urun/cgdelegate"
)

// CgroupName is the name of the cgroup of the container id whose monitor is the process
// monitor, in its holder's scope.
func CgroupName(id string, monitor int) string { return "urun-" + id + "." + strconv.Itoa(monitor) }

// killTime bounds the wait for the end of processes that were killed.
const killTime = 10 * time.Second

// removeCgroups removes what a monitor that has ended left in the holder's scope: it
// removes it by itself unless it is killed.
func removeCgroups(monitor int) error {
	// The holder is in its scope's supervisor leaf, if it has a scope.
	own, err := cgdelegate.Of(os.Getpid())
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(own), CgroupName("*", monitor)))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	for _, dir := range left {
		scope := cgdelegate.Open(dir)
		err = errors.Join(err, scope.Kill(), scope.WaitEmpty(ctx), scope.Remove())
	}
	return err
}
