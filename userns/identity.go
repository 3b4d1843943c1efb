package userns

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// Identity is the user on whose behalf a namespace is made.
type Identity struct {
	UID, GID int
	// Name is the login name, "" if the user has none. Only grants of
	// subordinate ids are looked up by it, and newuidmap checks them again, so
	// a wrong name can lose ids but not gain any.
	Name string
}

// Current returns the effective ids of this process. Name comes from
// /etc/passwd, else from getent(1) (users of a directory service, which a binary
// without cgo does not see otherwise), else from $USER.
func Current() Identity {
	id := Identity{UID: os.Geteuid(), GID: os.Getegid()}
	uid := strconv.Itoa(id.UID)
	if u, err := user.LookupId(uid); err == nil && u.Username != "" {
		id.Name = u.Username
		return id
	}
	if out, err := exec.Command("getent", "passwd", uid).Output(); err == nil {
		if name, _, ok := strings.Cut(string(out), ":"); ok {
			id.Name = name
			return id
		}
	}
	id.Name = os.Getenv("USER")
	return id
}

func (id Identity) String() string {
	if id.Name != "" {
		return id.Name
	}
	return "uid " + strconv.Itoa(id.UID)
}
