package benchkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRewrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	const doc = "# A\n\n<!-- made by `make bench-x`: begin -->\n\nold\n\n<!-- made by `make bench-x`: end -->\n\nrest\n"
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it can be done again
		if err := Rewrite(file, "bench-x", "\nnew\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if want := "# A\n\n<!-- made by `make bench-x`: begin -->\n\nnew\n\n<!-- made by `make bench-x`: end -->\n\nrest\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if err := Rewrite(file, "bench-y", "new"); err == nil {
		t.Error("a section that is not there was rewritten")
	}
}

func TestMedian(t *testing.T) {
	v := []time.Duration{5, 1, 9}
	if m := Median(v); m != 5 || v[0] != 5 {
		t.Errorf("%v of %v", m, v)
	}
	if m := Median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Error(m)
	}
	if m := Median[float64](nil); m != 0 {
		t.Error(m)
	}
}
