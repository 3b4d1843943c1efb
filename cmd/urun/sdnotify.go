package main

import (
	"net"
	"os"
	"strings"
)

// notifyReady tells the service manager that the container's command runs, if this
// process is a service of Type=notify (sd_notify(3)).
func (a *App) notifyReady() {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte("READY=1"))
		conn.Close()
	}
	if err != nil {
		a.Log.Warn("tell the service manager", "error", err)
	}
}
