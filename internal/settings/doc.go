// Package settings reads the configuration files: the administrator's,
// /etc/urun/config.toml, and the user's, $XDG_CONFIG_HOME/urun/config.toml.
//
// The user's file goes before the administrator's, but for lists: these are added
// up. A key that is not known, a value of the wrong type and a file that cannot be
// read are errors that name the file and, where there is one, the line; a file that is not there is none.
//
// It runs in commands, which give flags precedence over what it says.
package settings
