package slirp

const lockedArg = "__locked"

func locked() int { return 0 }
