package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

// vendor writes a specification of a vendor that does not exist, for devices that every machine has.
func vendor(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	library := filepath.Join(dir, "libfake.so")
	if err := os.WriteFile(library, []byte("library\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// As vendors' hooks do, it finds the root by the bundle that the state on its input names.
	script := filepath.Join(dir, "hook")
	if err := os.WriteFile(script, []byte(`#!/bin/sh -e
field() { sed 's/.*"'"$1"'":"\([^"]*\)".*/\1/'; }
root=$(sed 's/.*"root":{\("path":"[^"]*"\).*/\1/' "$(field bundle)/config.json" | field path)
[ -e "$root/dev/fake0" ]
[ "$1" != fail ] || { echo "the vendor's hook has failed" >&2; exit 3; }
[ "$1" != hang ] || exec sleep 100
echo "$1 $HOOK" >"$root/etc/hooked"
`), 0o755); err != nil {
		t.Fatal(err)
	}
	text := `cdiVersion: "0.6.0"
kind: fake.com/gpu
containerEdits:
  env: [FAKE_ALL=yes]
  deviceNodes: [{path: /dev/fake0, hostPath: /dev/zero}, {path: /dev/fake-null, hostPath: /dev/null}]
  mounts: [{hostPath: ` + library + `, containerPath: /opt/fake/libfake.so, options: [ro, nosuid, nodev, rbind, rprivate]}]
devices:
- name: "0"
  containerEdits:
    env: [FAKE_DEVICE=0]
    hooks: [{hookName: createContainer, path: ` + script + `, args: [hook, link], env: ["HOOK=ran", "PATH=/usr/bin:/bin"]}]
- {name: inside, containerEdits: {hooks: [{hookName: startContainer, path: /bin/sh, args: [sh, -c, "echo inside >/etc/started"], env: ["PATH=/usr/bin:/bin"]}]}}
- {name: fails, containerEdits: {hooks: [{hookName: createContainer, path: ` + script + `, args: [hook, fail], env: ["PATH=/usr/bin:/bin"]}]}}
- {name: hangs, containerEdits: {hooks: [{hookName: createContainer, path: ` + script + `, args: [hook, hang], timeout: 1, env: ["PATH=/usr/bin:/bin"]}]}}
- {name: outside, containerEdits: {hooks: [{hookName: poststop, path: /bin/true}]}}
`
	if err := os.WriteFile(filepath.Join(dir, "fake.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCDIDevices(t *testing.T) {
	dir := vendor(t)
	look := `echo $FAKE_ALL $FAKE_DEVICE; cat /etc/hooked /opt/fake/libfake.so; head -c 2 /dev/fake0 | wc -c; echo x >/dev/fake-null
(echo x >>/opt/fake/libfake.so) 2>/dev/null || echo read-only`
	const seen = "yes 0\nlink ran\nlibrary\n2\nread-only"
	for _, storage := range storages {
		name := detach(t, []string{"--storage", storage, "--cdi-spec-dir", dir, "--device", "fake.com/gpu=0"}, "sleep", "1000")
		harness.Urun(t, "exec", name, "sh", "-c", look).Says(seen)
		harness.Urun(t, "inspect", "-f", "{{range .HostConfig.DeviceRequests}}{{.Driver}} {{.DeviceIDs}}{{end}}", name).Says("cdi [fake.com/gpu=0]")
		harness.Urun(t, "stop", "-t", "0", name).OK()
		harness.Urun(t, "start", name).OK()
		harness.Urun(t, "exec", name, "sh", "-c", look).Says(seen)
	}
	t.Setenv("CDI_SPEC_DIRS", dir)
	harness.Sh(t, "--device", "fake.com/gpu=inside", "--read-only", "cat /etc/started || echo $FAKE_ALL").Exits(125)
	harness.Sh(t, "--device", "fake.com/gpu=inside", "cat /etc/started").Says("inside")
	harness.Sh(t, "--device", "fake.com/gpu=0", "--writable", "none", "cat /etc/hooked; echo $FAKE_DEVICE").Says("link ran\n0")
	for device, words := range map[string][]string{
		"fails": {"hook", "the vendor's hook has failed"}, "hangs": {"timeout of 1 s"}, "outside": {"poststop", "createContainer and startContainer"},
		"9": {"no such device", dir, "hint: there are fake.com/gpu=0"},
	} {
		r := harness.Sh(t, "--device", "fake.com/gpu="+device, "true")
		r.Refused(words...)
		if n := strings.Count(r.Stderr, "\n"); n > 2 {
			t.Errorf("%s\nwant an error and a hint", r)
		}
	}
	harness.Urun(t, "ps", "-aq", "--filter", "status=created").Says("")
}
