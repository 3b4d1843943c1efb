package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/urun-dev/urun/integration/harness"
)

// terminal is a call of urun on a pty, and all that it wrote to it.
type terminal struct {
	t   *testing.T
	cmd *exec.Cmd
	pty *os.File

	mu  sync.Mutex
	out bytes.Buffer
	eof chan struct{}
}

func openTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	term := &terminal{t: t, cmd: exec.Command(harness.Binary, args...), eof: make(chan struct{})}
	p, err := pty.StartWithSize(term.cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	term.pty = p
	t.Cleanup(func() { p.Close() })
	go func() {
		defer close(term.eof)
		buf := make([]byte, 4096)
		for {
			n, err := p.Read(buf)
			term.mu.Lock()
			term.out.Write(buf[:n])
			term.mu.Unlock()
			if err != nil { // EIO: the other end is closed
				return
			}
		}
	}()
	return term
}

func (term *terminal) seen() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.ReplaceAll(term.out.String(), "\r\n", "\n")
}

// expect waits for text after what earlier calls have consumed.
func (term *terminal) expect(text string) {
	term.t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(term.seen(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			term.t.Fatalf("no %q in %q", text, term.seen())
		}
	}
}

func (term *terminal) send(text string) {
	term.t.Helper()
	if _, err := io.WriteString(term.pty, text); err != nil {
		term.t.Fatal(err)
	}
}

// status waits for the end.
func (term *terminal) status() int {
	term.t.Helper()
	done := make(chan struct{})
	go func() {
		_ = term.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		if err := term.cmd.Process.Kill(); err != nil {
			term.t.Error(err)
		}
		term.t.Fatalf("still running; said %q", term.seen())
	}
	return term.cmd.ProcessState.ExitCode()
}

func TestTerminal(t *testing.T) {
	term := openTerminal(t, harness.RunArgs("-it", "--", "sh", "-c",
		`tty; test -t 0 && test -t 1 && test -t 2 && echo all three; ls -l $(tty) | cut -c1; stty size; exit 9`)...)
	term.expect("all three")
	if code := term.status(); code != 9 {
		t.Errorf("status %d", code)
	}
	<-term.eof
	out := term.seen()
	if !strings.HasPrefix(out, "/dev/pts/0\n") && !strings.HasPrefix(out, "/dev/console\n") {
		t.Errorf("tty says %q", out)
	}
	if !strings.Contains(out, "24 80\n") {
		t.Errorf("stty size in %q, want 24 80", out)
	}
}

// What a container says at once, before the command is through with its start, must not pass a
// terminal that still edits lines: it would end its lines with two carriage returns.
func TestTerminalIsRawBeforeTheFirstOutput(t *testing.T) {
	for range 10 {
		term := openTerminal(t, harness.RunArgs("-it", "--", "echo", "first")...)
		if code := term.status(); code != 0 {
			t.Errorf("status %d", code)
		}
		<-term.eof
		if out := term.seen(); out != "first\n" {
			t.Fatalf("%q, want one carriage return in front of the newline", out)
		}
	}
}

func TestTerminalResize(t *testing.T) {
	term := openTerminal(t, harness.RunArgs("-it", "--", "sh", "-c", `trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done`)...)
	term.expect("ready")
	if err := pty.Setsize(term.pty, &pty.Winsize{Rows: 33, Cols: 111}); err != nil {
		t.Fatal(err)
	}
	term.expect("33 111")
	if code := term.status(); code != 0 {
		t.Errorf("status %d: %q", code, term.seen())
	}
}

func TestTerminalCtrlC(t *testing.T) {
	term := openTerminal(t, harness.RunArgs("-it", "--", "sh", "-c", `trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done`)...)
	term.expect("ready")
	term.send("\x03")
	term.expect("caught")
	if code := term.status(); code != 5 {
		t.Errorf("status %d", code)
	}
}

func TestTerminalEndOfInput(t *testing.T) {
	term := openTerminal(t, harness.RunArgs("-it", "--", "cat")...)
	term.send("line\n")
	term.expect("line\nline\n") // the echo, and cat's
	term.send("\x04")
	if code := term.status(); code != 0 {
		t.Errorf("status %d", code)
	}
}

func TestTerminalJobControl(t *testing.T) {
	harness.Need(t, "bash", "bash")
	term := openTerminal(t, harness.RunArgs("-it", "-e", "PS1=prompt> ", "--", "bash", "--norc", "--noprofile")...)
	term.expect("prompt> ")
	if strings.Contains(term.seen(), "no job control") {
		t.Errorf("bash says %q", term.seen())
	}
	term.send("sleep 100\n")
	time.Sleep(300 * time.Millisecond)
	term.send("\x1a")
	term.expect("Stopped")
	term.send("jobs; bg; kill %1; wait %1; echo status $((100+$?-100))\n")
	term.expect("status 143")
	term.send("exit 3\n")
	if code := term.status(); code != 3 {
		t.Errorf("status %d", code)
	}
}

func TestTerminalIsRestored(t *testing.T) {
	script := fmt.Sprintf("before=$(stty -g); %s run --rm -it %s true; after=$(stty -g); [ \"$before\" = \"$after\" ] && echo same || echo \"$before $after\"",
		harness.Binary, harness.DemoImage)
	c := exec.Command("sh", "-c", script)
	p, err := pty.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out := make([]byte, 0, 4096)
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		out = append(out, buf[:n]...)
		if err != nil {
			break
		}
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if !strings.HasSuffix(strings.TrimSpace(string(out)), "same") {
		t.Errorf("%q", out)
	}
}

// A program inside must not type into the terminal outside (CVE-2017-5226): its terminal is another one.
func TestTerminalInjectionStaysInside(t *testing.T) {
	term := openTerminal(t, harness.RunArgs("-it", "--", "sh", "-c", "/probe try tiocsti; echo end")...)
	term.expect("end")
	if code := term.status(); code != 0 {
		t.Errorf("status %d", code)
	}
}

func TestTerminalIsRefusedWithoutOne(t *testing.T) {
	harness.Run(t, "-it", "--", "true").Refused("terminal")
}
