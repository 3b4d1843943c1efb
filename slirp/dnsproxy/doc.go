// Package dnsproxy answers DNS queries from names that it is given, and hands all others to the resolvers of the host,
// message for message. It knows nothing of where queries come from: Answer takes a message and returns one.
//
// # Resolvers
//
// An Upstream asks the servers of a resolv.conf, which is read again when it changes, or a fixed list. It runs where
// these can be reached: in the host's network namespace, so that resolvers on the host's loopback work, and with them
// split DNS and VPNs.
//
// A server that is silent for hedgeAfter is not waited for: the next is asked as well, and the first answer that
// settles the question counts. A server that was silent is asked last for a while; from time to time one query
// goes to it too, to see whether it is back. One that refuses, fails or is not there is passed over at once. A
// truncated answer is asked for again over TCP.
//
// Queries share sockets (port.go): one is used for a short time and few queries, so that its number and the
// identifiers, which are random, stay hard to guess. Answers to other questions are ignored.
//
// A query that goes as nearly all do, one server asked that answers, has neither a goroutine nor a timer of its own. Where the
// program has an event loop, it can watch the sockets (Watcher); else a goroutine waits for each.
//
// An answer whose records live for a second or longer is given again to the same question for a second (cache.go), and not after resolv.conf has
// changed.
//
// # Bounds
//
// An Upstream has a limit of queries at once. Over it, queries are dropped and come again, as datagrams do; names
// that are known here are answered all the same.
package dnsproxy
