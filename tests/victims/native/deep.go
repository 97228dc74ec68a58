// Goroutines that work in nested calls and produce garbage.
package main

var sink []int

// Small enough to be inlined.
func mixed(x, i int) int {
	return x*1103515245 + i
}

//go:noinline
func work(rounds int) int {
	x := 1
	for i := 0; i < rounds; i++ {
		x = mixed(x, i)
	}
	sink = make([]int, 100)
	return x
}

//go:noinline
func below(depth int) int {
	if depth == 0 {
		return work(100000)
	}
	return below(depth-1) + 1
}

func main() {
	for n := 0; n < 3; n++ {
		go func() {
			for {
				below(10)
			}
		}()
	}
	for {
		below(20)
	}
}
