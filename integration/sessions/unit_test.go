package sessions

import (
	"os/exec"
	"strings"
	"testing"
)

// unitScript has what the tests of a unit share: becomes waits for a line that a command prints.
const unitScript = `
becomes() { # WANT COMMAND...
	want=$1; shift
	for i in $(seq 300); do
		[ "$("$@" 2>&1)" != "$want" ] || return 0
		sleep 0.5
	done
	echo "$* says $("$@" 2>&1), want $want"
	systemctl --user status --no-pager container-unit || :
	$urun ps -a
	return 1
}
state() { $urun inspect -f '{{.State.Status}} {{.State.ExitCode}}' unit; }
active() { systemctl --user is-active container-unit; }
`

// A unit of urun generate systemd is enabled, starts with the user's manager, which is at login or, of who lingers, at boot, starts
// the container again when it fails, and stops it cleanly.
func TestRootAUnitStartsWithTheManagerAndAfterFailures(t *testing.T) {
	needsRoot(t)
	t.Cleanup(func() {
		login(t, "alice", unitScript+`
			systemctl --user disable --now container-unit || :
			rm -f ~/.config/systemd/user/container-unit.service
			systemctl --user daemon-reload
			$urun rm -f unit`)
	})
	login(t, "alice", unitScript+`
		image=$($urun pull --quiet $demo)
		$urun create --name unit $image sh -c 'trap "exit 0" TERM; while :; do sleep 0.2; done'
		$urun generate systemd --files unit
		systemctl --user daemon-reload
		systemctl --user enable --now container-unit
		becomes active active
		becomes 'running 0' state`)

	// A failure is not the end.
	out := login(t, "alice", unitScript+`
		pid() { $urun inspect -f '{{.State.Pid}}' unit; }
		first=$(pid)
		kill -KILL $first
		for i in $(seq 300); do
			second=$(pid)
			[ "$second" = "$first" ] || [ "$second" = 0 ] || break
			sleep 0.5
		done
		becomes active active
		becomes 'running 0' state
		echo "pids $first $second"
		echo "restarts $(systemctl --user show -p NRestarts --value container-unit)"`)
	if !strings.Contains(out, "restarts 1") {
		t.Errorf("%s\nwant one restart by systemd", out)
	}

	// The manager begins anew, as at boot or login: the container comes with it.
	run(t, exec.Command("sh", "-ec", `systemctl restart user@$(id -u alice).service`))
	login(t, "alice", unitScript+`
		becomes active active
		becomes 'running 0' state`)

	// It stops within its time, and that is no failure.
	out = login(t, "alice", unitScript+`
		systemctl --user stop container-unit
		becomes inactive active
		becomes 'exited 0' state
		echo "result $(systemctl --user show -p Result --value container-unit)"`)
	if !strings.Contains(out, "result success") {
		t.Errorf("%s\nwant a clean stop", out)
	}
}
