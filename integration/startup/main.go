// Startup times a program from start to end, as a whole process, and fails if even the fastest run is over a limit:
// other load only ever adds to a time.
//
//	startup [-n RUNS] [-limit DURATION] PROGRAM [ARG...]
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"
)

func main() {
	n := flag.Int("n", 21, "how many `runs`")
	limit := flag.Duration("limit", 0, "the longest that the fastest run may take (0: any)")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: startup [-n RUNS] [-limit DURATION] PROGRAM [ARG...]")
		os.Exit(2)
	}
	var times []time.Duration
	for range *n {
		start := time.Now()
		if err := exec.Command(flag.Arg(0), flag.Args()[1:]...).Run(); err != nil {
			fmt.Fprintf(os.Stderr, "startup: %v\n", err)
			os.Exit(1)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	median := times[len(times)/2]
	fmt.Printf("%v: min %v, median %v, max %v\n", flag.Args(), times[0], median, times[len(times)-1])
	if *limit > 0 && times[0] > *limit {
		fmt.Fprintf(os.Stderr, "startup: the fastest is over %v\n", *limit)
		os.Exit(1)
	}
}
