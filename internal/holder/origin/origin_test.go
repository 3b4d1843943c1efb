package origin_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/urun-dev/urun/internal/holder/origin"
)

func TestTheLimitIsTheOneFromBeforePackageOs(t *testing.T) {
	if os.Getenv("ORIGIN_TEST") != "" {
		soft, _ := origin.Files()
		fmt.Printf("soft=%d\n", soft)
		return
	}
	cmd := exec.Command("sh", "-c", `ulimit -Sn 321 && exec "$0" -test.run=TestTheLimit`, os.Args[0])
	cmd.Env = append(os.Environ(), "ORIGIN_TEST=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "soft=321\n") {
		t.Fatalf("%v: %s", err, out)
	}
}
