// Goes through Go's switches of stacks: systemstack (runtime.Callers), morestack (goroutines that grow), mcall (channels),
// and the vDSO on the scheduler's stack (time.Now).
package main

import (
	"runtime"
	"time"
)

var pcs [64]uintptr
var sink int
var clock time.Time

//go:noinline
func record() { sink += runtime.Callers(0, pcs[:]) }

//go:noinline
func readClock() { clock = time.Now() }

//go:noinline
func grow(depth int) int {
	var pad [512]byte
	if depth == 0 {
		return int(pad[depth&511])
	}
	return grow(depth-1) + int(pad[depth&511])
}

//go:noinline
func spawn() {
	for {
		c := make(chan int)
		go func() { c <- grow(60) }()
		<-c
	}
}

func main() {
	go spawn()
	for {
		for i := 0; i < 100; i++ {
			record()
			readClock()
		}
	}
}
