package integration

import (
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// A web server's life as its user sees it.
func TestWebServer(t *testing.T) {
	image := toolsImage(t)
	name := unique(t)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", "-v", name).OK() })
	harness.Urun(
		t, "run", "-d", "--name", name, "-p", "127.0.0.1::8000", "-w", "/srv", "--restart", "on-failure", "--stop-timeout", "20",
		"--health-cmd", "python3 -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/\")'", "--health-interval", "200ms",
		image, "sh", "-ec", "echo first >>/srv/page; exec python3 -u -m http.server 8000",
	).OK()
	page := func() string {
		resp, err := http.Get("http://" + harness.Urun(t, "port", name, "8000").OK() + "/page")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		return string(body)
	}
	serves := func(what, want string) {
		t.Helper()
		harness.Eventually(t, 60*time.Second, what, func() bool { return page() == want })
	}
	serves("the page is served", "first\n")
	harness.Eventually(t, 60*time.Second, "it is healthy", func() bool {
		return strings.Contains(harness.Urun(t, "ps", "--filter", "name=^"+name+"$", "--format", "{{.Status}}").OK(), "(healthy)")
	})
	follow := exec.Command(harness.Binary, "logs", "-f", name)
	var log strings.Builder
	follow.Stdout, follow.Stderr = &log, &log
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Urun(t, "exec", "-w", "/srv", name, "sh", "-c", "echo by exec >>page").OK()
	serves("what exec wrote is served", "first\nby exec\n")

	// A crash is a case for the restart policy.
	harness.Urun(t, "exec", name, "sh", "-c", "kill -KILL $(pidof python3) || kill -TERM 1").OK()
	started := time.Now()
	harness.Urun(t, "stop", name).OK()
	if took := time.Since(started); took > 25*time.Second {
		t.Errorf("stop took %v", took)
	}
	if err := follow.Wait(); err != nil || !strings.Contains(log.String(), "GET /page") {
		t.Errorf("logs -f: %v: %s", err, log.String())
	}
	harness.Urun(t, "start", name).OK()
	harness.Eventually(t, 60*time.Second, "it serves again with its data", func() bool {
		return strings.HasPrefix(page(), "first\nby exec\nfirst\n")
	})
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Urun(t, "inspect", name).Exits(1)
}

// What a database has said is written outlives stop and start, and a kill of everything.
func TestPostgreSQLOutlivesKills(t *testing.T) {
	image := toolsImage(t)
	name, volume := unique(t), unique(t)
	t.Cleanup(func() {
		harness.Urun(t, "rm", "-f", name).OK()
		harness.Urun(t, "volume", "rm", "-f", volume).OK()
	})
	// A volume of its own name belongs to root: its owner is changed first. With one id there is one way not to be root,
	// which initdb refuses.
	var flags []string
	enter := "chown postgres /data; exec setpriv --reuid postgres --regid postgres --clear-groups"
	if !harness.Ranges(t) {
		flags, enter = []string{"--userns=keep-id"}, "exec"
	}
	args := append([]string{"run", "-d", "--name", name, "-v", volume + ":/data", "-e", "LC_ALL=C", "--network", "none", "--stop-signal", "INT"}, flags...)
	server := `PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); test -s /data/d/PG_VERSION || initdb --no-sync -D /data/d -U postgres >/dev/null; exec postgres -D /data/d -k /tmp`
	args = append(args, image, "sh", "-ec", enter+` sh -ec '`+server+`'`)
	harness.Urun(t, args...).OK()
	sql := func(query string) *harness.Result {
		return harness.Urun(t, "exec", name, "psql", "-qtA", "-h", "/tmp", "-U", "postgres", "postgres", "-c", query)
	}
	ready := func() {
		t.Helper()
		harness.Eventually(t, 2*time.Minute, "the database answers", func() bool { return sql("select 1").Code == 0 })
	}
	ready()
	sql("create table t(x int); insert into t select generate_series(1, 1000)").OK()

	harness.Urun(t, "stop", "-t", "60", name).OK()
	harness.Urun(t, "wait", name).Says("0") // by SIGINT it ends in order
	harness.Urun(t, "start", name).OK()
	ready()
	sql("select count(*), sum(x) from t").Says("1000|500500")

	// All at once, in the midst of writing.
	for round := range 2 {
		writer := exec.Command(harness.Binary, "exec", name, "sh", "-c", "i=0; while psql -qtA -h /tmp -U postgres postgres -c \"insert into t values (0)\" && i=$((i+1)) && echo $i; do :; done")
		var told strings.Builder
		writer.Stdout = &told
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(700 * time.Millisecond) // lets some be written; none would do as well
		kill9(t, inspect(t, name, ".Monitor.PID"))
		_ = writer.Wait()
		committed := len(strings.Fields(told.String()))
		harness.Eventually(t, 30*time.Second, "its end is known", func() bool {
			return strings.Contains(harness.Urun(t, "ps", "-a", "--filter", "name=^"+name+"$", "--format", "{{.Status}}").OK(), "Exited (137)")
		})
		harness.Urun(t, "start", name).OK()
		ready()
		if got := len(strings.Fields(sql("delete from t where x = 0 returning 1").OK())); got < committed {
			t.Errorf("round %d: %d inserts were acknowledged, %d are there", round, committed, got)
		}
		sql("select count(*), sum(x) from t").Says("1000|500500")
	}
}
