// Package integration tests the built binary from outside, as the user that runs the tests.
package integration

import (
	"os"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
