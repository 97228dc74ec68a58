// Recurses as deep as the first argument, without frame pointers.
#include <stdlib.h>

volatile unsigned long sink;

__attribute__((noinline)) static int burn(void) {
    unsigned long x = 1;
    for (int i = 0; i < 1000000; i++) x = x * 6364136223846793005UL + i;
    sink = x;
    return 1;
}

__attribute__((noinline)) static int descend(int depth) {
    int below = depth == 0 ? burn() : descend(depth - 1);
    // Used after the call, so that the compiler does not make a loop of the recursion.
    sink += below;
    return below + 1;
}

int main(int argc, char **argv) {
    int depth = argc > 1 ? atoi(argv[1]) : 0;
    for (;;) descend(depth);
}
