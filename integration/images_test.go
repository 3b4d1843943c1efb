package integration

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// mirrorHost is the host of the machine's own Debian mirror, as apt has it.
func mirrorHost(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		data, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			line, _, _ = strings.Cut(line, "#")
			for _, word := range strings.Fields(line) {
				if u, err := url.Parse(word); err == nil && strings.HasPrefix(u.Scheme, "http") && u.Hostname() != "" {
					return u.Hostname()
				}
			}
		}
	}
	t.Skip("no Debian mirror over http in /etc/apt")
	return ""
}

// registry starts Debian's docker-registry on loopback and returns its address; its data goes with the test.
func registry(t *testing.T) string {
	t.Helper()
	program := harness.Need(t, "docker-registry", "docker-registry")
	dir := t.TempDir()
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config := write(t, filepath.Join(dir, "config.yml"), fmt.Sprintf(
		"version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n",
		filepath.Join(dir, "data"), addr))
	cmd := exec.Command(program, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	harness.Eventually(t, 20*time.Second, "the registry listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return addr
}

// push copies an OCI layout to the registry with skopeo and returns the reference.
func push(t *testing.T, layout, addr, name string, flags ...string) string {
	t.Helper()
	ref := addr + "/" + name + ":latest"
	args := append([]string{"copy", "-q", "--dest-tls-verify=false"}, flags...)
	skopeo(t, append(args, "oci:"+layout+":latest", "docker://"+ref)...)
	return ref
}

// skopeo runs it without the machine's credentials and gives what it prints. Where there is no XDG_RUNTIME_DIR it looks
// in /run/containers, which root's podman may have made for itself alone.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	harness.Need(t, "skopeo", "skopeo")
	cmd := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...)
	cmd.Env = append(os.Environ(), "REGISTRY_AUTH_FILE="+filepath.Join(t.TempDir(), "auth.json"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// prepared gives a file or directory that the driver made for all, named in the environment.
func prepared(t *testing.T, variable, what, how string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("no %s: %s", what, how)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func debianImage(t *testing.T) string {
	t.Helper()
	return prepared(t, "URUN_DEBIAN_IMAGE", "Debian image", "mmdebstrap needs the package mirror, and root or subordinate ids")
}

func TestDebianImageFromARegistry(t *testing.T) {
	layout := debianImage(t)
	ref := push(t, layout, registry(t), "debian/minbase")
	r := harness.Urun(t, "pull", ref)
	r.OK()
	harness.Urun(t, "images").Has("debian/minbase")
	harness.Urun(t, "run", "--rm", ref, "cat", "/etc/debian_version").Has("12")
	harness.Urun(t, "run", "--rm", ref, "sh", "-c", "dpkg -l | grep -c ^ii; perl -e 'print 6*7'").Has("42")
	harness.Urun(t, "run", "--rm", ref, "dpkg", "--verify").Says("")
	harness.Urun(t, "run", "--rm", ref, "sh", "-c", "stat -c %a:%U:%G /usr/bin/passwd /etc/shadow /tmp").Has("4755:root:", "640:", "1777:root:root")
	// By digest; and a tag that is not there.
	digest := strings.TrimSpace(skopeo(t, "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+ref))
	harness.Urun(t, "run", "--rm", strings.TrimSuffix(ref, ":latest")+"@"+digest, "true").OK()
	if r := harness.Urun(t, "pull", strings.TrimSuffix(ref, "latest")+"nosuchtag"); r.Code == 0 || !strings.Contains(r.Stderr, "nosuchtag") {
		t.Errorf("%s", r)
	}
	harness.Urun(t, "rmi", ref).OK()
}

func mustOutput(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// Formats of one image: docker's manifest, an index by platform's absence, archives. All give the same tree.
func TestImageSources(t *testing.T) {
	layout := harness.DemoLayout()
	addr := registry(t)
	want := harness.Run(t, "/probe", "list", "/demo").OK()
	dir := t.TempDir()
	archive := func(transport string) string {
		file := filepath.Join(dir, transport)
		skopeo(t, "copy", "-q", "oci:"+layout+":latest", transport+":"+file+":demo:latest")
		return transport + ":" + file
	}
	for name, ref := range map[string]string{
		"registry, OCI manifest":    push(t, layout, addr, "demo-oci"),
		"registry, docker manifest": push(t, layout, addr, "demo-v2s2", "--format", "v2s2"),
		"registry, zstd":            push(t, layout, addr, "demo-zstd", "--dest-compress-format", "zstd"),
		"docker-archive":            archive("docker-archive"),
		"oci-archive":               archive("oci-archive"),
		"oci without a tag":         "oci:" + layout,
		"oci with a tag":            "oci:" + layout + ":latest",
	} {
		t.Run(name, func(t *testing.T) { harness.Urun(t, "run", "--rm", ref, "/probe", "list", "/demo").Says(want) })
	}
}

// The nine-layer image inside a container against the same image unpacked by umoci as root.
func TestTreesAreThoseThatUmociUnpacks(t *testing.T) {
	nine := prepared(t, "URUN_NINE", "nine-layer image", "umoci unpacks the reference as root")
	reference := filepath.Join(nine, "list")
	ref := push(t, filepath.Join(nine, "image"), registry(t), "nine")
	harness.Urun(t, "pull", "--quiet", ref).OK()
	compareTrees(t, reference, harness.Urun(t, "run", "--rm", ref).OK(), harness.Ranges(t))
	// And as keep-id has it: owners inside are the image's all the same.
	if harness.Ranges(t) {
		compareTrees(t, reference, harness.Urun(t, "run", "--rm", "--userns=keep-id", "-u", "0", ref).OK(), true)
	}
	harness.Urun(t, "rmi", ref).OK()
}

// compareTrees compares listings line by line. Without a range of ids an owner other than root cannot be shown.
func compareTrees(t *testing.T, reference, listing string, owners bool) {
	t.Helper()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	want, got := lines(string(data), owners), lines(listing, owners)
	if len(want) < 49000 {
		t.Fatalf("the reference has %d entries", len(want))
	}
	slices.Sort(want)
	slices.Sort(got)
	bad := 0
	report := func(sign, line string) {
		if bad++; bad <= 10 {
			t.Errorf("%s %.300s", sign, line)
		}
	}
	i, j := 0, 0
	for i < len(want) || j < len(got) {
		switch {
		case j == len(got) || i < len(want) && want[i] < got[j]:
			report("unpacked:", want[i])
			i++
		case i == len(want) || got[j] < want[i]:
			report("urun:    ", got[j])
			j++
		default:
			i++
			j++
		}
	}
	if bad > 0 {
		t.Errorf("%d differing lines, of %d", bad, len(want))
	}
}

func lines(s string, owners bool) (all []string) {
	for sc := bufio.NewScanner(strings.NewReader(s)); sc.Scan(); {
		line := sc.Text()
		if !owners {
			fields := strings.Fields(line)
			for k, f := range fields {
				if strings.HasPrefix(f, "owner=") {
					fields[k] = "owner=any"
				}
			}
			line = strings.Join(fields, " ")
		}
		all = append(all, line)
	}
	return all
}
