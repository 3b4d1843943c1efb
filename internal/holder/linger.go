package holder

import (
	"os"
	"time"

	"github.com/urun-dev/urun/internal/batch"
)

// DefaultLinger is how long a holder stays after its last container where
// nobody says otherwise.
const DefaultLinger = 5 * time.Minute

// Linger is the time for this process: none in a batch job, which has to end
// when its commands do.
func Linger() time.Duration {
	if _, ok := batch.Of(os.Getenv); ok {
		return 0
	}
	return DefaultLinger
}
