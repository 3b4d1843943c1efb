// Package archtest holds the import rules of ARCHITECTURE.md in a test over go list. It needs the go command and the
// module's sources, so it runs as whoever builds, not as the users under test.
package archtest
