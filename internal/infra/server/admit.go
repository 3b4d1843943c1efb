package server

import (
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/infra"
)

// grace is how long the process stays without a container: the next one may come at once.
const grace = 2 * time.Second

// end ends the process if it has no member still.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.members) == 0 && s.spawned == 0 {
		s.finish()
	}
}

// admit starts a monitor for a command, in this process's user namespace.
func (s *server) admit(conn *handoff.Conn) {
	defer conn.Close()
	m, err := conn.Expect(infra.KindAdmit)
	if err != nil {
		return
	}
	var a infra.Admit
	if err := m.Decode(&a); err != nil {
		return
	}
	if !s.reserve(a.Map) {
		return // the process is ending; the command starts another
	}
	defer s.release()
	if a.Map != s.Map {
		_ = conn.Send(infra.KindFailed, errOtherUser)
		return
	}
	if conn.Send(infra.KindDone, nil) != nil {
		return
	}
	m, err = conn.Expect(handoff.KindSpawn)
	if err != nil {
		return
	}
	spawner := handoff.Spawner{Exe: s.exe, Allowed: []string{handoff.Monitor}, Keeper: s.holder.Another}
	if cmd := spawner.Answer(conn, m); cmd != nil {
		_ = cmd.Wait() // reaps it; its end concerns its own command
	}
}

// reserve keeps the process from ending while a monitor lives that it started. It is false where the process ends,
// also to make room for one with another id map.
func (s *server) reserve(mapKey string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mapKey != s.Map && len(s.members) == 0 && s.spawned == 0 {
		s.finish()
	}
	if s.ending {
		return false
	}
	s.spawned++
	s.timer.Stop()
	return true
}

func (s *server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spawned--
	s.rest()
}

// rest starts the time after which a process that nobody needs ends; s.mu is held.
func (s *server) rest() {
	if len(s.members) == 0 && s.spawned == 0 {
		s.timer = time.AfterFunc(grace, s.end)
	}
}

// finish ends the process; s.mu is held.
func (s *server) finish() {
	if !s.ending {
		s.ending = true
		s.listener.Close()
		close(s.ended)
	}
}
