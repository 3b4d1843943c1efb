package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/state"
)

// Ranks of a parallel program that one launcher starts on a node can share a container:
// then they are in one user namespace, where they may read each other's memory
// (process_vm_readv(2)). The container has an init that only waits. Each rank is the process
// that its launcher has started, which enters the container by itself; this monitor
// knows it by a pidfd, and ends the container when the last has ended, whoever that is.

// Ranks says that a container is one of ranks.
type Ranks struct {
	// Count is how many ranks are to come; 0: not known, the container ends with the last that is there.
	Count int `json:"count,omitempty"`
}

// Rank is one that comes; a pidfd of its process goes with it.
type Rank struct {
	// Job is the shell of the batch job that it belongs to, with which it ends.
	Job state.Process `json:"job,omitzero"`
}

// RankTicket is the answer to who joins. Its files are a pidfd of the container's init and its user
// namespace.
type RankTicket struct {
	Config     json.RawMessage `json:"config"`     // stage.Config of the container
	Namespaces int             `json:"namespaces"` // to join besides, by their CLONE_NEW* flags
}

// rankTime is how long a container waits for ranks while none is there.
const rankTime = 5 * time.Second

// attendance is who is there. It belongs to the goroutine that owns the container.
type attendance struct {
	here, come int
	waiting    *time.Timer
}

// admit lets a rank in: the process of which a pidfd comes along.
func (c *container) admit(conn *handoff.Conn, m *handoff.Message) error {
	if len(m.Files) != 1 {
		return fmt.Errorf("join: got %d files", len(m.Files))
	}
	var rank Rank
	if err := m.Decode(&rank); err != nil {
		return err
	}
	process := m.Files[0]
	m.Files = nil
	defer process.Close()
	init := c.running.Load()
	if init == nil {
		return errNotRunning
	}
	flags, err := foreignNamespaces(init.PID)
	if err != nil {
		return err
	}
	pidfd, err := init.Open()
	if err != nil {
		return err
	}
	if pidfd == nil {
		return errNotRunning
	}
	defer pidfd.Close()
	user, err := os.Open("/proc/self/ns/user")
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer user.Close()
	if err := c.ask(c.rankCame); err != nil {
		return err
	}
	// The rank is there until its process ends, whatever it makes of the answer.
	err = conn.Send(KindTicket, RankTicket{Config: c.Init, Namespaces: flags}, pidfd, user)
	if rank.Job.PID != 0 {
		go endRankWithJob(process, rank.Job)
	}
	err = errors.Join(err, state.AwaitEnd(process))
	c.events <- event{do: c.rankLeft, answer: make(chan error, 1)}
	return err
}

// rankGrace is what a rank has to end by itself when its job has.
const rankGrace = 5 * time.Second

// endRankWithJob ends a rank whose batch job's shell is gone, unless that is so because both end.
func endRankWithJob(process *os.File, job state.Process) {
	if job.Await() != nil {
		return
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		raw, err := process.SyscallConn()
		if err != nil {
			return // closed: it has ended
		}
		if raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }) != nil || err != nil {
			return
		}
		time.Sleep(rankGrace)
	}
}

func (c *container) rankCame() error {
	if c.stopping || c.running.Load() == nil {
		return errNotRunning
	}
	c.ranks.here++
	c.ranks.come++
	if c.ranks.waiting != nil {
		c.ranks.waiting.Stop()
		c.ranks.waiting = nil
	}
	return nil
}

func (c *container) rankLeft() error {
	c.ranks.here--
	c.awaitRanks()
	return nil
}

// awaitRanks ends a container of ranks in which nobody is: at once when all have been there, else
// when nobody comes for a time.
func (c *container) awaitRanks() {
	if c.Ranks == nil || c.ranks.here > 0 || c.stopping {
		return
	}
	if c.ranks.come > 0 && c.ranks.come >= c.Ranks.Count {
		c.kill("")
		return
	}
	c.ranks.waiting = time.AfterFunc(rankTime, func() {
		c.events <- event{answer: make(chan error, 1), do: func() error {
			if c.ranks.here == 0 {
				c.kill("")
			}
			return nil
		}}
	})
}

// endRankOrphans kills what ranks have left in the container's mount namespace: neither do they descend from this
// process, nor have they a pid namespace that ends.
func endRankOrphans(mounts string) error {
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("list processes: %w", err)
		}
		left := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // it has ended, or is a thread
			}
			// Read after the pidfd is open: it is of that very process. Others' cannot be read.
			if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/mnt"); err == nil && ns == mounts {
				left++
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may have ended
			}
			unix.Close(fd)
		}
		if left == 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// mountNamespace names the mount namespace of init.
func (c *container) mountNamespace() (string, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", c.handle.Init.PID))
	if err != nil {
		return "", fmt.Errorf("mount namespace of init: %w", err)
	}
	return name, nil
}
