package monitor

// gcPercent is how much a monitor's heap may grow between collections, which cost
// next to nothing at its size.
const gcPercent = 25
