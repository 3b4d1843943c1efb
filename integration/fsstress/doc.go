// Package fsstress has programs that are made to find faults in file systems use the root of a container: fio, stress-ng,
// git; thousands of open files; and use that goes on and on, which must not make the servers grow. It takes minutes, so it
// runs only by make fs-stress, with both kinds of storage.
package fsstress
