// Functions at known source lines, one of them inlined: even a stripped binary has this information.
package main

import "os"

var sink int

func mixed(x int) int {
	for i := 0; i < 50; i++ {
		x = x*1103515245 + 12345
	}
	return x
}

//go:noinline
func outer(rounds int) {
	for i := 0; i < rounds; i++ {
		sink += mixed(i)
	}
}

func main() {
	rounds := 1 << 40
	if len(os.Args) > 1 {
		rounds = 1000
	}
	outer(rounds)
}
