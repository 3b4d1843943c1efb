// Package events keeps what happened to a user's containers, images and volumes:
// a log that every urun process appends to and that urun events reads.
//
//	events/log      an Event a line, in the form of docker's API
//	events/log.1    the part before, once log has grown to its limit
//	events/lock     held while a line is written
//
// An event tells of something that is done; it is never what makes it so. A log
// that cannot be written (a full disk, a store of somebody else) loses events and
// stops nobody. A line is written whole or not at all.
package events
