// Package jsonlog is a container's log on disk: docker's json-file format, one
// object a line, rotated by size.
//
// The newest lines are in the file itself, older ones in FILE.1, FILE.2 and so on.
// One process writes (the container's monitor); any number read, and find their
// way through rotations by the files' inodes. A line is appended by one write(2)
// and taken back when that fails half way, so that a full disk leaves no half line;
// what a crash of the machine tore is cut off at the next opening, and skipped by
// readers.
package jsonlog
