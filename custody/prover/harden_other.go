//go:build !linux

package prover

import "runtime/debug"

// Harden makes this process one that holds secrets. On this system that is a
// soft limit of memory (bytes, 0 = none) and short crash reports.
func Harden(memory int64) error {
	debug.SetTraceback("none")
	if memory > 0 {
		debug.SetMemoryLimit(memory + 256<<20)
	}
	return nil
}

func resetPeak() {}

// peakRSS is not known here.
func peakRSS() int64 { return 0 }
