package integration

import (
	"regexp"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

// mistake is a call that is to fail. MADE is a container that never ran, UP one that runs.
type mistake struct {
	args  string // a word of two single quotes is an empty one
	wants string // is in the first line
}

// mistakes has, of each command that takes one, a name that is nobody's, a container in the wrong state and a value that a flag
// does not take.
var mistakes = map[string][]mistake{
	"run":      {{"run --pull never nosuch true", "no such image"}, {"run --name UP IMAGE true", "already in use"}, {"run --memory x IMAGE", "--memory x"}, {"run --restart x IMAGE", "--restart x"}, {"run -p x IMAGE", "-p x"}, {"run --network nosuch IMAGE", "nosuch"}},
	"create":   {{"create --pull never nosuch true", "no such image"}, {"create --name UP IMAGE", "already in use"}, {"create --cpus x IMAGE", "--cpus"}},
	"start":    {{"start nosuch", "no such container"}, {"start --attach --detach-keys x-y MADE", "--detach-keys"}, {"start --all --filter x=y", "--filter x=y"}},
	"restart":  {{"restart nosuch", "no such container"}, {"restart -t x UP", "--time"}},
	"exec":     {{"exec nosuch true", "no such container"}, {"exec MADE true", "not running"}, {"exec --detach-keys x-y UP true", "--detach-keys"}},
	"attach":   {{"attach nosuch", "no such container"}, {"attach MADE", "not running"}, {"attach --detach-keys x-y UP", "--detach-keys"}},
	"rename":   {{"rename nosuch other", "no such container"}, {"rename MADE UP", "already in use"}, {"rename MADE ../x", "only [a-zA-Z0-9]"}},
	"ps":       {{"ps --format {{", "--format"}, {"ps --filter x=y", "--filter x=y"}, {"ps --filter status=x", "status=x"}, {"ps --last x", "--last"}},
	"stop":     {{"stop nosuch", "no such container"}, {"stop -t x UP", "--time"}},
	"kill":     {{"kill nosuch", "no such container"}, {"kill MADE", "not running"}, {"kill -s NOSUCH UP", "NOSUCH"}},
	"pause":    {{"pause nosuch", "no such container"}, {"pause MADE", "not running"}},
	"unpause":  {{"unpause nosuch", "no such container"}, {"unpause MADE", "not running"}},
	"update":   {{"update --memory 1g nosuch", "no such container"}, {"update --memory x UP", "--memory x"}, {"update UP", "no limit"}},
	"stats":    {{"stats --no-stream nosuch", "no such container"}, {"stats --no-stream --nosuch UP", "unknown flag --nosuch"}},
	"rm":       {{"rm nosuch", "no such container"}, {"rm UP", "is running"}, {"rm --nosuch UP", "unknown flag --nosuch"}},
	"logs":     {{"logs nosuch", "no such container"}, {"logs --since x UP", "--since"}, {"logs --tail x UP", "--tail x"}},
	"wait":     {{"wait nosuch", "no such container"}, {"wait --nosuch UP", "unknown flag"}},
	"port":     {{"port nosuch", "no such container"}, {"port UP 80", "does not publish port 80"}},
	"inspect":  {{"inspect nosuch", "no such object"}, {"inspect --type x UP", "--type"}, {"inspect -f {{ UP", "--format"}},
	"top":      {{"top nosuch", "no such container"}, {"top MADE", "not running"}, {"top UP -zz", "top: ps -z"}},
	"cp":       {{"cp nosuch:/x y", "no such container"}, {"cp UP:/nosuch y", "/nosuch"}, {"cp a b", "neither of the two"}},
	"diff":     {{"diff nosuch", "no such container"}, {"diff --format {{ UP", "--format"}},
	"commit":   {{"commit nosuch x", "no such container"}, {"commit --change NOSUCH UP x", "NOSUCH"}},
	"export":   {{"export nosuch", "no such container"}, {"export -o /nosuch/x UP", "create /nosuch/x"}},
	"events":   {{"events --since x", "--since"}, {"events --filter x=y", "--filter x=y"}, {"events --until 0s --format {{", "--format"}},
	"images":   {{"images --filter x=y", "--filter x=y"}, {"images --format {{", "--format"}},
	"info":     {{"info --format {{", "--format"}},
	"version":  {{"version --format {{", "--format"}},
	"generate": {{"generate systemd nosuch", "no such container"}, {"generate systemd --restart-policy x UP", "--restart-policy"}, {"generate nosuch", "unknown command"}},
	"container": {
		{"container inspect nosuch", "no such container"}, {"container prune --filter x=y", "--filter x=y"}, {"container", "name a command"}, {"container nosuch", "unknown command"},
	},
	"volume": {
		{"volume inspect nosuch", "no such volume"},
		{"volume rm nosuch", "no such volume"},
		{"volume create a/b", "only [a-zA-Z0-9]"},
		{"volume ls --filter x=y", "--filter x=y"},
		{"volume prune --filter x=y", "--filter x=y"},
		{"volume", "name a command"},
	},
	"network": {
		{"network inspect nosuch", "no such network"},
		{"network rm nosuch", "no such network"},
		{"network connect nosuch UP", "no such network"},
		{"network disconnect nosuch UP", "no such network"},
		{"network create --subnet x net", "--subnet x"},
		{"network create a/b", "only [a-zA-Z0-9]"},
		{"network ls --filter x=y", "--filter x=y"},
		{"network prune --filter x=y", "--filter x=y"},
		{"network", "name a command"},
	},
	"system": {{"system df --format {{", "--format"}, {"system prune --filter x=y", "--filter x=y"}, {"system", "name a command"}},
}

// life names the commands of a container's life; those of images have tests of their own.
var life = strings.Fields("run create start restart exec attach rename ps stop kill pause unpause update stats rm logs wait port inspect top cp diff commit export " +
	"container volume network system events generate info version images")

func TestEachMistakeIsOneLineWithAHint(t *testing.T) {
	up := detach(t, nil, "sleep", "1000")
	made := up + "-made"
	harness.Urun(t, "create", "--name", made, harness.DemoImage, "true").OK()
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", made).OK() })
	help := harness.Urun(t, "--help").OK()
	words := strings.NewReplacer("UP", up, "MADE", made, "IMAGE", harness.DemoImage)
	for _, command := range life {
		if !regexp.MustCompile(`(?m)^  ` + command + ` `).MatchString(help) {
			t.Errorf("urun --help does not list %s", command)
		}
		if len(mistakes[command]) == 0 {
			t.Errorf("no mistake of urun %s is tried", command)
		}
		for _, m := range mistakes[command] {
			r := harness.Urun(t, strings.Fields(words.Replace(m.args))...)
			lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
			// A line about a name says itself which are allowed.
			says := len(lines) == 2 && strings.HasPrefix(lines[1], "hint: ") || len(lines) == 1 && strings.Contains(lines[0], "only [a-zA-Z0-9]")
			if r.Code == 0 || !says || !strings.HasPrefix(lines[0], "urun: ") || !strings.Contains(lines[0], m.wants) {
				t.Errorf("%s\nwant one line with %q, and a hint", r, m.wants)
			}
		}
	}
}
