package main

import (
	"strings"

	"github.com/alecthomas/kong"
)

// examples has one for each command, by the command's path. Those of a group that
// are the same commands under second names have that of the first.
var examples = map[string]string{
	"run":     "urun run --rm -it -v $PWD:/work -w /work debian:12 bash",
	"create":  "urun create --name db -v data:/var/lib/postgresql/data postgres:16",
	"start":   "urun start db",
	"restart": "urun restart -t 30 web",
	"exec":    "urun exec -it web sh",
	"attach":  "urun attach --detach-keys ctrl-x web",
	"rename":  "urun rename web web-old",
	"ps":      "urun ps -a --filter status=exited --format 'table {{.Names}}\\t{{.Status}}'",
	"stop":    "urun stop -t 5 web",
	"kill":    "urun kill -s HUP web",
	"rm":      "urun rm -f -v web",
	"logs":    "urun logs -f --tail 20 web",
	"wait":    "urun wait job",
	"port":    "urun port web 80",
	"inspect": "urun inspect -f '{{.State.Status}} {{.State.ExitCode}}' web",
	"top":     "urun top web -o pid,rss,args",
	"stats":   "urun stats --no-stream web",
	"pause":   "urun pause web",
	"unpause": "urun unpause web",
	"update":  "urun update --memory 512m web",
	"cp":      "urun cp web:/var/log/nginx ./logs",
	"diff":    "urun diff web",
	"commit":  "urun commit -m 'with tools' -c 'CMD [\"bash\"]' web localhost/web:2",
	"export":  "urun export -o web.tar web",

	"container prune": "urun container prune --filter until=24h",

	"pull":          "urun pull debian:12",
	"images":        "urun images --filter reference='debian*'",
	"rmi":           "urun rmi debian:12",
	"tag":           "urun tag debian:12 localhost/base:1",
	"load":          "urun load -i image.tar",
	"save":          "urun save -o image.tar debian:12",
	"import":        "urun import -c 'CMD [\"sh\"]' rootfs.tar localhost/mine:1",
	"login":         "urun login -u alice registry.example.com",
	"logout":        "urun logout registry.example.com",
	"image inspect": "urun image inspect -f '{{.Config.Env}}' debian:12",
	"image prune":   "urun image prune -a",
	"image mount":   "urun image mount debian:12 ./mnt",
	"image umount":  "urun image umount ./mnt",
	"image verify":  "urun image verify --repair",
	"image tree":    "urun image tree debian:12 /etc",
	"image diff":    "urun image diff debian:11 debian:12",

	"network create":     "urun network create backend",
	"network ls":         "urun network ls",
	"network inspect":    "urun network inspect backend",
	"network rm":         "urun network rm backend",
	"network prune":      "urun network prune",
	"network connect":    "urun network connect --alias db backend web",
	"network disconnect": "urun network disconnect backend web",

	"volume create":  "urun volume create --label tier=db data",
	"volume ls":      "urun volume ls --filter dangling=true",
	"volume inspect": "urun volume inspect -f '{{.Mountpoint}}' data",
	"volume rm":      "urun volume rm data",
	"volume prune":   "urun volume prune -a",

	"system df":        "urun system df -v",
	"system prune":     "urun system prune -a --volumes --filter until=240h",
	"doctor":           "urun doctor",
	"events":           "urun events --since 1h --filter type=container",
	"info":             "urun info --format '{{.ContainersRunning}}'",
	"version":          "urun version --format '{{.Client.Version}}'",
	"completion":       "urun completion bash > ~/.local/share/bash-completion/completions/urun",
	"generate systemd": "urun generate systemd --new --files web",
	"generate man":     "urun generate man ./man1",
}

// secondNames are commands of a group by the names that they have on their own.
var secondNames = map[string]string{
	"container ls": "ps", "container inspect": "inspect", "image ls": "images", "image rm": "rmi",
}

// exampleOf is the example of a command, or "".
func exampleOf(path string) string {
	if e := examples[path]; e != "" {
		return e
	}
	if first := secondNames[path]; first != "" {
		return examples[first]
	}
	_, word, _ := strings.Cut(path, " ")
	return examples[word]
}

// addExamples puts the examples below the commands' help texts.
func addExamples(k *kong.Kong) error {
	return kong.Visit(k.Model.Node, func(node kong.Visitable, next kong.Next) error {
		if n, ok := node.(*kong.Node); ok && n.Type == kong.CommandNode {
			if e := exampleOf(commandPath(n)); e != "" && len(n.Children) == 0 {
				n.Detail = strings.TrimSpace(n.Detail + "\n\nExample:\n\n    " + e)
			}
		}
		return next(nil)
	})
}

// commandPath is a command with those that it is below, without urun.
func commandPath(n *kong.Node) string {
	var words []string
	for ; n != nil && n.Type == kong.CommandNode; n = n.Parent {
		words = append([]string{n.Name}, words...)
	}
	return strings.Join(words, " ")
}
