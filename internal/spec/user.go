package spec

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	mobyuser "github.com/moby/sys/user"
)

const keepGroups = "keep-groups"

// user resolves --user, or the image's user, in the image's own passwd and group.
func (b *builder) user() error {
	if b.c.Namespaces.User.Mode == "keep-id" && b.opt.User == "" {
		b.keepID()
	} else if err := b.lookupUser(); err != nil {
		return err
	}
	if err := b.addGroups(); err != nil {
		return err
	}
	return b.checkMapped()
}

// keepID runs the command as the caller, whatever the image says, and gives
// him a name if the image has none for his id.
func (b *builder) keepID() {
	u := b.c.Namespaces.User
	uid, gid := uint32(b.facts.UID), uint32(b.facts.GID)
	if u.UID != nil {
		uid = *u.UID
	}
	if u.GID != nil {
		gid = *u.GID
	}
	b.proc.User.UID, b.proc.User.GID = uid, gid
	name := b.facts.UserName
	if name == "" || strings.ContainsAny(name, ":\n") {
		name = fmt.Sprintf("user%d", uid)
	}
	if _, ok := b.passwd(int(uid)); !ok {
		b.c.PasswdLine = fmt.Sprintf("%s:x:%d:%d:%s:%s:/bin/sh\n", name, uid, gid, name, b.home())
	}
	if !hasGroup(b.facts.Group, int(gid)) {
		b.c.GroupLine = fmt.Sprintf("%s:x:%d:%s\n", name, gid, name)
	}
}

func (b *builder) lookupUser() error {
	spec := b.opt.User
	if spec == "" {
		spec = b.facts.Image.User
	}
	u, err := mobyuser.GetExecUser(spec, &mobyuser.ExecUser{Home: "/"}, reader(b.facts.Passwd), reader(b.facts.Group))
	if err != nil {
		return fmt.Errorf("user %q: %w", spec, err)
	}
	b.proc.User.UID, b.proc.User.GID = uint32(u.Uid), uint32(u.Gid)
	// Groups that only the image's group file asks for are dropped where they
	// do not exist, and all of them where setgroups(2) is not allowed
	// (user_namespaces(7)): nobody asked for them on the command line.
	for _, g := range u.Sgids {
		if b.c.RootEmulation != "" || b.facts.HaveSubIDs && mapped(b.facts.GIDMap, uint32(g)) {
			b.proc.User.AdditionalGids = append(b.proc.User.AdditionalGids, uint32(g))
		}
	}
	return nil
}

// addGroups is --group-add.
func (b *builder) addGroups() error {
	names := slices.Clone(b.opt.GroupAdd)
	if slices.Contains(names, keepGroups) {
		if len(names) > 1 {
			return conflict("--group-add keep-groups and other groups")
		}
		b.c.KeepGroups = true
		return nil
	}
	if len(names) == 0 {
		b.sortGroups()
		return nil
	}
	gids, err := mobyuser.GetAdditionalGroups(names, reader(b.facts.Group))
	if err != nil {
		return fmt.Errorf("--group-add: %w", err)
	}
	for _, g := range gids {
		if b.c.RootEmulation != "" {
			b.proc.User.AdditionalGids = append(b.proc.User.AdditionalGids, uint32(g))
			continue
		}
		if !b.facts.HaveSubIDs {
			return hint(subIDHint, "--group-add %s: without subordinate ids a container cannot set groups", strings.Join(names, ","))
		}
		if !mapped(b.facts.GIDMap, uint32(g)) {
			return hint(subIDHint, "--group-add: group id %d is not mapped into the container", g)
		}
		b.proc.User.AdditionalGids = append(b.proc.User.AdditionalGids, uint32(g))
	}
	b.sortGroups()
	return nil
}

func (b *builder) sortGroups() {
	slices.Sort(b.proc.User.AdditionalGids)
	b.proc.User.AdditionalGids = slices.Compact(b.proc.User.AdditionalGids)
}

const subIDHint = "more ids need subordinate ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, and the package uidmap"

func (b *builder) checkMapped() error {
	if b.c.RootEmulation != "" {
		return nil
	}
	u := b.proc.User
	cure := subIDHint
	if b.facts.HaveSubIDs {
		cure = "choose another --user, or get a wider range of subordinate ids"
	}
	if !mapped(b.facts.UIDMap, u.UID) {
		return hint(cure, "user id %d is not mapped into the container", u.UID)
	}
	if !mapped(b.facts.GIDMap, u.GID) {
		return hint(cure, "group id %d is not mapped into the container", u.GID)
	}
	return nil
}

// home is HOME: of the image's passwd; for a kept id that the image does not
// know, the caller's own if it is mounted, else the root.
func (b *builder) home() string {
	uid := b.proc.User.UID
	if u, ok := b.passwd(int(uid)); ok && u.Home != "" {
		return u.Home
	}
	if b.c.Namespaces.User.Mode == "keep-id" && b.facts.HomeDir != "" {
		for _, m := range b.mounts {
			if m.mount.Source == b.facts.HomeDir && m.mount.Destination == b.facts.HomeDir {
				return b.facts.HomeDir
			}
		}
	}
	return "/"
}

func (b *builder) passwd(uid int) (mobyuser.User, bool) {
	if b.facts.Passwd == nil {
		return mobyuser.User{}, false
	}
	// A file that cannot be parsed names nobody; lookupUser has reported it if it matters.
	list, err := mobyuser.ParsePasswdFilter(bytes.NewReader(b.facts.Passwd), func(u mobyuser.User) bool { return u.Uid == uid })
	if err != nil || len(list) == 0 {
		return mobyuser.User{}, false
	}
	return list[0], true
}

func hasGroup(data []byte, gid int) bool {
	if data == nil {
		return false
	}
	list, err := mobyuser.ParseGroupFilter(bytes.NewReader(data), func(g mobyuser.Group) bool { return g.Gid == gid })
	return err == nil && len(list) > 0
}

// reader is nil for a missing file: that is how package user is told so.
func reader(data []byte) io.Reader {
	if data == nil {
		return nil
	}
	return bytes.NewReader(data)
}
